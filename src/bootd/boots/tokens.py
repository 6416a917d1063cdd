"""Boot tokens: the right to fetch one boot's secrets, in a URL.

Pure: keys and time come in as arguments. A token says for which MAC, boot and client address it is
good and until when, signed with HMAC-SHA256 (RFC 2104), so that the daemon after a restart, or a
replica with the same keys, accepts it without having seen the boot begin. Whether that boot is
still open is the caller's question (`boots.timeline`).

The text is 52 characters of base64url, so that a whole boot URL stays below 128 characters, which
is what old firmware can hold.
"""

from __future__ import annotations

import base64
import hmac
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from bootd.model import Mac, mac_from_bytes

KEY_SIZE: Final = 32
"""Bytes of a key: as many as SHA-256 gives, the strength RFC 2104 section 3 asks for."""
TAG_SIZE: Final = 16
"""Bytes kept of the HMAC: 128 bits (RFC 2104 section 5 allows half of the digest's 32)."""
TOKEN_LENGTH: Final = 52

_VERSION: Final = 1
_CLAIMS: Final = struct.Struct("!B6s8s4sI")
_PURPOSE: Final = b"bootd boot token\0"
_TEXT: Final = re.compile(rf"[A-Za-z0-9_-]{{{TOKEN_LENGTH}}}", re.ASCII)


class TokenError(Exception):
    """A token that gives no right. `reason` is one word: ``malformed``, ``forged``, ``expired``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token is good for. `boot_id` is 8 bytes in hex; `expires` is in seconds since 1970."""

    mac: Mac
    boot_id: str
    address: IPv4Address
    expires: int


def mint(key: bytes, claims: Claims) -> str:
    """The token for these claims, signed with `key` (at least `KEY_SIZE` bytes)."""
    if len(key) < KEY_SIZE:
        raise ValueError(f"a token key has at least {KEY_SIZE} bytes, not {len(key)}")
    body = _CLAIMS.pack(
        _VERSION,
        bytes.fromhex(claims.mac.replace(":", "")),
        bytes.fromhex(claims.boot_id),
        claims.address.packed,
        claims.expires,
    )
    return base64.urlsafe_b64encode(body + _tag(key, body)).decode("ascii")


def check(keys: Iterable[bytes], token: str, *, now_wall: float) -> Claims:
    """What `token` is good for, or `TokenError`. `keys` are all that may have signed it.

    Compares in constant time, and always with every key, so that the time taken tells nothing
    about the signature or which key made it (SECURITY.md A7).
    """
    raw = _decode(token)
    body, tag = raw[: _CLAIMS.size], raw[_CLAIMS.size :]
    matches = [hmac.compare_digest(_tag(key, body), tag) for key in keys]
    if not any(matches):
        raise TokenError("forged")
    version, mac, boot_id, address, expires = _CLAIMS.unpack(body)
    known = mac_from_bytes(mac)
    if version != _VERSION or known is None:
        raise TokenError("malformed")
    if now_wall >= expires:
        raise TokenError("expired")
    return Claims(known, boot_id.hex(), IPv4Address(address), expires)


def _decode(token: str) -> bytes:
    """39 bytes are 52 characters with no bits over, so each token has one spelling only."""
    if not _TEXT.fullmatch(token):
        raise TokenError("malformed")
    return base64.urlsafe_b64decode(token)


def _tag(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, _PURPOSE + body, "sha256")[:TAG_SIZE]
