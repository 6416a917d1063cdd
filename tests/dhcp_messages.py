"""DHCP messages and registries for the DHCP tests."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from bootd.dhcp.wire import Message, encode
from bootd.model import (
    DhcpSettings,
    HttpSettings,
    Node,
    ServerAddress,
    Settings,
    TftpSettings,
    parse_mac,
)
from bootd.registry import Registry

CAPTURES = Path(__file__).parent / "captures"
MAC = parse_mac("52:54:00:99:00:00")
US = ServerAddress(IPv4Address("10.99.0.2"))
DASHED = "52-54-00-99-00-00"
SCRIPT_URL = f"http://10.99.0.2:9873/ipxe/{DASHED}"

GOOD_FEATURES = bytes((0x13, 1, 1, 0x18, 1, 1, 0x24, 1, 1))
POOR_FEATURES = bytes((0x15, 1, 1, 0x18, 1, 1))

EMPTY: Any = MappingProxyType({})


class Captured(NamedTuple):
    """One packet of a capture file."""

    file: str
    kind: str
    protocol: str
    source: tuple[str, int]
    port: int
    data: bytes


def captured(path: Path) -> Iterator[Captured]:
    """The packets of one capture, in the order they were sent."""
    header: list[str] = []
    digits = ""
    for line in [*path.read_text().splitlines(), "## end"]:
        if line.startswith("## "):
            if header:
                host, _, port = header[3].rpartition(":")
                to = int(header[5].rpartition(":")[2])
                data = bytes.fromhex(digits)
                yield Captured(path.name, header[1], header[2], (host, int(port)), to, data)
            header, digits = line.split(), ""
        elif not line.startswith("#"):
            digits += line


def dhcp_captures(*prefixes: str) -> list[Captured]:
    """Every captured DHCP packet whose kind begins with one of `prefixes`."""
    found = [
        packet
        for path in sorted(CAPTURES.glob("*.hex"))
        for packet in captured(path)
        if packet.protocol == "udp" and packet.port in (67, 4011)
        if packet.kind.startswith(prefixes)
    ]
    assert found, prefixes
    return found


def message(
    kind: int = 1,
    *,
    vendor_class: bytes | None = b"PXEClient:Arch:00007:UNDI:003016",
    arch: int | tuple[int, ...] | None = 7,
    options: dict[int, bytes] | None = None,
    **header: Any,
) -> Message:
    """A boot client's message, as EDK2 would send it; `options` adds or (empty) removes."""
    fields: dict[str, Any] = {
        "op": 1,
        "htype": 1,
        "hlen": 6,
        "hops": 0,
        "xid": 0x12345678,
        "secs": 0,
        "flags": 0x8000,
        "ciaddr": bytes(4),
        "yiaddr": bytes(4),
        "siaddr": bytes(4),
        "giaddr": bytes(4),
        "chaddr": bytes.fromhex("525400990000").ljust(16, b"\0"),
        "sname": b"",
        "file": b"",
    }
    fields.update(header)
    carried: dict[int, bytes] = {53: bytes((kind,)), 57: (1472).to_bytes(2, "big")}
    if arch is not None:
        archs = arch if isinstance(arch, tuple) else (arch,)
        carried[93] = b"".join(value.to_bytes(2, "big") for value in archs)
    carried[94] = b"\x01\x03\x10"
    if vendor_class is not None:
        carried[60] = vendor_class
    carried.update(options or {})
    fields["options"] = {code: value for code, value in carried.items() if value}
    return Message(**fields)


def ipxe(kind: int = 1, features: bytes = GOOD_FEATURES, **rest: Any) -> Message:
    """A message of an iPXE with these features of option 175."""
    options = {77: b"iPXE", 175: features, **rest.pop("options", {})}
    return message(kind, options=options, **rest)


def discover(**rest: Any) -> bytes:
    """A DISCOVER in bytes."""
    return encode(message(1, **rest))


def registry(
    *nodes: Node,
    tftp: TftpSettings | None = None,
    http: HttpSettings | None = None,
    **dhcp: Any,
) -> Registry:
    """A registry with node n001 (the captures' machine) unless others are given."""
    chosen = nodes or (Node("n001", mac=MAC),)
    return Registry(
        Settings(
            dhcp=DhcpSettings(**dhcp),
            tftp=tftp or TftpSettings(),
            http=http or HttpSettings(),
        ),
        {node.name: node for node in chosen},
        EMPTY,
        EMPTY,
        EMPTY,
        default=Node("default"),
    )
