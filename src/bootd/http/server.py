"""The HTTP service: sockets, the way from a request to its answer, the access log.

To firmware an answer is what WIRE.md section 3 asks for: HEAD as GET, an exact Content-Length, no
transfer or content coding, no redirect, persistent connections, absolute URLs made from the address
that the request arrived at. Every refusal has a status and one line that says why.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, cast

import structlog
from aiohttp import HttpVersion10, HttpVersion11, web

from bootd import loaders, metrics
from bootd.boots.timeline import Boots
from bootd.boots.unknown import Unknown
from bootd.files import LoaderFiles
from bootd.http.access import AccessLog
from bootd.http.admission import Admission
from bootd.http.answer import Answer, Asked, Refusal
from bootd.http.deliver import deliver
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
    ConnectionServer,
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
    split_target,
)
from bootd.http.send import Sender
from bootd.http.site import Neighbours, Site
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
        self._connections = Connections(max_connections())
        self._access = AccessLog()
        self._http: ConnectionServer | None = None
        self._listeners: list[asyncio.Server] = []
        self._certificate: Certificate | None = None
        self._stopping = False
        self.port = current.registry.settings.http.port
        self.tls_port = 0

    async def start(self) -> None:
        """Bind and begin to answer. Raises `StartError`."""
        settings = self._current.registry.settings.http
        self._http = ConnectionServer(self._serve, self._connections)
        self.port = await self._listen("http.port", settings.port, None)
        if settings.tls is not None:
            self._certificate = await asyncio.to_thread(Certificate, settings.tls)
            self._site.certificate = self._certificate
            context = self._certificate.context
            self.tls_port = await self._listen("http.tls.port", settings.tls.port, context)

    async def _listen(self, key: str, port: int, context: ssl.SSLContext | None) -> int:
        assert self._http is not None
        loop = asyncio.get_running_loop()
        try:
            listener = await loop.create_server(
                self._http,
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
        if self._http is not None:
            self._http.pre_shutdown()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._http.shutdown(None)
            # aiohttp takes its limit twice, and 0 for none at all.
            await self._http.shutdown(LAST_MOMENT)
        self._site.own_files.close()
        self._sender.close()
        self._disk.shutdown(wait=False, cancel_futures=True)

    # ---- one request -----------------------------------------------------------------------------

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast(Connection, request.protocol)
        connection.begin()
        loop = asyncio.get_running_loop()
        began = loop.time()
        asking = route(request.raw_path) if _fits(request) else _TOO_LARGE
        asked = self._asked(request, connection, began)
        answer = await self._answer_or_refuse(request, asked, asking)
        outcome, last = "aborted", True
        try:
            close = self._stopping or answer.reason in _FATAL or _ends(connection, request)
            wall = began + self._site.boots.offset
            delivery = await deliver(request, answer, self._sender, close=close, wall=wall)
            outcome, last = delivery.outcome, not delivery.response.keep_alive
            self._access.done(asking, asked, answer, delivery, loop.time())
            return delivery.response
        finally:
            self._site.boots.finish(answer.step, loop.time(), outcome)
            answer.close()
            if answer.ticket is not None:
                self._site.admission.leave(answer.ticket, loop.time())
            connection.finish(last=last)

    def _asked(self, request: web.BaseRequest, connection: Connection, now: float) -> Asked:
        # Read once: a reload in the middle of this request changes nothing in it.
        registry = self._current.registry
        if connection.peername is None or connection.sockname is None:
            raise ConnectionResetError("the client went away before its turn came")
        return Asked(
            method=request.method,
            peer=_address(connection.peername[0]),
            port=cast(int, connection.peername[1]),
            server=self._server_for(connection),
            registry=registry,
            now=now,
            headers=request.headers,
            query=split_target(request.raw_path)[1],
        )

    def _server_for(self, connection: Connection) -> ServerAddress:
        own = cast(tuple[str, int], connection.sockname)[0]
        if connection.ssl_context is not None:
            return _server(own, self.tls_port, "https")
        return _server(own, self.port, "http")

    async def _answer_or_refuse(
        self, request: web.BaseRequest, asked: Asked, asking: Route
    ) -> Answer:
        """The one place where refusals become statuses."""
        try:
            _refuse_malformed(request)
            _refuse_method(request, asking)
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


def _fits(request: web.BaseRequest) -> bool:
    """Whether the header is no larger than one may be that comes in pieces."""
    return sum(len(name) + len(value) for name, value in request.raw_headers) <= MAX_HEADER_BYTES


def _ends(connection: Connection, request: web.BaseRequest) -> bool:
    """Whether this is the last answer on its connection: the client has closed its side behind it,
    or wants another protocol, which it does not get."""
    if request.method == "CONNECT" or "Upgrade" in request.headers:
        return True
    return connection.ended and not connection.queued


def _refuse_malformed(request: web.BaseRequest) -> None:
    """A server that only reads takes no body: then there is nothing to smuggle a request in
    (SECURITY.md H7, H15). Raises `Refusal`."""
    headers = request.headers
    if "Transfer-Encoding" in headers or headers.get("Content-Length", "0") != "0":
        raise Refusal(413, "body", "a request has no body here")
    if request.version not in _VERSIONS:
        raise Refusal(400, "malformed", "only HTTP/1.1 and HTTP/1.0 here")
    if request.version == HttpVersion11 and len(headers.getall("Host", ())) != 1:
        raise Refusal(400, "malformed", "the request has no Host, or more than one")


def _refuse_method(request: web.BaseRequest, asking: Route) -> None:
    telling = isinstance(asking, BootPart) and asking.part in ("up", "fail")
    allowed = _TELL if telling else _READ
    if request.method not in allowed:
        raise Refusal(
            405, "method", f"only {' and '.join(allowed)} here", {"Allow": ", ".join(allowed)}
        )


@lru_cache(maxsize=4096)
def _address(text: str) -> IPv4Address:
    return IPv4Address(text)


@lru_cache(maxsize=256)
def _server(text: str, port: int, scheme: str) -> ServerAddress:
    return ServerAddress(IPv4Address(text), port, scheme)
