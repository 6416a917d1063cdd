"""Compressed streams read with bounded memory, whatever they say of themselves."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import zstandard

from bootd.image.disk import ImageInputError

_XZ_MEMORY: Final = 160 << 20
_ZSTD_WINDOW: Final = 1 << 27
_READ: Final = 256 << 10
_DAMAGED: Final = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


class Readable(Protocol):
    """What has `read`."""

    def read(self, size: int, /) -> bytes: ...  # noqa: D102


class Stream:
    """The bytes inside a file that may be compressed (gz, xz, lzma, zst, bz2, known by how it
    begins), from where it stands. `tell` is told how many bytes of the file have been read."""

    def __init__(
        self, file: BinaryIO, name: str, tell: Callable[[int], None] = lambda _done: None
    ) -> None:
        self._file = file
        self._name = name
        self._tell = tell
        self._inner = _opened(file)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end. Raises `ImageInputError` where it is damaged
        or asks for more memory than any sane archive does."""
        chunks = []
        while size:
            try:
                chunk = self._inner.read(min(size, _READ))
            except _DAMAGED as error:
                raise ImageInputError(f"{self._name}: is damaged: {error}") from None
            if not chunk:
                break
            chunks.append(chunk)
            size -= len(chunk)
        self._tell(self._file.tell())
        return b"".join(chunks)


def _opened(file: BinaryIO) -> Readable:
    head = os.pread(file.fileno(), 6, file.tell())
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if head.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if head.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
        return _Xz(file)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        return decompressor.stream_reader(file, read_across_frames=True, closefd=False)
    return file


class _Xz:
    """`lzma.LZMAFile` with a limit to its memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decompressor: lzma.LZMADecompressor | None = None
        self._rest = b""

    def read(self, size: int) -> bytes:
        while True:
            if self._decompressor is None or self._decompressor.eof:
                if self._decompressor is not None:
                    self._rest = self._decompressor.unused_data.lstrip(b"\0")
                data = self._rest or self._file.read(_READ).lstrip(b"\0")
                if not data:
                    return b""
                self._decompressor = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
                self._rest = b""
            elif self._decompressor.needs_input:
                data = self._file.read(_READ)
                if not data:
                    raise EOFError("it ends too early")
            else:
                data = b""
            found = self._decompressor.decompress(data, size)
            if found:
                return found


def open_stream(path: Path, tell: Callable[[int, int], None]) -> tuple[BinaryIO, Stream]:
    """Open a file as a stream; `tell` is told bytes read and in all. The caller closes the file."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise ImageInputError(f"{path}: cannot be read: {error.strerror}") from None
    total = os.fstat(file.fileno()).st_size
    return file, Stream(file, str(path), lambda done: tell(done, total))
