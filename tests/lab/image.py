"""The demo image: Debian's kernel for virtual machines and an initramfs of busybox and one script.

Nothing is installed: the kernel's package is downloaded and unpacked under ``build/lab``, where it
is found again the next time, also without a network.
"""

from __future__ import annotations

import gzip
import os
import platform
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bootd.overlay.cpio import Entry, archive
from tests.lab.packages import BUILD, locked, unpack
from tests.lab.run import LabError, program, run

ROOT: Final = Path(__file__).resolve().parents[2]
KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"
MODULES: Final = ("virtio_pci", "virtio_net", "efivarfs")
"""Modules for the machines' network card and their firmware's variables; what they depend on comes
with them."""
_SOURCES: Final = Path(__file__).parent / "initramfs"


@dataclass(frozen=True, slots=True)
class DemoImage:
    """The image's two files, and the version of its kernel (``uname -r``)."""

    version: str
    kernel: Path
    initramfs: Path


def build(folder: Path = BUILD, *, https: bool = False) -> DemoImage:
    """The demo image, built where it is not there yet; with `https` its wget knows today's, as
    Debian 12's busybox does not. `LabError` says what is missing."""
    if platform.machine() != "x86_64":
        raise LabError(
            f"the demo image is built for x86_64 machines on x86_64, not on {platform.machine()}"
        )
    with locked(folder):
        tree = _kernel_tree(folder)
        busybox = _debian_13(folder) if https else Path(os.path.realpath(program("busybox")))
        kernel = next((tree / "boot").glob("vmlinuz-*"))
        version = kernel.name.removeprefix("vmlinuz-")
        initramfs = folder / ("initramfs-https.gz" if https else "initramfs.gz")
        _replace(initramfs, gzip.compress(archive(_entries(tree, version, busybox)), 6, mtime=0))
    return DemoImage(version, kernel, initramfs)


def _debian_13(folder: Path) -> Path:
    """Debian 13's busybox: 1.35 names no signature algorithm in its TLS, which means SHA-1."""
    tree = folder / "busybox-trixie"
    if not tree.exists():
        unpack(tree, "busybox-static", release="trixie")
    return tree / "usr" / "bin" / "busybox"


def _replace(path: Path, data: bytes) -> None:
    """Another lab may be reading the file, so it is exchanged and not written over."""
    if path.exists() and path.read_bytes() == data:
        return
    temporary = path.with_suffix(".new")
    temporary.write_bytes(data)
    temporary.rename(path)


def _kernel_tree(folder: Path) -> Path:
    """The unpacked kernel package: the one the machine's apt names, or else the newest kept."""
    kept = sorted(folder.glob("linux-image-*-amd64"), key=lambda path: path.stat().st_mtime)
    try:
        package = _kernel_package()
        tree = folder / package
        if not tree.exists():
            unpack(tree, package)
    except LabError as exc:
        if not kept:
            raise LabError(
                f"the demo's kernel cannot be had: {exc}; run apt-get update, and look whether"
                " this machine reaches its Debian mirror"
            ) from exc
        return kept[-1]
    return tree


def _kernel_package() -> str:
    """The versioned package that `KERNEL_PACKAGE` stands for."""
    listing = run("apt-cache", "depends", KERNEL_PACKAGE)
    found = re.search(r"^\s*Depends: (linux-image-[\w.+-]+)$", listing, re.MULTILINE)
    if found is None:
        raise LabError(f"apt knows no package {KERNEL_PACKAGE}")
    return found[1]


def _modules(tree: Path, version: str) -> list[Path]:
    """The module files to load, what they depend on first."""
    root = tree / "lib" / "modules" / version
    files = {path.stem.replace("-", "_"): path for path in root.rglob("*.ko")}
    ordered: list[Path] = []

    def add(name: str) -> None:
        path = files.get(name)
        if path is None or path in ordered:
            return  # built into the kernel, or there already
        found = re.search(rb"(?:\A|\0)depends=([^\0]*)\0", path.read_bytes())
        for dependency in (found[1].decode() if found else "").split(","):
            add(dependency.replace("-", "_"))
        ordered.append(path)

    for name in MODULES:
        add(name)
    return ordered


def _entries(tree: Path, version: str, busybox: Path) -> list[Entry]:
    """Everything in the initramfs. /dev/console is in the kernel's own first archive."""
    modules = _modules(tree, version)
    order = "".join(f"{path.name}\n" for path in modules)
    return [
        _file("init", (_SOURCES / "init").read_bytes(), 0o755),
        _file("etc/udhcpc.script", (_SOURCES / "udhcpc.script").read_bytes(), 0o755),
        _file("bin/busybox", _static(busybox), 0o755),
        _file("lib/modules/order", order.encode(), 0o644),
        *(_file(f"lib/modules/{path.name}", path.read_bytes(), 0o644) for path in modules),
        Entry("run", stat.S_IFDIR | 0o755),
        Entry("tmp", stat.S_IFDIR | 0o1777),
    ]


def _file(path: str, content: bytes, mode: int) -> Entry:
    return Entry(path, stat.S_IFREG | mode, content)


def _static(busybox: Path) -> bytes:
    data = busybox.read_bytes()
    if b"ld-linux" in data[:4096]:
        raise LabError(
            "this machine's busybox is linked to shared libraries, which the demo image does not"
            " have; install the other one with: apt-get install busybox-static"
        )
    return data
