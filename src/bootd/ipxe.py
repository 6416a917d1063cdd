"""Whom an iPXE trusts, exchanged in a copy of it, so that nobody has to build one. Pure.

iPXE holds no certificates, but of each root certificate that it trusts the SHA-256 over its DER
form, 32 bytes (iPXE: crypto/rootcert.c). A build with ``TRUST=`` and a copy with other bytes there
are the same. The EFI programs are not packed and have no checksum over them, and firmware without
Secure Boot looks at no signature; BIOS's are packed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from bootd.model import Arch

FINGERPRINT: Final = 32
"""Bytes of a SHA-256."""
IPXE_ORG: Final = bytes.fromhex("9faf717b7f8ca2f93c256c79f8ac5591895d66d1ff3bee6397a70d29c65eed1a")
"""The certificate of ipxe.org's own authority, which builds trust that were not told otherwise."""

_SCHEME: Final = b"https\0"
"""The scheme's name as its handler has it: only where HTTPS was built in."""

_MACHINES: Final[Mapping[int, Arch]] = MappingProxyType(
    {
        0x014C: Arch.EFI_IA32,
        0x01C0: Arch.EFI_ARM32,
        0x01C2: Arch.EFI_ARM32,  # Thumb and ARM mixed, as iPXE's builds say
        0x01C4: Arch.EFI_ARM32,
        0x5064: Arch.EFI_RISCV64,
        0x6264: Arch.EFI_LOONGARCH64,
        0x8664: Arch.EFI_X64,
        0xAA64: Arch.EFI_ARM64,
    }
)

# PE format: the COFF header and the optional one lie behind the four bytes of the signature.
_OFFSET_AT: Final = 0x3C
_COFF: Final = struct.Struct("<4sH14xH2x")
_DIRECTORIES_AT: Final[Mapping[bytes, int]] = MappingProxyType({b"\x0b\x01": 96, b"\x0b\x02": 112})
"""Where the data directories begin in the optional header: PE32, PE32+."""
_CERTIFICATES: Final = 4


class Unusable(ValueError):
    """No copy can be made of this file. The message says why and what to do, as a sentence about
    "it"."""


def trusting(program: bytes, fingerprint: bytes) -> bytes:
    """The iPXE `program`, trusting the root certificate with this SHA-256 in the place of
    ipxe.org's; unchanged where it trusts it already. Raises `Unusable`."""
    if len(fingerprint) != FINGERPRINT:
        raise ValueError(f"a SHA-256 has {FINGERPRINT} bytes, not {len(fingerprint)}")
    _, optional = _headers(program)
    if b"iPXE" not in program:
        raise Unusable("it is not iPXE")
    if _SCHEME not in program:
        raise Unusable(
            "it has no HTTPS, as none in Debian 12 has: take the file of Debian 13's package "
            "`ipxe`, or build it with DOWNLOAD_PROTO_HTTPS"
        )
    if fingerprint in program:
        return program
    places = program.count(IPXE_ORG)
    if places == 0:
        raise Unusable("it trusts another authority than ipxe.org's: take the file as packaged")
    if places > 1:
        raise Unusable(
            f"it has ipxe.org's fingerprint in {places} places, not in one: build it with TRUST="
        )
    if _signed(optional):
        raise Unusable(
            "it is signed (Secure Boot): a changed copy would be refused. Take one that is not, "
            "for machines without Secure Boot"
        )
    return program.replace(IPXE_ORG, fingerprint)


def arch(program: bytes) -> Arch:
    """For which machines an EFI program is. Raises `Unusable`."""
    machine, _ = _headers(program)
    try:
        return _MACHINES[machine]
    except KeyError:
        raise Unusable(f"it is for processors of type {machine:#06x}, which are unknown") from None


def same_but_trust(program: bytes, copy: bytes, fingerprint: bytes) -> bool:
    """True where `program` is the same as `copy`, which `trusting` made for this fingerprint, but
    for whom it trusts: an earlier copy of the same original, or that itself."""
    at = copy.index(fingerprint)
    behind = at + FINGERPRINT
    return (
        len(program) == len(copy)
        and program[:at] == copy[:at]
        and program[behind:] == copy[behind:]
    )


def _headers(program: bytes) -> tuple[int, bytes]:
    """The machine type and the optional header. Raises `Unusable`."""
    try:
        (at,) = struct.unpack_from("<I", program, _OFFSET_AT)
        signature, machine, size = _COFF.unpack_from(program, at)
    except struct.error:
        signature, machine, size, at = b"", 0, 0, 0
    optional = program[at + _COFF.size : at + _COFF.size + size]
    begins = _DIRECTORIES_AT.get(optional[:2])
    if program[:2] != b"MZ" or signature != b"PE\0\0" or begins is None or len(optional) < begins:
        raise Unusable("it is no EFI program; BIOS's are packed: build these with TRUST=")
    return machine, optional


def _signed(optional: bytes) -> bool:
    """True where there is a signature: its table has a size."""
    begins = _DIRECTORIES_AT[optional[:2]]
    directories = optional[begins:]
    (count,) = struct.unpack_from("<I", optional, begins - 4)
    entry = directories[8 * _CERTIFICATES : 8 * (_CERTIFICATES + 1)]
    return count > _CERTIFICATES and any(entry[4:])
