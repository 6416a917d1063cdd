"""How much of an archive is taken: bytes and files, room on the disk, and what headers may hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from bootd.image.disk import ImageInputError
from bootd.image.streams import Readable

_CHECK_EACH: Final = 64 << 20
_MAX_HEADERS: Final = 4 << 20
"""Bytes of headers for one file: pax headers, long names, the map of a sparse file."""


@dataclass(slots=True)
class Limits:
    """What may still be unpacked, counted down: bytes as they are unpacked, and files.

    `spare` bytes stay free on the disk: the daemon and others write there too.
    """

    size: int
    files: int = 20_000_000
    spare: int = 512 << 20
    _unchecked: int = 1 << 62

    def take(self, name: str, size: int) -> None:
        """Raises `ImageInputError` where it is too much."""
        self.size -= size
        self.files -= 1
        if self.size < 0:
            raise ImageInputError(
                f"{name}: unpacks to more than is allowed: raise --max-size, or "
                "`images: {max_size: …}` in bootd.yaml, where it is no bomb"
            )
        if self.files < 0:
            raise ImageInputError(f"{name}: holds more files than any image does")

    def check_disk(self, name: str, folder: int, size: int) -> None:
        """Raises `ImageInputError` where the disk would be full with `size` bytes more."""
        self._unchecked += size
        if self._unchecked < _CHECK_EACH:
            return
        self._unchecked = 0
        found = os.fstatvfs(folder)
        free = found.f_bavail * found.f_frsize
        if free - size < self.spare:
            raise ImageInputError(
                f"{name}: does not fit: {free >> 20} MiB are free, and {self.spare >> 20} MiB must "
                "stay so; make room with `bootd image gc`"
            )


class Metered:
    """A stream that refuses headers without end, which tarfile would hold in memory: a sparse
    file's map may go on for as long as the archive does."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._left: int | None = _MAX_HEADERS  # tarfile reads the first header when it opens

    @contextmanager
    def header(self) -> Iterator[None]:
        """What is read meanwhile is the headers of one file."""
        self._left = _MAX_HEADERS
        yield
        self._left = None

    def read(self, size: int) -> bytes:
        """As the stream's. Raises `ImageInputError`."""
        data = self._stream.read(size)
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise ImageInputError(
                    f"headers of more than {_MAX_HEADERS >> 20} MiB for one file: no archive "
                    "needs that"
                )
        return data
