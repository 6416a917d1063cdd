"""What the daemon does for its own health, apart from serving."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from bootd import health


@pytest.fixture
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


class Ring:
    """Garbage that no reference count frees."""

    def __init__(self) -> None:
        self.itself = self


async def test_garbage_is_collected_when_the_process_is_idle(thresholds: None) -> None:
    async with asyncio.TaskGroup() as group:
        tidying = group.create_task(health.tidy(0.05))
        await asyncio.sleep(0)
        assert gc.get_threshold() == health.GC_THRESHOLDS

        freed = asyncio.Event()
        weakref.finalize(Ring(), freed.set)
        await freed.wait()
        tidying.cancel()
