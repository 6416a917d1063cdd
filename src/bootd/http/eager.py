"""Coroutines that are run at once, as far as they go without waiting.

Most requests are answered from memory: a task, and a turn of the event loop before it begins, would
cost as much as the answer. (Python 3.12 has eager tasks for that.)
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Begun(Generic[T]):
    """`coroutine`, begun. Where it is `done`, its `result` is there; else it is to be awaited, once
    and in a task. What it does before it first waits must not need a task (`asyncio.timeout` does).
    Raises what the coroutine raises.
    """

    __slots__ = ("_coroutine", "_waits_for", "done", "result")

    result: T

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self.done = False
        try:
            self._waits_for = coroutine.send(None)
        except StopIteration as end:
            self.done = True
            self.result = end.value

    def __await__(self) -> Generator[Any, Any, T]:
        """Go on, to the end."""
        if self.done:
            return self.result
        waits_for = self._waits_for
        try:
            while True:
                try:
                    value = yield waits_for
                except BaseException as error:
                    waits_for = self._coroutine.throw(error)
                else:
                    waits_for = self._coroutine.send(value)
        except StopIteration as end:
            result: T = end.value
            return result
