"""The signed boot loaders of a root: shim, GRUB and MokManager of its own distribution.

Secure Boot's chain is of one distribution: its shim runs its GRUB and that its kernel only. So a
node that boots this image is better given these than the server's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bootd.image.beneath import open_inside
from bootd.image.disk import Progress, copy_hashed, make_folder
from bootd.image.inside import names_in
from bootd.image.manifest import File

FOLDER: Final = "efi"
_GRUB: Final = {"x64": "x86_64", "aa64": "arm64"}
_SUSE: Final = {"x64": "x86_64", "aa64": "aarch64"}
_VENDORS: Final = "boot/efi/EFI"


def find_loaders(root: Path) -> Mapping[str, str]:
    """By role (``shimx64``, ``grubx64``, ``mmx64``; ``aa64`` likewise) the path in `root`, of each
    architecture that has shim and GRUB. Layouts: Debian and Ubuntu have them in ``/usr/lib``, SUSE
    in ``/usr/share/efi``, Fedora and Rocky in ``/boot/efi/EFI/VENDOR``."""
    found: dict[str, str] = {}
    vendors = names_in(root, _VENDORS)
    for arch in _GRUB:
        own = {role: _first(root, paths) for role, paths in _places(arch, vendors).items()}
        if own[f"shim{arch}"] and own[f"grub{arch}"]:
            found.update({role: path for role, path in own.items() if path})
    return found


def copy_loaders(root: Path, folder: Path, progress: Progress) -> dict[str, File]:
    """Copy what `find_loaders` finds into ``efi/`` of a generation's folder. Raises `ImageError`
    and `OSError`."""
    made = {}
    for role, path in find_loaders(root).items():
        make_folder(folder / FOLDER)
        with os.fdopen(open_inside(root, path), "rb") as source:
            copied = copy_hashed(source, folder / FOLDER / f"{role}.efi", role, progress)
        made[role] = File(f"{FOLDER}/{copied.file}", copied.size, copied.sha256)
    return made


def _places(arch: str, vendors: list[str]) -> Mapping[str, tuple[str, ...]]:
    suse = f"usr/share/efi/{_SUSE[arch]}"
    shim, grub, mok = f"shim{arch}.efi", f"grub{arch}.efi", f"mm{arch}.efi"

    def of_vendors(name: str) -> tuple[str, ...]:
        return tuple(f"{_VENDORS}/{vendor}/{name}" for vendor in vendors)

    signed = f"usr/lib/grub/{_GRUB[arch]}-efi-signed/grubnet{arch}.efi.signed"
    return {
        f"shim{arch}": (
            *(f"usr/lib/shim/{shim}{end}" for end in (".signed", ".signed.latest")),
            f"{suse}/shim.efi",
            *of_vendors(shim),
        ),
        f"grub{arch}": (signed, f"{suse}/grub.efi", *of_vendors(grub)),
        f"mm{arch}": (
            *(f"usr/lib/shim/{mok}{end}" for end in (".signed", "")),
            f"{suse}/MokManager.efi",
            *of_vendors(mok),
        ),
    }


def _first(root: Path, paths: tuple[str, ...]) -> str:
    for path in paths:
        try:
            os.close(open_inside(root, path))
        except OSError:
            continue
        return path
    return ""
