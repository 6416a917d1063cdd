"""DHCP messages, bytes to value and back (RFC 951, 2131, 2132, 3396).

Pure: no socket, no clock, no decision. Whatever the network sends, `decode` gives a `Message` or
raises `WireError` and nothing else; it reads each byte once.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

MIN_SIZE: Final = 240
"""The BOOTP header and the magic cookie: nothing shorter is DHCP."""
MAX_SIZE: Final = 1500
"""One frame; EDK2 takes 1472 bytes at most and iPXE sends 420."""
PADDED_SIZE: Final = 300
"""Old ROMs drop replies shorter than a BOOTP packet (RFC 1542, 2.1)."""
MAX_SNAME: Final = 63
MAX_FILE: Final = 127
"""Bytes of the header's ``file``; the NUL behind it makes 128, and some ROMs want it."""

MAX_HLEN: Final = 16

COOKIE: Final = b"\x63\x82\x53\x63"
REQUEST: Final = 1
REPLY: Final = 2

_HEADER: Final = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_PAD: Final = 0
_OVERLOAD: Final = 52
_END: Final = 255


class WireError(Exception):
    """These bytes are no DHCP message. `reason` is one word for logs and metrics."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Message(NamedTuple):
    """One DHCP message. Addresses are 4 bytes as on the wire, `chaddr` 16; `sname` and `file` end
    before their first NUL. `options` is in wire order, an option sent in parts joined (RFC 3396).

    A named tuple and not a dataclass: frozen too, and made three times as fast, once a packet.
    """

    op: int
    htype: int
    hlen: int
    hops: int
    xid: int
    secs: int
    flags: int
    ciaddr: bytes
    yiaddr: bytes
    siaddr: bytes
    giaddr: bytes
    chaddr: bytes
    sname: bytes
    file: bytes
    options: Mapping[int, bytes]


def decode(data: bytes) -> Message:
    """Read one UDP payload.

    Raises `WireError`: ``short``, ``long``, ``no-cookie`` (plain BOOTP), ``bad-hlen`` or
    ``truncated-option``. A missing END is forgiven, as some ROMs forget it. Options that overflow
    into ``file`` and ``sname`` (option 52) are read, and those fields are then empty.
    """
    size = len(data)
    if size < MIN_SIZE:
        raise WireError("short")
    if size > MAX_SIZE:
        raise WireError("long")
    *fields, sname, file, cookie = _HEADER.unpack_from(data)
    if cookie != COOKIE:
        raise WireError("no-cookie")
    if fields[2] > MAX_HLEN:
        raise WireError("bad-hlen")
    options: dict[int, bytes] = {}
    _read_options(data, MIN_SIZE, options)
    if _OVERLOAD in options:
        sname, file = _read_overload(options.pop(_OVERLOAD), sname, file, options)
    rest = (sname.split(b"\0", 1)[0], file.split(b"\0", 1)[0], options)
    return tuple.__new__(Message, (*fields, *rest))  # the fields' own order; half the time


def _read_options(data: bytes, at: int, options: dict[int, bytes]) -> None:
    size = len(data)
    while at < size:
        code = data[at]
        if code == _PAD:
            at += 1
            continue
        if code == _END:
            return
        start = at + 2
        if start > size:
            raise WireError("truncated-option")
        at = start + data[at + 1]
        if at > size:
            raise WireError("truncated-option")
        if code in options:
            options[code] += data[start:at]
        else:
            options[code] = data[start:at]


def locate(data: bytes, codes: Collection[int]) -> dict[int, tuple[int, int]]:
    """Where the values of these options stand in a message: start and end, for those it has.

    Raises `WireError` where an option does not stand in one place: ``truncated-option``, or
    ``scattered-option`` for one in parts or a message with options in other fields.
    """
    found: dict[int, tuple[int, int]] = {}
    at, size = MIN_SIZE, len(data)
    while at < size and (code := data[at]) != _END:
        if code == _PAD:
            at += 1
            continue
        start = at + 2
        at = start + data[at + 1] if start <= size else size + 1
        if at > size:
            raise WireError("truncated-option")
        if code == _OVERLOAD or code in found:
            raise WireError("scattered-option")
        if code in codes:
            found[code] = (start, at)
    return found


def _read_overload(
    overload: bytes, sname: bytes, file: bytes, options: dict[int, bytes]
) -> tuple[bytes, bytes]:
    """RFC 2131, 4.1: 1 means ``file`` holds options, 2 ``sname``, 3 both, ``file`` read first."""
    fields = overload[0] if len(overload) == 1 else 0
    if fields & 1:
        _read_options(file, 0, options)
        file = b""
    if fields & 2:
        _read_options(sname, 0, options)
        sname = b""
    options.pop(_OVERLOAD, None)
    return sname, file


def encode(message: Message) -> bytes:
    """Write a message: options in their order, one over 255 bytes in parts, END, padded to 300.

    Raises `WireError` where a value does not fit its field: ``bad-field`` or ``bad-option``.
    """
    if (
        len(message.sname) > MAX_SNAME
        or len(message.file) > MAX_FILE
        or b"\0" in message.sname
        or b"\0" in message.file
        or len(message.chaddr) != 16
        or message.hlen > MAX_HLEN
    ):
        raise WireError("bad-field")
    if any(not _PAD < code < _END or code == _OVERLOAD for code in message.options):
        raise WireError("bad-option")
    try:
        options = [option(code, value) for code, value in message.options.items()]
        return assemble(message[:14], options)
    except struct.error:
        raise WireError("bad-field") from None


def assemble(header: Sequence[object], options: Iterable[bytes]) -> bytes:
    """Put a message together, unchecked: the values of `Message` before `options`, and options as
    `option` writes them. For replies, whose values come from our own tables."""
    return b"".join((_HEADER.pack(*header, COOKIE), *options, b"\xff")).ljust(PADDED_SIZE, b"\0")


def option(code: int, value: bytes) -> bytes:
    """One option; in parts where the value is over 255 bytes (RFC 3396)."""
    size = len(value)
    if size <= 255:
        return bytes((code, size)) + value
    parts = (value[start : start + 255] for start in range(0, size, 255))
    return b"".join(bytes((code, len(part))) + part for part in parts)
