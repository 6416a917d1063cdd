"""The disk under the images: what makes a change whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

from bootd.image.manifest import MAX_MANIFEST, File, ManifestError

CHUNK: Final = 1 << 20
ACTIVE: Final = "active"
TEMPORARY: Final = ".tmp-"
PREVIOUS: Final = "previous"
"""A symlink to what was active before."""
CHANGES: Final = ".lock"
"""Held for as long as a change of names takes."""
BUILDS: Final = ".build-lock"
"""Held for as long as a generation is made; nobody else's leftovers are then in the folder."""

Progress = Callable[[str, int, int], None]
"""Called with the role (``kernel``), the bytes done and the bytes in all."""


class ImageError(Exception):
    """It could not be done; the message is a sentence that says why and what to do. Nothing that
    was there before has changed."""


class ImageInputError(ImageError):
    """What was asked for is wrong: a name, a file, the active generation to be deleted."""


@contextlib.contextmanager
def sentences(name: str) -> Iterator[None]:
    """Turn what the disk says into an `ImageError` that says what to do."""
    try:
        yield
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        reason = f"{place}{error.strerror or error}"
        if isinstance(error, PermissionError):
            reason += "; run it as root, or as the user that owns the folder"
        raise ImageError(f"image {name}: {reason}") from error


@contextlib.contextmanager
def locked(folder: Path, name: str = CHANGES) -> Iterator[None]:
    """Hold a lock of the image; whoever holds it is alive, the kernel drops it with the process."""
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ImageError(
                f"image {folder.name}: another command is changing it right now; "
                "wait until it has finished"
            ) from None
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> int:
    """Remove what an interrupted import or deletion left; only under both of the image's locks.
    Returns how much that was."""
    number = 0
    for path in folder.glob(f"{TEMPORARY}*"):
        number += 1
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return number


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def open_source(role: str, path: Path) -> BinaryIO:
    """Open a file to import; never waits for a FIFO."""
    try:
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - Path.open has no opener
    except OSError as error:
        raise ImageInputError(f"{path}: the {role} cannot be read: {error.strerror}") from None
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or not found.st_size:
        file.close()
        what = "is empty" if stat.S_ISREG(found.st_mode) else "is not a regular file"
        raise ImageInputError(f"{path}: the {role} {what}")
    return file


def check_space(folder: Path, sources: Mapping[str, BinaryIO]) -> None:
    """Raise `ImageError` where `sources` do not fit; better than after copying most of them."""
    need = sum(os.fstat(file.fileno()).st_size for file in sources.values())
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ImageError(
            f"{folder}: {need >> 20} MiB are needed and {free >> 20} MiB are free: delete a "
            "generation with `bootd image delete`, or make room"
        )


def copy_hashed(source: BinaryIO, target: Path, role: str, progress: Progress) -> File:
    """Copy and hash `source`; what is on disk afterwards is what the digest says."""
    before = os.fstat(source.fileno())
    digest = hashlib.sha256()
    done = 0
    with target.open("xb") as file:
        while chunk := source.read(CHUNK):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            progress(role, done, before.st_size)
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
    after = os.fstat(source.fileno())
    if done != before.st_size or after.st_mtime_ns != before.st_mtime_ns:
        raise ImageError(f"{source.name}: the {role} changed while it was copied; try again")
    return File(target.name, done, digest.hexdigest())


def make_folder(path: Path) -> None:
    """Make a folder that the daemon's user may read whatever the umask is; one that exists keeps
    its mode."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o755)


def write_file(path: Path, data: bytes) -> None:
    """Write a new file that everyone may read, and sync it."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def point(folder: Path, generation: str) -> None:
    """Let ``active`` name `generation`, in one step, and ``previous`` what it named until now."""
    with contextlib.suppress(OSError):
        before = (folder / ACTIVE).readlink().name
        if before != generation:
            _link(folder, PREVIOUS, before)
    _link(folder, ACTIVE, generation)
    sync_folder(folder)


def _link(folder: Path, name: str, target: str) -> None:
    temporary = folder / f"{TEMPORARY}{name}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(folder / name)


def read_regular(path: Path) -> bytes:
    """The bytes of a small regular file; never waits, never follows a link."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ManifestError("is not a regular file")
        return file.read(MAX_MANIFEST + 1)
