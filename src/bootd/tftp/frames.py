"""A file laid out as DATA packets, so that a window is one slice and one system call. Pure.

Blocks are framed a chunk at a time when they are first sent: every block's header stands before it,
and consecutive datagrams lie side by side as UDP_SEGMENT wants them. All transfers of one file
version with one block size share the frames.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from bootd.tftp.wire import DEFAULT_BLKSIZE, ack, data_header

MAX_SEGMENTS: Final = 64
"""Datagrams that one UDP_SEGMENT send may carry (UDP_MAX_SEGMENTS before Linux 6.9)."""
MAX_SEND: Final = 65507
"""Bytes of payload in one send: an IPv4 packet less its headers, segmented or not."""
_CHUNK: Final = 128 * 1024
"""Bytes of file in a chunk, about."""
_LARGE: Final = 4 * 1024 * 1024
"""Files past this many bytes, and blocks below the usual 512, are framed window by window as they
go, and no frame is kept."""


class Burst(NamedTuple):
    """Datagrams to send in one go: `size` bytes each, the last one maybe less."""

    payload: bytes | memoryview
    size: int

    def datagrams(self) -> Iterator[bytes | memoryview]:
        """Each datagram by itself."""
        for start in range(0, len(self.payload), self.size):
            yield self.payload[start : start + self.size]


class Window(NamedTuple):
    """Blocks in few sends, and the ACK that says all of them arrived."""

    bursts: tuple[Burst, ...]
    ack: bytes


class Frames:
    """`data` in blocks of `blksize` bytes, numbered from 1; the last one is short, maybe empty."""

    __slots__ = (
        "__weakref__",
        "_chunks",
        "_per_chunk",
        "_per_send",
        "_windows",
        "blksize",
        "blocks",
        "data",
        "kept",
    )

    def __init__(self, data: bytes, blksize: int) -> None:
        self.data = data
        self.blksize = blksize
        self.blocks = len(data) // blksize + 1
        self.kept = len(data) <= _LARGE and blksize >= DEFAULT_BLKSIZE
        """True where frames stay once made, and are worth sharing with later transfers."""
        self._per_send = min(MAX_SEGMENTS, max(1, MAX_SEND // (blksize + 4)))
        # Whole windows of the usual sizes, 1 to 64, fit a chunk side by side.
        self._per_chunk = max(1, min(MAX_SEGMENTS, _CHUNK // blksize))
        self._chunks: dict[int, memoryview] = {}
        self._windows: dict[int, Window] = {}

    def window(self, first: int, count: int) -> Window:
        """Blocks `first` to ``first + count - 1``, at most 64, all of which the file has.

        A rack asks for the same windows of the same loader: what was made once is found again, as
        many windows as there are blocks.
        """
        key = first << 7 | count
        found = self._windows.get(key)
        if found is None:
            last = first + count - 1
            found = Window(tuple(self._make(first - 1, last)), ack(last))
            if self.kept and len(self._windows) < self.blocks:
                self._windows[key] = found
        return found

    def _make(self, at: int, end: int) -> Iterator[Burst]:
        size = self.blksize + 4
        while at < end:
            step = min(end - at, self._per_send)
            if self.kept:
                index, offset = divmod(at, self._per_chunk)
                step = min(step, self._per_chunk - offset)
                start = offset * size
                yield Burst(self._chunk(index)[start : start + step * size], size)
            else:
                yield Burst(self._frame(at, at + step), size)
            at += step

    def _chunk(self, index: int) -> memoryview:
        chunk = self._chunks.get(index)
        if chunk is None:
            start = index * self._per_chunk
            end = min(start + self._per_chunk, self.blocks)
            chunk = self._chunks[index] = memoryview(self._frame(start, end))
        return chunk

    def _frame(self, start: int, end: int) -> bytes:
        view, blksize = memoryview(self.data), self.blksize
        parts: list[bytes | memoryview] = []
        for block in range(start, end):
            parts += (data_header(block + 1), view[block * blksize : (block + 1) * blksize])
        return b"".join(parts)


class FrameStore:
    """Frames by content and block size, shared while in use; small files are kept up to `kept`
    bytes of content, the longest unused going first."""

    def __init__(self, kept: int = 32 * 1024 * 1024) -> None:
        self._max_kept = kept
        self._kept_bytes = 0
        self._used: WeakValueDictionary[tuple[int, int], Frames] = WeakValueDictionary()
        self._kept: OrderedDict[tuple[int, int], Frames] = OrderedDict()

    def get(self, data: bytes, blksize: int) -> Frames:
        """The frames of this very object; equal bytes elsewhere are another version."""
        key = (id(data), blksize)  # frames hold their data, so the id is theirs while they live
        frames = self._used.get(key)
        if frames is None:
            frames = self._used[key] = Frames(data, blksize)
        if key in self._kept:
            self._kept.move_to_end(key)
        elif frames.kept:
            self._keep(key, frames)
        return frames

    def _keep(self, key: tuple[int, int], frames: Frames) -> None:
        self._kept[key] = frames
        self._kept_bytes += len(frames.data)
        while self._kept_bytes > self._max_kept:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= len(dropped.data)
