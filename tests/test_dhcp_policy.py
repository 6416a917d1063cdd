"""What each client is answered, and why others are not."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP

from bootd.dhcp.client import (
    architectures,
    identify,
    ipxe_features,
    machine_uuid,
    relay_information,
    user_classes,
)
from bootd.dhcp.policy import Ignore, Offer, decide, requested_address
from bootd.dhcp.wire import Message, WireError, decode, encode
from bootd.model import (
    ClientKind,
    HttpSettings,
    Node,
    TftpSettings,
    TlsSettings,
    UnknownPolicy,
    parse_mac,
)
from bootd.registry import Registry
from tests.dhcp_messages import (
    DASHED,
    GOOD_FEATURES,
    MAC,
    POOR_FEATURES,
    SCRIPT_URL,
    US,
    Captured,
    dhcp_captures,
    ipxe,
    message,
    registry,
)

BOOT_FILE_NOW = b"\x06\x01\x08\xff"
WORLD = registry()


def answer(
    asked: Message,
    world: Registry = WORLD,
    *,
    port: int = 67,
    source: tuple[str, int] = ("0.0.0.0", 68),
    size: int | None = None,
) -> Offer | Ignore:
    return decide(asked, world, US, port=port, source=source, size=size or len(encode(asked)))


def offered(asked: Message, world: Registry = WORLD, **how: Any) -> Offer:
    found = answer(asked, world, **how)
    assert isinstance(found, Offer), found
    return found


def reason(asked: Message, world: Registry = WORLD, **how: Any) -> str:
    found = answer(asked, world, **how)
    assert isinstance(found, Ignore), found
    return found.reason


# ---- captured clients ----------------------------------------------------------------------------

BOOT_DISCOVERS = dhcp_captures("firmware-discover", "ipxe-discover")
PXE_PORT_REQUESTS = dhcp_captures("firmware-request-4011")


def names(packet: Captured) -> str:
    return f"{packet.file}:{packet.kind}"


def first_file(packet: Captured) -> str:
    """The loader that the machine of this capture must be given."""
    if packet.file == "bios-native.hex":
        return f"{DASHED}/undionly.kpxe"
    return f"{DASHED}/snponly-arm64.efi" if "aavmf" in packet.file else f"{DASHED}/snponly.efi"


@pytest.mark.parametrize("packet", BOOT_DISCOVERS, ids=names)
def test_real_firmware_is_offered_what_it_can_boot(packet: Captured) -> None:
    found = offered(decode(packet.data), source=packet.source, size=len(packet.data))

    if packet.kind == "ipxe-discover":
        assert (found.file, found.first_stage) == (SCRIPT_URL, False)
    elif "http" in packet.file:
        assert found.file == f"http://10.99.0.2:9873/{first_file(packet)}"
        assert found.message.options[60] == b"HTTPClient"
        assert 43 not in found.message.options
    else:
        assert found.file == first_file(packet)
        assert found.message.options[60] == b"PXEClient"
    assert found.to == ("255.255.255.255", 68)
    assert found.opens


@pytest.mark.parametrize("packet", PXE_PORT_REQUESTS, ids=names)
def test_real_firmware_is_acknowledged_on_the_pxe_port(packet: Captured) -> None:
    asked = decode(packet.data)
    found = offered(asked, port=4011, source=packet.source, size=len(packet.data))

    assert found.to == packet.source
    assert found.message.options[53] == b"\x05"
    assert found.message.ciaddr == asked.ciaddr
    assert found.file == first_file(packet)


def test_a_boot_item_is_acknowledged_by_echoing_it() -> None:
    (packet,) = dhcp_captures("firmware-request-4011-menu-item")
    found = offered(decode(packet.data), port=4011, source=packet.source)

    assert found.message.options[43] == b"\x47\x04\x80\x00\x00\x00\xff"


@pytest.mark.parametrize("packet", dhcp_captures("firmware-request", "ipxe-request"), ids=names)
def test_requests_for_an_address_are_left_to_the_dhcp_server(packet: Captured) -> None:
    if packet.port == 67:
        assert reason(decode(packet.data), source=packet.source) == "request"


@pytest.mark.parametrize("packet", dhcp_captures("udhcpc", "os"), ids=names)
def test_a_running_linux_is_never_answered(packet: Captured) -> None:
    for port in (67, 4011):
        assert reason(decode(packet.data), port=port, source=packet.source) == "not-a-boot-client"


@pytest.mark.parametrize("packet", dhcp_captures("answer"), ids=names)
def test_a_servers_reply_is_never_answered(packet: Captured) -> None:
    assert reason(decode(packet.data), source=packet.source) == "not-a-request"


# ---- the reply, byte for byte --------------------------------------------------------------------


def test_the_reply_is_laid_out_as_firmware_needs_it() -> None:
    machine = b"\0" + bytes(range(16))
    asked = message(options={97: machine}, secs=7, hops=1, flags=0)
    found = offered(asked)
    reply = found.message

    assert decode(found.data) == reply
    assert list(reply.options.items()) == [
        (53, b"\x02"),
        (54, US.ip.packed),
        (60, b"PXEClient"),
        (97, machine),
        (43, BOOT_FILE_NOW),
        (66, b"10.99.0.2"),
        (67, f"{DASHED}/snponly.efi".encode() + b"\0"),
    ]
    assert (reply.op, reply.htype, reply.hlen, reply.hops) == (2, 1, 6, 0)
    assert (reply.xid, reply.secs, reply.flags) == (asked.xid, 0, 0x8000)
    assert (reply.ciaddr, reply.yiaddr, reply.giaddr) == (bytes(4), bytes(4), bytes(4))
    assert reply.siaddr == US.ip.packed
    assert reply.chaddr == asked.chaddr
    assert (reply.sname, reply.file) == (b"10.99.0.2", f"{DASHED}/snponly.efi".encode())
    assert len(found.data) >= 300


REPLIES: dict[str, tuple[Message, int]] = {
    "bios": (message(arch=0, vendor_class=b"PXEClient:Arch:00000:UNDI:002001"), 67),
    "uefi": (message(), 67),
    "uefi-4011": (message(3, ciaddr=bytes((10, 99, 0, 9))), 4011),
    "http": (message(arch=16, vendor_class=b"HTTPClient:Arch:00016:UNDI:003016"), 67),
    "ipxe": (ipxe(), 67),
    "poor-ipxe": (ipxe(features=POOR_FEATURES), 67),
    "uboot": (message(arch=22, vendor_class=b"PXEClient:Arch:00022"), 67),
    "raspberry": (
        message(arch=0, chaddr=bytes.fromhex("dca632000001").ljust(16, b"\0")),
        67,
    ),
}


@pytest.mark.parametrize("kind", REPLIES)
def test_scapy_reads_every_kind_of_reply(kind: str) -> None:
    asked, port = REPLIES[kind]
    found = offered(asked, port=port, source=("10.99.0.9", 68) if port == 4011 else ("0.0.0.0", 68))
    theirs = BOOTP(found.data)
    read = {option[0]: option[1:] for option in theirs[DHCP].options if isinstance(option, tuple)}

    assert theirs.op == 2
    assert theirs.xid == asked.xid
    assert (theirs.siaddr, theirs.yiaddr) == ("10.99.0.2", "0.0.0.0")
    assert read["message-type"] == (5 if port == 4011 else 2,)
    assert read["server_id"] == ("10.99.0.2",)
    assert read["vendor_class_id"] == (b"HTTPClient" if kind == "http" else b"PXEClient",)
    assert theirs.file.rstrip(b"\0").decode() == found.file
    if found.file:
        assert read["boot-file-name"] == (found.file.encode() + b"\0",)
    assert "end" in theirs[DHCP].options


@pytest.mark.parametrize("kind", REPLIES)
def test_a_proxy_gives_nothing_of_a_lease_and_each_option_once(kind: str) -> None:
    asked, port = REPLIES[kind]
    found = offered(asked, port=port, source=("10.99.0.9", 68))
    codes = raw_codes(found.data)

    assert len(codes) == len(set(codes))
    assert not set(codes) & {1, 3, 6, 15, 50, 51, 52, 58, 59, 93, 94}
    assert found.message.yiaddr == bytes(4)
    assert found.data[240 + option_bytes(found.data) - 1] == 255


def raw_codes(data: bytes) -> list[int]:
    at, codes = 240, []
    while data[at] != 255:
        codes.append(data[at])
        at += 2 + data[at + 1]
    return codes


def option_bytes(data: bytes) -> int:
    at = 240
    while data[at] != 255:
        at += 2 + data[at + 1]
    return at + 1 - 240


# ---- kinds of clients ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "loader"),
    [
        (0, "undionly.kpxe"),
        (6, "snponly-i386.efi"),
        (7, "snponly.efi"),
        (9, "snponly.efi"),
        (10, "snponly-arm32.efi"),
        (11, "snponly-arm64.efi"),
        (27, "snponly-riscv64.efi"),
        (39, "snponly-loong64.efi"),
        (21, "snponly-arm32.efi"),
        (22, "snponly-arm64.efi"),
    ],
)
def test_each_architecture_gets_its_loader(arch: int, loader: str) -> None:
    found = offered(message(arch=arch, vendor_class=b"PXEClient"))

    assert found.file == f"{DASHED}/{loader}"
    assert found.message.file == found.file.encode()
    assert found.message.options[43] == BOOT_FILE_NOW
    assert found.arch == arch


@pytest.mark.parametrize(
    ("arch", "loader"),
    [
        (15, "snponly-i386.efi"),
        (16, "snponly.efi"),
        (18, "snponly-arm32.efi"),
        (19, "snponly-arm64.efi"),
        (28, "snponly-riscv64.efi"),
        (7, "snponly.efi"),  # by class, whatever the architecture says
    ],
)
def test_http_boot_gets_a_url_with_an_address_and_its_own_class(arch: int, loader: str) -> None:
    found = offered(message(arch=arch, vendor_class=b"HTTPClient:Arch:00016:UNDI:003001"))

    assert found.file == f"http://10.99.0.2:9873/{DASHED}/{loader}"
    assert found.message.options[60] == b"HTTPClient"
    assert 43 not in found.message.options
    assert found.client.kind is ClientKind.HTTP


@pytest.mark.parametrize("arch", [1, 2, 3, 4, 5, 8, 12, 14, 31, 33, 36, 65535])
def test_an_architecture_without_a_loader_is_refused(arch: int) -> None:
    assert reason(message(arch=arch)) == "unsupported-arch"


def test_the_first_architecture_that_can_be_served_is_chosen() -> None:
    found = offered(message(arch=(2, 7, 0)))

    assert (found.arch, found.file) == (7, f"{DASHED}/snponly.efi")


def test_without_option_93_the_class_names_the_architecture() -> None:
    found = offered(message(arch=None, vendor_class=b"PXEClient:Arch:00011:UNDI:003016"))

    assert found.arch == 11


def test_a_client_that_names_no_architecture_is_refused() -> None:
    assert reason(message(arch=None, vendor_class=b"PXEClient")) == "no-arch"


@pytest.mark.parametrize("user_class", [b"iPXE", b"\x04iPXE", b"\x03foo\x04iPXE"])
def test_ipxe_is_known_by_its_user_class_in_both_encodings(user_class: bytes) -> None:
    found = offered(ipxe(options={77: user_class}))

    assert (found.client.kind, found.file) == (ClientKind.IPXE, SCRIPT_URL)
    assert found.message.options[43] == BOOT_FILE_NOW


@pytest.mark.parametrize(
    "features", [bytes((0x13, 1, 1, 0x18, 1, 1)), bytes((0x13, 1, 1, 0x24, 1, 1))]
)
def test_ipxe_with_http_and_a_way_to_start_linux_gets_the_script(features: bytes) -> None:
    assert offered(ipxe(features=features)).file == SCRIPT_URL


@pytest.mark.parametrize(
    "features",
    [
        POOR_FEATURES,
        bytes((0x13, 1, 1)),
        bytes((0x13, 1, 0, 0x18, 1, 1)),  # a feature with the value 0 is not there
        b"\x13",
        b"",
    ],
)
def test_a_poor_ipxe_is_first_given_a_better_one(features: bytes) -> None:
    found = offered(ipxe(features=features))

    assert found.file == f"tftp://10.99.0.2/{DASHED}/snponly.efi"
    assert found.first_stage


def test_a_poor_ipxe_is_told_a_tftp_port_that_is_not_69() -> None:
    found = offered(ipxe(features=POOR_FEATURES), registry(tftp=TftpSettings(port=6969)))

    assert found.file == f"tftp://10.99.0.2:6969/{DASHED}/snponly.efi"


def test_our_own_ipxe_gets_the_script_whatever_its_features() -> None:
    assert offered(ipxe(features=b"", options={77: b"bootd"})).file == SCRIPT_URL


def tls_world(*, scripts: bool) -> Registry:
    tls = TlsSettings(9999, "cert.pem", "key.pem", scripts)
    return registry(http=HttpSettings(tls=tls))


def test_where_scripts_go_by_https_only_ipxe_that_knows_it_is_led_there() -> None:
    knows = ipxe(features=GOOD_FEATURES + bytes((0x14, 1, 1)))

    assert offered(knows, tls_world(scripts=True)).file == f"https://10.99.0.2:9999/ipxe/{DASHED}"
    assert offered(knows, tls_world(scripts=False)).file == SCRIPT_URL
    own = ipxe(features=b"", options={77: b"bootd"})
    assert offered(own, tls_world(scripts=True)).file == f"https://10.99.0.2:9999/ipxe/{DASHED}"


def test_where_scripts_go_by_https_only_other_ipxe_is_first_given_a_better_one() -> None:
    found = offered(ipxe(features=GOOD_FEATURES), tls_world(scripts=True))

    assert (found.file, found.first_stage) == (f"tftp://10.99.0.2/{DASHED}/snponly.efi", True)


def test_where_scripts_go_by_https_only_firmware_has_its_loader_as_before() -> None:
    by_http = message(vendor_class=b"HTTPClient:Arch:00016:UNDI:003001", arch=16)

    loader = f"http://10.99.0.2:9873/{DASHED}/snponly.efi"
    assert offered(by_http, tls_world(scripts=True)).file == loader
    assert offered(message(), tls_world(scripts=True)).file == f"{DASHED}/snponly.efi"


def test_a_raspberry_pi_is_told_the_words_it_waits_for_and_no_file() -> None:
    asked, _ = REPLIES["raspberry"]
    found = offered(asked)

    assert found.client.kind is ClientKind.RPI
    assert (found.file, found.message.file) == ("", b"")
    assert b"Raspberry Pi Boot" in found.message.options[43]
    assert found.message.options[43].startswith(b"\x06\x01\x08")
    assert not {66, 67} & set(found.message.options)


def test_what_says_that_it_is_a_raspberry_pi_is_one() -> None:
    assert offered(message(arch=41)).client.kind is ClientKind.RPI


def test_a_raspberry_pi_with_uefi_is_an_ordinary_uefi_client() -> None:
    found = offered(message(arch=11, chaddr=bytes.fromhex("dca632000001").ljust(16, b"\0")))

    assert found.file.endswith("/snponly-arm64.efi")


# ---- nodes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loader", "file"),
    [
        ("auto", "snponly.efi"),
        ("ipxe", "ipxe.efi"),
        ("snponly", "snponly.efi"),
        ("shim", "shimx64.efi"),
        ("grub", "grubnetx64.efi"),
        ("vendor/boot.efi", "vendor/boot.efi"),
    ],
)
def test_a_node_chooses_its_loader(loader: str, file: str) -> None:
    world = registry(Node("n001", mac=MAC, loader=loader))

    assert offered(message(), world).file == f"{DASHED}/{file}"


def test_a_poor_ipxe_is_never_given_grub_or_shim() -> None:
    world = registry(Node("n001", mac=MAC, loader="grub"))

    assert offered(ipxe(features=POOR_FEATURES), world).file.endswith("/snponly.efi")


def test_a_loader_too_long_for_the_header_is_refused() -> None:
    world = registry(Node("n001", mac=MAC, loader="x" * 109))
    longer = registry(Node("n001", mac=MAC, loader="x" * 110))

    assert len(offered(message(), world).message.file) == 127
    assert reason(message(), longer) == "file-too-long"


@pytest.mark.parametrize("quirk", ["binl", "binl@52:54:00", "binl@52-54-00"])
def test_the_quirk_binl_sends_firmware_to_the_pxe_port(quirk: str) -> None:
    world = registry(Node("n001", mac=MAC, quirks=frozenset({quirk})))
    found = offered(message(), world)
    second = offered(message(3), world, port=4011, source=("10.99.0.9", 4011))

    assert (found.file, found.message.file) == ("", b"")
    assert not {43, 66, 67} & set(found.message.options)
    assert second.file == f"{DASHED}/snponly.efi"


def test_a_quirk_of_another_maker_does_not_hold() -> None:
    world = registry(Node("n001", mac=MAC, quirks=frozenset({"binl@00:11:22"})))

    assert offered(message(), world).file


def test_a_machine_that_waits_has_the_loader_of_profile_default() -> None:
    world = replace(
        registry(Node("other", mac=parse_mac("02:00:00:00:00:01"))),
        default=Node("default", loader="shim"),
    )

    assert offered(message(), world).file == f"{DASHED}/shimx64.efi"


@pytest.mark.parametrize(
    ("policy", "outcome"),
    [
        (UnknownPolicy.IGNORE, "unknown-node"),
        (UnknownPolicy.HOLD, None),
        (UnknownPolicy.DEFAULT, "default"),
    ],
)
def test_an_unknown_machine_is_treated_as_the_settings_say(
    policy: UnknownPolicy, outcome: str | None
) -> None:
    world = registry(Node("other", mac=parse_mac("02:00:00:00:00:01")), unknown=policy)
    found = answer(message(), world)

    if policy is UnknownPolicy.IGNORE:
        assert isinstance(found, Ignore)
        assert found.reason == outcome
    else:
        assert isinstance(found, Offer)
        assert (found.node.name if found.node else None) == outcome
        assert found.file == f"{DASHED}/snponly.efi"


# ---- silence -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "port", "word"),
    [
        (3, 67, "request"),
        (4, 67, "decline"),
        (7, 67, "release"),
        (2, 67, "other-message"),
        (10, 67, "other-message"),
        (8, 67, "inform-without-address"),
        (1, 4011, "discover-on-pxe-port"),
        (7, 4011, "release"),
    ],
)
def test_messages_that_are_not_for_a_proxy_are_left_alone(kind: int, port: int, word: str) -> None:
    assert reason(message(kind), port=port) == word


def test_an_inform_from_an_address_is_acknowledged() -> None:
    found = offered(message(8, ciaddr=bytes((10, 99, 0, 9))), source=("10.99.0.9", 68))

    assert found.message.options[53] == b"\x05"
    assert found.to == ("10.99.0.9", 68)
    assert found.message.ciaddr == bytes((10, 99, 0, 9))


def test_http_boot_has_no_second_step() -> None:
    asked = message(3, arch=16, vendor_class=b"HTTPClient")

    assert reason(asked, port=4011) == "http-client-has-no-second-step"


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        (message(op=2), "not-a-request"),
        (message(options={53: b""}), "no-message-type"),
        (message(options={53: b"\x01\x01"}), "no-message-type"),
        (message(vendor_class=None), "not-a-boot-client"),
        (message(vendor_class=b"AAPLBSDPC/i386"), "not-a-boot-client"),
        (message(vendor_class=b"pxeclient"), "not-a-boot-client"),
        (message(vendor_class=b"onie_vendor:x86"), "not-a-boot-client"),
        (message(hlen=16, chaddr=bytes(range(16))), "no-mac"),
        (message(chaddr=bytes(16)), "no-mac"),
        (message(chaddr=b"\xff" * 16), "no-mac"),
    ],
)
def test_what_is_no_boot_client_is_left_alone(asked: Message, word: str) -> None:
    assert reason(asked) == word


# ---- where it goes -------------------------------------------------------------------------------

GIADDR = bytes((10, 2, 0, 1))


def test_a_relay_that_is_not_listed_is_not_answered() -> None:
    assert reason(message(giaddr=GIADDR)) == "relay-not-listed"
    assert reason(message(giaddr=GIADDR), registry(relays=(IPv4Network("10.3.0.0/24"),))) == (
        "relay-not-listed"
    )


def test_a_listed_relay_is_answered_at_its_address_with_its_information_last() -> None:
    world = registry(relays=(IPv4Network("10.2.0.0/24"),))
    information = b"\x01\x04eth3\x02\x02ab"
    asked = message(giaddr=GIADDR, flags=0, hops=1, options={82: information})
    found = offered(asked, world, source=("10.1.0.1", 67))

    assert found.to == ("10.2.0.1", 67)
    assert found.message.giaddr == GIADDR
    assert found.message.flags == 0
    assert list(found.message.options.items())[-1] == (82, information)
    assert found.opens


def test_a_client_with_an_address_is_answered_there() -> None:
    assert offered(message(), source=("10.99.0.9", 40000)).to == ("10.99.0.9", 40000)


def test_an_address_named_inside_the_packet_is_never_sent_to() -> None:
    victim = bytes((203, 0, 113, 5))
    for port in (67, 4011):
        found = offered(
            message(8, ciaddr=victim, yiaddr=victim, siaddr=victim),
            port=port,
            source=("10.99.0.9", 68),
        )

        assert found.to == ("10.99.0.9", 68)


def test_a_client_without_an_address_is_answered_on_the_pxe_port_by_broadcast() -> None:
    assert offered(message(3), port=4011).to == ("255.255.255.255", 68)


def test_only_the_client_port_or_a_relay_opens_a_boot() -> None:
    """Any program on a node may send from port 4011, as EDK2 does."""
    assert offered(message(), source=("10.99.0.9", 68)).opens
    assert not offered(message(), source=("10.99.0.9", 40000)).opens
    assert not offered(message(3), port=4011, source=("10.99.0.9", 4011)).opens


# ---- how much ------------------------------------------------------------------------------------


def test_a_reply_keeps_to_option_57() -> None:
    machine = bytes(17)
    wanted = len(offered(message(options={97: machine}), size=1472).data)

    def limited(size: int) -> Offer | Ignore:
        asked = message(options={57: size.to_bytes(2, "big"), 97: machine})
        return answer(asked, size=1472)

    exact, tight = limited(wanted + 28), limited(wanted + 27)
    assert isinstance(exact, Offer)
    assert 66 in exact.message.options
    assert isinstance(tight, Offer)
    assert 66 not in tight.message.options
    assert decode(tight.data) == tight.message
    assert len(tight.data) < wanted
    impossible = limited(330)
    assert isinstance(impossible, Ignore)
    assert impossible.reason == "reply-too-large"


@pytest.mark.parametrize("nonsense", [b"\x00\x04", b"\x05", b"\xff\x00"])
def test_a_nonsensical_option_57_is_no_reason_for_silence(nonsense: bytes) -> None:
    assert offered(message(options={57: nonsense})).data


def test_a_reply_is_at_most_twice_its_request() -> None:
    wanted = len(offered(message()).data)

    assert isinstance(answer(message(), size=(wanted + 1) // 2), Offer)
    assert reason(message(), size=120) == "reply-too-large"


@given(
    kind=st.integers(0, 12),
    vendor_class=st.sampled_from(
        [b"PXEClient", b"PXEClient:Arch:00007:UNDI:003016", b"HTTPClient", b"x"]
    ),
    arch=st.lists(st.integers(0, 45), max_size=3),
    options=st.dictionaries(st.integers(1, 254).filter(lambda c: c != 52), st.binary(max_size=60)),
    hlen=st.sampled_from([6, 16, 0]),
    htype=st.sampled_from([1, 32, 6]),
    giaddr=st.sampled_from([bytes(4), GIADDR]),
    port=st.sampled_from([67, 4011]),
    source=st.sampled_from([("0.0.0.0", 68), ("10.99.0.9", 4011), ("10.1.0.1", 67)]),
)
def test_whatever_is_asked_the_answer_is_bounded_and_well_formed(
    kind: int,
    vendor_class: bytes,
    arch: list[int],
    options: dict[int, bytes],
    hlen: int,
    htype: int,
    giaddr: bytes,
    port: int,
    source: tuple[str, int],
) -> None:
    world = registry(relays=(IPv4Network("10.2.0.0/24"),))
    asked = message(
        kind,
        vendor_class=vendor_class,
        arch=tuple(arch),
        options=options,
        hlen=hlen,
        htype=htype,
        giaddr=giaddr,
    )
    try:
        data = encode(asked)
        asked = decode(data)
    except WireError:
        return
    found = answer(asked, world, port=port, source=source, size=len(data))
    if isinstance(found, Ignore):
        assert found.reason
        return
    assert len(found.data) <= min(2 * len(data), 1472)
    assert decode(found.data).xid == asked.xid
    assert found.message.yiaddr == bytes(4)
    assert found.to[0] in (source[0], "255.255.255.255", "10.2.0.1")
    assert (found.to[0] == "10.2.0.1") == (giaddr == GIADDR and port == 67)


# ---- reading the client --------------------------------------------------------------------------


@given(st.binary(max_size=300), st.binary(max_size=300), st.binary(max_size=300), st.binary())
def test_identify_reads_anything(first: bytes, second: bytes, third: bytes, fourth: bytes) -> None:
    asked = message(
        vendor_class=b"PXEClient" + fourth,
        options={77: first, 93: second, 175: third, 97: first, 82: second, 61: third},
    )
    client = identify(asked)

    assert client.kind in (ClientKind.PXE, ClientKind.IPXE, ClientKind.UBOOT, ClientKind.RPI)
    machine_uuid(asked)
    relay_information(asked)


@pytest.mark.parametrize(
    ("value", "classes"),
    [
        (b"", ()),
        (b"iPXE", (b"iPXE",)),
        (b"\x04iPXE", (b"iPXE",)),
        (b"\x01a\x02bc", (b"a", b"bc")),
        (b"\x05abc", (b"\x05abc",)),
        (b"\x00", (b"\x00",)),
    ],
)
def test_user_classes_are_read_in_both_encodings(value: bytes, classes: tuple[bytes, ...]) -> None:
    assert user_classes(value) == classes


def test_architectures_are_read_from_the_option_or_the_class() -> None:
    assert architectures(b"\x00\x07\x00\x10", b"") == (7, 16)
    assert architectures(b"\x00\x07\x00", b"") == (7,)
    assert architectures(b"", b"PXEClient:Arch:00009:UNDI:003010") == (9,)
    assert architectures(b"\x00", b"PXEClient:Arch:9") == (9,)
    assert architectures(b"", b"PXEClient:Arch:x") == ()


def test_features_end_at_what_is_malformed() -> None:
    assert ipxe_features(b"\x13\x01\x01\x18\x09\x01") == {0x13}
    assert ipxe_features(None) == frozenset()


@pytest.mark.parametrize(
    ("raw", "uuid"),
    [
        (
            b"\0" + UUID("5a990000-0000-4080-0052-540099000000").bytes_le,
            "5a990000-0000-4080-0052-540099000000",
        ),
        (b"\0" + bytes(16), None),
        (b"\0" + b"\xff" * 16, None),
        (b"\0" + UUID("03000200-0400-0500-0006-000700080009").bytes_le, None),
        (b"\0" + UUID("03000200-0400-0500-0006-000700080009").bytes, None),
        (b"", None),
        (b"\0" + bytes(15), None),
        (b"\1" + b"a" * 16, None),
    ],
)
def test_a_machine_uuid_is_one_that_tells_machines_apart(raw: bytes, uuid: str | None) -> None:
    found = machine_uuid(message(options={97: raw}))

    assert found == (UUID(uuid) if uuid else None)


def test_an_infiniband_card_is_known_by_its_guid() -> None:
    guid = bytes.fromhex("0002c903000a0b0c")
    asked = message(htype=32, hlen=0, chaddr=bytes(16), options={61: b"\xff" + bytes(4) + guid})

    assert identify(asked).mac == "00:02:c9:0a:0b:0c"


def test_a_client_identifier_helps_where_the_hardware_address_is_a_guid() -> None:
    asked = message(hlen=16, chaddr=bytes(range(16)), options={61: b"\x01" + b"\x02" * 6})

    assert identify(asked).mac == "02:02:02:02:02:02"


def test_the_port_of_a_switch_is_read_from_option_82() -> None:
    asked = message(options={82: b"\x01\x04eth3\x02\x02ab"})

    assert relay_information(asked) == (b"eth3", b"ab")
    assert relay_information(message()) == (b"", b"")


@pytest.mark.parametrize(
    ("asked", "address"),
    [
        (message(3, options={50: bytes((10, 0, 0, 1))}), "10.0.0.1"),
        (message(3, ciaddr=bytes((10, 0, 0, 2))), "10.0.0.2"),
        (message(3), None),
        (message(3, options={50: b"\x0a"}), None),
        (message(1, options={50: bytes((10, 0, 0, 1))}), None),
    ],
)
def test_the_address_asked_for_is_seen_in_passing(asked: Message, address: str | None) -> None:
    assert requested_address(asked) == (IPv4Address(address) if address else None)
