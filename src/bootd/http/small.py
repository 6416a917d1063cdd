"""Answers that are written in one go, head and body: nothing has to be waited for."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp.http import HttpVersion11, RawRequestMessage

from bootd.http.answer import Answer, OpenFile
from bootd.http.deliver import SMALL, decision
from bootd.http.head import FAILED, head, status_of
from bootd.http.ranges import Failed, Span


@dataclass(slots=True)
class Written:
    """An answer as bytes, `size` of them its body, with its `status`."""

    data: bytes
    status: int
    size: int


def written(
    message: RawRequestMessage, answer: Answer, *, close: bool, wall: float
) -> Written | None:
    """`answer`, or the part of it that the request asks for; None where that is more than `SMALL`
    bytes, or not in memory. With `close` it is the last one on its connection; `wall` is now in
    seconds since 1970."""
    body = answer.body
    if not isinstance(body, tuple) and not isinstance(body, OpenFile):
        return None
    span = decision(message.method, message.headers, answer)
    part = b""
    if message.method == "HEAD":
        pass
    elif isinstance(span, Failed):
        part = FAILED[span.status]
    elif isinstance(span, Span) and span.length:
        if not isinstance(body, tuple) or span.length > SMALL:
            return None
        part = b"".join(body)
        if span.length < len(part):
            part = part[span.start : span.start + span.length]
    old = message.version < HttpVersion11
    first = head(answer, span, wall=wall, keep_alive=not close, old=old)
    return Written(first + part, status_of(span), len(part))
