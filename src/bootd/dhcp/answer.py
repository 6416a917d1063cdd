"""The values of a DHCP decision: what was asked, and `Offer` or `Ignore`; limits and destinations.

Pure. Replies are put together from ready-made options, not from a `Message`: a rack that boots has
one interpreter to answer it, and this is where its time went.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address
from typing import Final, NamedTuple

from bootd.dhcp.client import Client
from bootd.dhcp.wire import PADDED_SIZE, REPLY, Message, assemble, decode, option
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

_NAMES: Final = {OFFER: "offer", ACK: "ack", NAK: "nak"}
_MESSAGE_TYPE: Final = {kind: option(53, bytes((kind,))) for kind in _NAMES}

MAX_REPLY: Final = 1472
"""One Ethernet frame: no ROM puts fragments together."""
_DEFAULT_MAX: Final = 548
"""What every client takes, less IP and UDP headers (RFC 2131, 2)."""
_HEADERS: Final = 28

# What a reply may lose when it is too large, the least needed first: the server's name (siaddr and
# sname say it too), then search domains.
_EXPENDABLE: Final = (66, 119, 15)


class Offer(NamedTuple):
    """A reply to send: `data` goes to the address and port `to`.

    `file` is the boot file as the client will ask for it; empty where the client knows its own
    names (Raspberry Pi) or asks again on port 4011 (quirk ``binl``). `arch` is what it was chosen
    for. `first_stage` is true for a loader, which has yet to ask again. `opens` is true where the
    request proves a boot: it came from the client port, which no unprivileged program may use, or
    through a relay. `lease` is the address given or acknowledged, None from a proxy.
    """

    data: bytes
    to: tuple[str, int]
    client: Client
    node: Node | None
    arch: int | None
    file: str
    first_stage: bool
    opens: bool
    kind: str
    """``offer``, ``ack`` or ``nak``."""
    routed: bool = False
    """True where it goes to a relay agent, by whatever way leads there."""
    lease: IPv4Address | None = None

    @property
    def message(self) -> Message:
        """The reply, read back."""
        return decode(self.data)


class Ignore(NamedTuple):
    """Silence, and why, in one word. `client` is there where one could be told."""

    reason: str
    client: Client | None = None


class Server(NamedTuple):
    """Our address in the forms that replies need."""

    packed: bytes
    text: str
    sname: bytes
    base: str
    identifier: bytes
    """Option 54."""
    name: bytes
    """Option 66."""


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
    server: Server
    on_pxe_port: bool
    relayed: bool
    """True where a relay agent passed it on; port 4011 is always asked directly."""
    source: tuple[str, int]
    size: int


def server_of(us: ServerAddress) -> Server:
    """The forms of our address, made once for each."""
    return _server(int(us.ip), us.http_port)


@lru_cache(maxsize=64)
def _server(ip: int, port: int) -> Server:
    address = IPv4Address(ip)
    text = str(address)
    name = text.encode()
    return Server(
        address.packed,
        text,
        name,
        f"http://{text}:{port}",
        option(54, address.packed),
        option(66, name),
    )


def destination(query: Query) -> tuple[str, int]:
    """Where the reply goes: the relay, the sender, or everyone on the wire it came from.

    Never ``ciaddr``: it may name a victim. A client without an address is reached by broadcast
    only, whatever its broadcast flag says, as a proxy's reply has no address for it.
    """
    if query.relayed:
        return dotted(query.message.giaddr), query.settings.port
    host, port = query.source
    if host == NOWHERE:
        return BROADCAST, port if query.on_pxe_port else query.settings.client_port
    return query.source


def opens_boot(query: Query) -> bool:
    """True where only privileged software can have sent this (PRODUCT: Identity and secrets)."""
    return query.relayed or query.source[1] == query.settings.client_port


def name_of(kind: int) -> str:
    """The word for a reply's message type."""
    return _NAMES[kind]


def reply(
    query: Query, kind: int, options: list[bytes], *, file: bytes = b"", address: bytes = NO_ADDRESS
) -> bytes | None:
    """A reply of type `kind` in bytes: options 53 and 54, `options`, and last 82 echoed (RFC 3046,
    2.2: some relays drop a reply otherwise). `address` becomes yiaddr.

    At most twice the request's size, what option 57 allows, and one frame; None where that cannot
    be, even without what is expendable. Option 57 counts IP and UDP headers; below the 300 bytes of
    BOOTP it is nonsense (a client that swapped its bytes) and the minimum of RFC 2131 is taken.
    """
    asked, server = query.message, query.server
    refused = kind == NAK  # which names neither server nor file (RFC 2131, table 3)
    header = (
        REPLY,
        asked.htype,
        asked.hlen,
        0,
        asked.xid,
        0,
        asked.flags if query.relayed and not refused else asked.flags | BROADCAST_FLAG,
        asked.ciaddr if kind == ACK else NO_ADDRESS,
        address,
        NO_ADDRESS if refused else server.packed,
        asked.giaddr,
        asked.chaddr,
        b"" if refused else server.sname,
        file,
    )
    begin = (_MESSAGE_TYPE[kind], server.identifier)
    if relay_information := asked.options.get(82):
        options = [*options, option(82, relay_information)]
    data = assemble(header, (*begin, *options))
    announced = int.from_bytes(asked.options.get(57, b"")[:2], "big")
    allowed = announced - _HEADERS if announced >= PADDED_SIZE + _HEADERS else _DEFAULT_MAX
    limit = min(allowed, MAX_REPLY, 2 * query.size)
    for code in _EXPENDABLE:
        if len(data) <= limit:
            return data
        options = [kept for kept in options if kept[0] != code]
        data = assemble(header, (*begin, *options))
    return data if len(data) <= limit else None


@lru_cache(maxsize=256)
def dotted(address: bytes) -> str:
    """Four bytes as text."""
    return str(IPv4Address(address))
