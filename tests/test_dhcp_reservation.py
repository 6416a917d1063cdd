"""Reservation mode: each node gets its own address, and nobody else gets any."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from types import MappingProxyType
from typing import Any

import pytest
from scapy.layers.dhcp import BOOTP, DHCP

from bootd.dhcp.policy import Ignore, Offer, decide
from bootd.dhcp.wire import Message, decode, encode
from bootd.model import DhcpMode, NetDev, Node, parse_mac
from bootd.registry import Registry
from tests.dhcp_messages import (
    DASHED,
    MAC,
    SCRIPT_URL,
    US,
    dhcp_captures,
    ipxe,
    message,
    registry,
)

IP = bytes((10, 99, 0, 11))
OTHER = bytes((10, 99, 0, 12))
DEVICE = NetDev(
    "boot",
    "eth0",
    mac=MAC,
    ip=IPv4Interface("10.99.0.11/24"),
    gateway=IPv4Address("10.99.0.1"),
    mtu=9000,
    dns=("10.99.0.3", "2001:db8::3", "10.99.0.4"),
    search=("cluster.example", "example"),
)
NODE = Node("n001", mac=MAC, ip=DEVICE.ip, network=MappingProxyType({"boot": DEVICE}))


def world(*nodes: Node, **dhcp: Any) -> Registry:
    return registry(*(nodes or (NODE,)), mode=DhcpMode.RESERVATION, lease_time=3600, **dhcp)


def linux(kind: int = 1, **rest: Any) -> Message:
    """A running system's message: no boot client."""
    return message(kind, vendor_class=b"udhcp 1.35.0", arch=None, **rest)


def answer(
    asked: Message,
    settings: Registry | None = None,
    *,
    port: int = 67,
    source: tuple[str, int] = ("0.0.0.0", 68),
) -> Offer | Ignore:
    size = len(encode(asked))
    return decide(asked, settings or world(), US, port=port, source=source, size=size)


def offered(asked: Message, *args: Any, **how: Any) -> Offer:
    found = answer(asked, *args, **how)
    assert isinstance(found, Offer), found
    return found


def reason(asked: Message, *args: Any, **how: Any) -> str:
    found = answer(asked, *args, **how)
    assert isinstance(found, Ignore), found
    return found.reason


def test_a_node_is_offered_its_address_with_all_that_belongs_to_it() -> None:
    found = offered(linux())
    theirs = BOOTP(found.data)
    read = {option[0]: option[1:] for option in theirs[DHCP].options if isinstance(option, tuple)}

    assert (found.kind, found.lease, found.file) == ("offer", IPv4Address("10.99.0.11"), "")
    assert theirs.yiaddr == "10.99.0.11"
    assert read["message-type"] == (2,)
    assert read["server_id"] == ("10.99.0.2",)
    assert read["subnet_mask"] == ("255.255.255.0",)
    assert read["router"] == ("10.99.0.1",)
    assert read["name_server"] == ("10.99.0.3", "10.99.0.4")
    assert read["hostname"] == (b"n001",)
    assert read["domain"] == (b"cluster.example",)
    assert read["interface-mtu"] == (9000,)
    assert (read["lease_time"], read["renewal_time"], read["rebinding_time"]) == (
        (3600,),
        (1800,),
        (3150,),
    )
    assert found.message.options[119] == b"\x07cluster\x07example\0\x07example\0"
    assert not {43, 60, 66, 67} & set(found.message.options)
    assert found.to == ("255.255.255.255", 68)


def test_only_what_the_client_asks_for_is_sent_beside_the_lease() -> None:
    found = offered(linux(options={55: bytes((1, 3, 12))}))

    assert set(found.message.options) == {53, 54, 51, 58, 59, 1, 3, 12}


def test_a_node_without_more_than_an_address_gets_a_netmask_and_its_name() -> None:
    bare = Node("n001.cluster", mac=MAC, ip=IPv4Interface("10.99.0.11/16"))
    found = offered(linux(), world(bare))

    assert found.message.options[1] == bytes((255, 255, 0, 0))
    assert found.message.options[12] == b"n001"
    assert found.message.options[15] == b"cluster"
    assert not {3, 6, 26} & set(found.message.options)


@pytest.mark.parametrize(
    ("asked", "file"),
    [
        (message(), f"{DASHED}/snponly.efi"),
        (message(arch=0), f"{DASHED}/undionly.kpxe"),
        (
            message(arch=16, vendor_class=b"HTTPClient"),
            f"http://10.99.0.2:9873/{DASHED}/snponly.efi",
        ),
        (ipxe(), SCRIPT_URL),
    ],
)
def test_a_machine_that_boots_is_told_its_file_in_the_same_reply(asked: Message, file: str) -> None:
    found = offered(asked)

    assert found.message.yiaddr == IP
    assert (found.file, found.message.file) == (file, file.encode())
    assert found.message.options[67] == file.encode() + b"\0"
    assert found.message.options[60] in (b"PXEClient", b"HTTPClient")
    assert found.opens


def test_ipxe_is_told_that_there_is_no_proxy_to_wait_for() -> None:
    assert offered(ipxe()).message.options[175] == b"\xb0\x01\x01"
    assert 175 not in offered(message()).message.options


def test_a_machine_that_cannot_be_booted_still_has_its_address() -> None:
    found = offered(message(arch=2))

    assert found.message.yiaddr == IP
    assert not {43, 60, 67} & set(found.message.options)


def test_a_reply_that_cannot_fit_is_none() -> None:
    asked = linux(options={57: (330).to_bytes(2, "big"), 61: bytes(40)})

    assert reason(asked) == "reply-too-large"


def test_a_search_domain_that_is_none_is_left_out() -> None:
    odd = replace(DEVICE, search=("fine.example", "a..b", "x" * 64))
    found = offered(linux(), world(replace(NODE, network={"boot": odd})))

    assert found.message.options[119] == b"\x04fine\x07example\0"


def test_the_client_identifier_and_the_relays_information_come_back() -> None:
    information = b"\x01\x04eth3"
    settings = world(relays=(IPv4Network("10.99.0.0/24"),))
    asked = message(
        options={61: b"\x01abc", 82: information}, giaddr=bytes((10, 99, 0, 1)), flags=0
    )
    found = offered(asked, settings, source=("10.99.0.1", 67))

    assert found.message.options[61] == b"\x01abc"
    assert list(found.message.options)[-1] == 82
    assert (found.to, found.routed) == (("10.99.0.1", 67), True)


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        (linux(3, options={54: US.ip.packed, 50: IP}), "ack"),  # takes our offer
        (linux(3, options={50: IP}), "ack"),  # remembers its address
        (linux(3, ciaddr=IP), "ack"),  # renews
        (linux(3, options={54: US.ip.packed, 50: OTHER}), "nak"),
        (linux(3, options={50: OTHER}), "nak"),
        (linux(3, ciaddr=OTHER), "nak"),
    ],
)
def test_a_request_is_acknowledged_for_the_nodes_own_address_only(
    asked: Message, kind: str
) -> None:
    found = offered(asked)

    assert found.kind == kind
    if kind == "ack":
        assert (found.message.yiaddr, found.lease) == (IP, IPv4Address("10.99.0.11"))
    else:
        assert (found.message.yiaddr, found.message.siaddr) == (bytes(4), bytes(4))
        assert set(found.message.options) == {53, 54}
        assert found.lease is None
        assert found.message.flags & 0x8000


def test_a_relayed_refusal_is_broadcast_by_the_relay() -> None:
    """RFC 2131, 4.3.2: the client may be on the wrong network."""
    settings = world(relays=(IPv4Network("10.99.0.0/24"),))
    asked = linux(3, options={50: OTHER}, giaddr=bytes((10, 99, 0, 1)), flags=0)
    found = offered(asked, settings, source=("10.99.0.1", 67))

    assert (found.kind, found.message.flags) == ("nak", 0x8000)


def test_a_client_that_takes_another_servers_offer_is_left_alone() -> None:
    assert reason(linux(3, options={54: OTHER, 50: OTHER})) == "other-server"


def test_a_request_for_no_address_is_left_alone() -> None:
    assert reason(linux(3)) == "no-address-asked"


def test_an_inform_is_told_everything_but_a_lease() -> None:
    found = offered(linux(8, ciaddr=IP), source=("10.99.0.11", 68))

    assert (found.kind, found.message.yiaddr, found.message.ciaddr) == ("ack", bytes(4), IP)
    assert not {51, 58, 59} & set(found.message.options)
    assert found.message.options[12] == b"n001"
    assert found.lease is None


@pytest.mark.parametrize(("kind", "word"), [(7, "release"), (4, "decline"), (13, "other-message")])
def test_messages_that_end_a_lease_need_no_answer(kind: int, word: str) -> None:
    assert reason(linux(kind)) == word


def test_an_unknown_machine_never_gets_an_address() -> None:
    stranger = bytes.fromhex("020000000001").ljust(16, b"\0")

    assert reason(linux(chaddr=stranger)) == "not-a-boot-client"
    assert offered(message(chaddr=stranger)).message.yiaddr == bytes(4)
    assert reason(linux(3, chaddr=stranger, options={50: IP})) == "not-a-boot-client"


def test_a_node_without_an_address_is_left_to_another_server() -> None:
    settings = world(Node("n001", mac=MAC))

    assert reason(linux(), settings) == "not-a-boot-client"
    assert offered(message(), settings).message.yiaddr == bytes(4)


def test_a_second_card_gets_its_own_address() -> None:
    second = NetDev(
        "data", "eth1", mac=parse_mac("52:54:00:99:00:01"), ip=IPv4Interface("10.99.0.21/24")
    )
    node = Node(
        "n001", mac=MAC, ip=DEVICE.ip, network=MappingProxyType({"boot": DEVICE, "data": second})
    )
    asked = linux(chaddr=bytes.fromhex("525400990001").ljust(16, b"\0"))

    assert offered(asked, world(node)).lease == IPv4Address("10.99.0.21")


def test_a_card_without_an_address_gets_none_of_another_card() -> None:
    second = NetDev("data", "eth1", mac=parse_mac("52:54:00:99:00:01"))
    node = Node(
        "n001", mac=MAC, ip=DEVICE.ip, network=MappingProxyType({"boot": DEVICE, "data": second})
    )
    asked = linux(chaddr=bytes.fromhex("525400990001").ljust(16, b"\0"))

    assert reason(asked, world(node)) == "not-a-boot-client"


def test_a_node_on_the_wrong_network_is_not_answered() -> None:
    elsewhere = Node("n001", mac=MAC, ip=IPv4Interface("10.5.0.11/24"))

    assert reason(linux(), world(elsewhere)) == "wrong-network"


def test_behind_a_relay_the_clients_network_counts_not_ours() -> None:
    elsewhere = Node("n001", mac=MAC, ip=IPv4Interface("10.5.0.11/24"))
    settings = world(elsewhere, relays=(IPv4Network("10.0.0.0/8"),))
    near = linux(giaddr=bytes((10, 5, 0, 1)))
    selected = linux(giaddr=bytes((10, 6, 0, 1)), options={82: b"\x05\x04\x0a\x05\x00\x01"})

    assert offered(near, settings).lease == IPv4Address("10.5.0.11")
    assert offered(selected, settings).lease == IPv4Address("10.5.0.11")
    assert reason(linux(giaddr=bytes((10, 6, 0, 1))), settings) == "wrong-network"


def test_the_pxe_port_is_a_proxys_even_here() -> None:
    found = offered(message(3, ciaddr=IP), port=4011, source=("10.99.0.11", 4011))

    assert (found.message.yiaddr, found.file) == (bytes(4), f"{DASHED}/snponly.efi")
    assert 51 not in found.message.options


def test_the_quirk_binl_keeps_the_file_for_the_pxe_port() -> None:
    quirky = Node("n001", mac=MAC, ip=DEVICE.ip, quirks=frozenset({"binl"}))
    found = offered(message(), world(quirky))

    assert found.message.yiaddr == IP
    assert not {43, 67} & set(found.message.options)
    assert found.message.options[60] == b"PXEClient"


@pytest.mark.parametrize(
    "packet",
    dhcp_captures("firmware-discover", "ipxe-discover", "udhcpc-discover", "os-discover"),
    ids=lambda packet: f"{packet.file}:{packet.kind}",
)
def test_every_captured_client_is_given_an_address_it_can_take(packet: Any) -> None:
    asked = decode(packet.data)
    found = offered(asked, source=packet.source)

    assert found.message.yiaddr == IP
    assert found.message.options[1] == bytes((255, 255, 255, 0))  # EDK2 insists on a netmask
    assert len(found.data) <= min(2 * len(packet.data), 1472)
    assert found.message.xid == asked.xid
