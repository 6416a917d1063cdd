"""From a root to what nodes boot: one walk that makes a cpio and a squashfs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Final

from bootd.image import tools
from bootd.image.compress import SUFFIX, Compressor, Output, compressor
from bootd.image.disk import CHUNK, ImageError, Progress
from bootd.image.manifest import File
from bootd.image.newc import TAR_END, Inode, newc, newc_end, tar
from bootd.image.walk import Excluded, Numbering, Step, Survey, walk

SQUASHFS: Final = "image.squashfs"
_PIPE: Final = 1 << 20
_F_SETPIPE_SZ: Final = 1031
_MEMORY: Final = "96M"
"""What mksquashfs may use for what it has read and not yet written; its own default is a quarter
of the machine."""


@dataclass(frozen=True, slots=True)
class Options:
    """How archives are made. `compression` of the cpio is ``zstd`` or ``gzip``; a squashfs is zstd.
    `latest` in seconds since 1970: no file is newer (SOURCE_DATE_EPOCH)."""

    compression: str = "zstd"
    level: int = 3
    squashfs_level: int = 6
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    latest: int | None = None


def pack(
    root: Path,
    folder: Path,
    *,
    excluded: Excluded,
    found: Survey,
    options: Options,
    progress: Progress,
) -> dict[str, File]:
    """Write ``image.cpio.zst`` (or ``.gz``) and ``image.squashfs`` into `folder`; returns them by
    role, ``image`` and ``squashfs``. Where `found` has files that a cpio cannot hold there is no
    ``image``.

    Raises `ImageError` and `OSError`; what is in `folder` then is for the caller to remove.
    """
    files: dict[str, File] = {}
    with contextlib.ExitStack() as stack:
        latest = found.newest if options.latest is None else min(found.newest, options.latest)
        squashfs = stack.enter_context(_mksquashfs(root, folder / SQUASHFS, options, latest))
        sinks: list[_Sink] = [_Sink(squashfs.write, _tar, 512)]
        archive: Compressor | None = None
        if not found.large:
            name = f"image.cpio.{SUFFIX[options.compression]}"
            output = Output(folder / name)
            stack.callback(output.close)
            archive = compressor(options.compression, output, options.level, options.threads)
            sinks.append(_Sink(archive.write, newc, 4))
        numbering = Numbering(found.links, options.latest)
        done = 0
        for step in walk(root, excluded):
            done += _put(step, numbering, sinks)
            progress("image", min(done, found.size - 1), found.size)
        squashfs.write(TAR_END)
        if archive is not None:
            archive.write(newc_end())
            archive.close()
            files["image"] = output.finish(name)
        squashfs.finish()
    files["squashfs"] = hashed(folder / SQUASHFS, SQUASHFS)
    progress("image", found.size, found.size)
    return files


@dataclass(frozen=True, slots=True)
class _Sink:
    write: Callable[[bytes], object]
    header: Callable[[Inode], bytes]
    block: int


def _tar(inode: Inode) -> bytes:
    # Of the root itself mksquashfs takes nothing from tar: its options say it.
    return tar(inode) if inode.path != "." else b""


def _put(step: Step, numbering: Numbering, sinks: list[_Sink]) -> int:
    """One path into every archive; the bytes that were read."""
    try:
        inode = numbering.inode(step)
        if not stat.S_ISREG(inode.mode) or inode.link is not None:
            for sink in sinks:
                sink.write(sink.header(inode))
            return 0
        descriptor = step.open()
    except OSError as error:
        raise ImageError(_changed(step.path, error.strerror or "")) from error
    try:
        opened = os.fstat(descriptor)
        if (opened.st_ino, opened.st_dev) != (step.stat.st_ino, step.stat.st_dev):
            raise ImageError(_changed(step.path, "another file has its name now"))
        if opened.st_size != inode.size:
            inode = replace(inode, size=opened.st_size)
        for sink in sinks:
            sink.write(sink.header(inode))
        _copy(descriptor, inode, sinks)
    finally:
        os.close(descriptor)
    return inode.size


def _copy(descriptor: int, inode: Inode, sinks: list[_Sink]) -> None:
    left = inode.size
    while left:
        data = os.read(descriptor, min(left, CHUNK))
        if not data:
            raise ImageError(_changed(inode.path, "it has become shorter"))
        left -= len(data)
        for sink in sinks:
            sink.write(data)
    for sink in sinks:
        if padding := -inode.size % sink.block:
            sink.write(bytes(padding))


def _changed(path: str, what: str) -> str:
    return f"/{path}: changed while it was packed ({what}); let nobody write in the root, try again"


class _Squashfs:
    """A running mksquashfs that reads tar."""

    def __init__(self, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
        assert process.stdin is not None
        self._process = process
        self._pipe = process.stdin
        self._said = said

    def write(self, data: bytes) -> None:
        """Raises `ImageError` where mksquashfs has ended."""
        try:
            self._pipe.write(data)
        except BrokenPipeError:
            self._process.wait()
            raise self._failure() from None

    def finish(self) -> None:
        """Wait until it has written everything. Raises `ImageError`."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe.close()
        if self._process.wait():
            raise self._failure()

    def abandon(self) -> None:
        """Its standard input ends where ours went wrong; nobody wants the rest."""
        with contextlib.suppress(OSError):
            self._pipe.close()

    def _failure(self) -> ImageError:
        self._said.seek(0)
        code = self._process.returncode
        return ImageError(tools.failed("mksquashfs", code, "the squashfs", self._said.read()))


@contextlib.contextmanager
def _mksquashfs(root: Path, path: Path, options: Options, latest: int) -> Iterator[_Squashfs]:
    top = root.stat()
    argv = [
        tools.find("mksquashfs"), "-", str(path), "-tar", "-comp", "zstd",
        "-Xcompression-level", str(options.squashfs_level), "-xattrs",
        "-root-mode", f"{stat.S_IMODE(top.st_mode):o}", "-root-uid", str(top.st_uid),
        "-root-gid", str(top.st_gid), "-noappend", "-no-recovery", "-quiet", "-no-progress",
        "-exit-on-error", "-mem", _MEMORY, "-processors", str(options.threads),
    ]  # fmt: skip
    # Of tar, 4.5 gives the root folder the time of the day, whatever -root-time says; nothing is
    # newer than this, though, the file system's own date included.
    environment = tools.environment() | {"SOURCE_DATE_EPOCH": str(max(latest, 0))}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            bufsize=CHUNK,
            env=environment,
            start_new_session=True,
        )
        assert process.stdin is not None
        squashfs = _Squashfs(process, said)
        try:
            with tools.running(process):
                with contextlib.suppress(OSError):  # a limit of the user's; the default does too
                    fcntl.fcntl(process.stdin, _F_SETPIPE_SZ, _PIPE)
                yield squashfs
        finally:
            squashfs.abandon()


def hashed(path: Path, name: str) -> File:
    """A file that another program wrote: on the disk, for everyone to read, with its digest."""
    with path.open("rb") as file:
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return File(name, os.fstat(file.fileno()).st_size, digest)
