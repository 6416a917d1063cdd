"""EFI programs for tests, which have of iPXE what `bootd.ipxe` looks at."""

from __future__ import annotations

import struct

from bootd.ipxe import IPXE_ORG

X64, ARM64 = 0x8664, 0xAA64
HTTPS = b"iPXE\0https\0"


def program(
    content: bytes = HTTPS + IPXE_ORG,
    *,
    machine: int = X64,
    signature: int = 0,
    directories: int = 16,
    magic: int = 0x20B,
) -> bytes:
    """A PE file with `content` behind its headers, and `signature` bytes of certificates. Magic
    0x20b is PE32+ (64 bits), 0x10b PE32."""
    begins = 112 if magic == 0x20B else 96
    optional = bytearray(begins + 8 * directories)
    struct.pack_into("<H", optional, 0, magic)
    struct.pack_into("<I", optional, begins - 4, directories)
    if signature:
        struct.pack_into("<II", optional, begins + 8 * 4, 4096, signature)
    stub = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x80)
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", machine, 0, 0, 0, 0, len(optional), 0)
    return stub.ljust(0x80, b"\0") + coff + bytes(optional) + content
