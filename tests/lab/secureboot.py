"""Debian's signed boot loaders, unpacked and not installed: their packages are made for machines
that boot by them."""

from __future__ import annotations

from pathlib import Path

from tests.lab.packages import BUILD, locked, unpack

PACKAGES = ("shim-signed", "shim-helpers-amd64-signed", "grub-efi-amd64-signed")


def signed_loaders(release: str = "", folder: Path = BUILD) -> list[Path]:
    """shim, MokManager and GRUB for the network, of the machine's own Debian or another `release`.
    `LabError` says what is missing."""
    tree = folder / f"secureboot-{release or 'own'}"
    with locked(folder):
        if not tree.exists():
            unpack(tree, *PACKAGES, release=release)
    shim, grub = tree / "usr/lib/shim", tree / "usr/lib/grub/x86_64-efi-signed"
    return [
        shim / "shimx64.efi.signed",
        shim / "mmx64.efi.signed",
        shim / "fbx64.efi.signed",
        grub / "grubnetx64.efi.signed",
    ]
