"""The keys that sign boot tokens: ``state_dir/keys/*.key``, exchanged from time to time.

A key's age is its file's. Each week a new one is made, which every daemon with this folder (a
restarted one, a replica that has it copied or mounted) finds within a minute, and which signs only
after ten: by then the others know it. The one before it is taken away when no token of its can be
good any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import structlog

from bootd.model import StartError
from bootd.state import KEY_BYTES, write_atomic

log = structlog.get_logger()

EVERY: Final = 7 * 86400.0
"""Seconds after which a new key is made."""
SETTLE: Final = 600.0
"""Seconds that a new key is only accepted, before it signs."""
KEEP: Final = 2 * 86400.0
"""Seconds that a key is accepted after the next one began to sign: twice the longest
``security.boot_window``."""
LOOK: Final = 60.0
"""Seconds between looks at the folder."""


class TokenKeys:
    """Reads and makes files in `run` and `__init__` (there: in a thread). `wall` is the clock, in
    seconds since 1970. Raises `StartError` where there is no key and none can be made."""

    def __init__(self, state_dir: str, wall: Callable[[], float]) -> None:
        self._folder = Path(state_dir, "keys")
        self._wall = wall
        try:
            self.current = self._refreshed()
        except OSError as error:
            raise StartError(f"{self._folder}: the keys for boot tokens: {error}") from error

    current: list[bytes]
    """The key that signs first, then the others that are accepted. Changed in place."""

    async def run(self) -> None:
        """Exchange keys, and take what others with this folder have made, until cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            try:
                found = await asyncio.to_thread(self._refreshed)
            except OSError as error:
                log.error("keys.not-exchanged", folder=str(self._folder), reason=str(error))
                continue
            if found[0] != self.current[0]:
                log.info("keys.exchanged", accepted=len(found))
            self.current[:] = found

    def _refreshed(self) -> list[bytes]:
        now = self._wall()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = _files(self._folder)
        if not files or now - files[0][0] > EVERY:
            self._make(now)
            files = _files(self._folder)
        for (newer, _), (_, old) in pairwise(files):
            if now - newer > SETTLE + KEEP:
                with contextlib.suppress(FileNotFoundError):  # another daemon was quicker
                    old.unlink()
        return _in_order(_read(_files(self._folder)), now)

    def _make(self, now: float) -> None:
        name = self._folder / f"{secrets.token_hex(4)}.key"
        write_atomic(name, secrets.token_bytes(KEY_BYTES))
        os.utime(name, (now, now))  # its age is counted by this clock


def _files(folder: Path) -> list[tuple[float, Path]]:
    """The keys' files with their times, the newest first. What is too short to be one is none."""
    found = []
    for file in folder.glob("*.key"):
        with contextlib.suppress(FileNotFoundError):
            status = file.stat()
            if status.st_size >= KEY_BYTES:
                found.append((status.st_mtime, file))
    return sorted(found, reverse=True)


def _read(files: Sequence[tuple[float, Path]]) -> list[tuple[float, bytes]]:
    return [(made, file.read_bytes()) for made, file in files]


def _in_order(keys: Sequence[tuple[float, bytes]], now: float) -> list[bytes]:
    """The one that signs first: the newest that all have had time to see, or else the oldest, which
    all others have."""
    settled = [key for made, key in keys if now - made >= SETTLE]
    signing = settled[0] if settled else keys[-1][1]
    return [signing, *(key for _, key in keys if key != signing)]
