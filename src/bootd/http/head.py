"""Status line and headers, byte for byte.

Pure. Firmware looks at them closely: GRUB compares header names with their case, shim wants a
Content-Length, EDK2 a persistent HTTP/1.1 connection (WIRE.md 3.1). Nothing of ours is coded,
redirected or, where its length is known, sent in chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from bootd.http.answer import TEXT, Answer
from bootd.http.ranges import Decision, Failed, NotModified, http_date

SERVER: Final = "bootd"

FAILED: Final[Mapping[int, bytes]] = MappingProxyType(
    {
        412: b"this is not the version that was asked for\n",
        416: b"the range begins behind the end\n",
    }
)
"""What is said about a precondition that does not hold."""

_BEGINNINGS: Final = {
    int(status): f"HTTP/1.1 {int(status)} {status.phrase}\r\nServer: {SERVER}\r\nDate: "
    for status in HTTPStatus
}


def status_of(span: Decision) -> int:
    """The status of an answer of which `span` is sent."""
    return 304 if isinstance(span, NotModified) else span.status


def head(answer: Answer, span: Decision, *, wall: float, keep_alive: bool, old: bool) -> bytes:
    """The head for `span` of `answer`. `wall` is now in seconds since 1970; `old` is a client that
    speaks HTTP/1.0, which must be told where its connection stays open (RFC 9112, C.2.2)."""
    status = status_of(span)
    text = f"{_BEGINNINGS[status]}{_date(int(wall))}\r\nCache-Control: {answer.cache}\r\n"
    for name, value in answer.headers.items():
        text += f"{name}: {value}\r\n"
    if answer.etag:
        text += f"ETag: {answer.etag}\r\nAccept-Ranges: bytes\r\n"
    if answer.modified:
        text += f"Last-Modified: {answer.modified}\r\n"
    text += _about_body(answer, span)
    if not keep_alive:
        text += "Connection: close\r\n"
    elif old:
        text += "Connection: keep-alive\r\n"
    return f"{text}\r\n".encode("ascii")


def _about_body(answer: Answer, span: Decision) -> str:
    if isinstance(span, NotModified):
        return ""
    if isinstance(span, Failed):
        size = len(FAILED[span.status])
        about = f"Content-Type: {TEXT}\r\nContent-Length: {size}\r\n"
        return about if span.status == 412 else f"{about}Content-Range: bytes */{answer.size}\r\n"
    about = f"Content-Type: {answer.type}\r\nContent-Length: {span.length}\r\n"
    if span.status != 206:
        return about
    last = span.start + span.length - 1
    return f"{about}Content-Range: bytes {span.start}-{last}/{answer.size}\r\n"


@lru_cache(maxsize=4)
def _date(second: int) -> str:
    return http_date(second)
