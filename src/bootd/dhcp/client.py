"""Who sent a DHCP message: firmware of which kind and architecture, or iPXE with which features.

Pure. Nothing here decides what the machine is given; that is ``dhcp.policy``.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple
from uuid import UUID

from bootd.dhcp.wire import Message
from bootd.loaders import loader_for
from bootd.model import Arch, ClientKind, Mac, mac_from_bytes

OWN_USER_CLASS: Final = b"bootd"
"""What our own iPXE calls itself: its features need no looking at."""

RASPBERRY_OUIS: Final = frozenset(
    {
        "28:cd:c1",
        "2c:cf:67",
        "88:a2:9e",
        "b8:27:eb",
        "d8:3a:dd",
        "dc:a6:32",
        "e4:5f:01",
    }
)

_ETHERNET: Final = 1
_INFINIBAND: Final = 32
_ARCH_IN_CLASS: Final = re.compile(rb":Arch:([0-9]{1,5})(?::|$)")
_UBOOT: Final = frozenset(
    {Arch.ARM32_UBOOT, Arch.ARM64_UBOOT, Arch.ARM32_UBOOT_HTTP, Arch.ARM64_UBOOT_HTTP}
)

# Option 175's features of iPXE (ipxe: include/ipxe/dhcp.h)
_HTTP: Final = 0x13
_HTTPS: Final = 0x14
_BZIMAGE: Final = 0x18
_EFI: Final = 0x24

_NO_IDENTITY: Final = frozenset(
    {
        UUID(int=0),
        UUID(int=(1 << 128) - 1),
        UUID("03000200-0400-0500-0006-000700080009"),  # a mainboard default seen on many machines
    }
)


class Client(NamedTuple):
    """Who asks, as far as one message tells.

    `mac` is None where no Ethernet address can be found, `kind` where it is no boot client. `arch`
    is the first of `archs` that we serve a loader for, else the first; None where none was named.
    `capable` says that an iPXE can take a script by HTTP and start Linux (or is our own build),
    `https` that it knows HTTPS, which says nothing of whom it trusts.
    """

    mac: Mac | None
    kind: ClientKind | None
    arch: int | None
    archs: tuple[int, ...]
    user_classes: tuple[bytes, ...]
    capable: bool
    https: bool
    vendor_class: bytes


class _Traits(NamedTuple):
    kind: ClientKind | None
    arch: int | None
    archs: tuple[int, ...]
    user_classes: tuple[bytes, ...]
    capable: bool
    https: bool


def identify(message: Message) -> Client:
    """Who sent this. Never fails: what cannot be read is absent."""
    options = message.options
    mac = hardware_address(message)
    vendor_class = options.get(60, b"")
    kind, arch, archs, user_classes, capable, https = _traits(
        vendor_class, options.get(93, b""), options.get(77, b""), options.get(175)
    )
    if kind is ClientKind.PXE and not arch and mac is not None and mac[:8] in RASPBERRY_OUIS:
        # The boot ROM of every Pi says arch 0, "x86 BIOS" (raspberrypi/firmware#764).
        kind = ClientKind.RPI
    elif arch == Arch.ARM_RPIBOOT and kind is ClientKind.PXE:
        kind = ClientKind.RPI
    return Client(mac, kind, arch, archs, user_classes, capable, https, vendor_class)


def hardware_address(message: Message) -> Mac | None:
    """The Ethernet address of the sender, or None.

    EDK2 may put its 16-byte GUID into chaddr, InfiniBand leaves it empty (RFC 4390): then the
    client identifier is asked, where an InfiniBand card's 8-byte GUID holds the MAC that its
    Ethernet side has, ``ff:fe`` or ``03:00`` in the middle.
    """
    if message.hlen == 6 and message.htype != _INFINIBAND:
        return mac_from_bytes(message.chaddr[:6])
    identifier = message.options.get(61, b"")
    if len(identifier) == 7 and identifier[0] == _ETHERNET:
        return mac_from_bytes(identifier[1:])
    if message.htype == _INFINIBAND and len(identifier) >= 9:
        guid = identifier[-8:]
        return mac_from_bytes(guid[:3] + guid[5:])
    return None


def user_classes(value: bytes) -> tuple[bytes, ...]:
    """Option 77 in both encodings: RFC 3004's list of length-prefixed strings, or (iPXE) the bare
    string."""
    if not value:
        return ()
    classes = []
    at = 0
    while at < len(value):
        end = at + 1 + value[at]
        if end > len(value) or end == at + 1:
            return (value,)
        classes.append(value[at + 1 : end])
        at = end
    return tuple(classes)


def architectures(option: bytes, vendor_class: bytes) -> tuple[int, ...]:
    """Option 93, a list of 16-bit values; without it ``Arch:NNNNN`` (decimal) of the class."""
    pairs = len(option) // 2
    if pairs:
        return tuple(int.from_bytes(option[2 * i : 2 * i + 2], "big") for i in range(pairs))
    named = _ARCH_IN_CLASS.search(vendor_class)
    return (int(named[1]),) if named is not None else ()


def ipxe_features(option: bytes | None) -> frozenset[int]:
    """The tags of option 175 with a value that is not zero; malformed ones end the list."""
    return frozenset(tag for tag, body in suboptions(option or b"").items() if any(body))


def machine_uuid(message: Message) -> UUID | None:
    """Option 97 as SMBIOS prints it (the first three fields are little-endian, RFC 4578 2.3);
    None where it is absent, malformed, or one of the values that many machines share."""
    value = message.options.get(97, b"")
    if len(value) != 17 or value[0] != 0:
        return None
    uuid = UUID(bytes_le=value[1:])
    return None if uuid in _NO_IDENTITY or UUID(bytes=value[1:]) in _NO_IDENTITY else uuid


def relay_information(message: Message) -> tuple[bytes, bytes]:
    """Circuit id and remote id of option 82 (RFC 3046, 3.1): which switch and port; empty where the
    relay said nothing."""
    found = suboptions(message.options.get(82, b""))
    return found.get(1, b""), found.get(2, b"")


def suboptions(value: bytes) -> dict[int, bytes]:
    """Tag, length, value triples; the first of each tag, up to a malformed one or the end tag."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 2 <= len(value):
        tag, end = value[at], at + 2 + value[at + 1]
        if tag in (0, 255) or end > len(value):
            break
        found.setdefault(tag, value[at + 2 : end])
        at = end
    return found


# The four options are the same for all machines of one model, so a rack needs a few entries.
@lru_cache(maxsize=512)
def _traits(
    vendor_class: bytes, arch_option: bytes, user_class: bytes, encapsulated: bytes | None
) -> _Traits:
    classes = user_classes(user_class)
    archs = architectures(arch_option, vendor_class)
    arch = next((a for a in archs if loader_for(a)), archs[0] if archs else None)
    own = OWN_USER_CLASS in classes
    features = ipxe_features(encapsulated)
    capable = own or (_HTTP in features and (_BZIMAGE in features or _EFI in features))
    https = own or _HTTPS in features
    kind: ClientKind | None = None
    if vendor_class.startswith(b"HTTPClient"):
        kind = ClientKind.HTTP
    elif vendor_class.startswith(b"PXEClient"):
        kind = ClientKind.UBOOT if arch in _UBOOT else ClientKind.PXE
        if own or b"iPXE" in classes:
            kind = ClientKind.IPXE
    return _Traits(kind, arch, archs, classes, capable, https)
