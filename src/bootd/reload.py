"""Reloading: a whole new registry is built and checked off to the side, then one reference swaps.

On any fault the old registry serves on and every fault is logged with its place. Requests that
arrive while a reload runs are answered by one more reload, however many they are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from bootd import metrics
from bootd.model import ConfigError, DhcpMode, Settings
from bootd.notify import Notifier
from bootd.registry import Changes, Current, Registry, difference
from bootd.text import fold

log = structlog.get_logger()

MAX_LOGGED: Final = 200
"""Faults logged one by one; an editor's slip can make one per node."""

_FIXED: Final = (
    "state_dir",
    "run_dir",
    "dhcp.mode",
    "dhcp.port",
    "dhcp.pxe_port",
    "tftp.enabled",
    "tftp.port",
    "http.port",
    "http.tls",
    "log.format",
)
"""Settings that are open sockets, folders in use and the like: a reload does not change them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a reload ended. `faults` is empty where the new registry serves."""

    generation: int
    faults: tuple[str, ...] = ()
    changes: Changes | None = None
    restart: tuple[str, ...] = ()
    """Settings that changed in the file, but need a restart to take effect."""
    seconds: float = 0.0

    def describe(self) -> dict[str, Any]:
        """For the control socket: plain values."""
        answer: dict[str, Any] = {
            "ok": not self.faults,
            "generation": self.generation,
            "seconds": round(self.seconds, 3),
            "faults": list(self.faults),
            "restart": list(self.restart),
        }
        if self.changes is not None:
            answer["changes"] = {
                key: list(getattr(self.changes, key))
                for key in ("added", "removed", "changed", "reboot")
            }
        return answer


def pin(old: Settings, new: Settings) -> tuple[Settings, tuple[str, ...]]:
    """`new` with the values of `old` wherever only a restart can change them, and their names.

    Answers name ports: they must be those that are really open.
    """
    names: list[str] = []
    for name in _FIXED:
        section, _, key = name.rpartition(".")
        before = getattr(old, section) if section else old
        after = getattr(new, section) if section else new
        value = getattr(before, key)
        if getattr(after, key) == value or _live(name, value, getattr(after, key)):
            continue
        names.append(name)
        pinned = {section: replace(after, **{key: value})} if section else {key: value}
        new = replace(new, **pinned)
    return new, tuple(names)


def _live(name: str, old: object, new: object) -> bool:
    """Between two modes that both listen, DHCP changes at once."""
    return name == "dhcp.mode" and DhcpMode.OFF not in (old, new)


class Reloader:
    """Owns reloading. `load` builds a registry of a given generation (called in a worker thread,
    may raise `ConfigError`); `swapped(old, new)` is called right after each swap."""

    def __init__(
        self,
        *,
        current: Current,
        load: Callable[[int], Registry],
        notifier: Notifier,
        swapped: Callable[[Registry, Registry], None],
        status: Callable[[], str],
    ) -> None:
        self._current = current
        self._load = load
        self._notifier = notifier
        self._swapped = swapped
        self._status = status
        self._wanted = asyncio.Event()
        self._waiting: list[asyncio.Future[Outcome]] = []
        self.last: Outcome | None = None

    def request(self) -> None:
        """Ask for a reload (SIGHUP). Any number of requests before it begins make one reload."""
        self._wanted.set()

    async def reload(self) -> Outcome:
        """Ask for a reload and wait for the outcome of one that began after this call."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._wanted.set()
        return await future

    async def run(self) -> None:
        """Reload whenever asked, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            waiting, self._waiting = self._waiting, []
            self._notifier.reloading(time.monotonic())
            self.last = await self._once()
            self._notifier.ready(self._status())
            for future in waiting:
                if not future.done():
                    future.set_result(self.last)

    async def _once(self) -> Outcome:
        started = time.monotonic()
        old = self._current.registry
        try:
            new, restart = await asyncio.to_thread(self._build, old)
        except ConfigError as error:
            outcome = Outcome(old.generation, error.faults)
        except Exception as error:
            # Our own fault, or a file that broke a library: the old registry serves on.
            metrics.EXCEPTIONS.labels("reload").inc()
            log.exception("registry.load-failed")
            outcome = Outcome(old.generation, (f"bootd could not load its files: {error!r}",))
        else:
            self._current.swap(new)
            self._swapped(old, new)
            changes = await asyncio.to_thread(difference, old, new)
            outcome = Outcome(new.generation, changes=changes, restart=restart)
        outcome = replace(outcome, seconds=time.monotonic() - started)
        metrics.RELOADS.labels("rejected" if outcome.faults else "loaded").inc()
        await asyncio.to_thread(self._report, outcome)
        return outcome

    def _build(self, old: Registry) -> tuple[Registry, tuple[str, ...]]:
        """In a worker thread: the new registry, as this process can serve it without a restart."""
        new = self._load(old.generation + 1)
        settings, restart = pin(old.settings, new.settings)
        return (replace(new, settings=settings) if restart else new), restart

    def _report(self, outcome: Outcome) -> None:
        """In a worker thread: folding ten thousand names takes a while."""
        if outcome.faults:
            for fault in outcome.faults[:MAX_LOGGED]:
                log.error("registry.rejected", fault=fault, kept=outcome.generation)
            if len(outcome.faults) > MAX_LOGGED:
                log.error("registry.rejected", more_faults=len(outcome.faults) - MAX_LOGGED)
            return
        changes = outcome.changes
        named = {
            key: fold(names)
            for key in ("added", "removed", "changed", "reboot")
            if changes is not None and (names := getattr(changes, key))
        }
        log.info(
            "registry.loaded",
            generation=outcome.generation,
            seconds=round(outcome.seconds, 3),
            **named,
        )
        if outcome.restart:
            log.warning("registry.restart-needed", settings=" ".join(outcome.restart))
