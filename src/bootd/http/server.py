"""The HTTP service: sockets, the way from a request to its answer, the access log.

To firmware an answer is what WIRE.md section 3 asks for: HEAD as GET, an exact Content-Length, no
transfer or content coding, no redirect, persistent connections, absolute URLs made from the address
that the request arrived at. Every refusal has a status and one line that says why.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final, cast

import structlog
from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11, RawRequestMessage, StreamWriter
from aiohttp.streams import StreamReader

from bootd import loaders, metrics
from bootd.boots.timeline import Boots
from bootd.boots.unknown import Unknown
from bootd.files import LoaderFiles
from bootd.http.access import AccessLog, Sent
from bootd.http.admission import Admission
from bootd.http.answer import Answer, Asked, Refusal
from bootd.http.deliver import deliver
from bootd.http.eager import Begun
from bootd.http.events import Events
from bootd.http.handlers.admin import page
from bootd.http.handlers.boot import part
from bootd.http.handlers.configs import config
from bootd.http.handlers.files import blob, public, shared
from bootd.http.handlers.refusals import refused
from bootd.http.handlers.runtime import runtime
from bootd.http.handlers.script import script
from bootd.http.handlers.sitefiles import site_file
from bootd.http.handlers.warewulf import resolve, system
from bootd.http.protocol import (
    KEEPALIVE,
    MAX_HEADER_BYTES,
    Connection,
    Connections,
    max_connections,
)
from bootd.http.routes import (
    Bad,
    Blob,
    BootPart,
    File,
    Fixed,
    Provision,
    Public,
    Route,
    Runtime,
    Script,
    SiteFile,
    System,
    route,
)
from bootd.http.send import Sender, cut
from bootd.http.site import Neighbours, Site
from bootd.http.small import Written, written
from bootd.http.tls import Certificate
from bootd.model import HttpSettings, ServerAddress, StartError
from bootd.overlay.cache import OverlayCache
from bootd.registry import Current

log = structlog.get_logger()

BACKLOG: Final = 4096
FILES: Final = "files"
"""Folder beside bootd.yaml with what ``/files/`` gives."""
HANDSHAKE: Final = 15.0
"""Seconds for a TLS handshake."""
TICK: Final = 1.0
LAST_MOMENT: Final = 0.05
"""Seconds for what is cut at the end to notice."""
_VERSIONS: Final = (HttpVersion10, HttpVersion11)
_READ: Final = ("GET", "HEAD")
_TELL: Final = ("GET", "POST")
_FATAL: Final = frozenset({"body", "malformed", "header-too-large"})
"""Refusals after which the connection is closed: what follows may not be a request."""
_TOO_LARGE: Final = Bad(431, "header-too-large", "the header is too large")


class HttpServer:
    """Serves HTTP on every address, on ``http.port`` and with TLS on ``http.tls.port`` as they were
    at the start; a certificate that a reload brings is taken for the connections after it.

    `keys` sign boot tokens, node keys come from `node_secrets`, the newest of each first. `unknown`
    lists the machines that wait.
    """

    def __init__(
        self,
        *,
        current: Current,
        boots: Boots,
        files: LoaderFiles,
        overlays: OverlayCache,
        net: Neighbours,
        keys: Sequence[bytes],
        node_secrets: Sequence[bytes] = (),
        unknown: Unknown | None = None,
        host: str = "0.0.0.0",
    ) -> None:
        self._current = current
        self._taken = current.registry
        self._host = host
        self._disk = ThreadPoolExecutor(8, thread_name_prefix="bootd-http")
        self._site = Site(
            boots=boots,
            files=files,
            overlays=overlays,
            net=net,
            keys=keys,
            node_secrets=node_secrets,
            unknown=unknown if unknown is not None else Unknown(),
            disk=self._disk,
            admission=Admission(random.random, current.registry.settings.http.max_image_transfers),
            events=Events(boots),
            own_files=LoaderFiles([Path(current.registry.settings.config_file).parent / FILES]),
        )
        self._sender = Sender(self._disk)
        self._connections = Connections(self._serve, max_connections())
        self._access = AccessLog()
        self._listeners: list[asyncio.Server] = []
        self._certificate: Certificate | None = None
        self._stopping = False
        self.port = current.registry.settings.http.port
        self.tls_port = 0

    async def start(self) -> None:
        """Bind and begin to answer. Raises `StartError`."""
        settings = self._current.registry.settings.http
        self.port = await self._listen("http.port", settings.port, None)
        if settings.tls is not None:
            self._certificate = await asyncio.to_thread(Certificate, settings.tls)
            self._site.certificate = self._certificate
            context = self._certificate.context
            self.tls_port = await self._listen("http.tls.port", settings.tls.port, context)

    async def _listen(self, key: str, port: int, context: ssl.SSLContext | None) -> int:
        loop = asyncio.get_running_loop()
        try:
            listener = await loop.create_server(
                partial(Connection, self._connections, loop, context),
                self._host,
                port,
                backlog=BACKLOG,
                reuse_address=True,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE if context is not None else None,
            )
        except OSError as exc:
            raise StartError(
                f"HTTP cannot listen on {self._host}:{port}: {exc.strerror or exc}. "
                f"Is another program using the port? It is {key} in bootd.yaml."
            ) from exc
        for sock in listener.sockets:
            for level, name, value in KEEPALIVE:
                sock.setsockopt(level, name, value)
        self._listeners.append(listener)
        bound = cast(int, listener.sockets[0].getsockname()[1])
        log.info("http.listening", port=bound, tls=context is not None)
        return bound

    async def run(self) -> None:
        """Until cancelled: once a second, look at throughput, limits, settings and who listens."""
        loop = asyncio.get_running_loop()
        moved, then = self._sender.moved, loop.time()
        while True:
            await asyncio.sleep(TICK)
            now = loop.time()
            self._sender.look()
            self._site.admission.measured((self._sender.moved - moved) / (now - then))
            moved, then = self._sender.moved, now
            self._tell_metrics()
            # prlimit(1) may have lowered it below what is open: then nobody could open anything.
            self._connections.resize(max_connections())
            self._site.events.tick(now)
            if self._current.registry is not self._taken:
                self._taken = self._current.registry
                await self._take(self._taken.settings.http)

    def _tell_metrics(self) -> None:
        admission = self._site.admission
        metrics.TRANSFERS.labels("http").set(self._sender.active)
        metrics.ADMISSION_LIMIT.set(admission.limit)
        metrics.ADMISSION_ACTIVE.set(admission.active)
        metrics.ADMISSION_WAITING.set(admission.waiting)

    async def _take(self, settings: HttpSettings) -> None:
        """What a reload may change while we listen."""
        self._site.admission.configure(settings.max_image_transfers)
        if self._certificate is not None and settings.tls is not None:
            await self._certificate.follow(settings.tls)

    async def stop(self, deadline: float) -> None:
        """Take no more connections, let answers end until `deadline` (loop time), then close."""
        self._stopping = True
        for listener in self._listeners:
            listener.close()
        self._site.events.close()
        loop = asyncio.get_running_loop()
        await self._connections.stop(deadline - loop.time(), LAST_MOMENT)
        self._site.own_files.close()
        self._sender.close()
        self._disk.shutdown(wait=False, cancel_futures=True)

    # ---- one request -----------------------------------------------------------------------------

    def _serve(
        self, connection: Connection, message: RawRequestMessage, payload: StreamReader
    ) -> bool | Coroutine[Any, Any, bool]:
        """Answer a request, at once where nothing has to be waited for (`protocol.Serve`)."""
        if connection.peername is None or connection.sockname is None:
            return True  # the client had gone before it was known who it is
        now = connection.time()
        too_large = connection.large and not _fits(message)
        asking = _TOO_LARGE if too_large else route(message.path)
        asked = self._asked(message, connection, now)
        answering = Begun(self._answer_or_refuse(message, asked, asking))
        turn = _Turn(connection, message, payload, asking, asked)
        if not answering.done:
            return self._serve_later(turn, answering)
        close = self._closes(turn, answering.result)
        wall = now + self._site.boots.offset
        whole = written(message, answering.result, close=close, wall=wall)
        if whole is None:
            return self._deliver(turn, answering.result)
        return self._write(turn, answering.result, whole, close=close)

    async def _serve_later(self, turn: _Turn, answering: Begun[Answer]) -> bool:
        return await self._deliver(turn, await answering)

    def _write(
        self, turn: _Turn, answer: Answer, whole: Written, *, close: bool
    ) -> bool | Coroutine[Any, Any, bool]:
        """Send an answer that is in memory; only a client that reads nothing is waited for."""
        transport = turn.connection.transport
        if transport is None or transport.is_closing():
            self._done(turn, answer, whole.status, 0, "aborted")
            return True
        transport.write(whole.data)
        if turn.connection.writing_paused:
            return self._written_later(turn, answer, whole, close=close)
        self._count(turn, answer, whole.size)
        self._done(turn, answer, whole.status, whole.size, "ok")
        return close

    async def _written_later(
        self, turn: _Turn, answer: Answer, whole: Written, *, close: bool
    ) -> bool:
        outcome = "aborted"
        try:
            async with asyncio.timeout(self._sender.stall):
                await turn.connection.written()
            outcome = "ok"
        except TimeoutError:
            outcome = "stalled"
        except ConnectionError:
            pass
        finally:
            ok = outcome == "ok"
            if ok:
                self._count(turn, answer, whole.size)
            elif turn.connection.transport is not None:
                cut(turn.connection.transport)
            self._done(turn, answer, whole.status, whole.size if ok else 0, outcome)
        return close or not ok

    def _count(self, turn: _Turn, answer: Answer, size: int) -> None:
        if size:
            self._sender.count(size)
        if answer.step is not None:
            answer.step.sent += size
            answer.step.moved = turn.connection.time()

    async def _deliver(self, turn: _Turn, answer: Answer) -> bool:
        """Send an answer of any kind, in a task."""
        outcome, status, sent, last = "aborted", answer.status, 0, True
        try:
            close = self._closes(turn, answer)
            wall = turn.asked.now + self._site.boots.offset
            delivery = await deliver(turn.request(), answer, self._sender, close=close, wall=wall)
            outcome, status, sent = delivery.outcome, delivery.status, delivery.sent
            last = not delivery.response.keep_alive
        finally:
            self._done(turn, answer, status, sent, outcome)
        return last

    def _closes(self, turn: _Turn, answer: Answer) -> bool:
        """Whether this is the last answer on its connection: what follows may not be a request; the
        client has closed its side behind it, or wants it so; or wants another protocol, which it
        does not get."""
        connection, message = turn.connection, turn.message
        return (
            message.should_close
            or self._stopping
            or answer.reason in _FATAL
            or message.method == "CONNECT"
            or "Upgrade" in message.headers
            or (connection.ended and not connection.queued)
        )

    def _done(self, turn: _Turn, answer: Answer, status: int, sent: int, outcome: str) -> None:
        """Whatever came of it: the step is over, what was held is let go, the log is written."""
        now = turn.connection.time()
        if answer.step is not None:
            self._site.boots.finish(answer.step, now, outcome)
        answer.close()
        if answer.ticket is not None:
            self._site.admission.leave(answer.ticket, now)
        self._access.done(turn.asking, turn.asked, answer, Sent(status, sent, outcome), now)

    def _asked(self, message: RawRequestMessage, connection: Connection, now: float) -> Asked:
        assert connection.peername is not None
        address, port = connection.peername[:2]
        return Asked(
            method=message.method,
            peer=_address(address),
            port=port,
            server=self._server_for(connection),
            # Read once: a reload in the middle of this request changes nothing in it.
            registry=self._current.registry,
            now=now,
            headers=message.headers,
            query=message.path.partition("?")[2],
        )

    def _server_for(self, connection: Connection) -> ServerAddress:
        assert connection.sockname is not None
        own = connection.sockname[0]
        if connection.ssl_context is not None:
            return _server(own, self.tls_port, "https")
        return _server(own, self.port, "http")

    async def _answer_or_refuse(
        self, message: RawRequestMessage, asked: Asked, asking: Route
    ) -> Answer:
        """The one place where refusals become statuses."""
        try:
            _refuse_malformed(message)
            _refuse_method(message, asking)
            return await self._answer(asked, asking)
        except Refusal as refusal:
            return refused(self._site, asked, asking, refusal)
        except Exception:
            metrics.EXCEPTIONS.labels("http").inc()
            log.exception("http.fault", route=type(asking).__name__)
            fault = Refusal(500, "fault", "something went wrong here")
            return refused(self._site, asked, asking, fault)

    async def _answer(self, asked: Asked, asking: Route) -> Answer:
        site = self._site
        match asking:
            case Script(mac):
                return script(site, asked, mac)
            case BootPart():
                return await part(site, asked, asking)
            case Runtime():
                return await runtime(site, asked, asking)
            case System(mac):
                return await system(site, asked, mac)
            case Provision():
                return await self._answer(asked, resolve(site, asked, asking))
            case SiteFile(path):
                return await site_file(site, asked, path)
            case Public():
                return await public(site, asked, asking)
            case Blob(digest):
                return await blob(site, asked, digest)
            case File(loaders.GrubConfig() | loaders.PxelinuxConfig() as target):
                return await config(site, asked, target)
            case File(target):
                return await shared(site, asked, target)
            case Fixed(name):
                return await page(site, asked, name)
            case Bad(status, reason, sentence):
                raise Refusal(status, reason, sentence)


@dataclass(slots=True)
class _Turn:
    """One request, while it is being answered."""

    connection: Connection
    message: RawRequestMessage
    payload: StreamReader
    asking: Route
    asked: Asked

    def request(self) -> web.BaseRequest:
        """As aiohttp's classes know it, for those answers that they help to send; in a task."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        writer = StreamWriter(self.connection, loop)
        # All that is asked of aiohttp's own handler is in `Connection` as well.
        protocol = cast(web.RequestHandler, self.connection)
        message = self.message
        if message.url.absolute:  # a host that is no name would be decoded, and that fails
            message = message._replace(url=message.url.relative())
        return web.BaseRequest(message, self.payload, protocol, writer, task, loop)


def _fits(message: RawRequestMessage) -> bool:
    """Whether the header is no larger than one may be that comes in pieces."""
    return sum(len(name) + len(value) for name, value in message.raw_headers) <= MAX_HEADER_BYTES


def _refuse_malformed(message: RawRequestMessage) -> None:
    """A server that only reads takes no body: then there is nothing to smuggle a request in
    (SECURITY.md H7, H15). Raises `Refusal`."""
    headers = message.headers
    if "Transfer-Encoding" in headers or headers.get("Content-Length", "0") != "0":
        raise Refusal(413, "body", "a request has no body here")
    if message.version not in _VERSIONS:
        raise Refusal(400, "malformed", "only HTTP/1.1 and HTTP/1.0 here")
    if message.version == HttpVersion11 and len(headers.getall("Host", ())) != 1:
        raise Refusal(400, "malformed", "the request has no Host, or more than one")


def _refuse_method(message: RawRequestMessage, asking: Route) -> None:
    telling = isinstance(asking, BootPart) and asking.part in ("up", "fail")
    allowed = _TELL if telling else _READ
    if message.method not in allowed:
        raise Refusal(
            405, "method", f"only {' and '.join(allowed)} here", {"Allow": ", ".join(allowed)}
        )


@lru_cache(maxsize=4096)
def _address(text: str) -> IPv4Address:
    return IPv4Address(text)


@lru_cache(maxsize=256)
def _server(text: str, port: int, scheme: str) -> ServerAddress:
    return ServerAddress(IPv4Address(text), port, scheme)
