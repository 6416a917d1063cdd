"""ISC Kea, Debian's, without its service: installed, or else unpacked.

Installing the package would start a DHCP server on the machine that only runs our tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.lab.packages import BUILD, locked, unpack
from tests.lab.run import LabError, program

PACKAGE: Final = "kea-dhcp4-server"


def kea(folder: Path = BUILD) -> tuple[Path, Mapping[str, str]]:
    """``kea-dhcp4``, and the environment in which it finds its libraries. `LabError` where it is
    neither installed nor to be had."""
    try:
        return Path(program("kea-dhcp4")), {}
    except LabError:
        tree = folder / "kea"
    with locked(folder):
        if not tree.exists():
            unpack(tree, PACKAGE, depends=True)
    libraries = {str(path.parent) for path in (tree / "usr" / "lib").rglob("lib*.so*")}
    return tree / "usr" / "sbin" / "kea-dhcp4", {"LD_LIBRARY_PATH": ":".join(sorted(libraries))}
