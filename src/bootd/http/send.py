"""Bodies onto the wire in bounded turns, past the transport.

uvloop has no sendfile, and the loops that have one keep it for as long as a socket takes bytes,
while DHCP waits. So: wait until the transport's own buffer is empty (the headers have left), then
send on a duplicate of its socket, at most `TURN` bytes a turn and `ROUND` bytes a round. The
transport must not be written to meanwhile. (docs/performance.md has what this measured.)

What was promised is what is sent, or the connection is aborted: a file that has become shorter ends
its transfer (`Aborted`), never as if it were whole (SECURITY.md C1). What counts as sent is what
the client's kernel has acknowledged: megabytes fit into a socket whose client has left (`Arrived`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import select
import socket
import sys
import termios
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Final, Protocol

from bootd import metrics
from bootd.http.leases import Leases
from bootd.http.sources import Source

TURN: Final = 2 * 1024 * 1024
"""Bytes that one transfer may send before another gets its turn. Not less: a socket that is filled
goes on by itself, as acknowledgements come in, without a system call of ours."""
ROUND: Final = 2 * 1024 * 1024
"""Bytes after which the loop looks at its other sockets: about half a millisecond."""
UNSENT: Final = 4 * 1024 * 1024
"""Bytes that wait in a socket behind what is in flight (TCP_NOTSENT_LOWAT): as many as Linux has
room for if nobody changed that, and no more where it was tuned for long distances. With a fifth of
that a download takes half as much processor time again."""
MIN_COST: Final = 32 * 1024
"""Bytes that a turn counts for at least: a full socket costs time as well."""
STALL: Final = 150.0
"""Seconds without a byte acknowledged after which a reader is let go: less than the 180 s that a
dead one may take, and far more than a switch or a disk holds an honest one up."""
_LOOKS: Final = 4
"""How often in that time a socket that takes nothing is asked what was acknowledged."""
_EVENTS: Final = 1024
_TCP_CLOSE: Final = b"\x07"  # include/net/tcp_states.h


class Aborted(ConnectionError):
    """A transfer that ended early. `reason`: ``aborted``, ``stalled``, ``file-changed``,
    ``io-error``, ``no-descriptors``, ``damaged``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SocketLike(Protocol):
    """A socket, or what a transport shows of its own."""

    def fileno(self) -> int:
        """Its descriptor."""
        ...


def unacknowledged(sock: SocketLike) -> int:
    """Bytes that a TCP socket was given and its peer has not acknowledged (SIOCOUTQ, tcp(7)).

    Of a connection that was reset: what never will be.
    """
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:  # it is closed already
        return 0


class Arrived:
    """Counts a body as the kernel of its client acknowledges it: what waits in a socket whose
    client leaves never arrives. `moved` is told of each more bytes; `held` says how many wait in
    the transport, to be encrypted."""

    def __init__(
        self, sock: SocketLike, moved: Callable[[int], None], held: Callable[[], int]
    ) -> None:
        self._sock = sock
        self._moved = moved
        self._held = held
        self._told = 0
        self.given = 0
        """Bytes of the body that the socket was given."""

    def look(self) -> int:
        """Count what has been acknowledged since; how many bytes wait, the head's among them."""
        waiting = unacknowledged(self._sock) + self._held()
        self._tell(self.given - waiting)
        return waiting

    def whole(self) -> None:
        """Count all of it."""
        self._tell(self.given)

    def _tell(self, count: int) -> None:
        if count > self._told:
            self._moved(count - self._told)
            self._told = count


async def all_arrived(
    transport: asyncio.BaseTransport, sock: socket.socket, arrived: Arrived, stall: float,
    *, unsaid: int = 0,
) -> None:  # fmt: skip
    """Wait until the peer's kernel has all that was written. Raises `Aborted`.

    `unsaid` are bytes that a client may leave unacknowledged when it resets the connection: as many
    as it delays an acknowledgement for, where that is how it ends a whole file.
    """
    loop = asyncio.get_running_loop()
    left, pause, progress = arrived.look(), 0.0005, loop.time()
    while left:
        await asyncio.sleep(pause)
        over = transport.is_closing() or _is_reset(sock)
        before, left, now = left, arrived.look(), loop.time()
        if over:
            if left <= unsaid:
                break
            raise Aborted("aborted")
        if left < before:
            progress = now
        elif now - progress >= stall:
            raise Aborted("stalled")
        pause = min(2 * pause, 0.02)
    arrived.whole()


def _is_reset(sock: socket.socket) -> bool:
    """The first byte of ``struct tcp_info`` is the connection's state."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == _TCP_CLOSE


_connect = ctypes.CDLL(None).connect
_UNSPECIFIED: Final = bytes(16)  # ``struct sockaddr`` of family AF_UNSPEC, which Python's has not


def cut(transport: asyncio.Transport) -> None:
    """Reset a connection and throw away what its socket holds, now (connect(2), AF_UNSPEC: a socket
    that is only closed goes on sending it). Does nothing where the transport is closing."""
    if not transport.is_closing():
        fd = transport.get_extra_info("socket").fileno()
        _connect(ctypes.c_int(fd), _UNSPECIFIED, ctypes.c_uint(len(_UNSPECIFIED)))
        transport.abort()


def duplicate(transport: asyncio.BaseTransport) -> socket.socket:
    """Another descriptor of the connection, to send on: the transport's own is closed to
    `add_writer`, and may be gone while this is asked what was acknowledged. Raises `Aborted`."""
    try:
        sock = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
    except OSError as exc:  # the connection is gone, or there are no descriptors left
        raise Aborted("no-descriptors" if exc.errno == errno.EMFILE else "aborted") from exc
    sock.setblocking(False)
    with contextlib.suppress(OSError):  # a connection that is gone says so when it is written to
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
    return sock


class _Room:
    """Says when sockets that were full have room again: edge-triggered (epoll(7)), so that nothing
    has to be set and taken back for each turn. A loop's own way, `add_writer` and `remove_writer`,
    takes several system calls a turn, more than the rest of it.

    The one who waits must have seen EAGAIN: only then will there be an edge.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._waiting: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._told)

    def watch(self, fd: int, has_room: Callable[[], None]) -> None:
        """Call `has_room` at each edge until `forget`; at once where there is room now. Raises
        `OSError`, and then there is nothing to forget."""
        self._epoll.register(fd, select.EPOLLOUT | select.EPOLLET)
        self._waiting[fd] = has_room

    def forget(self, fd: int) -> None:
        """Before it is closed: a duplicate would be told of for ever."""
        if self._waiting.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self) -> None:
        """Watch nothing any more."""
        self._waiting.clear()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _told(self) -> None:
        for fd, _ in self._epoll.poll(0, _EVENTS):
            has_room = self._waiting.get(fd)
            if has_room is not None:
                has_room()


class Sender:
    """Sends bodies, in rounds: those whose sockets have room take turns, first come, first served,
    until `ROUND` bytes have gone; then the loop has other things to do.

    `stall` is in seconds; `executor` runs what waits for the disk.
    """

    def __init__(self, executor: Executor, *, stall: float = STALL) -> None:
        self.executor = executor
        self.stall = stall
        self.leases = Leases()
        self._active: set[Arrived] = set()
        self.moved = 0
        """Body bytes that arrived, of all transfers since the start."""
        self._ready: deque[_Transfer] = deque()
        self._in_rounds = False
        self._room: _Room | None = None

    @property
    def active(self) -> int:
        """Transfers under way, over TLS too."""
        return len(self._active)

    @contextlib.contextmanager
    def under_way(self, arrived: Arrived) -> Iterator[None]:
        """One transfer is, meanwhile."""
        self._active.add(arrived)
        try:
            yield
        finally:
            self._active.remove(arrived)

    def look(self) -> None:
        """Count what has arrived of transfers whose sockets are full: these have no turn for as
        long as a slow client takes for a megabyte."""
        for arrived in self._active:
            arrived.look()

    @property
    def room(self) -> _Room:
        """Made when it is first needed: a sender may be made before its loop runs."""
        if self._room is None:
            self._room = _Room(asyncio.get_running_loop())
        return self._room

    def close(self) -> None:
        """When no transfer is left."""
        self.leases.close()
        if self._room is not None:
            self._room.close()
            self._room = None

    def count(self, moved: int) -> None:
        """So many more bytes of bodies have arrived."""
        self.moved += moved
        metrics.HTTP_BYTES.inc(moved)

    async def send(
        self, sock: socket.socket, source: Source, offset: int, count: int, arrived: Arrived
    ) -> None:
        """Give `count` bytes of `source` from `offset` to a connection's `duplicate`, whose
        transport's own buffer is empty. Raises `Aborted`; the caller then aborts the transport."""
        transfer = _Transfer(self, sock, source, offset, count, arrived)
        self.ready(transfer)
        try:
            await transfer.done
        finally:
            transfer.stop()

    def ready(self, transfer: _Transfer) -> None:
        """This one's socket has room."""
        self._ready.append(transfer)
        if not self._in_rounds:
            self._in_rounds = True
            asyncio.get_running_loop().call_soon(self._round)

    def _round(self) -> None:
        left = ROUND
        while self._ready and left > 0:
            transfer = self._ready.popleft()
            left -= max(transfer.turn(), MIN_COST)
        if self._ready:
            asyncio.get_running_loop().call_soon(self._round)
        else:
            self._in_rounds = False


class _Transfer:
    """One body on its way. `done` ends with None or `Aborted`."""

    def __init__(
        self,
        sender: Sender,
        sock: socket.socket,
        source: Source,
        offset: int,
        count: int,
        arrived: Arrived,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sender = sender
        self._sock = sock
        self._source = source
        self._offset = offset
        self._left = count
        self._arrived = arrived
        self._progress = self._loop.time()
        self._queued = 0
        self._room: _Room | None = None
        self._waiting = False
        self.done: asyncio.Future[None] = self._loop.create_future()
        self._watch = self._loop.call_later(sender.stall / _LOOKS, self._check)

    def stop(self) -> None:
        """Touch the socket no more."""
        self._watch.cancel()
        self._arrived.look()
        if self._room is not None:
            self._room.forget(self._sock.fileno())

    def turn(self) -> int:
        """Send what the socket takes, at most `TURN` bytes, and line up again; how many went."""
        if self.done.done():
            return 0
        limit = min(TURN, self._left)
        try:
            fetch = self._source.fetch(self._offset, limit)
            if fetch is not None:
                self._wait_for(fetch)
                return 0
            sent = self._send(limit)
        except OSError as exc:
            self._end("io-error" if exc.errno in (errno.EIO, errno.EMFILE) else "aborted")
            return 0
        if sent is None:
            return 0
        if sent == 0:
            self._end("file-changed")
            return 0
        self._offset += sent
        self._left -= sent
        self._progress = self._loop.time()
        self._arrived.given += sent
        self._arrived.look()
        if self._left == 0:
            self.done.set_result(None)
        else:
            # Also when the socket seems full: whether it is, only EAGAIN says (`_Room`).
            self._sender.ready(self)
        return sent

    def _send(self, limit: int) -> int | None:
        """How many bytes went; None where there is no room, which is then waited for. Raises
        `OSError`, also where no descriptor is left to wait by."""
        try:
            return self._source.send(self._sock, self._offset, limit)
        except (BlockingIOError, InterruptedError):
            self._wait_for_room()
            return None

    def _wait_for_room(self) -> None:
        self._waiting = True
        if self._room is None:
            self._room = self._sender.room
            self._room.watch(self._sock.fileno(), self._has_room)

    def _has_room(self) -> None:
        if self._waiting:
            self._waiting = False
            self._sender.ready(self)

    def _wait_for(self, fetch: Callable[[], None]) -> None:
        future = self._loop.run_in_executor(self._sender.executor, fetch)
        future.add_done_callback(self._fetched)

    def _fetched(self, future: asyncio.Future[None]) -> None:
        if future.cancelled() or future.exception() is not None:
            self._end("io-error")
        elif not self.done.done():
            self._progress = self._loop.time()
            self._sender.ready(self)

    def _check(self) -> None:
        # A socket has room again when much of what it holds is gone: on a slow link that takes
        # longer than a reader may be silent.
        queued, now = self._arrived.look(), self._loop.time()
        if queued < self._queued:
            self._progress = now
        self._queued = queued
        if now >= self._progress + self._sender.stall:
            self._end("stalled")
        else:
            self._watch = self._loop.call_later(self._sender.stall / _LOOKS, self._check)

    def _end(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(Aborted(reason))
