"""Archives made smaller: gzip for whatever can read nothing else, zstd for the rest. Pure.

The kernel takes several compressed archives one after the other as one initramfs, where each ends
with its own trailer.
"""

from __future__ import annotations

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


def compress(pieces: Iterable[bytes], encoding: str) -> bytes:
    """One gzip member or zstd frame: the same pieces give the same bytes. Raises `ValueError` for
    an encoding that is not one of `ENCODINGS`."""
    if encoding == "gz":
        deflate = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP)
        return b"".join([*(deflate.compress(piece) for piece in pieces), deflate.flush()])
    if encoding == "zst":
        frame = zstandard.ZstdCompressor(_ZSTD_LEVEL, write_checksum=True).compressobj()
        return b"".join([*(frame.compress(piece) for piece in pieces), frame.flush()])
    raise ValueError(f"{encoding!r} is not one of {', '.join(ENCODINGS)}")
