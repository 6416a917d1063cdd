"""What is on the server's disk below one overlay's folder: lstat of everything, reads of little.

Nothing is followed and nothing is waited for: a symlink in a tree is a symlink on the node, a FIFO
is a fault.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOTFS: Final = "rootfs"
RULES: Final = "overlay.yaml"
MAX_ENTRIES: Final = 20_000
"""Paths that one overlay may have."""
MAX_DEPTH: Final = 64
IGNORED: Final = frozenset((".gitkeep", ".gitignore"))
"""Files that only keep a folder in version control."""


@dataclass(frozen=True, slots=True)
class Found:
    """One path: relative to the rootfs, on the server, and what lstat said."""

    path: str
    file: Path
    stat: os.stat_result

    @property
    def key(self) -> tuple[object, ...]:
        """Equal as long as nobody wrote to it."""
        s = self.stat
        return (self.path, s.st_dev, s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class Layer:
    """One folder's part of an overlay: its tree, and its overlay.yaml where there is one."""

    folder: Path
    distribution: bool
    found: tuple[Found, ...]
    rules: Found | None

    @property
    def everything(self) -> tuple[Found, ...]:
        """All that was looked at."""
        return self.found if self.rules is None else (*self.found, self.rules)


def scan(folder: Path, *, distribution: bool) -> Layer:
    """Look at one overlay's folder. Raises `OSError`, and `ValueError` with a sentence."""
    rules = _found_rules(folder / RULES)
    rootfs = folder / ROOTFS
    found = tuple(_walk(rootfs)) if rules is None or rootfs.is_dir() else ()
    return Layer(folder, distribution, found, rules)


def _found_rules(file: Path) -> Found | None:
    try:
        found = file.stat()  # followed: who edits it may keep it elsewhere
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{RULES} is not a file")
    return Found(RULES, file, found)


def _walk(rootfs: Path) -> Iterator[Found]:
    count = 0
    pending = [(rootfs, "", 0)]
    while pending:
        folder, prefix, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"{folder} is more than {MAX_DEPTH} folders deep")
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in IGNORED:
                    continue
                count += 1
                if count > MAX_ENTRIES:
                    raise ValueError(f"has more than {MAX_ENTRIES} files; put them into the image")
                if not entry.name.isprintable():
                    raise ValueError(f"{entry.path!a} has a name with unprintable characters")
                path = prefix + entry.name
                yield Found(path, folder / entry.name, entry.stat(follow_symlinks=False))
                if entry.is_dir(follow_symlinks=False):
                    pending.append((folder / entry.name, f"{path}/", depth + 1))


def read(found: Found, *, follow: bool = False) -> bytes:
    """A file's bytes as `found` saw it. Raises `OSError`, and `ValueError` where it changed."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    with os.fdopen(os.open(found.file, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("is no longer a regular file")
        content = file.read(found.stat.st_size + 1)
    if len(content) != found.stat.st_size:
        raise ValueError("changed while it was read; reload again")
    return content
