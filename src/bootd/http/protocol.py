"""One connection: bytes in, requests answered one after the other, and the limits around them.

aiohttp's C parser reads the headers; the rest is ours, because a small answer is to cost little: it
is given in the same turn in which its request came in, without a task, a future or a timer. Only
what has to wait (a disk, a thread, a client that reads slowly) runs as a task, one at a time.

The limits: a deadline for the whole header, counted from its first byte (a drip of bytes does not
extend it); a cap on the header's total size; a cap on connections, well below what descriptors
allow, where the longest idle one gives way; answers to clients that close their side after asking;
a cap on requests that wait for the one before them; one plain line for what is no HTTP.
(SECURITY.md H2, H3, H8, H9, H11, C4, C9.)
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, cast

import structlog
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpRequestParser, RawRequestMessage
from aiohttp.streams import StreamReader

from bootd import metrics

log = structlog.get_logger()

HEADER_DEADLINE: Final = 30.0
"""Seconds from a connection's or a header's first byte to the end of that header."""
IDLE: Final = 90.0
"""Seconds that a connection may wait for its next request. iPXE comes back for the initrd after the
kernel, so this is more than its pauses (WIRE.md 3.2: at least 60)."""
MAX_LINE: Final = 8190
MAX_HEADERS: Final = 128
MAX_HEADER_BYTES: Final = 64 * 1024
MAX_QUEUED: Final = 32
"""Requests that may wait for the one before them; then nothing more is read."""
AT_ONCE: Final = 16
"""Requests of one connection that are answered before others have their turn: some 2 ms."""
LINGER: Final = 1.0
"""Seconds that a refused body is read and dropped, so that its sender sees the refusal."""

LAST_WORD: Final = 30_000
"""Milliseconds that the end of an idle connection waits for its client's kernel. With the 150 s of
`KEEPALIVE` behind the 90 of `IDLE`, one that was switched off would be there for 240."""

_READ_BUFFER: Final = 64 * 1024
_RESERVED_FDS: Final = 512  # for TFTP transfers, DHCP, reloads, logs
_FDS_PER_CONNECTION: Final = 3  # its own, the duplicate that sends, the file
KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 150_000),
)
"""Set on the socket that listens: connections inherit them, which costs nothing for each."""

Serve = Callable[["Connection", RawRequestMessage, StreamReader], bool | Coroutine[Any, Any, bool]]
"""Answers one request: True where it is the last one of its connection. What has to wait gives a
coroutine that ends with the same."""


def max_connections() -> int:
    """How many connections the limit on descriptors has room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 65536
    return max((soft - min(_RESERVED_FDS, soft // 2)) // _FDS_PER_CONNECTION, 16)


class Waiting:
    """Connections that wait for something, the longest waiting one first, and one timer of the
    loop's for all of them: to set and take back a timer for each would cost more than to parse its
    header. All wait for the same number of seconds; then `late` is called.
    """

    def __init__(self, late: Callable[[Connection], None]) -> None:
        self._late = late
        self._due: OrderedDict[Connection, float] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._due

    def begin(
        self, connection: Connection, loop: asyncio.AbstractEventLoop, seconds: float
    ) -> None:
        """It waits from now on, if it did not."""
        if connection in self._due:
            return
        due = self._due[connection] = loop.time() + seconds
        if self._timer is None or due < self._at:
            self._set(loop, due)

    def end(self, connection: Connection) -> None:
        """It waits no more."""
        self._due.pop(connection, None)

    def longest(self) -> Connection | None:
        """The one that has waited longest."""
        return next(iter(self._due), None)

    def close(self) -> None:
        """Call nobody any more."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = due
        self._timer = loop.call_at(due, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        while self._due:
            connection, due = next(iter(self._due.items()))
            if due > now:
                self._set(loop, due)
                return
            del self._due[connection]
            self._late(connection)


class Connections:
    """Those that are open, and which of them wait: for a request (new ones too), for the end of its
    header. `serve` answers requests."""

    def __init__(self, serve: Serve, limit: int) -> None:
        self.serve = serve
        self.limit = limit
        self.open: set[Connection] = set()
        self.idle = Waiting(lambda connection: connection.drop())
        self.headers = Waiting(lambda connection: connection.late())

    def admit(self, connection: Connection) -> bool:
        """Take a new connection; at the limit the longest idle one goes. False: no room."""
        if not self._make_room(self.limit - 1):
            return False
        self.open.add(connection)
        return True

    def resize(self, limit: int) -> None:
        """Hold at most `limit` from now on; more than that, as far as they are idle, go at once."""
        self.limit = limit
        self._make_room(limit)

    def _make_room(self, most: int) -> bool:
        """Close the longest idle ones until no more than `most` are open; whether that did."""
        while len(self.open) > most:
            oldest = self.idle.longest()
            if oldest is None:
                return False
            self.gone(oldest)
            oldest.give_way()
        return True

    def gone(self, connection: Connection) -> None:
        """It is closed."""
        self.open.discard(connection)
        self.idle.end(connection)
        self.headers.end(connection)

    async def stop(self, seconds: float, moment: float) -> None:
        """Close them: at once where nothing is under way, else after its answer. After so many
        `seconds` answers are cut, and have a `moment` to notice."""
        for connection in list(self.open):
            connection.close()
        await _ended(self._tasks(), seconds)
        for task in self._tasks():
            task.cancel()
        await _ended(self._tasks(), moment)
        for connection in list(self.open):
            connection.drop()
        self.idle.close()
        self.headers.close()

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [connection.task for connection in self.open if connection.task is not None]


async def _ended(tasks: Iterable[asyncio.Task[None]], seconds: float) -> None:
    """Wait for them, so long at most."""
    waiting = list(tasks)
    if waiting:
        await asyncio.wait(waiting, timeout=max(seconds, 0.0))


class Connection(BaseProtocol):
    """See the module. `peername` and `sockname` are addresses and ports of both ends, None where
    the client was gone already; `ended` is true when the client has closed its side, `large` when
    so much came in at once that a header in it may be too large."""

    __slots__ = (
        "_book", "_closing", "_deaf", "_partial", "_queue", "_waits", "_working",
        "ended", "large", "peername", "sockname", "ssl_context", "task",
    )  # fmt: skip

    _parser: HttpRequestParser | None

    def __init__(
        self,
        book: Connections,
        loop: asyncio.AbstractEventLoop,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        parser = HttpRequestParser(
            self,
            loop,
            _READ_BUFFER,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            max_headers=MAX_HEADERS,
            payload_exception=ConnectionError,
            auto_decompress=False,
            max_msg_queue_size=MAX_QUEUED,
        )
        super().__init__(loop, parser)
        self._book = book
        self._queue: deque[tuple[RawRequestMessage, StreamReader] | None] = deque()
        self._partial = 0
        self._working = False
        self._deaf = False  # what comes in is dropped: after it, nothing can be a request
        self._closing = False
        self._waits = False  # for its next turn
        self.task: asyncio.Task[None] | None = None
        self.ended = self.large = False
        self.peername: tuple[str, int] | None = None
        self.sockname: tuple[str, int] | None = None
        self.ssl_context = ssl_context

    @property
    def queued(self) -> int:
        """Requests that have come in and wait for the one before them."""
        return len(self._queue)

    def time(self) -> float:
        """Now, in the loop's monotonic seconds."""
        return self._loop.time()

    async def written(self) -> None:
        """Wait until what was written has left. Raises `ConnectionError`."""
        await self._drain_helper()
        if self.transport is None:  # it was lost without an error
            raise ConnectionResetError

    # ---- what the transport tells ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As `asyncio.Protocol`'s."""
        self.transport = stream = cast(asyncio.Transport, transport)
        # Asked for now: when the connection is lost nobody knows them.
        self.peername = stream.get_extra_info("peername")
        self.sockname = stream.get_extra_info("sockname")
        if self._book.admit(self):
            self._book.idle.begin(self, self._loop, IDLE)
            self._book.headers.begin(self, self._loop, HEADER_DEADLINE)
        else:
            self._say(503, "Service Unavailable", "too many connections")

    def connection_lost(self, exc: BaseException | None) -> None:
        """As `asyncio.Protocol`'s."""
        self._book.gone(self)
        self._deaf = self._closing = True
        self._queue.clear()
        super().connection_lost(exc)
        self._parser = None  # it refers to us

    def data_received(self, data: bytes) -> None:
        """As `asyncio.Protocol`'s."""
        self._feed(data)
        if self.task is None and not self._waits:
            self._go_on()

    def _feed(self, data: bytes) -> None:
        """Parse `data` behind what the parser has kept back, and put requests into the queue."""
        if self._deaf or self._parser is None:
            return
        before = len(self._queue)
        try:
            messages, upgraded, _ = self._parser.feed_data(data)
        except HttpProcessingError:
            self._queue.append(None)
            self._deaf = True
        else:
            self._queue.extend(messages)
            self._deaf = upgraded
        if len(self._queue) > before:
            if self._partial + len(data) > MAX_HEADER_BYTES:
                self.large = True
            self._partial = 0
            self._book.headers.end(self)
            if len(self._queue) >= MAX_QUEUED and not self._buffer_paused:
                self._pause_reading_for_buffer()
        elif data and not before:
            self._partial += len(data)
            self._book.headers.begin(self, self._loop, HEADER_DEADLINE)
            if self._partial > MAX_HEADER_BYTES:
                self._refuse(431, "Request Header Fields Too Large", "the header is too large")

    def eof_received(self) -> bool:
        """The client has closed its side. What it asked for before, it gets (RFC 9112, 9.6), but
        under TLS, only what was written already."""
        self.ended = True
        # Under TLS uvloop closes in any case, and would log a warning that it does.
        return self.ssl_context is None and (self._working or bool(self._queue))

    # ---- answering -------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Answer what has come in, in its order, until something has to be waited for."""
        self._waits = False
        left = AT_ONCE
        while self._queue and not self._closing:
            if not left:
                self._waits = True
                self._loop.call_soon(self._go_on)
                return
            left -= 1
            item = self._queue.popleft()
            if self._parser is not None:
                self._parser.message_consumed()
            if self._buffer_paused and len(self._queue) <= MAX_QUEUED // 2:
                self._refill()
            self._working = True
            self._book.idle.end(self)
            if item is None:
                self._say(400, "Bad Request", "this is no HTTP request")
                return
            message, payload = item
            try:
                answered = self._book.serve(self, message, payload)
            except Exception:
                metrics.EXCEPTIONS.labels("http").inc()
                log.exception("http.fault")
                self._say(500, "Internal Server Error", "something went wrong here")
                return
            if not isinstance(answered, bool):
                self.task = self._loop.create_task(self._wait_for(answered, payload))
                return
            self._answered(payload, last=answered)
        if self._closing:
            return
        if self.ended:
            self.drop()
        else:
            self._book.idle.begin(self, self._loop, IDLE)

    def _refill(self) -> None:
        """Take what the parser has kept back, and read on if that was not too much."""
        self._feed(b"")
        if len(self._queue) < MAX_QUEUED:
            self._resume_reading_for_buffer()

    def _answered(self, payload: StreamReader, *, last: bool) -> None:
        self._working = False
        if last or self._closing:
            self._end(payload)

    async def _wait_for(self, answering: Coroutine[Any, Any, bool], payload: StreamReader) -> None:
        last = True
        try:
            last = await answering
        except Exception:
            metrics.EXCEPTIONS.labels("http").inc()
            log.exception("http.fault")
        finally:
            self.task = None
            self._answered(payload, last=last)
        self._go_on()

    # ---- ending ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Say nothing more after what is under way."""
        self._closing = self._deaf = True
        if not self._working:
            self.drop()

    def drop(self) -> None:
        """Close, where nothing is under way that a client waits for."""
        sock = self.transport.get_extra_info("socket") if self.transport is not None else None
        if sock is not None:  # as it is under TLS when the connection is gone already
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LAST_WORD)
        self._shut()

    def give_way(self) -> None:
        """Close for another one, which needs the descriptor now: TLS would keep it until the client
        has said its last word, for half a minute."""
        self.drop()
        if self.ssl_context is not None and self.transport is not None:
            self.transport.abort()

    def _shut(self) -> None:
        """Close, when what was written has left."""
        self._closing = self._deaf = True
        self._queue.clear()
        if self.transport is not None:
            self.transport.close()

    def late(self) -> None:
        """A header's deadline has passed."""
        if self._partial or self._working:
            self._refuse(408, "Request Timeout", "the header took too long")
        else:
            self.drop()

    def _end(self, payload: StreamReader) -> None:
        """The last answer is out. Where a body follows its request, its sender would see a reset
        instead of the refusal, so that is read for a while."""
        self._closing = self._deaf = True
        self._queue.clear()
        if payload.is_eof() or self.ended or self.transport is None:
            self._shut()
            return
        self._reading_paused = self._buffer_paused = False
        self._resume_transport_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._loop.call_later(LINGER, self.drop)

    def _refuse(self, status: int, phrase: str, sentence: str) -> None:
        if self._working or self._queue:
            self.close()  # after what is under way: a header that never ends came in behind it
        else:
            self._say(status, phrase, sentence)

    def _say(self, status: int, phrase: str, sentence: str) -> None:
        """Answer outside of any request, and close."""
        if self.transport is not None:
            self.transport.write(
                f"HTTP/1.1 {status} {phrase}\r\nServer: bootd\r\nContent-Type: text/plain\r\n"
                f"Content-Length: {len(sentence) + 1}\r\nConnection: close\r\n\r\n"
                f"{sentence}\n".encode()
            )
        self.drop()
