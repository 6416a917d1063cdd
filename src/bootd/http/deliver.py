"""From an `Answer` to bytes on the connection, and how that went."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from bootd.http.answer import Answer, OpenFile, Pieces
from bootd.http.head import FAILED, SERVER, head, status_of
from bootd.http.ranges import Decision, Failed, Span, decide
from bootd.http.send import Aborted, Sender, acknowledged
from bootd.http.sources import FileSource, MemorySource

SMALL: Final = 64 * 1024
"""Bytes of a body that go into the transport's buffer together with the head."""
_CHUNK: Final = 128 * 1024
_RESETS: Final = "UefiHttpBoot/"
"""EDK2, and shim through it, reset the connection in the moment that they have a whole file."""
_UNSAID: Final = 2 * 1460
"""Bytes that EDK2 has not acknowledged then: it answers every second segment at once."""

Moved = Callable[[int], None]
"""Told how many more bytes of a body have left."""


@dataclass(slots=True)
class Delivery:
    """What became of an answer: body bytes that left, and ``ok`` or why not all did."""

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
    loop, span = asyncio.get_running_loop(), _decide(request, answer)
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
        lost = min(aborted.lost, delivery.sent)
        delivery.sent -= lost
        if answer.step is not None:
            answer.step.sent -= lost
    except TimeoutError:
        delivery.outcome = "stalled"
    except ConnectionError:
        delivery.outcome = "aborted"
    if delivery.outcome != "ok":
        delivery.response.force_close()
        if request.transport is not None:
            request.transport.abort()
    return delivery


def _decide(request: web.BaseRequest, answer: Answer) -> Decision:
    if not answer.etag or answer.status != 200:
        return Span(answer.status, 0, answer.size)
    return decide(
        request.method,
        request.headers,
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
    elif isinstance(body, tuple) and span.length <= SMALL:
        transport.write(first + b"".join(body)[span.start : span.start + span.length])
        moved(span.length)
    elif transport.get_extra_info("sslcontext") is None:
        await _send_past(transport, writer, first, body, span, sender, moved)
    else:
        transport.write(first)
        async with aclosing(_read(body, span, sender)) as chunks:
            async for chunk in chunks:
                transport.write(chunk)
                async with asyncio.timeout(sender.stall):
                    await writer.drain()
                moved(len(chunk))
    async with asyncio.timeout(sender.stall):
        await writer.drain()
    if isinstance(span, Span) and span.length > SMALL:
        firmware = request.headers.get("User-Agent", "").startswith(_RESETS)
        await acknowledged(transport, sender.stall, unsaid=_UNSAID if firmware else 0)


async def _send_past(
    transport: asyncio.Transport,
    writer: AbstractStreamWriter,
    first: bytes,
    body: Pieces | OpenFile,
    span: Span,
    sender: Sender,
    moved: Moved,
) -> None:
    """Send past the transport, once its own buffer is empty (`http.send`)."""
    transport.set_write_buffer_limits(high=0)
    try:
        transport.write(first)
        async with asyncio.timeout(sender.stall):
            await writer.drain()
        source = (
            FileSource(body.fd, body.size) if isinstance(body, OpenFile) else MemorySource(body)
        )
        await sender.send(transport, source, span.start, span.length, moved)
    finally:
        if not transport.is_closing():
            transport.set_write_buffer_limits()


async def _read(body: Pieces | OpenFile, span: Span, sender: Sender) -> AsyncGenerator[bytes, None]:
    """The bytes of `span` in chunks. Raises `Aborted` for a file that has become shorter."""
    loop = asyncio.get_running_loop()
    offset, stop = span.start, span.start + span.length
    whole = b"" if isinstance(body, OpenFile) else b"".join(body)
    while offset < stop:
        size = min(_CHUNK, stop - offset)
        if isinstance(body, OpenFile):
            chunk = await loop.run_in_executor(sender.executor, os.pread, body.fd, size, offset)
        else:
            chunk = whole[offset : offset + size]
        if not chunk:
            raise Aborted("short-file")
        offset += len(chunk)
        yield chunk


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
