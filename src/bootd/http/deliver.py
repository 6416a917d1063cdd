"""From an `Answer` to bytes on the connection, and how that went."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from bootd.http.answer import Answer, OpenFile, Pieces
from bootd.http.head import FAILED, SERVER, head, status_of
from bootd.http.ranges import Decision, Failed, Span, decide
from bootd.http.send import Aborted, Arrived, Sender, all_arrived, cut, duplicate
from bootd.http.sources import CopySource, FileSource, MemorySource, Source, read_unchanged

SMALL: Final = 64 * 1024
"""Bytes of a body that go into the transport's buffer together with the head."""
_CHUNK: Final = 128 * 1024
_RESETS: Final = "UefiHttpBoot/"
"""EDK2, and shim through it, reset the connection in the moment that they have a whole file."""
_UNSAID: Final = 2 * 1460
"""Bytes that EDK2 has not acknowledged then: it answers every second segment at once."""

Moved = Callable[[int], None]
"""Told how many more bytes of a body have arrived."""


@dataclass(slots=True)
class Delivery:
    """What became of an answer: body bytes that arrived, and ``ok`` or why not all did."""

    response: web.StreamResponse
    status: int
    sent: int = 0
    outcome: str = "ok"


class _Written(web.StreamResponse):
    """What aiohttp is told about an answer that is out already."""

    def __init__(self, status: int, *, keep_alive: bool) -> None:
        super().__init__(status=status)
        self._stays = keep_alive

    @property
    def keep_alive(self) -> bool:
        """Whether the connection waits for another request."""
        return self._stays

    def force_close(self) -> None:
        """Let this be the last answer."""
        self._stays = False

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing is left to do."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to do."""


async def deliver(
    request: web.BaseRequest, answer: Answer, sender: Sender, *, close: bool, wall: float
) -> Delivery:
    """Send `answer`, or the part of it that the request's headers ask for; with `close` as the last
    one on its connection. `wall` is now in seconds since 1970. A client that goes away is an
    outcome, not an exception."""
    keep_alive = bool(request.keep_alive) and not close
    loop, span = asyncio.get_running_loop(), decision(request.method, request.headers, answer)
    delivery = Delivery(_response(answer, span, keep_alive=keep_alive), status_of(span))

    def moved(count: int) -> None:
        delivery.sent += count
        sender.count(count)
        if answer.step is not None:
            answer.step.sent += count
            answer.step.moved = loop.time()

    try:
        if isinstance(answer.body, AsyncGenerator):
            await _send_chunked(request, delivery.response, answer.body, sender, moved)
        else:
            old = request.version < (1, 1)
            first = head(answer, span, wall=wall, keep_alive=keep_alive, old=old)
            await _send_sized(request, first, answer.body, span, sender, moved)
    except Aborted as aborted:
        delivery.outcome = aborted.reason
    except TimeoutError:
        delivery.outcome = "stalled"
    except ConnectionError:
        delivery.outcome = "aborted"
    except BaseException:
        # To HTTP/1.0 a stream that is only closed is whole.
        if request.transport is not None:
            cut(request.transport)
        raise
    if delivery.outcome != "ok":
        delivery.response.force_close()
        if request.transport is not None:
            cut(request.transport)
    return delivery


def decision(method: str, headers: Mapping[str, str], answer: Answer) -> Decision:
    """What of `answer` these headers ask for."""
    if not answer.etag or answer.status != 200:
        return Span(answer.status, 0, answer.size)
    return decide(
        method,
        headers,
        size=answer.size,
        etag=answer.etag,
        modified=answer.modified,
    )


def _response(answer: Answer, span: Decision, *, keep_alive: bool) -> web.StreamResponse:
    if not isinstance(answer.body, AsyncGenerator):
        return _Written(status_of(span), keep_alive=keep_alive)
    headers = {"Server": SERVER, "Cache-Control": answer.cache, "Content-Type": answer.type}
    response = web.StreamResponse(status=answer.status, headers=headers)
    if not keep_alive:
        response.force_close()
    return response


async def _send_sized(
    request: web.BaseRequest,
    first: bytes,
    body: Pieces | OpenFile,
    span: Decision,
    sender: Sender,
    moved: Moved,
) -> None:
    """The head `first`, then `span` of `body`."""
    transport, writer = request.transport, request.writer
    if transport is None or transport.is_closing():
        raise Aborted("aborted")
    if request.method == "HEAD":
        span = Span(200, 0, 0)
    elif isinstance(span, Failed):
        body = (FAILED[span.status],)
        span = Span(span.status, 0, len(body[0]))
    if not isinstance(span, Span) or not span.length:
        transport.write(first)
    elif span.length <= SMALL:
        transport.write(first + await _read(body, span.start, span.length, sender))
        moved(span.length)
    else:
        with duplicate(transport) as sock, _source(body, transport, sender) as source:
            arrived = Arrived(sock, moved, transport.get_write_buffer_size)
            with sender.under_way(arrived):
                if transport.get_extra_info("sslcontext") is None:
                    await _send_past(transport, writer, first, sock, source, span, sender, arrived)
                else:
                    await _send_through(transport, writer, first, body, span, sender, arrived)
                stall, unsaid = sender.stall, _unsaid(request)
                await all_arrived(transport, sock, arrived, stall, unsaid=unsaid)
    async with asyncio.timeout(sender.stall):
        await writer.drain()


def _unsaid(request: web.BaseRequest) -> int:
    firmware = request.headers.get("User-Agent", "").startswith(_RESETS)
    return _UNSAID if firmware else 0


@contextmanager
def _source(
    body: Pieces | OpenFile, transport: asyncio.Transport, sender: Sender
) -> Iterator[Source]:
    """Where `body` comes from; a file stays as it is until the client has all of it. Raises
    `Aborted` where somebody was about to change it before."""
    if not isinstance(body, OpenFile):
        yield MemorySource(body)
        return
    hold = sender.leases.hold(body.fd, lambda: cut(transport))
    if hold is None:
        yield CopySource(body)
        return
    try:
        if body.changed():  # before it was leased
            raise Aborted("file-changed")
        yield FileSource(body)
    except BaseException as exc:
        cut(transport)  # before anybody else may have the file
        if isinstance(exc, Aborted) and hold.over:
            raise Aborted("file-changed") from None
        raise
    finally:
        hold.release()


async def _send_past(
    transport: asyncio.Transport,
    writer: AbstractStreamWriter,
    first: bytes,
    sock: socket.socket,
    source: Source,
    span: Span,
    sender: Sender,
    arrived: Arrived,
) -> None:
    """Send past the transport, once its own buffer is empty (`http.send`)."""
    transport.set_write_buffer_limits(high=0)
    try:
        transport.write(first)
        async with asyncio.timeout(sender.stall):
            await writer.drain()
        await sender.send(sock, source, span.start, span.length, arrived)
    finally:
        if not transport.is_closing():
            transport.set_write_buffer_limits()


async def _send_through(
    transport: asyncio.Transport,
    writer: AbstractStreamWriter,
    first: bytes,
    body: Pieces | OpenFile,
    span: Span,
    sender: Sender,
    arrived: Arrived,
) -> None:
    """Send through a transport that encrypts."""
    if not isinstance(body, OpenFile):
        body = (b"".join(body),)
    transport.write(first)
    for start in range(span.start, span.start + span.length, _CHUNK):
        size = min(_CHUNK, span.start + span.length - start)
        transport.write(await _read(body, start, size, sender))
        async with asyncio.timeout(sender.stall):
            await writer.drain()
        if transport.is_closing():  # what was written since the client's end was dropped
            raise Aborted("aborted")
        arrived.given += size
        arrived.look()


async def _read(body: Pieces | OpenFile, start: int, size: int, sender: Sender) -> bytes:
    """So many bytes of `body`. Raises `Aborted` for a file that is not what it was."""
    if not isinstance(body, OpenFile):
        return b"".join(body)[start : start + size]
    loop = asyncio.get_running_loop()
    try:
        data = await loop.run_in_executor(sender.executor, read_unchanged, body, size, start)
    except OSError as exc:
        raise Aborted("io-error") from exc
    if len(data) < size:
        raise Aborted("file-changed")
    return data


async def _send_chunked(
    request: web.BaseRequest,
    response: web.StreamResponse,
    body: AsyncGenerator[bytes, None],
    sender: Sender,
    moved: Moved,
) -> None:
    """A body of unknown length, in chunks; to HTTP/1.0 until the connection ends."""
    await response.prepare(request)
    async with aclosing(body):
        if request.method != "HEAD":
            async for chunk in body:
                async with asyncio.timeout(sender.stall):
                    await response.write(chunk)
                moved(len(chunk))
    await response.write_eof()
