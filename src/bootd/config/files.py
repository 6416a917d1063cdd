"""Reading the operator's files: whole, settled, and never waiting for one that is no file.

A path may have become a folder, a FIFO (which blocks whoever opens it), a symlink to itself, a
device without end or a 2 GiB dump; each is an error with a sentence (SECURITY.md R2).
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from glob import glob
from pathlib import Path
from typing import Final

from bootd.config.source import MAX_BYTES

_PAUSE: Final = 0.05
"""Seconds between two looks at a file that is being written."""
_LOOKS: Final = 20
"""Looks before a file that changes all the time is refused: a second, unless each read is long."""


class Unreadable(Exception):
    """The file cannot be read; the message says why and ends without a period."""


class Missing(Unreadable):
    """There is no file of that name."""


def read(path: str, pause: Callable[[float], None] = time.sleep) -> bytes:
    """The bytes of a regular file of at most `MAX_BYTES`, as they stand when nobody is writing.

    An editor or copy that writes in place leaves the file short for a moment, and half of a YAML
    file is often a valid one. So a file is read again if it changed meanwhile, or if it does not
    end with a line end and changes soon after. `pause` waits for some seconds (nobody loads files
    in the event loop). Raises `Unreadable`.
    """
    for _ in range(_LOOKS):
        data, before = _read_once(path)
        if not data.endswith(b"\n"):
            pause(_PAUSE)
        if _identity(path) == before:
            return data
        pause(_PAUSE)
    raise Unreadable("the file does not stop changing")


def _read_once(path: str) -> tuple[bytes, tuple[int, ...]]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError as error:
        raise Missing(_reason(error)) from None
    except OSError as error:
        raise Unreadable(_reason(error)) from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable(f"{_kind(status.st_mode)}, not a file")
        data = bytearray()
        while len(data) <= MAX_BYTES:
            piece = os.read(fd, min(1 << 20, MAX_BYTES + 1 - len(data)))
            if not piece:
                return bytes(data), _signature(status)
            data += piece
    except OSError as error:
        raise Unreadable(_reason(error)) from None
    finally:
        os.close(fd)
    raise Unreadable(f"the file is longer than {MAX_BYTES} bytes")


def _identity(path: str) -> tuple[int, ...]:
    try:
        return _signature(Path(path).stat())
    except OSError:
        return ()  # gone, or about to be renamed into place: look again


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something special")


def find(pattern: str) -> list[str]:
    """The files that one entry of ``nodes:`` names, sorted; a name without ``*?[`` is one file,
    whether it is there or not. Hidden files (editors' backups) match no pattern."""
    if not any(character in pattern for character in "*?["):
        return [pattern]
    return sorted(glob(pattern))  # noqa: PTH207 # Path.glob takes no absolute pattern


def display(path: str, folder: str) -> str:
    """`path` as messages call it: relative to the folder of bootd.yaml where it is below it."""
    inside = path.startswith(folder.rstrip("/") + "/")
    return path[len(folder.rstrip("/")) + 1 :] if inside else path
