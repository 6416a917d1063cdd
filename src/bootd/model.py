"""The values that every part of bootd speaks in: frozen, typed, checked when they are made.

This module is pure and stands at the bottom: it imports nothing of bootd. What a file *may say*
is ``config.schema``; what was *decided* is here. A value that exists is valid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from types import MappingProxyType
from typing import Any, Final, NewType

EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})

Mac = NewType("Mac", str)
"""A hardware address in canonical form, ``52:54:00:12:34:56``; only `parse_mac` makes one."""

_MAC_FORMS = re.compile(
    r"(?:[0-9a-f]{2}(?P<sep>[:-]))(?:[0-9a-f]{2}(?P=sep)){4}[0-9a-f]{2}"
    r"|[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4}"
    r"|[0-9a-f]{12}",
    re.ASCII,
)


def parse_mac(text: str) -> Mac:
    """Read a MAC address written with ``:``, ``-``, Cisco's dots or nothing, in either case.

    Raises `ValueError` with a sentence when the text is no MAC address, or one that no network
    card has (all zero, or a group address).
    """
    lowered = text.lower()
    if not _MAC_FORMS.fullmatch(lowered):
        raise ValueError(f"{text[:64]!r} is not a MAC address")
    digits = lowered.replace(":", "").replace("-", "").replace(".", "")
    if digits == "000000000000":
        raise ValueError(f"{text!r} is not a MAC address: all zero")
    if int(digits[:2], 16) & 1:
        raise ValueError(f"{text!r} is a group address, not a network card's")
    return Mac(bytes.fromhex(digits).hex(":"))


def mac_from_bytes(raw: bytes) -> Mac | None:
    """The MAC of six bytes off the wire, or None where they are no card's address."""
    if len(raw) != 6 or raw[0] & 1 or not any(raw):
        return None
    return Mac(raw.hex(":"))


def dashed(mac: Mac) -> str:
    """``52-54-00-12-34-56``: the form in URLs and file names (iPXE ``${mac:hexhyp}``)."""
    return mac.replace(":", "-")


_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", re.ASCII)


def safe_name(text: str, what: str) -> str:
    """`text` where it can be one component of a path or URL, as names of images, generations and
    overlays must; raises `ValueError` with a sentence that begins with `what`."""
    if not _SAFE_NAME.fullmatch(text):
        raise ValueError(
            f"{what} {text[:64]!r} is not a name: letters, digits and ._+- after a letter or "
            "digit, at most 64"
        )
    return text


class Arch(IntEnum):
    """Client system architectures of DHCP option 93 (RFC 4578, IANA "Processor Architecture
    Types"). 7 and 9 both mean x64 in practice: RFC 4578 and IANA had them swapped until 2016."""

    X86_BIOS = 0
    NEC_PC98 = 1
    ITANIUM = 2
    ALPHA = 3
    ARC_X86 = 4
    INTEL_LEAN = 5
    EFI_IA32 = 6
    EFI_X64 = 7
    EFI_XSCALE = 8
    EFI_BC = 9
    EFI_ARM32 = 10
    EFI_ARM64 = 11
    PPC_OPEN_FIRMWARE = 12
    PPC_EPAPR = 13
    PPC_OPAL = 14
    EFI_IA32_HTTP = 15
    EFI_X64_HTTP = 16
    EFI_BC_HTTP = 17
    EFI_ARM32_HTTP = 18
    EFI_ARM64_HTTP = 19
    X86_BIOS_HTTP = 20
    ARM32_UBOOT = 21
    ARM64_UBOOT = 22
    ARM32_UBOOT_HTTP = 23
    ARM64_UBOOT_HTTP = 24
    EFI_RISCV32 = 25
    EFI_RISCV32_HTTP = 26
    EFI_RISCV64 = 27
    EFI_RISCV64_HTTP = 28
    EFI_RISCV128 = 29
    EFI_RISCV128_HTTP = 30
    S390_BASIC = 31
    S390_EXTENDED = 32
    MIPS32 = 33
    MIPS64 = 34
    SUNWAY32 = 35
    SUNWAY64 = 36
    EFI_LOONGARCH32 = 37
    EFI_LOONGARCH32_HTTP = 38
    EFI_LOONGARCH64 = 39
    EFI_LOONGARCH64_HTTP = 40
    ARM_RPIBOOT = 41


class ClientKind(StrEnum):
    """Who asks: the boot firmware itself, or what it loaded."""

    PXE = "pxe"  # option 60 PXEClient: BIOS PXE ROM or UEFI PXE
    HTTP = "http"  # option 60 HTTPClient: UEFI HTTP boot
    IPXE = "ipxe"  # user class iPXE, from a ROM or loaded
    UBOOT = "uboot"  # reads only the header's siaddr and file
    RPI = "rpi"  # Raspberry Pi boot ROM, known by its OUI


class Method(StrEnum):
    """How a node gets its root file system."""

    INITRAMFS = "initramfs"
    SQUASHFS = "squashfs"
    AUTO = "auto"


class BootTarget(StrEnum):
    """What a node boots when it asks."""

    NETWORK = "network"
    LOCAL = "local"
    ONCE = "once"  # network now, local after the node has reported up


class UnknownPolicy(StrEnum):
    """What a MAC address that no node names is given."""

    IGNORE = "ignore"
    HOLD = "hold"
    DEFAULT = "default"


class DhcpMode(StrEnum):
    """Whether bootd only adds boot information, or also hands out addresses."""

    PROXY = "proxy"
    RESERVATION = "reservation"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written: file as the operator named it, line and column from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class NetDev:
    """One network device of a node. `ip` carries its prefix length."""

    name: str
    device: str
    type: str = "ethernet"
    mac: Mac | None = None
    ip: IPv4Interface | None = None
    ip6: IPv6Interface | None = None
    gateway: IPv4Address | None = None
    gateway6: IPv6Address | None = None
    mtu: int | None = None
    dns: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    """What else the file says of it: routes, vlan, bond members; plain values."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node with everything decided: profiles merged, defaults in place."""

    name: str
    mac: Mac | None = None
    ip: IPv4Interface | None = None
    network: Mapping[str, NetDev] = field(default_factory=lambda: MappingProxyType({}))
    profiles: tuple[str, ...] = ()
    image: str | None = None
    """``NAME`` for the active generation, ``NAME@GENERATION`` for that one."""
    kernel_version: str | None = None
    kernel_args: tuple[str, ...] = ()
    method: Method = Method.AUTO
    loader: str = "auto"
    overlays_system: tuple[str, ...] = ()
    overlays_runtime: tuple[str, ...] = ()
    template: str = "default"
    boot: BootTarget = BootTarget.NETWORK
    asset_key: str | None = None
    uuid: str | None = None
    serial: str | None = None
    security: str = "bootd"
    quirks: frozenset[str] = frozenset()
    tags: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    resources: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    comment: str = ""
    origins: Mapping[str, Origin] = field(default_factory=lambda: EMPTY, compare=False, repr=False)
    """Dotted key (``kernel.args[0]``, ``tags.rack``) to the place that decided it."""

    @property
    def macs(self) -> tuple[Mac, ...]:
        """Every MAC address this node may boot from, the primary one first."""
        others = (d.mac for d in self.network.values() if d.mac is not None and d.mac != self.mac)
        return (self.mac, *others) if self.mac is not None else tuple(others)


@dataclass(frozen=True, slots=True)
class Artefact:
    """One file of an image on the server: absolute path, bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of an image, with the image's own initramfs for it where there is one.

    `debug` is true of debug, rescue and crash kernels, which only a node that names them boots.
    `features` is what that initramfs was built with, as far as it says so: ``livenet`` (dracut's
    network live root), ``live-boot`` (Debian's), ``warewulf``.
    """

    version: str
    kernel: Artefact
    initramfs: Artefact | None = None
    debug: bool = False
    features: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Image:
    """One generation of an image: the active one, or one that a node names."""

    name: str
    generation: str
    artefacts: Mapping[str, Artefact]
    """By role: ``kernel`` and ``initramfs`` of the kernel that boots where a node names none;
    where the image was built from a root, ``image`` (all of it as a cpio) and ``squashfs``."""
    kernel_version: str | None = None
    created: str = ""
    secret: bool = False
    kernels: tuple[Kernel, ...] = ()
    """The one that boots where a node names none first: newest first, debug kernels last."""
    unpacked: int = 0
    """Bytes that the root takes in memory; 0 where it is not known."""
    init: str = ""
    """The absolute path of the root's init; empty where it has none or there is no root."""
    os: str = ""
    """``ID-VERSION_ID`` of the root's os-release: ``debian-12``."""
    source: str = ""
    warnings: tuple[str, ...] = ()
    """What will hurt, as sentences."""
    users: Mapping[str, int] = field(default_factory=lambda: EMPTY, compare=False)
    groups: Mapping[str, int] = field(default_factory=lambda: EMPTY, compare=False)
    """The root's own by name; empty where they are not known. Not compared, since a generation
    never changes: ten thousand nodes' archives are compared by their image."""

    @property
    def archive(self) -> Artefact | None:
        """The whole root as a compressed cpio, or None where there is none."""
        return self.artefacts.get("image")

    @property
    def squashfs(self) -> Artefact | None:
        """The whole root as a squashfs, or None where there is none."""
        return self.artefacts.get("squashfs")

    def kernel_for(self, version: str | None) -> Kernel | None:
        """The kernel of that version, or the newest whose version begins with it (``6.1`` is no
        ``6.12``); without one, the kernel that boots by itself. None where there is none."""
        if not version:
            return self.kernels[0] if self.kernels else None
        for kernel in self.kernels:
            if kernel.version == version:
                return kernel
        for kernel in self.kernels:
            rest = kernel.version[len(version) :]
            if kernel.version.startswith(version) and not (version[-1:] + rest[:1]).isdigit():
                return kernel
        return None

    def files(self) -> tuple[Artefact, ...]:
        """Every artefact, each once."""
        own = (a for k in self.kernels for a in (k.kernel, k.initramfs) if a is not None)
        return tuple(dict.fromkeys((*self.artefacts.values(), *own)))


@dataclass(frozen=True, slots=True)
class Condition:
    """An expression over a node (``tags.role == "gpu"``), and the place it is written."""

    text: str
    file: str
    line: int


MAX_ID: Final = 0xFFFF_FFFE
"""The largest uid or gid: one more means none (chown(2))."""


@dataclass(frozen=True, slots=True)
class Account:
    """A user or group by name, as it is written in line `line` of `file`: each node's image knows
    its number."""

    name: str
    file: str
    line: int

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class OverlayEntry:
    """One path of an overlay as it will stand on the node.

    `path` is relative without ``.`` or ``..``; `mode` the permission bits; `content` the file's
    bytes, the template's text in UTF-8, or a symlink's target; `rdev` a device's (major, minor).
    `source` names the file on the server, for messages. Only nodes that `when` fits have it. Files
    with the same `hardlink`, which is the first one's path, are one file.
    """

    path: str
    kind: str  # "file" | "template" | "dir" | "symlink" | "char" | "block" | "fifo"
    mode: int
    content: bytes = b""
    uid: int | Account = 0
    gid: int | Account = 0
    source: str = ""
    when: Condition | None = None
    rdev: tuple[int, int] = (0, 0)
    hardlink: str = ""


@dataclass(frozen=True, slots=True)
class Overlay:
    """A whole overlay, read once; the site's files already shadow the distribution's.

    `delete` are paths that the node removes from its image; `when` fits the nodes that have
    anything of the overlay. `on_change` are pairs of pattern and command: what a running node does
    when a path that fits is new. Equal digests mean equal overlays.
    """

    name: str
    entries: tuple[OverlayEntry, ...]
    digest: str
    delete: tuple[str, ...] = ()
    when: Condition | None = None
    description: str = ""
    on_change: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Template:
    """A boot script's template: its name (``default.ipxe.j2``), text, and file for messages."""

    name: str
    text: str
    source: str


Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class DhcpSettings:
    """``dhcp:`` of bootd.yaml."""

    mode: DhcpMode = DhcpMode.PROXY
    port: int = 67
    pxe_port: int = 4011
    client_port: int = 68
    unknown: UnknownPolicy = UnknownPolicy.HOLD
    relays: tuple[IPv4Network, ...] = ()
    lease_time: int = 86400


@dataclass(frozen=True, slots=True)
class TftpSettings:
    """``tftp:`` of bootd.yaml; `max_blksize` None means the interface's MTU less 32."""

    enabled: bool = True
    port: int = 69
    max_transfers: int = 4096
    max_per_client: int = 8
    max_blksize: int | None = None
    max_windowsize: int = 64
    single_port: bool = False


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """``http.tls:`` of bootd.yaml; absolute paths. `scripts`: iPXE's go out over TLS only."""

    port: int
    certificate: str
    key: str
    scripts: bool = False


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """``http:`` of bootd.yaml; `max_image_transfers` None means auto."""

    port: int = 9873
    tls: TlsSettings | None = None
    max_image_transfers: int | None = None
    admin_networks: tuple[Network, ...] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))

    def over_tls(self, server: ServerAddress) -> ServerAddress:
        """Where a client of `server` finds what is only given over TLS; as it came, where there is
        no TLS."""
        if self.tls is None or server.scheme == "https":
            return server
        return ServerAddress(server.ip, self.tls.port, "https")

    def for_scripts(self, server: ServerAddress) -> ServerAddress:
        """Where an iPXE that reaches us as `server` is led to for its script."""
        return self.over_tls(server) if self.tls is not None and self.tls.scripts else server


@dataclass(frozen=True, slots=True)
class SecuritySettings:
    """``security:`` of bootd.yaml; `boot_window` in seconds."""

    boot_window: float = 600.0
    asset_key: str = "optional"  # optional | required


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """``images:`` of bootd.yaml; `max_size` in bytes."""

    keep: int = 3
    max_size: int = 64 << 30
    compression: str = "auto"  # auto | zstd | gzip


@dataclass(frozen=True, slots=True)
class LogSettings:
    """``log:`` of bootd.yaml."""

    level: str = "info"
    format: str = "auto"  # auto | journald | console | json


@dataclass(frozen=True, slots=True)
class Settings:
    """bootd.yaml, resolved: every path absolute. `interfaces` empty means every one that is up,
    has an IPv4 address and is not loopback."""

    config_file: str = "/etc/bootd/bootd.yaml"
    interfaces: tuple[str, ...] = ()
    state_dir: str = "/var/lib/bootd"
    run_dir: str = "/run/bootd"
    nodes: tuple[str, ...] = ()
    overlays: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    dhcp: DhcpSettings = DhcpSettings()
    tftp: TftpSettings = TftpSettings()
    http: HttpSettings = HttpSettings()
    security: SecuritySettings = SecuritySettings()
    images: ImageSettings = ImageSettings()
    log: LogSettings = LogSettings()

    @property
    def control_socket(self) -> str:
        """The command line's way to the daemon."""
        return f"{self.run_dir}/control.sock"


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """bootd as one client reaches it: the address of the interface the request came in on.

    `scheme` is ``https`` for a client that came over TLS: it is led on to nothing weaker.
    """

    ip: IPv4Address
    http_port: int = 9873
    scheme: str = "http"
    base: str = field(init=False, compare=False, repr=False)
    """``http://10.0.0.1:9873``: an IP literal, so that no client needs DNS."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", f"{self.scheme}://{self.ip}:{self.http_port}")


@dataclass(frozen=True, slots=True)
class Initrd:
    """One initial RAM disk: a word that names it for the boot loader, and its absolute URL."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class BootPlan:
    """Everything a boot script needs; templates see this and nothing else.

    `urls` maps ``kernel``, ``initramfs``, ``system``, ``fail``, ``script`` to absolute URLs.
    `args` is the kernel command line without ``initrd=``. `method` is never ``auto``.
    """

    node: Node
    mac: Mac
    image: Image
    server: ServerAddress
    method: Method
    args: tuple[str, ...]
    urls: Mapping[str, str]
    boot_id: str = ""
    secret: bool = False
    """True where the URLs carry a token, so the overlay may be fetched."""
    initrds: tuple[Initrd, ...] = ()
    """What the kernel is given after itself, in this order: later ones' files win."""
    kernel_version: str = ""
    reason: str = ""
    """Why it is this method, for people."""


class ConfigError(Exception):
    """The operator must fix something: `faults` are whole lines ``file:line:col: where: what``."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class StartError(Exception):
    """A service cannot start. The message is a sentence: what, where, why, what to do."""
