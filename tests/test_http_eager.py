"""Coroutines that are begun at once, and finished in a task where they have to wait."""

from __future__ import annotations

import asyncio

import pytest

from bootd.http.eager import Begun


async def test_what_needs_not_wait_is_done_at_once() -> None:
    async def nothing() -> int:
        return 7

    begun = Begun(nothing())

    assert begun.done
    assert begun.result == 7
    assert await begun == 7


async def test_what_waits_goes_on_where_it_was_when_it_is_awaited() -> None:
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()
    seen: list[str] = []

    async def waits() -> str:
        seen.append("begun")
        seen.append(await first)
        seen.append(await second)
        return "end"

    begun = Begun(waits())
    assert (begun.done, seen) == (False, ["begun"])
    first.set_result("one")
    loop.call_soon(second.set_result, "two")

    assert await begun == "end"
    assert seen == ["begun", "one", "two"]


async def test_what_is_raised_is_raised() -> None:
    async def fails() -> None:
        raise KeyError("at once")

    async def fails_later(waits_for: asyncio.Future[None]) -> None:
        try:
            await waits_for
        except OSError as error:
            raise KeyError("later") from error

    with pytest.raises(KeyError, match="at once"):
        Begun(fails())
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    begun = Begun(fails_later(future))
    future.set_exception(OSError())
    with pytest.raises(KeyError, match="later"):
        await begun


async def test_a_task_that_is_cancelled_cancels_what_it_waits_for() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    ended: list[str] = []

    async def waits() -> None:
        try:
            await future
        finally:
            ended.append("cleaned up")

    begun = Begun(waits())
    async with asyncio.TaskGroup() as group:

        async def go_on() -> None:
            await begun

        task = group.create_task(go_on())
        await asyncio.sleep(0)
        task.cancel()

    assert ended == ["cleaned up"]
    assert future.cancelled()
