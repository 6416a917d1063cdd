"""A root, in an order that is always the same, without ever leaving it.

Every step is by name in an open folder and follows no symlink, so that a root which changes
meanwhile, or was made to trap us, leads nowhere else. Folders are held open along one path only.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bootd.image.disk import ImageError
from bootd.image.newc import MAX_SIZE, Inode

MAX_DEPTH: Final = 200
"""Folders in folders; each is a file descriptor while it is walked."""
_KEPT: Final = 5
"""Paths that a warning names."""
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC

Excluded = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Step:
    """One path of the walk: what `os.lstat` says, and the open folder that it is in (-1: itself
    the root, `name` is its path)."""

    path: str
    name: str
    folder: int
    stat: os.stat_result

    def open(self) -> int:
        """A file descriptor of this regular file. Raises `OSError`."""
        return os.open(self.name, _FILE, dir_fd=self.folder)

    def readlink(self) -> str:
        """This symlink's target. Raises `OSError`."""
        return os.readlink(self.name, dir_fd=self.folder)

    def xattrs(self) -> tuple[tuple[str, bytes], ...]:
        """Its extended attributes in order, without those that the kernel makes (``system.``)."""
        place = self.name if self.folder < 0 else f"/proc/self/fd/{self.folder}/{self.name}"
        try:
            names = os.listxattr(place, follow_symlinks=False)
        except OSError:  # a file system without any
            return ()
        return tuple(
            (name, os.getxattr(place, name, follow_symlinks=False))
            for name in sorted(names)
            if name.startswith(("user.", "security.", "trusted."))
            and not name.startswith("trusted.overlay.")
        )


def walk(
    root: Path, excluded: Excluded, skipped: Callable[[str], None] = lambda _path: None
) -> Iterator[Step]:
    """Every path of `root` that is not `excluded`, folders before what is in them, names in the
    order of their bytes. `skipped` is told of other file systems mounted in it, which are left out.

    Raises `ImageError` and `OSError`.
    """
    found = root.stat()
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Step(".", str(root), -1, found)
        yield from _folder(descriptor, "", found.st_dev, 1, excluded, skipped)
    finally:
        os.close(descriptor)


def _folder(
    descriptor: int,
    prefix: str,
    device: int,
    depth: int,
    excluded: Excluded,
    skipped: Callable[[str], None],
) -> Iterator[Step]:
    if depth > MAX_DEPTH:
        raise ImageError(f"/{prefix}: has more than {MAX_DEPTH} folders in folders")
    for name in sorted(os.listdir(descriptor), key=os.fsencode):
        path = prefix + name
        if excluded(path):
            continue
        found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        if stat.S_ISSOCK(found.st_mode):
            continue  # whoever listened on it is not in the image
        is_folder = stat.S_ISDIR(found.st_mode)
        yield Step(path, name, descriptor, found)
        if not is_folder:
            continue
        if found.st_dev != device:
            skipped(path)
            continue
        inner = os.open(name, _FOLDER, dir_fd=descriptor)
        try:
            yield from _folder(inner, f"{path}/", device, depth + 1, excluded, skipped)
        finally:
            os.close(inner)


@dataclass(slots=True)
class Survey:
    """What is known of a root before it is packed. `size` counts every byte once."""

    files: int = 0
    size: int = 0
    links: dict[tuple[int, int], int] = field(default_factory=dict)
    """Names of a file that has several, by device and inode number."""
    large: list[str] = field(default_factory=list)
    """Files that a cpio cannot hold."""
    mounts: list[str] = field(default_factory=list)
    capable: list[str] = field(default_factory=list)
    """Some of the files with capabilities, which a cpio cannot carry."""
    capable_count: int = 0
    newest: int = 0
    """Seconds since 1970 of the newest file."""

    @property
    def unpacked(self) -> int:
        """Bytes of memory that the root takes as a tmpfs, where small files take a page each."""
        return self.size + self.files * 2048


def survey(root: Path, excluded: Excluded, tell: Callable[[int], None] = lambda _n: None) -> Survey:
    """Count what a root has; holds only what has several names. `tell` is told of each thousandth
    file."""
    found = Survey()
    for step in walk(root, excluded, found.mounts.append):
        found.files += 1
        if found.files % 1000 == 0:
            tell(found.files)
        found.newest = max(found.newest, int(step.stat.st_mtime))
        if not stat.S_ISREG(step.stat.st_mode):
            continue
        key = (step.stat.st_dev, step.stat.st_ino)
        if step.stat.st_nlink > 1:
            names = found.links.get(key, 0) + 1
            found.links[key] = names
            if names > 1:
                continue
        found.size += step.stat.st_size
        if step.stat.st_size > MAX_SIZE:
            found.large.append(step.path)
        if step.stat.st_mode & 0o111 and _capable(step):
            found.capable_count += 1
            if len(found.capable) < _KEPT:
                found.capable.append(step.path)
    return found


def _capable(step: Step) -> bool:
    with contextlib.suppress(OSError):
        place = f"/proc/self/fd/{step.folder}/{step.name}"
        return bool(os.getxattr(place, "security.capability", follow_symlinks=False))
    return False


class Numbering:
    """Inodes renumbered from 1 in the order of the walk: two roots that are the same become the
    same archives, and no number is cut to 32 bits. Times are at most `latest`."""

    def __init__(self, links: dict[tuple[int, int], int], latest: int | None) -> None:
        self._links = links
        self._latest = latest
        self._known: dict[tuple[int, int], tuple[int, str]] = {}
        self._next = 1

    def inode(self, step: Step) -> Inode:
        """The archives' view of a path of the walk. Raises `OSError`."""
        found = step.stat
        mtime = int(found.st_mtime)
        ino, names, link = self._next, 1, None
        if stat.S_ISREG(found.st_mode):
            key = (found.st_dev, found.st_ino)
            names = self._links.get(key, 1)
            if names > 1:
                ino, first = self._known.setdefault(key, (ino, step.path))
                link = first if first != step.path else None
        elif stat.S_ISDIR(found.st_mode):
            names = 2
        if link is None:
            self._next += 1
        return Inode(
            step.path,
            found.st_mode,
            found.st_uid,
            found.st_gid,
            mtime if self._latest is None else min(mtime, self._latest),
            found.st_size if stat.S_ISREG(found.st_mode) else 0,
            found.st_rdev,
            ino,
            names,
            step.readlink() if stat.S_ISLNK(found.st_mode) else "",
            link,
            step.xattrs() if link is None else (),
        )
