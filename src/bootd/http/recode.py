"""Files in another compression than they have on disk, made while they are sent.

For images made for Warewulf, whose dracut module pipes ``image?compress=gz`` through gzip whatever
the server has. It costs a processor for each client, about 35 MB of content a second: an image that
is asked for in that form by many should be stored in it.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import zlib
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from typing import IO, Final, Protocol, cast

import zstandard

from bootd.http.answer import OpenFile
from bootd.http.send import Aborted

MAGIC: Final = {"gz": b"\x1f\x8b", "zst": b"\x28\xb5\x2f\xfd"}
_PIECE: Final = 1 << 20
_GZIP: Final = 31


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def form_of(opened: OpenFile) -> str:
    """How a file is compressed: ``gz``, ``zst``, or empty for anything else. Reads: in a thread."""
    head = os.pread(opened.fd, 4, 0)
    return next((form for form, magic in MAGIC.items() if head.startswith(magic)), "")


class Recoded:
    """The content of a file, compressed anew as `form`; `close` it. Reads: in a thread."""

    def __init__(self, opened: OpenFile, form: str) -> None:
        stored = form_of(opened)
        self._opened = opened
        # Of its own: closing waits until a thread that reads from it has done so.
        self._file = os.fdopen(os.dup(opened.fd), "rb", _PIECE)
        self._file.seek(0)
        self._plain = _plain(self._file, stored)
        self._compressor: _Compressor | None = _compressor(form)

    def read(self) -> bytes:
        """The next piece; empty at the end. Raises `Aborted` for a file that is damaged, or is
        not what it was any more."""
        while self._compressor is not None:
            try:
                data = self._plain.read(_PIECE)
            except (OSError, EOFError, ValueError, zlib.error, zstandard.ZstdError):
                raise Aborted("damaged") from None
            if data:
                piece = self._compressor.compress(data)
            elif self._opened.changed(self._file.fileno()):
                raise Aborted("file-changed")
            else:
                piece = self._compressor.flush()
                self._compressor = None
            if piece:
                return piece
        return b""

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


async def recoded(
    opened: OpenFile, form: str, executor: Executor, turns: asyncio.Semaphore
) -> AsyncGenerator[bytes, None]:
    """The pieces of `Recoded`, made in `executor`, as many at once as `turns` lets."""
    run = asyncio.get_running_loop().run_in_executor
    source = await run(executor, Recoded, opened, form)
    try:
        while True:
            async with turns:
                piece = await run(executor, source.read)
            if not piece:
                return
            yield piece
    finally:
        source.close()


def _plain(file: IO[bytes], form: str) -> IO[bytes]:
    """The content, over all members or frames of the file."""
    if form == "gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=file, mode="rb"))
    if form == "zst":
        frames = zstandard.ZstdDecompressor().stream_reader(
            file, read_across_frames=True, closefd=False
        )
        return cast(IO[bytes], frames)
    return file


def _compressor(form: str) -> _Compressor:
    if form == "gz":
        return zlib.compressobj(1, zlib.DEFLATED, _GZIP)
    return zstandard.ZstdCompressor(3).compressobj()
