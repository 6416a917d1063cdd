"""What a client is told to boot, and how each kind of firmware wants to be told.

Pure. The file stands in the header *and* in option 67: U-Boot and shim read the one, UEFI HTTP boot
the other. Option 43 is discovery control 8, "boot the file right away" (PXE 2.1, table 2-1);
without it EDK2 asks port 4011 and some ROMs show a menu.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from bootd.dhcp.answer import DISCOVER, Ignore, Query
from bootd.dhcp.client import Client, suboptions
from bootd.dhcp.wire import MAX_FILE, option
from bootd.loaders import boot_path
from bootd.model import Arch, ClientKind, Mac, Node, dashed

_PXE_CLASS: Final = option(60, b"PXEClient")
_HTTP_CLASS: Final = option(60, b"HTTPClient")
_BOOT_FILE_NOW: Final = option(43, b"\x06\x01\x08\xff")
# raspberrypi/firmware#764: the Pi's ROM looks for these words before it asks TFTP for its names.
_RASPBERRY: Final = option(43, b"\x06\x01\x08\x09\x14\0\0\x11Raspberry Pi Boot\x0a\x04\0PXE\xff")
_TFTP_PORT: Final = 69
_BOOT_ITEM: Final = 71
_IPXE_BUILDS: Final = ("ipxe", "snponly")


class BootInfo(NamedTuple):
    """What one client is told to boot: options 60 and 43 as written, the file (may be empty), the
    architecture it was chosen for, and whether it is a loader that has yet to ask again."""

    vendor_class: bytes
    vendor_options: bytes
    file: str
    arch: int | None
    first_stage: bool


def boot_info(query: Query, node: Node | None) -> BootInfo | Ignore:
    """What to boot for a client of a known kind; `node` is None for one that waits to be claimed:
    it has the loader of profile ``default``, so that Secure Boot runs what it waits in.

    Where the boot is local the answer is the same: the script that the node fetches hands over to
    its disk, so that a change of mind needs no change of boot order.
    """
    client, mac = query.client, query.mac
    tls = query.registry.settings.http.tls
    port = tls.port if tls is not None and tls.scripts else None
    if client.kind is ClientKind.IPXE and client.capable and (client.https or port is None):
        base = query.server.base if port is None else f"https://{query.server.text}:{port}"
        url = f"{base}/ipxe/{dashed(mac)}"
        return BootInfo(_PXE_CLASS, _BOOT_FILE_NOW, url, client.arch, False)
    if client.kind is ClientKind.RPI:
        return BootInfo(_PXE_CLASS, _RASPBERRY, "", Arch.ARM_RPIBOOT, False)
    if not client.archs:
        return Ignore("no-arch", client)
    who = node if node is not None else query.registry.default
    arch, path = _loader(client, mac, who.loader if who is not None else "auto")
    if path is None:
        return Ignore("unsupported-arch", client)
    info = _firmware(query, client, arch, path)
    if node is not None and node.quirks and _asks_again(query, node):
        return info._replace(vendor_options=b"", file="")
    return info if len(info.file) <= MAX_FILE else Ignore("file-too-long", client)


def _asks_again(query: Query, node: Node) -> bool:
    """True for firmware that ignores an offer which skips port 4011 (quirk ``binl``)."""
    first = query.client.kind is ClientKind.PXE and not query.on_pxe_port
    return first and "binl" in quirks(node, query.mac)


def _loader(client: Client, mac: Mac, choice: str) -> tuple[int | None, str | None]:
    """The first of the client's architectures that we can serve, and the loader's path."""
    if client.kind is ClientKind.IPXE and choice not in _IPXE_BUILDS:
        choice = "auto"  # a poor iPXE is given a better one, whatever the node's firmware boots
    for arch in client.archs:
        path = boot_path(mac, arch, choice)
        if path is not None:
            return arch, path
    return None, None


def _firmware(query: Query, client: Client, arch: int | None, path: str) -> BootInfo:
    if client.kind is ClientKind.HTTP:
        return BootInfo(_HTTP_CLASS, b"", f"{query.server.base}/{path}", arch, True)
    if client.kind is ClientKind.IPXE:
        port = query.registry.settings.tftp.port
        host = query.server.text if port == _TFTP_PORT else f"{query.server.text}:{port}"
        path = f"tftp://{host}/{path}"
    return BootInfo(_PXE_CLASS, _BOOT_FILE_NOW, path, arch, True)


def quirks(node: Node, mac: Mac) -> frozenset[str]:
    """The node's quirks that hold for this card: ``binl``, or ``binl@00:11:22`` for one maker's
    cards only, which a profile can set for all its nodes."""
    return frozenset(
        name
        for name, _, oui in (quirk.partition("@") for quirk in node.quirks)
        if mac.startswith(oui.lower().replace("-", ":"))
    )


def boot_options(info: BootInfo, query: Query) -> list[bytes]:
    """The boot options in the order that firmware is known to read: 60, 97 echoed, 43, 66, 67."""
    asked = query.message.options
    options = [info.vendor_class]
    if machine := asked.get(97):
        options.append(option(97, machine))
    if query.kind != DISCOVER and (item := boot_item(asked.get(43, b""))) is not None:
        options.append(option(43, item))
    elif info.vendor_options:
        options.append(info.vendor_options)
    if info.file:
        options.append(query.server.name)
        # EDK2 writes a NUL behind the value in place, and ROMs without length handling read on.
        options.append(option(67, info.file.encode() + b"\0"))
    return options


def boot_item(vendor_options: bytes) -> bytes | None:
    """Option 43 for a client that names a boot item (tag 71) of a menu, which it takes from the
    DHCP server's own reply or from habit: the item echoed is the acknowledgement that PXE 2.1
    (2.2.4) demands. None where it names none."""
    item = suboptions(vendor_options).get(_BOOT_ITEM, b"")
    return bytes((_BOOT_ITEM, 4)) + item + b"\xff" if len(item) == 4 else None
