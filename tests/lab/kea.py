"""ISC Kea, Debian's, without its service: installed, or else unpacked under ``build/lab``.

Installing the package would start a DHCP server on the machine that only runs our tests.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.lab.image import BUILD
from tests.lab.run import LabError, program, run

PACKAGE: Final = "kea-dhcp4-server"


def kea(folder: Path = BUILD) -> tuple[Path, Mapping[str, str]]:
    """``kea-dhcp4``, and the environment in which it finds its libraries. `LabError` where it is
    neither installed nor to be had."""
    try:
        return Path(program("kea-dhcp4")), {}
    except LabError:
        tree = folder / "kea"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.exists():
            _unpack(tree)
    libraries = {str(path.parent) for path in (tree / "usr" / "lib").rglob("lib*.so*")}
    return tree / "usr" / "sbin" / "kea-dhcp4", {"LD_LIBRARY_PATH": ":".join(sorted(libraries))}


def _unpack(tree: Path) -> None:
    """Download it with the libraries that this machine lacks, unpack beside, then rename: a
    download that was cut leaves no half tree."""
    work = tree.with_suffix(".new")
    shutil.rmtree(work, ignore_errors=True)
    archives = work / "archives"
    (archives / "partial").mkdir(parents=True)
    run(
        "apt-get", "install", "--download-only", "--yes", "--quiet", "--no-install-recommends",
        "-o", f"Dir::Cache::archives={archives}", "-o", "APT::Sandbox::User=root",
        "-o", "Debug::NoLocking=true", PACKAGE,
        timeout=600,
    )  # fmt: skip
    for archive in archives.glob("*.deb"):
        run("dpkg-deb", "-x", str(archive), str(work), timeout=300)
    shutil.rmtree(archives)
    work.rename(tree)
