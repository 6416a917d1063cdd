"""The loop's own health: how late it is, what escaped into it, and the watchdog against hangs."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any, Final

import structlog

from bootd import metrics
from bootd.notify import Notifier

log = structlog.get_logger()

LAG_PERIOD: Final = 0.5
"""Seconds between two measurements of the loop's lag."""
LAG_LOGGED: Final = 1.0
"""Seconds of lag that are worth a line: DHCP clients retry after about that long."""

GC_THRESHOLDS: Final = (2000, 5, 2000)
"""The garbage collector's: so many new objects, so many collections of new ones, of younger ones.

With Python's own (700, 10, 10) it walks all objects that live, several times while a storm of boots
makes new ones: 30 to 80 ms at 10,000 nodes, in which nobody is answered. Boots are no garbage, and
what is freed by its reference count needs no collector."""
TIDY_PERIOD: Final = 30.0
_IDLE: Final = 0.02
"""The share of a processor below which the process is idle."""


class ExceptionHandler:
    """asyncio's last resort, at most `limit` lines in `period` seconds.

    Out of descriptors, asyncio reports each of a whole backlog of accepts per turn
    (SECURITY.md C4); the log must survive that. What was left out is counted and told.
    """

    def __init__(self, clock: Callable[[], float], limit: int = 5, period: float = 10.0) -> None:
        self._clock = clock
        self._limit = limit
        self._period = period
        self._since = clock()
        self._seen = 0

    def __call__(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Called by the loop with what nobody caught."""
        metrics.EXCEPTIONS.labels("loop").inc()
        now = self._clock()
        if now - self._since >= self._period:
            if self._seen > self._limit:
                log.error("loop.exceptions-suppressed", count=self._seen - self._limit)
            self._since, self._seen = now, 0
        self._seen += 1
        if self._seen <= self._limit:
            error = context.get("exception")
            log.error("loop.exception", message=context.get("message"), exc_info=error)


async def measure_lag() -> None:
    """Keep the lag metric: how late a timer of `LAG_PERIOD` fires."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_PERIOD
        await asyncio.sleep(LAG_PERIOD)
        lag = max(loop.time() - due, 0.0)
        metrics.LOOP_LAG.set(lag)
        if lag >= LAG_LOGGED:
            log.warning("loop.lag", seconds=round(lag, 3))


async def tidy(period: float = TIDY_PERIOD) -> None:
    """Keep the garbage collector out of the way of those who wait, and collect what it left when
    the process was idle for `period` seconds, once after each time that it was busy."""
    gc.set_threshold(*GC_THRESHOLDS)
    busy, spent = True, time.process_time()
    while True:
        await asyncio.sleep(period)
        now = time.process_time()
        if now - spent > _IDLE * period:
            busy = True
        elif busy:
            busy = False
            gc.collect()
        spent = time.process_time()


async def feed_watchdog(notifier: Notifier, healthy: Callable[[], bool]) -> None:
    """Ping systemd's watchdog at half its limit while `healthy`; without a limit, return.

    A loop that hangs cannot ping; that is the test of the loop itself.
    """
    if notifier.watchdog is None:
        return
    while True:
        if healthy():
            notifier.alive()
        await asyncio.sleep(notifier.watchdog / 2)
