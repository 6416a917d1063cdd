"""What is in a root: its kernels, its init, and what will hurt when it boots."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bootd.image import kernel as header
from bootd.image.beneath import Beneath, open_inside, read_inside
from bootd.image.disk import ImageInputError
from bootd.image.initramfs import features
from bootd.image.users import MAX_FILE, numbers
from bootd.image.versions import best_first, is_debug
from bootd.image.walk import Survey
from bootd.model import safe_name

_INITS: Final = (
    "sbin/init",
    "usr/lib/systemd/systemd",
    "lib/systemd/systemd",
    "init",
    "etc/init",
    "bin/init",
)
_MODULES: Final = ("usr/lib/modules", "lib/modules")
_IN_MODULES: Final = ("vmlinuz", "Image", "vmlinux")
"""What a kernel is called beside its modules: Fedora, Arch, SUSE."""
_IN_BOOT: Final = re.compile(r"(?:vmlinuz|Image|vmlinux)-(.+)", re.DOTALL)
_CARDS: Final = (
    *("virtio_net", "e1000e", "igb", "ixgbe", "i40e", "ice"),
    *("bnxt_en", "tg3", "mlx5_core", "r8169"),
)
"""Modules of network cards that servers have."""
_LARGE_ARCHIVE: Final = 2 << 30


@dataclass(frozen=True, slots=True)
class FoundKernel:
    """A kernel in a root: paths relative to it."""

    version: str
    kernel: str
    initramfs: str | None
    debug: bool
    features: tuple[str, ...] = ()
    modules: str | None = None
    """The folder of its modules."""


@dataclass(frozen=True, slots=True)
class Inside:
    """What was found. `kernels` are best first."""

    kernels: tuple[FoundKernel, ...]
    init: str
    os: str
    zstd: bool
    """Whether the kernel unpacks a zstd initramfs, as far as its configuration is there to ask."""
    warnings: tuple[str, ...]
    users: Mapping[str, int]
    groups: Mapping[str, int]


def look(root: Path) -> Inside:
    """Look into a root; symlinks lead no further than it. Raises `OSError`."""
    kernels = find_kernels(root)
    init = next((f"/{path}" for path in _INITS if _executable(root, path)), "")
    return Inside(
        kernels,
        init,
        _os_release(root),
        _unpacks_zstd(root, kernels),
        tuple(_warnings(root, kernels, init)),
        _accounts(root, "passwd"),
        _accounts(root, "group"),
    )


def _accounts(root: Path, name: str) -> dict[str, int]:
    return numbers((read_inside(root, f"etc/{name}", MAX_FILE) or b"").decode(errors="replace"))


def find_kernels(root: Path) -> tuple[FoundKernel, ...]:
    """Every kernel of a root, best first. Layouts: Debian, Ubuntu and SUSE have
    ``/boot/vmlinuz-V``, Fedora and Rocky ``/lib/modules/V/vmlinuz`` too, Arch
    ``/usr/lib/modules/V/vmlinuz`` with ``pkgbase`` beside it, Alpine ``/boot/vmlinuz-lts``, arm64
    ``Image``."""
    found: dict[str, str] = {}
    modules: dict[str, str] = {}
    for folder in _MODULES:
        for version in names_in(root, folder):
            modules.setdefault(version, f"{folder}/{version}")
            for name in _IN_MODULES:
                if version not in found and _head(root, f"{folder}/{version}/{name}"):
                    found[version] = f"{folder}/{version}/{name}"
    for name in names_in(root, "boot"):
        match = _IN_BOOT.fullmatch(name)
        head = _head(root, f"boot/{name}") if match else b""
        if match and head:
            version = _version(match[1], head, modules)
            found.setdefault(version, f"boot/{name}")
    kernels = {}
    for version, path in found.items():
        with contextlib.suppress(ValueError):
            safe_name(version, "kernel version")
            initramfs = _initramfs(root, version, path, modules.get(version))
            kernels[version] = FoundKernel(
                version,
                path,
                initramfs,
                is_debug(version),
                _features(root, initramfs),
                modules.get(version),
            )
    return tuple(kernels[version] for version in best_first(list(kernels)))


def _version(name: str, head: bytes, modules: dict[str, str]) -> str:
    """The version of ``/boot/vmlinuz-NAME``, which is NAME where modules or a digit say so."""
    if name in modules or (name[:1].isdigit() and "." in name) or is_debug(name):
        return name
    told = header.version(head)
    if told:
        return told
    fitting = [v for v in modules if v.endswith(f"-{name.removeprefix('linux-')}")]
    candidates = fitting or list(modules)
    return candidates[0] if len(candidates) == 1 else name


def _initramfs(root: Path, version: str, kernel: str, modules: str | None) -> str | None:
    """The initramfs that distributions put beside a kernel."""
    labels = [version]
    if kernel.startswith("boot/"):
        match = _IN_BOOT.fullmatch(kernel.removeprefix("boot/"))
        labels += [match[1]] if match else []
    package = read_inside(root, f"{modules}/pkgbase", 256) if modules else None
    if package:
        labels.append(package.decode(errors="replace").strip())
    candidates = [
        path
        for label in labels
        for path in (
            f"boot/initrd.img-{label}",
            f"boot/initramfs-{label}.img",
            f"boot/initrd-{label}",
            f"boot/initramfs-{label}",
            f"boot/initrd-{label}.img",
        )
    ]
    if modules:
        candidates += [f"{modules}/{name}" for name in ("initramfs.img", "initrd", "initramfs")]
    for path in candidates:
        head = read_inside(root, path, 16) if "\0" not in path and ".." not in path else None
        if head and header.is_initramfs(head):
            return path
    return None


def _features(root: Path, path: str | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        with os.fdopen(open_inside(root, path), "rb") as file:
            return features(file)
    except OSError:
        return ()


def _head(root: Path, path: str) -> bytes:
    """The beginning of a kernel; empty where it is none that a loader can start."""
    head = read_inside(root, path, header.HEADER_BYTES)
    return head if head and header.is_kernel(head) else b""


def names_in(root: Path, folder: str) -> list[str]:
    """What is in a folder of a root, in order."""
    with Beneath(root, follow=True) as beneath:
        try:
            descriptor = beneath.folder(tuple(folder.split("/")), make=False)
            return sorted(os.listdir(descriptor), key=os.fsencode)  # noqa: PTH208 - a descriptor
        except (OSError, ImageInputError):
            return []


def _executable(root: Path, path: str) -> bool:
    try:
        descriptor = open_inside(root, path)
    except OSError:
        return False
    try:
        return bool(os.fstat(descriptor).st_mode & 0o111)
    finally:
        os.close(descriptor)


def _os_release(root: Path) -> str:
    data = read_inside(root, "etc/os-release") or read_inside(root, "usr/lib/os-release") or b""
    text = data.decode("utf-8", "replace")
    values = dict(re.findall(r'^(ID|VERSION_ID)="?([\w.~-]*)"?$', text, re.MULTILINE))
    return "-".join(value for key in ("ID", "VERSION_ID") if (value := values.get(key)))


def _unpacks_zstd(root: Path, kernels: tuple[FoundKernel, ...]) -> bool:
    for found in kernels[:1]:
        for path in (f"boot/config-{found.version}", f"{found.modules}/config"):
            config = read_inside(root, path)
            if config:
                return b"\nCONFIG_RD_ZSTD=y" in config
    return True


# ---- what will hurt -----------------------------------------------------------------------------


def _warnings(root: Path, kernels: tuple[FoundKernel, ...], init: str) -> Iterator[str]:
    if not init:
        yield (
            "it has no init (/sbin/init): a node that boots it stops there; install systemd-sysv "
            "or another init"
        )
    if not kernels:
        yield (
            "it has no kernel: install one in it, or give one with --kernel FILE; without, no node "
            "can boot it"
        )
    for found in kernels:
        yield from _drivers(root, found)
    machine = (read_inside(root, "etc/machine-id", 64) or b"").strip()
    if machine not in (b"", b"uninitialized"):
        yield (
            "it has a machine-id: every node would have the same; empty /etc/machine-id in it, or "
            "let overlay base give each its own"
        )
    keys = [n for n in names_in(root, "etc/ssh") if re.fullmatch(r"ssh_host_\w+_key", n)]
    if keys:
        yield (
            f"it has ssh host keys ({', '.join(keys)}), which everyone who can fetch the image can "
            "read: remove /etc/ssh/ssh_host_* in it and give nodes their own by overlay ssh"
        )


def _drivers(root: Path, found: FoundKernel) -> Iterator[str]:
    if found.debug:
        return
    if found.modules is None:
        yield f"kernel {found.version} has no modules in /lib/modules/{found.version}"
        return
    listed = b"".join(
        read_inside(root, f"{found.modules}/{name}", 16 << 20) or b""
        for name in ("modules.dep", "modules.builtin")
    )
    if not listed:
        yield f"kernel {found.version} has no modules.dep: run depmod {found.version} in the image"
        return
    present = set(re.findall(rb"/([\w-]+)\.ko[.\w]*(?::|\n|$)", listed))
    has = {name.replace(b"-", b"_").decode() for name in present}
    missing = [name for name in _CARDS if name not in has]
    if len(missing) == len(_CARDS):
        yield (
            f"kernel {found.version} has a module for no common network card: nodes will be "
            "without network (Ubuntu has them in linux-modules-extra, Debian in the kernel "
            "that is not -cloud)"
        )
    elif missing:
        yield f"kernel {found.version} has no module for: {', '.join(missing)}"


def measured(found: Survey, archive: int | None) -> Iterator[str]:
    """What the numbers of a root say will hurt. `archive` is the cpio's size, None without one."""
    if found.large:
        yield (
            f"/{found.large[0]} has 4 GiB or more, which a cpio cannot hold: there is no archive "
            "for method initramfs, only the squashfs"
            + (f" (and {len(found.large) - 1} more files)" if len(found.large) > 1 else "")
        )
    elif found.capable:
        yield (
            f"a cpio cannot carry the capabilities of /{found.capable[0]}"
            f"{f' and {found.capable_count - 1} more' if found.capable_count > 1 else ''}: by "
            "method initramfs they are lost; method squashfs keeps them"
        )
    if archive is not None and archive > _LARGE_ARCHIVE:
        yield (
            f"the archive has {archive / 1e9:.1f} GB: BIOS machines, and iPXE there, load no more "
            "than about 3 GB; method squashfs has no such limit"
        )
    for path in found.mounts:
        yield f"/{path} is a mount point: what is mounted there was left out"
