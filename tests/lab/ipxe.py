"""Debian 13's iPXE, as Debian 12's builds know no HTTPS. `bootd tls loader` makes copies of it that
trust an authority of the lab's own."""

from __future__ import annotations

from pathlib import Path

from tests.lab.packages import BUILD, locked, unpack


def debian_13(folder: Path = BUILD) -> Path:
    """The folder of the package's boot loaders, unpacked where it is not there yet. `LabError` says
    what is missing."""
    tree = folder / "ipxe-trixie"
    with locked(folder):
        if not tree.exists():
            unpack(tree, "ipxe", release="trixie")
    return tree / "usr" / "lib" / "ipxe"
