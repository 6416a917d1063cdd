"""Writing below a folder that cannot be left, whatever the names say.

Each folder on the way is opened by name in the one before, without following symlinks; everything
is then made by its last name in an open folder (SECURITY 7: tar archives have led every check of
path *strings* astray). A symlink on the way is refused, or, for container layers, followed as a
machine booted from that root would: an absolute target counts from the root, ``..`` ends there.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bootd.image.disk import ImageInputError
from bootd.image.walk import MAX_DEPTH

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS: Final = 40
MAX_PATH: Final = 4096


def parts_of(path: str, what: str = "") -> tuple[str, ...]:
    """The components of a name in an archive; empty for the root itself.

    Raises `ImageInputError` for an absolute name, ``..``, and what no file system can hold.
    """
    shown = f"{path[:128]!r}{what}"
    if path.startswith("/"):
        raise ImageInputError(f"{shown}: an absolute name, which may lead anywhere")
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if ".." in parts:
        raise ImageInputError(f"{shown}: '..' in a name leads out of the image")
    if "\0" in path:
        raise ImageInputError(f"{shown}: a NUL in a name")
    raw = os.fsencode(path)
    if len(raw) > MAX_PATH or any(len(os.fsencode(part)) > 255 for part in parts):
        raise ImageInputError(f"{shown}: the name is too long for any file system")
    if len(parts) > MAX_DEPTH:
        raise ImageInputError(f"{shown}: more than {MAX_DEPTH} folders in folders")
    return parts


class Beneath:
    """The folder `root`, open. `follow`: symlinks on the way are followed inside it.

    Use as a context manager. Methods raise `ImageInputError` and `OSError`.
    """

    def __init__(self, root: Path, *, follow: bool = False) -> None:
        self._follow = follow
        self.root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._last: tuple[str, ...] | None = None
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.forget()
        os.close(self.root)

    def forget(self) -> None:
        """What was found on the way to the last name may be another now."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._last = -1, None

    def folder(self, parts: tuple[str, ...], *, make: bool = True) -> int:
        """The folder of those components, open; missing ones are made with mode 0755. The
        descriptor is good until the next call."""
        if not parts:
            return self.root
        if parts == self._last:
            return self._fd
        self.forget()
        self._fd = self._descend(parts, make)
        self._last = parts
        return self._fd

    def _descend(self, parts: tuple[str, ...], make: bool) -> int:
        todo = deque(parts)
        way = [os.dup(self.root)]
        links = 0
        try:
            while todo:
                name = todo.popleft()
                if name in ("", "."):
                    continue
                if name == "..":  # of a symlink that is followed: at the root it stays there
                    if len(way) > 1:
                        os.close(way.pop())
                    continue
                try:
                    way.append(self._enter(way[-1], name, make))
                except OSError as error:
                    if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                        raise
                    target = self._target(way[-1], name, parts)
                    links += 1
                    if links > _LINKS or len(todo) > MAX_PATH:
                        raise ImageInputError(
                            f"{'/'.join(parts)!r}: more than {_LINKS} symlinks on the way"
                        ) from None
                    if target.startswith("/"):
                        while len(way) > 1:
                            os.close(way.pop())
                    todo.extendleft(reversed(target.split("/")))
            return way.pop()
        finally:
            for descriptor in way:
                os.close(descriptor)

    def _enter(self, folder: int, name: str, make: bool) -> int:
        try:
            return os.open(name, _FOLDER, dir_fd=folder)
        except FileNotFoundError:
            if not make:
                raise
            os.mkdir(name, 0o755, dir_fd=folder)
            return os.open(name, _FOLDER, dir_fd=folder)

    def _target(self, folder: int, name: str, parts: tuple[str, ...]) -> str:
        """Where the symlink `name` leads, for those that follow it."""
        path = "/".join(parts)
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            raise ImageInputError(
                f"{path!r}: {name!r} on the way is a file and no folder"
            ) from None
        target = os.readlink(name, dir_fd=folder)
        if not self._follow:
            raise ImageInputError(
                f"{path!r}: {name!r} on the way is a symlink (to {target[:128]!r}): a trap that "
                "leads files out of the image"
            ) from None
        return target

    def remove(self, folder: int, name: str) -> None:
        """Remove what has that name in an open folder, with everything below; or nothing."""
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(found.st_mode):
            # What was found last may be below it; but it stays open, being in the caller's hand.
            self._last = None
            shutil.rmtree(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)


def open_inside(root: Path, path: str) -> int:
    """Open a regular file of a root for reading, following symlinks as inside of it.

    Raises `OSError`, also where it is no regular file; never waits.
    """
    parts = deque(path.split("/"))
    links = 0
    with Beneath(root, follow=True) as beneath:
        while True:
            name = parts.pop()
            try:
                folder = beneath.folder(tuple(parts), make=False)
            except ImageInputError as error:
                raise OSError(errno.ELOOP, str(error), path) from None
            # Looked at before it is opened: to open a device may do something.
            found = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            if stat.S_ISREG(found):
                return os.open(name, _FILE, dir_fd=folder)
            if not stat.S_ISLNK(found) or links >= _LINKS:
                raise OSError(errno.EINVAL, "not a regular file", path)
            links += 1
            target = os.readlink(name, dir_fd=folder)
            if target.startswith("/"):
                parts.clear()
            parts.extend(target.split("/"))


def read_inside(root: Path, path: str, limit: int = 1 << 20) -> bytes | None:
    """The first `limit` bytes of a file of a root, or None where there is no such file."""
    try:
        with os.fdopen(open_inside(root, path), "rb") as file:
            return file.read(limit)
    except OSError:
        return None
