"""Which boot loader for which firmware, and the virtual paths that TFTP and HTTP share.

Pure: names in, names out; whether a file is there is `files.LoaderFiles`' question. A name tells
the architecture wherever the files differ (``snponly.efi`` is x64 as in Debian's package ``ipxe``,
``snponly-arm64.efi`` is not), because a TFTP request says nothing else about who asks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from bootd.model import Arch, Mac, dashed, parse_mac

MAX_PATH: Final = 255
"""Characters of a path. DHCP carries at most 127 of them (the header's ``file`` less its NUL)."""

CHOICES: Final = frozenset({"auto", "ipxe", "snponly", "shim", "grub"})
"""What ``loader:`` of a node may say instead of a file's name."""


@dataclass(frozen=True, slots=True)
class _Platform:
    """One instruction set under UEFI: its name in iPXE's build tree and in UEFI's file names."""

    ipxe: str
    efi: str


_X64: Final = _Platform("x86_64", "x64")
_IA32: Final = _Platform("i386", "ia32")
_ARM32: Final = _Platform("arm32", "arm")
_ARM64: Final = _Platform("arm64", "aa64")
_RISCV64: Final = _Platform("riscv64", "riscv64")
_LOONG64: Final = _Platform("loong64", "loongarch64")

# 9 is "EFI byte code" by IANA, and x64 on the firmware that was built from RFC 4578 before its
# erratum of 2016. U-Boot (21 to 24) runs EFI applications. What is not here is not served.
_EFI: Final[Mapping[int, _Platform]] = MappingProxyType(
    {
        Arch.EFI_IA32: _IA32,
        Arch.EFI_X64: _X64,
        Arch.EFI_BC: _X64,
        Arch.EFI_ARM32: _ARM32,
        Arch.EFI_ARM64: _ARM64,
        Arch.EFI_IA32_HTTP: _IA32,
        Arch.EFI_X64_HTTP: _X64,
        Arch.EFI_BC_HTTP: _X64,
        Arch.EFI_ARM32_HTTP: _ARM32,
        Arch.EFI_ARM64_HTTP: _ARM64,
        Arch.ARM32_UBOOT: _ARM32,
        Arch.ARM64_UBOOT: _ARM64,
        Arch.ARM32_UBOOT_HTTP: _ARM32,
        Arch.ARM64_UBOOT_HTTP: _ARM64,
        Arch.EFI_RISCV64: _RISCV64,
        Arch.EFI_RISCV64_HTTP: _RISCV64,
        Arch.EFI_LOONGARCH64: _LOONG64,
        Arch.EFI_LOONGARCH64_HTTP: _LOONG64,
    }
)
_BIOS: Final = frozenset({Arch.X86_BIOS, Arch.X86_BIOS_HTTP})

_BIOS_LOADERS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "snponly": ("undionly.kpxe", "ipxe.pxe"),
        "ipxe": ("ipxe.pxe", "undionly.kpxe"),
        "grub": ("grub/i386-pc/core.0",),
    }
)


def _ipxe_names(build: str, platform: _Platform) -> tuple[str, ...]:
    """One iPXE build under the names that packages and ipxe.org give it, ours first."""
    flat = f"{build}.efi" if platform is _X64 else f"{build}-{platform.ipxe}.efi"
    return (flat, f"{platform.ipxe}/{build}.efi", f"{platform.ipxe}-efi/{build}.efi")


def _efi_loaders(platform: _Platform) -> Mapping[str, tuple[str, ...]]:
    """By choice, the names to look for; Debian's signed packages end in ``.signed``."""
    snponly, ipxe = _ipxe_names("snponly", platform), _ipxe_names("ipxe", platform)
    shim, grub = f"shim{platform.efi}.efi", f"grub{platform.efi}.efi"
    grubnet = f"grubnet{platform.efi}.efi"
    return {
        "snponly": snponly + ipxe,
        "ipxe": ipxe + snponly,
        "shim": (shim, f"{shim}.signed"),
        "grub": (grubnet, f"{grubnet}.signed", grub),
    }


_EFI_LOADERS: Final = {
    platform: _efi_loaders(platform)
    for platform in (_X64, _IA32, _ARM32, _ARM64, _RISCV64, _LOONG64)
}


def loader_for(arch: int, choice: str = "auto") -> tuple[str, ...]:
    """The file names that would boot `arch`, the best first; empty where we serve it nothing.

    `arch` is DHCP option 93's value; `choice` is the node's ``loader``: one of `CHOICES` or a
    file's name, which is taken for every architecture because the operator knows the machine.
    ``auto`` is ``snponly``: it drives the card through the firmware that already did (iPXE's own
    drivers fail on some Dell, Broadcom and Mellanox cards). A BIOS knows no shim and gets ``auto``.
    """
    if choice not in CHOICES:
        return (choice,)
    if choice == "auto":
        choice = "snponly"
    if arch in _BIOS:
        return _BIOS_LOADERS.get(choice, _BIOS_LOADERS["snponly"])
    platform = _EFI.get(arch)
    return _EFI_LOADERS[platform][choice] if platform is not None else ()


def chains(choice: str) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """What a node with this ``loader`` needs on the server, one chain for each kind of machine: of
    each file in a chain the names that will do. BIOS machines and those of other than today's
    servers' architectures are left out."""
    if choice not in CHOICES:
        return (((choice,),),)
    found = []
    for platform, arch in ((_X64, Arch.EFI_X64), (_ARM64, Arch.EFI_ARM64)):
        chain = [loader_for(arch, choice)]
        if choice == "shim":
            chain.append(_companions(platform)[f"grub{platform.efi}.efi"])
        found.append(tuple(chain))
    return tuple(found)


def boot_path(mac: Mac, arch: int, choice: str = "auto") -> str | None:
    """The path for DHCP's boot file, ``52-54-00-12-34-56/snponly.efi``; None: nothing to serve.

    The MAC is in the path so that TFTP and HTTP know the node before any script runs, and so that
    iPXE's ``autoexec.ipxe``, asked for in the same folder, is the node's own.
    """
    names = loader_for(arch, choice)
    return f"{dashed(mac)}/{names[0]}" if names else None


_BUILDS: Final = ("snponly", "ipxe")


def ipxe_files() -> tuple[tuple[str, ...], ...]:
    """Of each build of iPXE for today's servers' architectures the names of its file, ours
    first."""
    return tuple(_ipxe_names(build, platform) for platform in (_X64, _ARM64) for build in _BUILDS)


def ipxe_name(name: str, arch: int) -> str:
    """Under which name a build of iPXE for `arch` is looked for first, that packages or iPXE's
    build call `name` (``ipxe-amd64.efi``); a name of the site's own is left as it is."""
    build, _, of = name.removesuffix(".efi").partition("-")
    tails = ("", "amd64", *(platform.ipxe for platform in _EFI_LOADERS))
    if not name.endswith(".efi") or build not in _BUILDS or of not in tails:
        return name
    return _ipxe_names(build, _EFI[arch])[0]


def _companions(platform: _Platform) -> Mapping[str, tuple[str, ...]]:
    """What shim asks for beside itself: its second stage, MokManager and its fallback."""
    grub, mok = f"grub{platform.efi}.efi", f"mm{platform.efi}.efi"
    grubnet, fallback = f"grubnet{platform.efi}.efi", f"fb{platform.efi}.efi"
    return {
        grub: (grub, grubnet, f"{grubnet}.signed"),
        mok: (mok, f"{mok}.signed"),
        fallback: (fallback, f"{fallback}.signed"),
    }


_WAREWULF: Final[Mapping[str, str]] = MappingProxyType(
    {"shim.efi": "shim", "grub.efi": "grub", "grub-tpm.efi": "grub"}
)
"""Names of Warewulf's that say no architecture, and the choice that each is."""


def _by_first_name() -> Mapping[str, tuple[str, ...]]:
    table = {names[0]: names for names in _BIOS_LOADERS.values()}
    for platform, loaders in _EFI_LOADERS.items():
        table.update({names[0]: names for names in loaders.values()})
        table.update(_companions(platform))
    for name in _WAREWULF:
        table[name] = (name, *table[for_arch(name, Arch.EFI_X64)])
    return MappingProxyType(table)


def leaves_arch_open(name: str) -> bool:
    """True for Warewulf's ``shim.efi`` and ``grub.efi``, which are named so on every machine."""
    return name in _WAREWULF


def for_arch(name: str, arch: int) -> str:
    """A name that `leaves_arch_open` as it is for `arch`; others as they are."""
    choice = _WAREWULF.get(name)
    platform = _EFI.get(arch)
    return f"{choice}{platform.efi}.efi" if choice is not None and platform is not None else name


_CANDIDATES: Final = _by_first_name()


def candidates(name: str) -> tuple[str, ...]:
    """The files that may be served under this loader's name, the best first; at least the name.

    DHCP promised the first of `loader_for`; where that file is missing the next ones boot the same
    machine, so a server that has only ``ipxe.efi`` still boots nodes told ``snponly.efi``.
    """
    return _CANDIDATES.get(name, (name,))


# ---- the virtual paths ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loader:
    """A boot loader or a companion of one; look for `candidates` of its name."""

    name: str
    mac: Mac | None = None


@dataclass(frozen=True, slots=True)
class Autoexec:
    """iPXE's ``autoexec.ipxe``: fetched beside the loader, run instead of its autoboot."""

    mac: Mac | None = None


@dataclass(frozen=True, slots=True)
class PxelinuxConfig:
    """``pxelinux.cfg/01-{mac}``: PXELINUX, U-Boot, Petitboot."""

    mac: Mac


@dataclass(frozen=True, slots=True)
class GrubConfig:
    """``grub/grub.cfg-01-{mac}``, or ``grub/grub.cfg`` for whoever asks: their address tells."""

    mac: Mac | None = None


@dataclass(frozen=True, slots=True)
class Static:
    """Any other file: a clean relative path."""

    path: str


@dataclass(frozen=True, slots=True)
class Refused:
    """No path of ours. `reason` is one word: ``control-character``, ``dot-dot``, ``backslash``,
    ``not-a-mac``, ``too-long`` or ``empty``."""

    reason: str


Target = Loader | Autoexec | PxelinuxConfig | GrubConfig | Static | Refused

# Six pairs of anything: whoever writes that means a MAC address, and is told where it is none.
_LIKE_MAC: Final = re.compile(r"[0-9a-z]{2}(?:[:-][0-9a-z]{2}){5}", re.ASCII | re.IGNORECASE)
_HIGH_BYTES: Final = bytes(range(0x80, 0x100))


def firmware_path(raw: bytes) -> str:
    r"""A file name as firmware sends it by TFTP, made a path.

    EDK2 and Windows tools write ``\``; Intel and IBM ROMs append a byte 0xFF that lay behind DHCP
    option 67. No name of ours ends in such bytes.
    """
    return raw.rstrip(_HIGH_BYTES).decode("utf-8", "replace").replace("\\", "/")


def clean(path: str) -> str | Refused:
    """The path relative to the root, with ``//`` and ``/./`` folded; or why there is none."""
    if len(path) > MAX_PATH:
        return Refused("too-long")
    if not path.isprintable():
        return Refused("control-character")
    if "\\" in path:
        return Refused("backslash")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        return Refused("dot-dot")
    return "/".join(parts) if parts else Refused("empty")


def route(path: str) -> Target:
    """What a path asks for, by TFTP or (without its leading ``/boot/``) by HTTP.

    The path is text already decoded once; nothing here decodes again.
    """
    cleaned = clean(path)
    if isinstance(cleaned, Refused):
        return cleaned
    first, _, rest = cleaned.partition("/")
    try:
        mac = parse_mac(first) if rest else None
    except ValueError:
        if _LIKE_MAC.fullmatch(first):
            return Refused("not-a-mac")
        mac = None
    return _beneath(mac, rest) if mac is not None else _at_root(cleaned)


# Where builds of GRUB look for their configuration: ``/grub`` in Debian's and Ubuntu's for the
# network, the loader's own folder in Red Hat's, ``EFI/{vendor}`` in those made for disks.
_GRUB_FOLDER: Final = re.compile(r"(?:|grub2?|boot/grub2?|EFI/[^/]+)", re.ASCII | re.IGNORECASE)
_BY_ADDRESS: Final = re.compile(r"grub\.cfg-[0-9A-F]{8}", re.ASCII | re.IGNORECASE)


def _at_root(path: str) -> Target:
    if path == "autoexec.ipxe":
        return Autoexec()
    path = path.removeprefix("efiboot/")  # Warewulf's folder
    named = _config_of(path, None)
    if named is not None:
        return named
    return Loader(path) if path in _CANDIDATES else Static(path)


def _beneath(mac: Mac, path: str) -> Target:
    """A path in the folder of one machine. GRUB and PXELINUX take that folder for their prefix."""
    if path == "autoexec.ipxe":
        return Autoexec(mac)
    if path == "pxelinux.cfg/default":
        return PxelinuxConfig(mac)
    return _config_of(path, mac) or Loader(path, mac)


def _config_of(path: str, mac: Mac | None) -> PxelinuxConfig | GrubConfig | Refused | None:
    """A configuration of PXELINUX or GRUB, in `mac`'s folder where that is not None. In a
    machine's own name ``01`` is ARP's type of Ethernet."""
    folder, _, name = path.rpartition("/")
    named = _mac(name) if folder == "grub" else None
    if named is not None:
        return GrubConfig(named)  # ``grub/{mac}``, as Warewulf has it
    if folder == "pxelinux.cfg" and name.startswith("01-"):
        kind: type[PxelinuxConfig | GrubConfig] = PxelinuxConfig
        text = name.removeprefix("01-")
    elif not name.startswith("grub.cfg") or not _GRUB_FOLDER.fullmatch(folder):
        return None
    elif name == "grub.cfg" or _BY_ADDRESS.fullmatch(name):
        return GrubConfig(mac)
    elif name.startswith("grub.cfg-01-"):
        kind, text = GrubConfig, name.removeprefix("grub.cfg-01-")
    else:
        return None
    try:
        return kind(parse_mac(text))
    except ValueError:
        return Refused("not-a-mac")


_OPTIONAL: Final = re.compile(
    r"(?:revocations[^/]*\.efi|shim_certificate_\d+\.efi|(?:mm|fb)[a-z0-9]+\.efi|autoexec\.ipxe"
    r"|grub\.cfg.*|[^/]+\.(?:lst|mod|pf2|mo|sig))"
)


def optional(path: str) -> bool:
    """True where firmware only tries whether there is such a file: its absence is no fault.

    shim's revocations and certificates, GRUB's lists, modules and per-machine configurations,
    PXELINUX's configurations, iPXE's ``autoexec.ipxe``.
    """
    folder, _, name = path.rpartition("/")
    return folder.endswith("pxelinux.cfg") or _OPTIONAL.fullmatch(name) is not None


# ---- what HTTP has routes of its own for ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BootFile:
    """``b/{token}/{part}``: a part of one boot. The token is not checked yet."""

    token: str
    part: str


@dataclass(frozen=True, slots=True)
class ImageFile:
    """``kernel/{mac}`` and its like: a file of the node's image, without a token."""

    role: str
    mac: Mac


IMAGE_ROLES: Final = frozenset(("kernel", "initramfs", "image", "squashfs"))


def boot_file(path: str) -> BootFile | ImageFile | None:
    """What of HTTP's boot routes a TFTP path asks for: loaders without HTTP fetch kernels so.

    PXELINUX puts the folder that it came from, a machine's, in front of what it asks for.
    """
    cleaned = clean(path)
    parts = cleaned.split("/") if isinstance(cleaned, str) else []
    if len(parts) > 2 and _mac(parts[0]) is not None:
        del parts[0]
    match parts:
        case ["b", token, part]:
            return BootFile(token, part)
        case [role, name] if role in IMAGE_ROLES:
            mac = _mac(name)
            return ImageFile(role, mac) if mac is not None else None
    return None


def _mac(text: str) -> Mac | None:
    try:
        return parse_mac(text)
    except ValueError:
        return None
