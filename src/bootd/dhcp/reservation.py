"""Addresses for the nodes that have one in nodes.yaml: full DHCP (RFC 2131) with nothing to keep.

Pure. Each node's address is its own, so there is no pool, no lease file and no conflict between
two clients: an OFFER, an ACK and a renewal all say the same. Who is no node never gets an address,
and a node without `ip` is left to another DHCP server. A machine that boots is told its boot file
in the same reply.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Address, IPv4Interface
from typing import Final, NamedTuple

from bootd.dhcp.answer import (
    ACK,
    DECLINE,
    DISCOVER,
    INFORM,
    NAK,
    NO_ADDRESS,
    OFFER,
    RELEASE,
    REQUEST,
    Ignore,
    Offer,
    Query,
    destination,
    name_of,
    opens_boot,
    reply,
)
from bootd.dhcp.bootinfo import BootInfo, boot_info, boot_options
from bootd.dhcp.client import suboptions
from bootd.dhcp.wire import option
from bootd.model import ClientKind, Mac, NetDev, Node

_NO_BOOT: Final = BootInfo(b"", b"", "", None, False)
_LINK_SELECTION: Final = 5
_NO_PROXY: Final = option(175, b"\xb0\x01\x01")
"""iPXE's ``no-pxedhcp``: do not wait two seconds for a proxy's offer, this is all there is."""
_MAX_LABEL: Final = 63


class _Lease(NamedTuple):
    """The address of one network device and what goes with it."""

    address: IPv4Interface
    device: NetDev


def answer(query: Query) -> Offer | Ignore | None:
    """The DHCP server's answer; None where the client is not one of ours to give an address."""
    if query.node is None:
        return None
    lease = _lease(query.node, query.mac)
    if lease is None:
        return None
    if query.kind in (DECLINE, RELEASE):
        return Ignore("decline" if query.kind == DECLINE else "release", query.client)
    if _link(query) not in lease.address.network:
        return Ignore("wrong-network", query.client)
    if query.kind == DISCOVER:
        return _give(query, lease, OFFER)
    if query.kind == REQUEST:
        return _requested(query, lease)
    if query.kind == INFORM and query.message.ciaddr != NO_ADDRESS:
        return _give(query, lease, ACK, inform=True)
    return Ignore("other-message", query.client)


def _lease(node: Node, mac: Mac) -> _Lease | None:
    """The address that belongs to this card of the node."""
    for device in node.network.values():
        if device.mac == mac and device.ip is not None:
            return _Lease(device.ip, device)
    if node.mac == mac and node.ip is not None:
        return _Lease(node.ip, NetDev("boot", ""))
    return None


def _link(query: Query) -> IPv4Address:
    """An address on the client's own network: ours, or the relay's there (RFC 3527 tells it where
    giaddr is on another)."""
    if not query.relayed:
        return IPv4Address(query.server.packed)
    selected = suboptions(query.message.options.get(82, b"")).get(_LINK_SELECTION, b"")
    return IPv4Address(selected if len(selected) == 4 else query.message.giaddr)


def _requested(query: Query, lease: _Lease) -> Offer | Ignore:
    """RFC 2131, 4.3.2: the address is taken from an offer, remembered from before, or renewed."""
    asked = query.message
    server = asked.options.get(54)
    if server is not None and server != query.server.packed:
        return Ignore("other-server", query.client)
    wanted = asked.options.get(50, asked.ciaddr)
    if wanted == NO_ADDRESS:
        return Ignore("no-address-asked", query.client)
    return _give(query, lease, ACK if wanted == lease.address.ip.packed else NAK)


def _give(query: Query, lease: _Lease, kind: int, *, inform: bool = False) -> Offer | Ignore:
    info = _NO_BOOT if kind == NAK else _boot(query)
    options = [] if kind == NAK else _lease_options(query, lease, inform=inform)
    if info.vendor_class:
        options += boot_options(info, query)
        if query.client.kind is ClientKind.IPXE:
            options.append(_NO_PROXY)
    if identifier := query.message.options.get(61):
        options.append(option(61, identifier))  # RFC 6842
    address = NO_ADDRESS if inform or kind == NAK else lease.address.ip.packed
    data = reply(query, kind, options, file=info.file.encode(), address=address)
    if data is None:
        return Ignore("reply-too-large", query.client)
    return Offer(
        data,
        destination(query),
        query.client,
        query.node,
        info.arch if info.vendor_class else query.client.arch,
        info.file,
        info.first_stage,
        opens_boot(query),
        name_of(kind),
        query.relayed,
        lease.address.ip if address != NO_ADDRESS else None,
    )


def _boot(query: Query) -> BootInfo:
    """What a boot client is told besides; one that we cannot boot still has its address."""
    if query.client.kind is None:
        return _NO_BOOT
    info = boot_info(query, query.node)
    return _NO_BOOT if isinstance(info, Ignore) else info


def _lease_options(query: Query, lease: _Lease, *, inform: bool) -> list[bytes]:
    """The lease, and what the client's parameter list asks for (all of it where it has none)."""
    device = lease.device
    wanted = query.message.options.get(55)
    options = [] if inform else _times(query.settings.lease_time)
    options.append(option(1, lease.address.network.netmask.packed))
    if device.gateway is not None:
        options.append(option(3, device.gateway.packed))
    assert query.node is not None
    host, _, domain = query.node.name.partition(".")
    search = device.search or ((domain,) if domain else ())
    optional = (
        (6, b"".join(_ipv4(device.dns))),
        (12, host.encode()),
        (15, search[0].encode() if search else b""),
        (26, device.mtu.to_bytes(2, "big") if device.mtu is not None else b""),
        (119, b"".join(_domain_name(name) for name in search)),
    )
    options += [
        option(code, value)
        for code, value in optional
        if value and (wanted is None or code in wanted)
    ]
    return options


def _times(seconds: int) -> list[bytes]:
    """Lease time, and when to renew and to rebind (RFC 2131, 4.4.5)."""
    times = ((51, seconds), (58, seconds // 2), (59, seconds * 7 // 8))
    return [option(code, value.to_bytes(4, "big")) for code, value in times]


def _ipv4(addresses: Iterable[str]) -> Iterable[bytes]:
    for text in addresses:
        try:
            yield IPv4Address(text).packed
        except AddressValueError:
            continue  # an IPv6 resolver: not for DHCPv4


def _domain_name(name: str) -> bytes:
    """A name as DNS writes it (RFC 3397), uncompressed; empty where it is none."""
    labels = [label.encode() for label in name.strip(".").split(".")]
    if not all(0 < len(label) <= _MAX_LABEL for label in labels):
        return b""
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
