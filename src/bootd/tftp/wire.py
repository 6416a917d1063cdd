"""TFTP's packets: bytes to values and back. Pure.

RFC 1350 (protocol), 2347 (options), 2348 (blksize), 2349 (timeout, tsize), 7440 (windowsize). A
decoder gives a value or raises `WireError`, nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

MAX_REQUEST: Final = 512
"""Bytes of a request packet (RFC 2347)."""
DEFAULT_BLKSIZE: Final = 512
MIN_BLKSIZE: Final = 8
MAX_BLKSIZE: Final = 65464
MAX_TEXT: Final = 100
"""Bytes of an ERROR's text: one line of a firmware's screen, and no amplifier."""

RRQ, WRQ, DATA, ACK, ERROR, OACK = range(1, 7)

_SHORT: Final = struct.Struct("!H")
_PAIR: Final = struct.Struct("!HH")
_MODES: Final = frozenset({b"octet", b"netascii"})


class ErrorCode(IntEnum):
    """RFC 1350's error codes, and 2347's eighth."""

    UNDEFINED = 0
    NOT_FOUND = 1
    ACCESS_VIOLATION = 2
    DISK_FULL = 3
    ILLEGAL_OPERATION = 4
    UNKNOWN_TID = 5
    FILE_EXISTS = 6
    NO_SUCH_USER = 7
    OPTION_REFUSED = 8


class WireError(Exception):
    """The peer sent what is no packet for this place. `reason` is one word.

    `code` is what to answer with; None means silence, always so for a packet that is itself an
    answer: two servers that answer each other's answers never end (CVE-2024-2169).
    """

    def __init__(self, reason: str, text: str = "", code: ErrorCode | None = None) -> None:
        super().__init__(text or reason)
        self.reason = reason
        self.code = code


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """An RRQ. `options` are as sent, in order: name and value, each option once."""

    filename: bytes
    options: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class PeerError:
    """An ERROR from the client: it is over. `text` is at most `MAX_TEXT` characters, unescaped."""

    code: int
    text: str


def parse_request(datagram: bytes) -> ReadRequest:
    """What arrived at the listening port. Raises `WireError`; a write is refused here, always.

    ``netascii`` is served as octets: boot files have no line ends to translate.
    """
    if len(datagram) < 2:
        raise WireError("truncated")
    (opcode,) = _SHORT.unpack_from(datagram)
    if opcode == WRQ:
        raise WireError("write", "read only", ErrorCode.ACCESS_VIOLATION)
    if opcode != RRQ:
        raise WireError("not-a-request")
    if len(datagram) > MAX_REQUEST:
        raise WireError("too-long", "request is too long", ErrorCode.ILLEGAL_OPERATION)
    # What follows the last NUL is an option that was cut off: as if it were not there.
    fields = datagram[2:].split(b"\0")[:-1]
    if len(fields) < 2:
        raise WireError("truncated", "request is cut off", ErrorCode.ILLEGAL_OPERATION)
    filename, mode, *options = fields
    if not filename:
        raise WireError("no-filename", "no file name", ErrorCode.ILLEGAL_OPERATION)
    if mode.lower() not in _MODES:
        raise WireError("mode", "only octet mode", ErrorCode.ILLEGAL_OPERATION)
    return ReadRequest(filename, tuple(_once(zip(options[::2], options[1::2], strict=False))))


def _once(pairs: Iterable[tuple[bytes, bytes]]) -> Iterable[tuple[bytes, bytes]]:
    """Each option the first time it comes; names are the same in either case (RFC 2347)."""
    seen: set[bytes] = set()
    for name, value in pairs:
        lowered = name.lower()
        if lowered not in seen:
            seen.add(lowered)
            yield name, value


def parse_reply(datagram: bytes) -> int | PeerError:
    """What a client sends during a transfer: the block number of an ACK, or a `PeerError`.

    Raises `WireError` for everything else.
    """
    if len(datagram) < 4:
        raise WireError("truncated")
    opcode, number = _PAIR.unpack_from(datagram)
    if opcode == ACK:
        acknowledged: int = number
        return acknowledged
    if opcode == ERROR:
        text = datagram[4 : 4 + MAX_TEXT].split(b"\0", 1)[0]
        return PeerError(number, text.decode("utf-8", "replace"))
    raise WireError("not-an-answer")


def number(value: bytes) -> int | None:
    """An option's value: ASCII digits, at most ten of them. None: ignore the option."""
    return int(value) if value.isdigit() and len(value) <= 10 else None


def request(
    filename: bytes, options: Iterable[tuple[bytes, bytes]] = (), mode: bytes = b"octet"
) -> bytes:
    """An RRQ packet, as the doctor and the tests send it."""
    fields = [filename, mode, *(part for option in options for part in option)]
    return _SHORT.pack(RRQ) + b"".join(field + b"\0" for field in fields)


def data_header(block: int) -> bytes:
    """The four bytes before block `block` (from 1); the number rolls over to 0."""
    return _PAIR.pack(DATA, block & 0xFFFF)


def ack(block: int) -> bytes:
    """An ACK packet."""
    return _PAIR.pack(ACK, block & 0xFFFF)


def oack(options: Iterable[tuple[bytes, int]]) -> bytes:
    """An OACK packet; the last byte is a NUL, which EDK2 insists on."""
    return _SHORT.pack(OACK) + b"".join(
        name + b"\0" + str(value).encode() + b"\0" for name, value in options
    )


def error(code: ErrorCode, text: str) -> bytes:
    """An ERROR packet. Firmware shows the text: plain, printable ASCII, cut to `MAX_TEXT`."""
    plain = "".join(char if " " <= char <= "~" else "?" for char in text[:MAX_TEXT])
    return _PAIR.pack(ERROR, code) + plain.encode("ascii") + b"\0"
