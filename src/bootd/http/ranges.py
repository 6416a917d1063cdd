"""Conditional requests and ranges (RFC 9110, sections 13 and 14): headers in, a decision out.

Pure. One range or none: a list of ranges may be ignored (section 14.2), and is, because a list
multiplies bytes (CVE-2011-3192). What firmware needs of this: EDK2 resumes a broken download with
``Range`` and ``If-Match`` or ``If-Unmodified-Since``; curl and caches use the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import Final

_RANGE: Final = re.compile(r"bytes=[ \t]*(\d*)-(\d*)[ \t]*", re.ASCII | re.IGNORECASE)
_TAG: Final = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"', re.ASCII)


@dataclass(frozen=True, slots=True)
class Span:
    """What to send: `length` bytes from `start`; `status` 200 or 206."""

    status: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class NotModified:
    """304: the client has it."""


@dataclass(frozen=True, slots=True)
class Failed:
    """412, a precondition does not hold; or 416, the range begins past the end."""

    status: int


Decision = Span | NotModified | Failed


def http_date(seconds: float) -> str:
    """Seconds since 1970 as HTTP writes them: ``Sun, 06 Nov 1994 08:49:37 GMT``."""
    return format_datetime(datetime.fromtimestamp(int(seconds), UTC), usegmt=True)


def decide(
    method: str,
    headers: Mapping[str, str],
    *,
    size: int,
    etag: str,
    modified: str = "",
) -> Decision:
    """What a request gets of `size` bytes that have the strong validator `etag`, in its quotes,
    and were last `modified` (an HTTP date; empty: not known).

    The order of the conditions is RFC 9110's (section 13.2.2).
    """
    match = headers.get("If-Match")
    if match is not None:
        if not _matches(match, etag, weak=False):
            return Failed(412)
    elif (since := headers.get("If-Unmodified-Since")) is not None and _newer(modified, since):
        return Failed(412)
    none_match = headers.get("If-None-Match")
    if none_match is not None:
        if _matches(none_match, etag, weak=True):
            return NotModified()
    elif (since := headers.get("If-Modified-Since")) is not None and _older(modified, since):
        return NotModified()
    asked = headers.get("Range")
    if method != "GET" or asked is None or not _same(headers.get("If-Range"), etag, modified):
        return Span(200, 0, size)
    return _span(asked, size)


def _span(asked: str, size: int) -> Span | Failed:
    found = _RANGE.fullmatch(asked)
    if found is None or found.group(1, 2) == ("", ""):
        return Span(200, 0, size)
    first, last = found.groups()
    if not first:
        length = min(_number(last), size)
        return Span(206, size - length, length) if length else Failed(416)
    start = _number(first)
    if last and _number(last) < start:
        return Span(200, 0, size)
    if start >= size:
        return Failed(416)
    stop = min(_number(last) + 1, size) if last else size
    return Span(206, start, stop - start)


def _number(digits: str) -> int:
    """Python converts no more than some thousand digits, and no file needs twenty."""
    return int(digits) if len(digits) < 20 else 1 << 64


def _matches(header: str, etag: str, *, weak: bool) -> bool:
    if header == etag or header.strip() == "*":
        return True
    return any(f'"{value}"' == etag for mark, value in _TAG.findall(header) if weak or not mark)


def _same(if_range: str | None, etag: str, modified: str) -> bool:
    """If-Range compares strongly, a date by being the very same one (section 13.1.5)."""
    if if_range is None:
        return True
    return if_range == etag or (bool(modified) and if_range == modified)


def _newer(modified: str, since: str) -> bool:
    times = _times(modified, since)
    return times is not None and times[0] > times[1]


def _older(modified: str, since: str) -> bool:
    times = _times(modified, since)
    return times is not None and times[0] <= times[1]


def _times(modified: str, since: str) -> tuple[datetime, datetime] | None:
    """Both dates; None where one is unknown or malformed, which makes the condition void."""
    try:
        own, theirs = parsedate_to_datetime(modified), parsedate_to_datetime(since)
        return own.astimezone(UTC), theirs.astimezone(UTC)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
