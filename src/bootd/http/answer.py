"""What handlers give back: an `Answer`, or a `Refusal` raised. No request and no socket here."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final
from urllib.parse import parse_qs

from bootd.boots.timeline import Step
from bootd.http.admission import Ticket
from bootd.http.ranges import http_date
from bootd.model import EMPTY, Mac, ServerAddress
from bootd.overlay.compress import ENCODINGS
from bootd.registry import Registry

TEXT: Final = "text/plain; charset=utf-8"
BINARY: Final = "application/octet-stream"
MAX_SAID: Final = 80
MAX_FIELDS: Final = 16

NO_STORE: Final = "no-store"
IMMUTABLE: Final = "public, max-age=31536000, immutable"
REVALIDATE: Final = "no-cache"

_TYPES: Final[Mapping[str, str]] = {
    # What EDK2's HTTP boot goes by (NetworkPkg/HttpBootDxe/HttpBootSupport.c); the path's ending is
    # looked at only where the type says nothing to it.
    "efi": "application/efi",
    "iso": "application/vnd.efi-iso",
    "img": "application/vnd.efi-img",
    "ipxe": TEXT,
    "cfg": TEXT,
}


def content_type(name: str) -> str:
    """The media type of a file by its name's ending."""
    return _TYPES.get(name.rpartition(".")[2].lower(), BINARY)


class Refusal(Exception):
    """A request that gets a status and one line that says why.

    `reason` is one word for log and metrics, `sentence` is for the client; neither may hold a
    secret. `headers` are added to the answer. Where it is `quiet`, only debugging logs it: firmware
    tries whether there is such a file. `mac` is whose request it was, where the path does not say.
    """

    quiet = False
    mac: Mac | None = None

    def __init__(
        self, status: int, reason: str, sentence: str, headers: Mapping[str, str] = EMPTY
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.reason = reason
        self.sentence = sentence
        self.headers = headers


class NotFound(Refusal):
    """404."""

    def __init__(self, sentence: str, reason: str = "not-found", *, quiet: bool = False) -> None:
        super().__init__(404, reason, sentence)
        self.quiet = quiet


class Denied(Refusal):
    """403: there is (or may be) such a thing, and it is not for this client now."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(403, reason, sentence)


def not_now(reason: str, sentence: str, seconds: int = 2) -> Refusal:
    """503 for what will pass, with ``Retry-After``: iPXE and curl ask again after that long."""
    return Refusal(503, reason, sentence, {"Retry-After": str(seconds)})


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as handlers see it, with the registry that was current when it arrived.

    `now` is monotonic; `server` is our address as this client reaches it, `port` the one that the
    client sends from.
    """

    method: str
    peer: IPv4Address
    port: int
    server: ServerAddress
    registry: Registry
    now: float
    headers: Mapping[str, str] = field(repr=False)
    query: str = field(repr=False)
    """What stands behind the question mark, as it came."""

    def said(self, name: str, limit: int = MAX_SAID) -> str:
        """The query's first value of that name as one printable line of at most `limit`
        characters; empty where there is none. Raises `Refusal` for a query that is a bomb."""
        query = self.query
        if name not in query and "%" not in query and query.count("&") < MAX_FIELDS:
            return ""  # as `parse_qs` would find, at many times the cost
        try:
            values = parse_qs(self.query, max_num_fields=MAX_FIELDS, errors="replace")
        except ValueError:
            raise Refusal(
                400, "malformed", f"the query has more than {MAX_FIELDS} fields"
            ) from None
        value = values.get(name, [""])[0][:limit]
        return "".join(char if char.isprintable() else "?" for char in value)


def asked_form(asked: Asked) -> str:
    """What ``?compress=`` asks for: ``gz``, ``zst``, or nothing. Raises `NotFound`."""
    said = asked.said("compress")
    if said in ("", "none"):
        return ""
    if said not in ENCODINGS:
        raise NotFound(f"compress is one of {', '.join(ENCODINGS)}", "unknown-encoding")
    return said


class OpenFile:
    """A file that is open, `size` bytes as of then; whoever has it closes it."""

    __slots__ = ("_written", "fd", "modified", "name", "size")

    def __init__(self, fd: int, name: str) -> None:
        status = os.fstat(fd)
        self.fd = fd
        self.name = name
        self.size = status.st_size
        self.modified = http_date(status.st_mtime)
        self._written = status.st_mtime_ns

    def changed(self, fd: int | None = None) -> bool:
        """Whether someone has written into it, or changed its size, since it was opened. `fd` is a
        duplicate to ask, where this one may be closed meanwhile."""
        status = os.fstat(self.fd if fd is None else fd)
        return (status.st_size, status.st_mtime_ns) != (self.size, self._written)

    def close(self) -> None:
        """Give the descriptor back; a second time does nothing."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


Pieces = tuple[bytes, ...]


@dataclass(slots=True)
class Answer:
    """What to send. `body` is pieces of memory, an open file, or a stream of unknown length.
    `reason` says in one word why it is a refusal.

    `etag` is a strong validator in its quotes, or empty: then there are no ranges. `node`, `mac`
    and `boot` go into the log, which only debugging shows where `quiet`; `step` is counted up as
    bytes leave; `ticket` is its place among the large transfers; `holds` is a file that the body is
    made from.
    """

    body: Pieces | OpenFile | AsyncGenerator[bytes, None]
    type: str = TEXT
    status: int = 200
    etag: str = ""
    modified: str = ""
    cache: str = NO_STORE
    headers: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    node: str | None = None
    mac: Mac | None = None
    boot: str | None = None
    step: Step | None = None
    reason: str = ""
    ticket: Ticket | None = None
    holds: OpenFile | None = None
    quiet: bool = False

    @property
    def size(self) -> int:
        """Bytes of the whole body; 0 for a stream."""
        if isinstance(self.body, OpenFile):
            return self.body.size
        return sum(map(len, self.body)) if isinstance(self.body, tuple) else 0

    def close(self) -> None:
        """Let go of what the body holds."""
        for held in (self.body, self.holds):
            if isinstance(held, OpenFile):
                held.close()
