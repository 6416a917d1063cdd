"""Node keys: the right of a running node to refresh its own runtime overlay.

Pure: secrets come in as arguments. A key is HMAC-SHA256 (RFC 2104) over the node's name and the MAC
address that it booted from, so it is the same from boot to boot, nothing has to be kept for it, and
it opens nothing else. The node has it from its system overlay, which only a boot's token opens; it
ends when the secret behind it is taken away.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from bootd.model import Mac

SECRET_SIZE: Final = 32
"""Bytes of a secret at least: as many as SHA-256 gives (RFC 2104, section 3)."""
KEY_LENGTH: Final = 43
"""Characters of a key: 256 bits in base64url."""

_PURPOSE: Final = b"bootd node key\0"
_TEXT: Final = re.compile(rf"[A-Za-z0-9_-]{{{KEY_LENGTH}}}", re.ASCII)
_BEARER: Final = re.compile(r"Bearer +([!-~]{1,256})", re.ASCII | re.IGNORECASE)


# Running nodes show theirs every minute, and OpenSSL takes some 50 us for one.
@lru_cache(maxsize=32_768)
def derive(secret: bytes, name: str, mac: Mac) -> str:
    """The key of node `name` with `mac`, from a secret of at least `SECRET_SIZE` bytes."""
    if len(secret) < SECRET_SIZE:
        raise ValueError(f"a secret for node keys has at least {SECRET_SIZE} bytes")
    # A MAC address has one length, so no two pairs make the same message.
    message = _PURPOSE + bytes.fromhex(mac.replace(":", "")) + name.encode()
    return base64.urlsafe_b64encode(hmac.digest(secret, message, "sha256")).decode().rstrip("=")


def fits(secrets: Iterable[bytes], key: str, name: str, mac: Mac) -> bool:
    """Whether `key` is that of node `name` with `mac`, by any of the secrets.

    Compares in constant time, and always with every secret.
    """
    if not _TEXT.fullmatch(key):
        return False
    wanted = [derive(secret, name, mac) for secret in secrets]
    return any([hmac.compare_digest(each, key) for each in wanted])


def bearer(header: str) -> str:
    """The key in an ``Authorization`` header (RFC 6750, section 2.1); empty where there is none."""
    found = _BEARER.fullmatch(header.strip())
    return found[1] if found is not None else ""
