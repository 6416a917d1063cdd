"""Archives made smaller: gzip for whatever can read nothing else, zstd for the rest. Pure.

What belongs to one boot goes before what is kept of its node (`prefixed`), into the same gzip
member or zstd frame, for readers that stop at the end of the first one; as the archive inside is
one with one trailer, for readers that stop there. It goes in as it is, in a block that both formats
have for that, so nothing is compressed for one boot.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import Final

import zstandard

ENCODINGS: Final = ("gz", "zst")
_GZIP_LEVEL: Final = 1
"""35 MB/s, where level 6 does 15 for a few percent."""
_ZSTD_LEVEL: Final = 3
_GZIP: Final = 31
"""zlib's window bits for a gzip member, whose header then has no time and no name."""
MAX_PREFIX: Final = 0xFFFF
"""Bytes of a stored block (RFC 1951, 3.2.4); zstd's raw block may have twice as many."""
_GZIP_HEAD: Final = 10
"""Bytes of a gzip header without name and extra fields (RFC 1952, 2.3)."""
_ZSTD_HEAD: Final = 6
"""Bytes of a zstd frame's header with a window and nothing more (RFC 8878, 3.1.1.1)."""
_U32: Final = 0xFFFF_FFFF


def compress(pieces: Iterable[bytes], encoding: str) -> bytes:
    """One gzip member or zstd frame: the same pieces give the same bytes. Raises `ValueError` for
    an encoding that is not one of `ENCODINGS`."""
    if encoding == "gz":
        deflate = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP)
        return b"".join([*(deflate.compress(piece) for piece in pieces), deflate.flush()])
    if encoding == "zst":
        # Without a checksum: with one, nothing could be put before it.
        frame = zstandard.ZstdCompressor(_ZSTD_LEVEL, write_checksum=False).compressobj()
        return b"".join([*(frame.compress(piece) for piece in pieces), frame.flush()])
    raise ValueError(f"{encoding!r} is not one of {', '.join(ENCODINGS)}")


def prefixed(prefix: bytes, small: bytes, encoding: str) -> tuple[bytes, ...]:
    """`small`, which `compress` made of something, with `prefix` before its content: pieces of one
    member or frame. Raises `ValueError` for more than `MAX_PREFIX` bytes or another encoding."""
    if len(prefix) > MAX_PREFIX:
        raise ValueError(f"{len(prefix)} bytes do not go before an archive: {MAX_PREFIX} do")
    if encoding == "gz":
        block = struct.pack("<BHH", 0, len(prefix), len(prefix) ^ 0xFFFF)
        checksum, size = struct.unpack("<II", small[-8:])
        checksum = combined(zlib.crc32(prefix), checksum, size)
        tail = struct.pack("<II", checksum, (len(prefix) + size) & _U32)
        return small[:_GZIP_HEAD], block, prefix, small[_GZIP_HEAD:-8], tail
    if encoding == "zst":
        block = (len(prefix) << 3).to_bytes(3, "little")  # not the last block, raw
        return small[:_ZSTD_HEAD], block, prefix, small[_ZSTD_HEAD:]
    raise ValueError(f"{encoding!r} is not one of {', '.join(ENCODINGS)}")


# ---- the checksum of two parts from those of each ------------------------------------------------
#
# A CRC is the remainder of a polynomial over GF(2), here with the lowest power in the highest bit.
# That of a + b is that of a times x ** (8 * len(b)), plus that of b (zlib's crc32_combine).

_POLYNOMIAL: Final = 0xEDB8_8320
_ONE: Final = 1 << 31


def combined(first: int, second: int, length: int) -> int:
    """The CRC-32 of two parts, of which `second` has `length` bytes (less than 4 GiB)."""
    power, square = _ONE, 1 << 23  # x ** 8
    while length:
        if length & 1:
            power = _times(power, square)
        square = _times(square, square)
        length >>= 1
    return _times(power, first) ^ second


def _times(a: int, b: int) -> int:
    """The product of two remainders."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & _U32
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product
