"""The values of a DHCP decision: what was asked, and `Offer` or `Ignore`; limits and destinations.

Pure.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address
from typing import Final, NamedTuple

from bootd.dhcp.client import Client
from bootd.dhcp.wire import PADDED_SIZE, Message, encode
from bootd.model import DhcpSettings, Mac, Node, ServerAddress
from bootd.registry import Registry

BROADCAST: Final = "255.255.255.255"
NOWHERE: Final = "0.0.0.0"
NO_ADDRESS: Final = bytes(4)
BROADCAST_FLAG: Final = 0x8000

DISCOVER: Final = 1
OFFER: Final = 2
REQUEST: Final = 3
DECLINE: Final = 4
ACK: Final = 5
NAK: Final = 6
RELEASE: Final = 7
INFORM: Final = 8

MAX_REPLY: Final = 1472
"""One Ethernet frame: no ROM puts fragments together."""
_DEFAULT_MAX: Final = 548
"""What every client takes, less IP and UDP headers (RFC 2131, 2)."""
_HEADERS: Final = 28

# What a reply may lose when it is too large, the least needed first: the server's name (siaddr and
# sname say it too), then search domains.
_EXPENDABLE: Final = (66, 119, 15)


class Offer(NamedTuple):
    """A reply to send: `data` is `message` encoded, `to` the address and port it goes to.

    `file` is the boot file as the client will ask for it; empty where the client knows its own
    names (Raspberry Pi) or asks again on port 4011 (quirk ``binl``). `arch` is what it was chosen
    for. `first_stage` is true for a loader, which has yet to ask again. `opens` is true where the
    request proves a boot: it came from the client port, which no unprivileged program may use, or
    through a relay. `lease` is the address given or acknowledged, None from a proxy.
    """

    data: bytes
    message: Message
    to: tuple[str, int]
    client: Client
    node: Node | None
    arch: int | None
    file: str
    first_stage: bool
    opens: bool
    kind: str
    """``offer``, ``ack`` or ``nak``."""
    lease: IPv4Address | None = None


class Ignore(NamedTuple):
    """Silence, and why, in one word. `client` is there where one could be told."""

    reason: str
    client: Client | None = None


class Query(NamedTuple):
    """One message with all that bears on its answer, read once."""

    message: Message
    kind: int
    """Option 53."""
    client: Client
    mac: Mac
    node: Node | None
    registry: Registry
    settings: DhcpSettings
    us: ServerAddress
    on_pxe_port: bool
    source: tuple[str, int]
    size: int

    @property
    def relayed(self) -> bool:
        """True where a relay agent passed it on; port 4011 is always asked directly."""
        return self.message.giaddr != NO_ADDRESS and not self.on_pxe_port


def destination(query: Query) -> tuple[str, int]:
    """Where the reply goes: the relay, the sender, or everyone on the wire it came from.

    Never ``ciaddr``: it may name a victim. A client without an address is reached by broadcast
    only, whatever its broadcast flag says, as a proxy's reply has no address for it.
    """
    settings, (host, port) = query.settings, query.source
    if query.relayed:
        return dotted(query.message.giaddr), settings.port
    if host == NOWHERE:
        return BROADCAST, port if query.on_pxe_port else settings.client_port
    return query.source


def opens_boot(query: Query) -> bool:
    """True where only privileged software can have sent this (PRODUCT: Identity and secrets)."""
    return query.relayed or query.source[1] == query.settings.client_port


def fit(reply: Message, request: Message, size: int) -> tuple[Message, bytes] | None:
    """`reply` and its bytes, within twice the request's `size` bytes, option 57 and one frame; None
    where that cannot be, even without what is expendable.

    Option 57 counts IP and UDP headers. Below the 300 bytes of BOOTP it is nonsense (a client that
    swapped its bytes) and the minimum of RFC 2131 is taken.
    """
    announced = int.from_bytes(request.options.get(57, b"")[:2], "big")
    allowed = announced - _HEADERS if announced >= PADDED_SIZE + _HEADERS else _DEFAULT_MAX
    limit = min(allowed, MAX_REPLY, 2 * size)
    data = encode(reply)
    if len(data) <= limit:
        return reply, data
    for code in _EXPENDABLE:
        if code in reply.options:
            options = {other: value for other, value in reply.options.items() if other != code}
            reply = reply._replace(options=options)
            data = encode(reply)
            if len(data) <= limit:
                return reply, data
    return None


@lru_cache(maxsize=256)
def dotted(address: bytes) -> str:
    """Four bytes as text."""
    return str(IPv4Address(address))
