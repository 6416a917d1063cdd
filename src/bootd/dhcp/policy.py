"""What a DHCP message is answered: one value in, `Offer` or `Ignore` out.

Pure: no socket, no clock, no logger. A proxy adds boot information beside the site's DHCP server:
it never gives an address nor anything else of a lease (PXE 2.1, 2.2.3). Where the mode is
``reservation`` the nodes that have an address get it first (``dhcp.reservation``).
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from bootd.dhcp import reservation
from bootd.dhcp.answer import (
    ACK,
    DECLINE,
    DISCOVER,
    INFORM,
    MAX_REPLY,
    NO_ADDRESS,
    NOWHERE,
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
    server_of,
)
from bootd.dhcp.bootinfo import boot_info, boot_options
from bootd.dhcp.client import Client, identify
from bootd.dhcp.wire import REQUEST as BOOTREQUEST
from bootd.dhcp.wire import Message
from bootd.model import ClientKind, DhcpMode, ServerAddress, UnknownPolicy
from bootd.registry import Registry

__all__ = ["Client", "Ignore", "Offer", "decide", "identify", "requested_address"]


def decide(
    message: Message,
    registry: Registry,
    us: ServerAddress,
    *,
    port: int,
    source: tuple[str, int] = (NOWHERE, 68),
    size: int = MAX_REPLY,
) -> Offer | Ignore:
    """Answer `message`, which came from `source` to our `port` (67 or 4011) in `size` bytes.

    `us` is the address of the interface that it came in on. The reply is at most twice the
    request's size, what option 57 allows, and one frame; where that cannot be, there is none.
    """
    if message.op != BOOTREQUEST:
        return Ignore("not-a-request")
    kind = message.options.get(53)
    if kind is None or len(kind) != 1:
        return Ignore("no-message-type")
    client = identify(message)
    settings = registry.settings.dhcp
    if message.giaddr != NO_ADDRESS and not _listed(message.giaddr, settings.relays):
        return Ignore("relay-not-listed", client)
    if client.mac is None:
        return Ignore("no-mac", client)
    on_pxe_port = port == settings.pxe_port
    query = Query(
        message,
        kind[0],
        client,
        client.mac,
        registry.by_mac.get(client.mac),
        registry,
        settings,
        server_of(us),
        on_pxe_port,
        not on_pxe_port and message.giaddr != NO_ADDRESS,
        source,
        size,
    )
    if settings.mode is DhcpMode.RESERVATION and not on_pxe_port:
        leased = reservation.answer(query)
        if leased is not None:
            return leased
    return _proxy(query)


def requested_address(message: Message) -> IPv4Address | None:
    """The address that a REQUEST asks a DHCP server for, seen in passing: option 50 when it takes
    an offer, ``ciaddr`` when it renews. None for any other message."""
    if message.options.get(53) != b"\x03":
        return None
    value = message.options.get(50, message.ciaddr)
    return IPv4Address(value) if len(value) == 4 and value != NO_ADDRESS else None


def _proxy(query: Query) -> Offer | Ignore:
    """The answer that leaves addresses to another DHCP server."""
    client, node = query.client, query.node
    refusal = _refusal(query)
    if refusal is not None:
        return Ignore(refusal, client)
    if node is None and query.settings.unknown is UnknownPolicy.DEFAULT:
        node = query.registry.default
    info = boot_info(query, node)
    if isinstance(info, Ignore):
        return info
    kind = OFFER if query.kind == DISCOVER else ACK
    data = reply(query, kind, boot_options(info, query), file=info.file.encode())
    if data is None:
        return Ignore("reply-too-large", client)
    return Offer(
        data,
        destination(query),
        client,
        node,
        info.arch,
        info.file,
        info.first_stage,
        opens_boot(query),
        name_of(kind),
        query.relayed,
    )


def _refusal(query: Query) -> str | None:
    """Why a proxy does not answer this, or None."""
    kind, client_kind = query.kind, query.client.kind
    if client_kind is None:
        return "not-a-boot-client"
    if kind == DISCOVER:
        if query.on_pxe_port:
            return "discover-on-pxe-port"
    elif kind == REQUEST:
        if not query.on_pxe_port:
            return "request"  # for the DHCP server; an answer would be noise
    elif kind == INFORM:
        # WDS-style clients ask so once they have an address. Without one there is nowhere to send.
        if query.message.ciaddr == NO_ADDRESS:
            return "inform-without-address"
    else:
        return {DECLINE: "decline", RELEASE: "release"}.get(kind, "other-message")
    if kind != DISCOVER and client_kind is ClientKind.HTTP:
        return "http-client-has-no-second-step"
    if query.node is None and query.settings.unknown is UnknownPolicy.IGNORE:
        return "unknown-node"
    return None


def _listed(giaddr: bytes, relays: tuple[IPv4Network, ...]) -> bool:
    """True where the operator named this relay: anyone may write any address into giaddr."""
    address = IPv4Address(giaddr)
    return any(address in network for network in relays)
