"""From an `Answer` to bytes on the connection, and how that went."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from aiohttp import web

from bootd import metrics
from bootd.http.answer import TEXT, Answer, OpenFile, Pieces
from bootd.http.ranges import Decision, Failed, NotModified, Span, decide
from bootd.http.send import Aborted, FileSource, MemorySource, Sender

SMALL: Final = 64 * 1024
"""Bytes of a body that go into the transport's buffer together with the header."""
_CHUNK: Final = 128 * 1024
_SERVER: Final = "bootd"
_FAILED: Final[Mapping[int, bytes]] = MappingProxyType(
    {
        412: b"this is not the version that was asked for\n",
        416: b"the range begins behind the end\n",
    }
)


@dataclass(slots=True)
class Delivery:
    """What became of an answer: body bytes that left, and ``ok`` or why not all did."""

    response: web.StreamResponse
    sent: int = 0
    outcome: str = "ok"


async def deliver(
    request: web.BaseRequest, answer: Answer, sender: Sender, *, close: bool
) -> Delivery:
    """Send `answer`, or the part of it that the request's headers ask for; with `close` as the
    last one on its connection. A client that goes away is an outcome, not an exception."""
    span = _decide(request, answer)
    delivery = Delivery(_head(answer, span))
    if close:
        delivery.response.force_close()

    def moved(count: int) -> None:
        delivery.sent += count
        sender.moved += count
        metrics.HTTP_BYTES.inc(count)
        if answer.step is not None:
            answer.step.sent += count

    try:
        await _send(request, delivery.response, answer, span, sender, moved)
        await delivery.response.write_eof()
    except Aborted as aborted:
        delivery.outcome = aborted.reason
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


def _head(answer: Answer, span: Decision) -> web.StreamResponse:
    """Status and headers, with the body where it is small."""
    headers = {"Server": _SERVER, "Cache-Control": answer.cache, **answer.headers}
    if answer.etag:
        headers |= {"ETag": answer.etag, "Accept-Ranges": "bytes"}
    if answer.modified:
        headers["Last-Modified"] = answer.modified
    if isinstance(span, NotModified):
        return web.StreamResponse(status=304, headers=headers)
    if isinstance(span, Failed):
        if span.status == 416:
            headers["Content-Range"] = f"bytes */{answer.size}"
        headers["Content-Type"] = TEXT
        return web.Response(status=span.status, headers=headers, body=_FAILED[span.status])
    headers["Content-Type"] = answer.type
    stop = span.start + span.length
    if span.status == 206:
        headers["Content-Range"] = f"bytes {span.start}-{stop - 1}/{answer.size}"
    if isinstance(answer.body, tuple) and answer.size <= SMALL:
        body = b"".join(answer.body)[span.start : stop]
        return web.Response(status=span.status, headers=headers, body=body)
    if isinstance(answer.body, tuple | OpenFile):
        headers["Content-Length"] = str(span.length)
    return web.StreamResponse(status=span.status, headers=headers)


async def _send(
    request: web.BaseRequest,
    response: web.StreamResponse,
    answer: Answer,
    span: Decision,
    sender: Sender,
    moved: Callable[[int], None],
) -> None:
    if isinstance(response, web.Response):
        await response.prepare(request)
        if request.method != "HEAD":
            moved(response.content_length or 0)
        return
    if request.method == "HEAD" or not isinstance(span, Span):
        await response.prepare(request)
    elif isinstance(answer.body, AsyncGenerator):
        await response.prepare(request)
        await _write(response, answer.body, sender.stall, moved)
    elif request.transport is not None and request.transport.get_extra_info("sslcontext"):
        await response.prepare(request)
        await _write(response, _read(answer.body, span, sender), sender.stall, moved)
    else:
        await _send_past(request, response, answer.body, span, sender, moved)


async def _send_past(
    request: web.BaseRequest,
    response: web.StreamResponse,
    body: Pieces | OpenFile,
    span: Span,
    sender: Sender,
    moved: Callable[[int], None],
) -> None:
    """Send past the transport, once its own buffer is empty (`http.send`)."""
    transport = request.transport
    if transport is None:
        raise Aborted("aborted")
    transport.set_write_buffer_limits(high=0)
    try:
        async with asyncio.timeout(sender.stall):
            writer = await response.prepare(request)
            if writer is not None:
                await writer.drain()
        source = (
            FileSource(body.fd, body.size) if isinstance(body, OpenFile) else MemorySource(body)
        )
        if span.length:
            await sender.send(transport, source, span.start, span.length, moved)
    finally:
        if not transport.is_closing():
            transport.set_write_buffer_limits()


async def _write(
    response: web.StreamResponse,
    chunks: AsyncGenerator[bytes, None],
    stall: float,
    moved: Callable[[int], None],
) -> None:
    """Through the transport: over TLS, and where the length is not known beforehand."""
    async with aclosing(chunks):
        async for chunk in chunks:
            async with asyncio.timeout(stall):
                await response.write(chunk)
            moved(len(chunk))


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
