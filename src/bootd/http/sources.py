"""Where bodies come from: files by sendfile(2) from the page cache, and pieces of memory.

A sendfile of what is not in the page cache would hold the event loop for as long as the disk takes,
so each source says what a thread has to fetch first.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from bootd.http.answer import OpenFile

AHEAD: Final = 4 * 1024 * 1024
"""Bytes read ahead, in a thread, of a file that is not in the page cache."""
_TOUCH: Final = 128 * 1024  # what the kernel reads at once where one byte is asked for
_MAX_PIECES: Final = 64
_COPY: Final = 128 * 1024


class Source(Protocol):
    """Where bytes come from."""

    def send(self, sock: socket.socket, offset: int, limit: int) -> int:
        """Send at most `limit` bytes from `offset`; how many went. 0: there are no more.

        Raises `OSError` (`BlockingIOError` where the socket is full).
        """
        ...

    def fetch(self, offset: int, limit: int) -> Callable[[], None] | None:
        """What a thread has to do before these bytes can be sent without waiting for the disk;
        None where that is nothing. The callable raises `OSError`."""
        ...


class FileSource:
    """An open file that nobody changes, sent by sendfile(2) from the page cache."""

    def __init__(self, opened: OpenFile) -> None:
        self._fd = opened.fd
        self._size = opened.size
        self._known = -1  # up to where the file is known to be in the page cache
        self._fetched = 0
        self._byte = [bytearray(1)]
        self._tells = True  # whether this file system says what is cached

    def send(self, sock: socket.socket, offset: int, limit: int) -> int:
        """As `Source.send`."""
        return os.sendfile(sock.fileno(), self._fd, offset, limit)

    def fetch(self, offset: int, limit: int) -> Callable[[], None] | None:
        """As `Source.fetch`; brings `AHEAD` bytes in, so that the next turns need nothing."""
        last = min(offset + limit, self._size) - 1
        if last < self._fetched or last < self._known:
            return None
        stop = min(offset + max(limit, AHEAD), self._size)
        if not self._absent(stop - 1) and (offset <= self._known or not self._absent(offset)):
            self._known = stop
            return None
        self._fetched = stop
        # A descriptor of its own: transfer and file may be over and closed before the disk is.
        own = os.dup(self._fd)
        return lambda: _read_ahead(own, offset, stop)

    def _absent(self, offset: int) -> bool:
        """True where the page cache lacks this byte, or the file system does not tell.

        preadv2(2) with RWF_NOWAIT fails rather than wait for the disk.
        """
        if not self._tells:
            return True
        try:
            os.preadv(self._fd, self._byte, offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return True
        except OSError:  # tmpfs and some network file systems: EOPNOTSUPP
            self._tells = False
            return True
        return False


def _read_ahead(fd: int, offset: int, stop: int) -> None:
    """In a thread: bring part of a file into the page cache, and wait until it is there."""
    try:
        os.posix_fadvise(fd, offset, stop - offset, os.POSIX_FADV_WILLNEED)
        byte = [bytearray(1)]
        for at in range(offset, stop, _TOUCH):
            os.preadv(fd, byte, at)
    finally:
        os.close(fd)


class CopySource(FileSource):
    """An open file that is not leased (`http.leases`): what is sent is a copy of its bytes, since a
    page that waits in a socket becomes what somebody makes of the file meanwhile."""

    def __init__(self, opened: OpenFile) -> None:
        super().__init__(opened)
        self._opened = opened

    def send(self, sock: socket.socket, offset: int, limit: int) -> int:
        """As `Source.send`."""
        copy = read_unchanged(self._opened, min(limit, _COPY), offset)
        return sock.send(copy) if copy else 0


def read_unchanged(opened: OpenFile, count: int, offset: int) -> bytes:
    """Up to `count` bytes from `offset`; none where the file is not what it was any more.

    Looked at afterwards: the kernel first changes a file's size and times, and then what is in it.
    Raises `OSError`.
    """
    data = os.pread(opened.fd, count, offset)
    return b"" if opened.changed() else data


class MemorySource:
    """Pieces of memory, one behind the other, sent from where they are. Offsets only grow."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._views = [memoryview(piece) for piece in pieces if piece]
        self._first = 0  # the first piece that is not all sent
        self._before = 0  # bytes of the pieces before it

    def send(self, sock: socket.socket, offset: int, limit: int) -> int:
        """As `Source.send`."""
        chosen = self._choose(offset, limit)
        return sock.sendmsg(chosen) if chosen else 0

    def fetch(self, offset: int, limit: int) -> Callable[[], None] | None:  # noqa: ARG002
        """As `Source.fetch`: memory is there."""
        return None

    def _choose(self, offset: int, limit: int) -> list[memoryview]:
        views = self._views
        while self._first < len(views) and offset >= self._before + len(views[self._first]):
            self._before += len(views[self._first])
            self._first += 1
        skip = offset - self._before
        chosen: list[memoryview] = []
        for view in views[self._first : self._first + _MAX_PIECES]:
            chosen.append(view[skip : skip + limit])
            limit -= len(chosen[-1])
            skip = 0
            if limit <= 0:
                break
        return chosen
