"""What a kernel file says of itself: pure functions of its first bytes."""

from __future__ import annotations

import re
from typing import Final

HEADER_BYTES: Final = 64 << 10
"""Enough of a file for everything here: the x86 setup code ends within 64 KiB."""

_RELEASE = re.compile(rb"\d+\.\d+[!-~]{0,60}")


def version(head: bytes) -> str | None:
    """The release (``6.1.0-31-amd64``) in the header of an x86 bzImage, or None.

    Documentation/arch/x86/boot.rst: magic ``HdrS`` at 0x202, at 0x20E the offset less 0x200 of a
    string that begins with the release. Kernels of other architectures do not carry it there.
    """
    if head[0x202:0x206] != b"HdrS":
        return None
    pointer = int.from_bytes(head[0x20E:0x210], "little")
    if not pointer:
        return None
    found = _RELEASE.match(head, pointer + 0x200)
    return found[0].decode("ascii") if found else None


def is_kernel(head: bytes) -> bool:
    """Whether a file begins as kernels do: an x86 bzImage, an EFI program (``MZ``: arm64 and RISC-V
    with EFI stub, compressed EFI images), or an arm64 or RISC-V ``Image`` without one."""
    return (
        head[0x202:0x206] == b"HdrS"
        or head[:2] == b"MZ"
        or head[0x38:0x3C] == b"ARM\x64"
        or head[0x38:0x3C] == b"RSC\x05"
    )


_ARCHIVES: Final = (
    b"070701",  # newc
    b"070702",  # newc with checksums
    b"\x1f\x8b",  # gzip
    b"\xfd7zXZ\0",
    b"\x28\xb5\x2f\xfd",  # zstd
    b"BZh",
    b"\x02\x21\x4c\x18",  # lz4, legacy frame: the one that the kernel reads
    b"\x5d\0\0",  # lzma
    b"\x89LZO",
)


def is_initramfs(head: bytes) -> bool:
    """Whether a file begins as an initramfs the kernel can unpack (Kconfig ``RD_*``)."""
    return head.startswith(_ARCHIVES)
