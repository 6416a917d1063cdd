"""Boots on disk: what `bootd status` and `bootd timeline` know after a restart.

``boots.jsonl`` in `state_dir` has one boot a line, everyone's latest first. It is written whole, to
a temporary file and renamed, some seconds after something changed; so a process that is killed in
the middle of a storm costs those seconds, and tokens bring back what boots they were.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Final

import structlog

from bootd import metrics
from bootd.boots import record
from bootd.boots.timeline import Boot, Boots
from bootd.model import Image, Mac
from bootd.state import write_atomic

log = structlog.get_logger()

FILE: Final = "boots.jsonl"
MAX_BOOTS: Final = 20_000
"""Boots that are written; the oldest ones of those who booted often are left out."""
MAX_BYTES: Final = 256 * 1024 * 1024
"""Bytes of a file that is read at the start."""
PERIOD: Final = 2.0
"""Seconds between two looks whether something changed, at least."""
SHARE: Final = 200
"""A look that takes a second is taken once in so many: half a hundredth of one core."""
LONGEST: Final = 15.0
"""Seconds between two looks, at most: in a storm a look takes long, because all else goes on."""
SLICE: Final = 20
"""Boots put into words in one turn of the event loop: about a millisecond."""
MARKS: Final = 500
"""Boots looked at in one turn."""
COARSE: Final = 3600.0
"""Seconds after which it is written down that a running node was heard again, and nothing else: it
asks within a minute of a restart, and then that is known."""

_Mark = tuple[object, ...]


class History:
    """Keeps `boots` in the file of `state_dir`."""

    def __init__(self, boots: Boots, state_dir: str) -> None:
        self._boots = boots
        self._path = Path(state_dir, FILE)
        self._lines: dict[str, tuple[_Mark, bytes]] = {}

    async def load(self, names: Callable[[Mac], str | None]) -> None:
        """Take over what an earlier process kept; `names` tells which node a MAC address is now. A
        damaged line costs its boot, a file that cannot be read all of them, neither the start."""
        try:
            found, damaged = await asyncio.to_thread(read, self._path, self._boots.offset)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("state.read-failed", file=str(self._path), error=error.strerror)
            return
        if damaged:
            log.warning("state.damaged", file=str(self._path), lines=damaged)
        self._boots.restore(found)
        self._boots.rename(names)

    async def run(self) -> None:
        """Write what changed, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await self.save()
            await asyncio.sleep(min(max(PERIOD, SHARE * (loop.time() - began)), LONGEST))

    async def save(self) -> None:
        """Write the file, where anything is different from what it says."""
        old, new = self._lines, dict[str, tuple[_Mark, bytes]]()
        changed = 0
        for boot in islice(self._boots.kept(), MAX_BOOTS):
            mark = _mark(boot)
            had = old.get(boot.id)
            if had is None or had[0] != mark:
                changed += 1
                had = (mark, self._line(boot))
                if changed % SLICE == 0:
                    await asyncio.sleep(0)
            new[boot.id] = had
            if len(new) % MARKS == 0:
                await asyncio.sleep(0)
        if not changed and len(new) == len(old):
            return
        try:
            lines = (line for _, line in new.values())
            await asyncio.to_thread(write_atomic, self._path, lines)
        except OSError as error:
            log.error("state.write-failed", file=str(self._path), error=error.strerror)
        else:
            self._lines = new

    def _line(self, boot: Boot) -> bytes:
        """The boot's line; none where it cannot be written: one boot less, not one daemon less."""
        try:
            return record.dump(boot, self._boots.offset) + b"\n"
        except Exception:
            metrics.EXCEPTIONS.labels("history").inc()
            log.exception("history.fault", node=boot.node, mac=boot.mac, boot=boot.id)
            return b""


def _mark(boot: Boot) -> _Mark:
    """What is different whenever a line of this boot would be."""
    seen, refresh = boot.seen, boot.refresh
    told: tuple[object, ...] = ()
    if boot.outcome == "up":  # a running node asks every minute: that it did so again can wait
        seen //= COARSE
    if refresh is not None:
        told = (refresh.at // COARSE, refresh.result, refresh.digest, refresh.error)
    ended = [step.ended for step in boot.steps[-4:]]
    return seen, boot.outcome, boot.stale, told, boot.node, len(boot.steps), *ended


def read(path: Path, offset: float) -> tuple[list[Boot], int]:
    """The boots of a file and how many lines were none, for `offset` (`record.parse`). In a thread.
    Raises `OSError`."""
    boots: list[Boot] = []
    images: dict[tuple[str, str, str | None], list[Image]] = {}
    damaged = 0
    with path.open("rb") as file:
        for line in _lines(file, MAX_BYTES):
            try:
                boots.append(record.parse(line, offset, lambda image: _shared(images, image)))
            except record.RecordError:
                damaged += 1
    return boots, damaged


def _lines(file: Iterable[bytes], limit: int) -> Iterable[bytes]:
    for line in file:
        limit -= len(line)
        if limit < 0:
            return
        yield line


def _shared(images: dict[tuple[str, str, str | None], list[Image]], image: Image) -> Image:
    """An equal image that was met before, or this one."""
    known = images.setdefault((image.name, image.generation, image.kernel_version), [])
    for other in known:
        if other == image:
            return other
    known.append(image)
    return image
