"""What a transfer's options come to: asked, limited, granted (RFC 2347 to 2349, 7440). Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from bootd.tftp import wire

MAX_WINDOW: Final = 64
FIRST_TIMEOUT: Final = 1.0
MAX_TIMEOUT: Final = 8.0
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server grants at most on this interface; `blksize` in bytes."""

    blksize: int
    windowsize: int = MAX_WINDOW


@dataclass(frozen=True, slots=True)
class Terms:
    """What was agreed on. `options` is the OACK's content, empty where there is none."""

    blksize: int = wire.DEFAULT_BLKSIZE
    windowsize: int = 1
    timeout: float = FIRST_TIMEOUT
    options: tuple[tuple[bytes, int], ...] = ()
    sized: bool = False


def negotiate(asked: Iterable[tuple[bytes, bytes]], size: int, limits: Limits) -> Terms:
    """Answer a request's options for a file of `size` bytes.

    In the client's order and spelling, only what it asked for (EDK2: "Malformatted OACK"), never
    more than it asked for; `timeout` unchanged (EDK2 and U-Boot refuse another). Unknown options
    and values that make no sense are ignored.
    """
    blksize, windowsize, timeout, sized = wire.DEFAULT_BLKSIZE, 1, FIRST_TIMEOUT, False
    granted: list[tuple[bytes, int]] = []
    for name, text in asked:
        value = wire.number(text)
        if value is None:
            continue
        match name.lower():
            case b"blksize" if wire.MIN_BLKSIZE <= value <= wire.MAX_BLKSIZE:
                blksize = value = min(value, limits.blksize)
            case b"windowsize" if 1 <= value <= 65535:
                windowsize = value = min(value, limits.windowsize, MAX_WINDOW)
            case b"timeout" if 1 <= value <= 255:
                timeout = min(float(value), MAX_TIMEOUT)
            case b"tsize":
                value, sized = size, True
            case _:
                continue
        granted.append((name, value))
    return Terms(blksize, windowsize, timeout, tuple(granted), sized)
