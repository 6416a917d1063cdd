"""One connection: aiohttp's request handler with the limits that it lacks.

What is added: a deadline for the whole header, counted from its first byte (a drip of bytes does
not extend it); a cap on the header's total size; a cap on connections, well below what descriptors
allow, where the longest idle one gives way; answers to clients that close their side after asking;
one plain line for what is no HTTP. (SECURITY.md H2, H3, H9, H11, C4, C9.)
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections import OrderedDict
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

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
LINGER: Final = 1.0
"""Seconds that a refused body is read and dropped, so that its sender sees the refusal."""

LAST_WORD: Final = 30_000
"""Milliseconds that the end of an idle connection waits for its client's kernel. With the 150 s of
`KEEPALIVE` behind the 90 of `IDLE`, one that was switched off would be there for 240."""

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


def max_connections() -> int:
    """How many connections the limit on descriptors has room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 65536
    return max((soft - min(_RESERVED_FDS, soft // 2)) // _FDS_PER_CONNECTION, 16)


class Connections:
    """Those that are open, and which of them wait for a request, the longest waiting one first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open: set[Connection] = set()
        self._idle: OrderedDict[Connection, None] = OrderedDict()

    def admit(self, connection: Connection) -> bool:
        """Take a new connection; at the limit the longest idle one goes. False: no room."""
        if not self._make_room(self.limit - 1):
            return False
        self.open.add(connection)
        self._idle[connection] = None
        return True

    def resize(self, limit: int) -> None:
        """Hold at most `limit` from now on; more than that, as far as they are idle, go at once."""
        self.limit = limit
        self._make_room(limit)

    def _make_room(self, most: int) -> bool:
        """Close the longest idle ones until no more than `most` are open; whether that did."""
        while len(self.open) > most:
            if not self._idle:
                return False
            oldest, _ = self._idle.popitem(last=False)
            self.open.discard(oldest)
            oldest.force_close()
        return True

    def idle(self, connection: Connection) -> None:
        """It has its answer and waits for the next request."""
        if connection in self.open:
            self._idle[connection] = None

    def busy(self, connection: Connection) -> None:
        """It is being answered."""
        self._idle.pop(connection, None)

    def gone(self, connection: Connection) -> None:
        """It is closed."""
        self.open.discard(connection)
        self._idle.pop(connection, None)


class Connection(RequestHandler):
    """See the module. `ended` is true when the client has closed its side."""

    __slots__ = ("_book", "_coming", "_due", "_partial", "_working", "ended")

    def __init__(self, manager: web.Server, book: Connections, **options: Any) -> None:
        super().__init__(manager, **options)
        self._book = book
        self._due: asyncio.TimerHandle | None = None
        self._partial = 0
        self._coming = 0  # complete headers whose answer has not begun; aiohttp's queue is shorter
        self._working = False
        self.ended = False

    @property
    def queued(self) -> int:
        """Requests that have come in and wait for the one before them."""
        return len(self._messages)

    def begin(self) -> None:
        """The server begins to answer a request."""
        self._coming = max(self._coming - 1, 0)
        self._working = True
        self._book.busy(self)

    def finish(self, *, last: bool) -> None:
        """The answer is out. After the `last` one nothing more is said on this connection."""
        if not last:
            self._working = False
            self._book.idle(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As `asyncio.Protocol`'s."""
        super().connection_made(transport)
        # Asked for now: aiohttp keeps them, and when the connection is lost nobody knows them.
        _ = self.peername, self.sockname
        if self._book.admit(self):
            self._arm()
        else:
            self._say(503, "Service Unavailable", "too many connections")

    def connection_lost(self, exc: BaseException | None) -> None:
        """As `asyncio.Protocol`'s."""
        self._book.gone(self)
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """As `asyncio.Protocol`'s; knows by the queue whether a header was completed."""
        before = self.queued
        super().data_received(data)
        if self.queued > before:
            self._coming += self.queued - before
            self._partial = 0
            self._disarm()
        elif data and not self._coming:
            self._partial += len(data)
            self._arm()
            if self._partial > MAX_HEADER_BYTES:
                self._refuse(431, "Request Header Fields Too Large", "the header is too large")

    def force_close(self) -> None:
        """As aiohttp's, which does so where nothing is under way that a client waits for."""
        transport = self.transport
        sock = transport.get_extra_info("socket") if transport is not None else None
        if sock is not None:  # as it is under TLS when the connection is gone already
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LAST_WORD)
        super().force_close()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio allows it, aiohttp never does
        """The client has closed its side. What it asked for before, it gets (RFC 9112, 9.6)."""
        self.ended = True
        return self._working or self._coming > 0 or bool(self.queued)

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002 -- aiohttp's signature
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> web.StreamResponse:
        """What aiohttp's parser refuses, in one line and without a traceback; and what escaped from
        the server, which nothing should."""
        self.begin()
        if status >= 500 and not isinstance(exc, ConnectionError):
            metrics.EXCEPTIONS.labels("http").inc()
            log.error("http.fault", exc_info=exc)
        body = "this is no HTTP request\n" if status == 400 else "something went wrong here\n"
        response = web.Response(status=status, text=body, headers={"Server": "bootd"})
        response.force_close()
        return response

    def _arm(self) -> None:
        if self._due is None:
            self._due = self._loop.call_later(HEADER_DEADLINE, self._late)

    def _disarm(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _late(self) -> None:
        self._due = None
        if self._partial or self._working:
            self._refuse(408, "Request Timeout", "the header took too long")
        else:
            self.force_close()

    def _refuse(self, status: int, phrase: str, sentence: str) -> None:
        if self._working or self.queued:
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
        self.force_close()


class ConnectionServer(web.Server):
    """aiohttp's low-level server, making `Connection`."""

    def __init__(self, handler: Any, connections: Connections) -> None:
        super().__init__(handler, access_log=None)
        self.book = connections

    def __call__(self) -> Connection:
        """The protocol of one new connection."""
        return Connection(
            self,
            self.book,
            loop=self._loop,
            access_log=None,
            keepalive_timeout=IDLE,
            tcp_keepalive=False,  # the listener has it, with its times
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            max_headers=MAX_HEADERS,
            lingering_time=LINGER,
            auto_decompress=False,
        )
