"""The deadlines of all transfers on one timer of the event loop.

A transfer that gets on moves its deadline with every window. A timer of the loop for each (3 us to
set) would cost a quarter of the whole at 256 clients; here a deadline is a place in a dict.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

PERIOD: Final = 0.002
"""Seconds between two looks: how late a deadline may be noticed."""
_LONG_PAUSE: Final = 1000
"""Periods that were missed because the process stood still."""


class Timed(Protocol):
    """Who has a deadline."""

    due: int
    """For `Timers` only; 0 at first."""

    def ring(self) -> None:
        """The deadline has passed. Raises nothing."""


class Timers:
    """`now` reads the clock in seconds. For one event loop's thread."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._due: dict[int, dict[Timed, None]] = {}
        self._seen = 0
        self._handle: asyncio.TimerHandle | None = None

    def set(self, timed: Timed, when: float) -> None:
        """Ring at `when`, seconds of the clock, or up to a `PERIOD` later; not at an earlier set
        time any more."""
        self.cancel(timed)
        if self._handle is None:
            self._seen = int(self._now() / PERIOD)
            self._again()
        timed.due = due = max(int(when / PERIOD) + 1, self._seen + 1)
        self._due.setdefault(due, {})[timed] = None

    def cancel(self, timed: Timed) -> None:
        """Do not ring."""
        if timed.due:
            place = self._due[timed.due]
            del place[timed]
            if not place:
                del self._due[timed.due]
            timed.due = 0

    def turn(self) -> None:
        """Ring whoever is due."""
        seen = int(self._now() / PERIOD)
        past = range(self._seen + 1, seen + 1)
        for due in past if len(past) < _LONG_PAUSE else sorted(self._due):
            if due > seen:
                break
            place = self._due.get(due)
            while place:
                timed = next(iter(place))
                self.cancel(timed)
                timed.ring()
        self._seen = seen
        if self._due:
            self._again()
        else:
            self._handle = None

    def _again(self) -> None:
        self._handle = asyncio.get_running_loop().call_later(PERIOD, self.turn)
