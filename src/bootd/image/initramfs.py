"""What an initramfs can do, told by the names in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

from bootd.image.disk import ImageInputError
from bootd.image.streams import Readable, Stream

_MAX_READ: Final = 1 << 30
"""Bytes that are unpacked to look; past it nothing more is found."""
_MAX_NAME: Final = 4096
_MARKS: Final = {
    "sbin/livenetroot": "livenet",
    "usr/sbin/livenetroot": "livenet",
    "usr/bin/livenetroot": "livenet",
    "bin/live-boot": "live-boot",
    "usr/bin/live-boot": "live-boot",
    "scripts/live": "live-boot",
    "warewulf": "warewulf",
    "usr/bin/wwgetfiles": "warewulf",
    "usr/lib/dracut/hooks/pre-mount/30-load-wwinit.sh": "warewulf",
    "var/lib/dracut/hooks/pre-mount/30-load-wwinit.sh": "warewulf",
}
"""A path that only one kind has, to the kind."""


def features(file: BinaryIO) -> tuple[str, ...]:
    """Which of ``livenet``, ``live-boot`` and ``warewulf`` an initramfs was built with.

    What cannot be read (lz4, damage) has none that we know of.
    """
    found = set()
    try:
        for name in names(file):
            mark = _MARKS.get(name.removeprefix("./"))
            if mark:
                found.add(mark)
    except (ImageInputError, OSError, ValueError):
        pass
    return tuple(sorted(found))


def names(file: BinaryIO) -> Iterator[str]:
    """The paths in an initramfs: newc archives one after the other, each compressed or not, as the
    kernel takes them. Raises `ValueError` at what is none, `ImageInputError` at damage."""
    budget = _Budget(_MAX_READ)
    while True:
        start = file.tell()
        head = file.read(6)
        while head and not head.strip(b"\0"):  # padding between archives
            start += len(head)
            head = file.read(6)
        if not head:
            return
        stripped = head.lstrip(b"\0")
        start += len(head) - len(stripped)
        file.seek(start)
        if stripped.startswith(b"07070") or b"07070".startswith(stripped):
            yield from _archive(file, budget)
            continue
        # A compressed archive is the last: where it ends only its decompressor knows.
        stream = Stream(file, "initramfs")
        yield from _archive(stream, budget)
        return


class _Budget:
    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, stream: Readable, size: int) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise ValueError("larger than is worth a look")
        return stream.read(size)

    def skip(self, stream: Readable, size: int) -> None:
        self.left -= size
        while size > 0 and self.left >= 0 and (data := stream.read(min(size, 1 << 18))):
            size -= len(data)


def _archive(stream: Readable, budget: _Budget) -> Iterator[str]:
    """The paths of one archive, to its trailer."""
    while True:
        head = budget.read(stream, 110)
        if not head.strip(b"\0"):
            return
        if len(head) < 110 or head[:6] not in (b"070701", b"070702"):
            raise ValueError("no newc archive")
        size = int(head[54:62], 16)
        length = int(head[94:102], 16)
        if not 0 < length <= _MAX_NAME:
            raise ValueError("a name of no length")
        name = budget.read(stream, length)[:-1]
        budget.skip(stream, -(110 + length) % 4)
        budget.skip(stream, size + -size % 4)
        if name == b"TRAILER!!!":
            return
        yield name.decode(errors="surrogateescape")
