"""Compressed files, written once from front to back and hashed on the way; on all processors."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol

import zstandard

from bootd.image.manifest import File

_BLOCK: Final = 1 << 20
_WINDOW: Final = 32 << 10
_GZIP_HEAD: Final = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
"""No name and no time (RFC 1952): the same bytes give the same file."""
_GZIP_LEVEL: Final = 6
SUFFIX: Final = {"zstd": "zst", "gzip": "gz"}


class Output:
    """A new file, hashed while it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("xb")
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> int:
        """Write and hash; what a compressor calls."""
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)
        return len(data)

    def finish(self, name: str) -> File:
        """Everyone may read it, and it is on the disk."""
        self._file.flush()
        os.fchmod(self._file.fileno(), 0o644)
        os.fsync(self._file.fileno())
        self._file.close()
        return File(name, self._size, self._digest.hexdigest())

    def close(self) -> None:
        """Give up; `finish` has not been called, or has."""
        self._file.close()


class Compressor(Protocol):
    """Takes bytes; `close` writes the end."""

    def write(self, data: bytes, /) -> int: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


def compressor(kind: str, output: Output, level: int, threads: int) -> Compressor:
    """A ``zstd`` or ``gzip`` compressor into `output`. What it writes depends on the bytes and the
    level alone, not on the number of threads."""
    if kind == "gzip":
        return Gzip(output, threads)
    return _Zstd(output, level, max(1, threads))


class _Zstd:
    def __init__(self, output: Output, level: int, threads: int) -> None:
        compressor = zstandard.ZstdCompressor(level=level, threads=threads, write_checksum=True)
        self._writer = compressor.stream_writer(output, closefd=False, write_size=_BLOCK)  # type: ignore[arg-type]  # it only writes

    def write(self, data: bytes) -> int:
        self._writer.write(data)
        return len(data)

    def close(self) -> None:
        self._writer.close()  # type: ignore[no-untyped-call]


class Gzip:
    """One gzip member, as the kernel needs it, compressed block by block on `threads`: each begins
    with the 32 KiB before it as its dictionary and ends on a byte (Z_SYNC_FLUSH)."""

    def __init__(self, output: Output, threads: int) -> None:
        self._output = output
        self._pool = ThreadPoolExecutor(max(1, threads))
        self._under_way: deque[Future[bytes]] = deque()
        self._most = 2 * max(1, threads)
        self._pending = bytearray()
        self._window = b""
        self._crc = 0
        self._size = 0
        output.write(_GZIP_HEAD)

    def write(self, data: bytes) -> int:
        """Take bytes; waits where the processors have not kept up."""
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)
        self._pending += data
        while len(self._pending) >= _BLOCK:
            block = bytes(self._pending[:_BLOCK])
            del self._pending[:_BLOCK]
            self._submit(block)
        return len(data)

    def close(self) -> None:
        """Write what is left and the end."""
        self._submit(bytes(self._pending))
        while self._under_way:
            self._output.write(self._under_way.popleft().result())
        self._pool.shutdown()
        # An empty last block, then the sums: RFC 1951 and 1952.
        self._output.write(b"\x03\0")
        self._output.write(self._crc.to_bytes(4, "little"))
        self._output.write((self._size & 0xFFFF_FFFF).to_bytes(4, "little"))

    def _submit(self, block: bytes) -> None:
        self._under_way.append(self._pool.submit(_deflate, block, self._window))
        self._window = block[-_WINDOW:]
        while len(self._under_way) > self._most:
            self._output.write(self._under_way.popleft().result())


def _deflate(block: bytes, window: bytes) -> bytes:
    deflate = (
        zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, -15, 8, zlib.Z_DEFAULT_STRATEGY, window)
        if window
        else zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, -15, 8)
    )
    return deflate.compress(block) + deflate.flush(zlib.Z_SYNC_FLUSH)
