"""What an arm64 machine needs on a machine that is none: QEMU, firmware, and iPXE for it.

Debian 12's package ``ipxe`` is for x86 only; the one of Debian 13 has an arm64 build.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.lab.ipxe import debian_13
from tests.lab.packages import BUILD, locked, unpack


@dataclass(frozen=True, slots=True)
class Arm64:
    """Three files: QEMU's program, EDK2, and the boot loader."""

    qemu: Path
    firmware: Path
    ipxe: Path


def arm64(folder: Path = BUILD) -> Arm64:
    """All of it, unpacked where it is not there yet. `LabError` says what is missing."""
    machine = folder / "arm64"
    with locked(folder):
        if not machine.exists():
            unpack(machine, "qemu-system-arm", "qemu-efi-aarch64")
    return Arm64(
        machine / "usr" / "bin" / "qemu-system-aarch64",
        machine / "usr" / "share" / "qemu-efi-aarch64" / "QEMU_EFI.fd",
        debian_13(folder) / "ipxe-arm64.efi",
    )
