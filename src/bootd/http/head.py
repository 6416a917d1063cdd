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

_PHRASES: Final = {int(status): status.phrase for status in HTTPStatus}


def status_of(span: Decision) -> int:
    """The status of an answer of which `span` is sent."""
    return 304 if isinstance(span, NotModified) else span.status


def head(answer: Answer, span: Decision, *, wall: float, keep_alive: bool, old: bool) -> bytes:
    """The head for `span` of `answer`. `wall` is now in seconds since 1970; `old` is a client that
    speaks HTTP/1.0, which must be told where its connection stays open (RFC 9112, C.2.2)."""
    status = status_of(span)
    lines = [
        f"HTTP/1.1 {status} {_PHRASES[status]}",
        f"Server: {SERVER}",
        f"Date: {_date(int(wall))}",
        f"Cache-Control: {answer.cache}",
    ]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    if answer.etag:
        lines += [f"ETag: {answer.etag}", "Accept-Ranges: bytes"]
    if answer.modified:
        lines.append(f"Last-Modified: {answer.modified}")
    lines += _about_body(answer, span)
    if not keep_alive:
        lines.append("Connection: close")
    elif old:
        lines.append("Connection: keep-alive")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def _about_body(answer: Answer, span: Decision) -> tuple[str, ...]:
    if isinstance(span, NotModified):
        return ()
    if isinstance(span, Failed):
        about = (f"Content-Type: {TEXT}", f"Content-Length: {len(FAILED[span.status])}")
        return about if span.status == 412 else (*about, f"Content-Range: bytes */{answer.size}")
    about = (f"Content-Type: {answer.type}", f"Content-Length: {span.length}")
    if span.status != 206:
        return about
    return (
        *about,
        f"Content-Range: bytes {span.start}-{span.start + span.length - 1}/{answer.size}",
    )


@lru_cache(maxsize=4)
def _date(second: int) -> str:
    return http_date(second)
