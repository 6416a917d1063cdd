"""What one machine of a model was answered serves the others: exactly as if decided for each."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd.dhcp.policy import Offer, decide
from bootd.dhcp.rack import MAX_MODELS, Rack
from bootd.dhcp.wire import WireError, decode, encode, locate
from bootd.model import Mac, Node
from bootd.registry import Registry
from tests.dhcp_messages import (
    GOOD_FEATURES,
    POOR_FEATURES,
    US,
    Captured,
    dhcp_captures,
    discover,
    message,
    registry,
)

MAKER = bytes.fromhex("525400")
LOADERS = ("auto", "ipxe", "grub", "shim")
NODES = [
    Node(
        f"n{number}",
        mac=Mac((MAKER + number.to_bytes(3, "big")).hex(":")),
        loader=LOADERS[number % 4],
        quirks=frozenset({"binl"}) if number % 3 == 0 else frozenset(),
    )
    for number in range(24)
]
WORLD = registry(*NODES)
PORTS = {67: ("0.0.0.0", 68), 4011: ("10.99.0.9", 68)}


def decided(data: bytes, port: int = 67, world: Registry = WORLD) -> Offer:
    found = decide(decode(data), world, US, port=port, source=PORTS[port], size=len(data))
    assert isinstance(found, Offer), found
    return found


def machine(number: int, *, seed: int = 0, **rest: Any) -> bytes:
    """A DISCOVER of node `number`, as its model sends it; `seed` chooses what is its own."""
    own = random.Random(seed * 1000 + number)
    chaddr = (MAKER + number.to_bytes(3, "big")).ljust(16, b"\0")
    options = rest.pop("options", {})
    return encode(
        message(
            rest.pop("kind", 1),
            chaddr=chaddr,
            xid=own.getrandbits(32),
            secs=own.randrange(60),
            options={61: b"\x01" + chaddr[:6], 97: b"\0" + own.randbytes(16), **options},
            **rest,
        )
    )


MODELS: dict[str, dict[str, Any]] = {
    "bios": {"arch": 0, "vendor_class": b"PXEClient:Arch:00000:UNDI:002001"},
    "uefi": {},
    "arm64": {"arch": 11},
    "http": {"arch": 16, "vendor_class": b"HTTPClient:Arch:00016:UNDI:003016"},
    "ipxe": {"options": {77: b"iPXE", 175: GOOD_FEATURES}},
    "poor-ipxe": {"options": {77: b"iPXE", 175: POOR_FEATURES}},
    "uboot": {"arch": 22},
    "rpi": {"arch": 41},
    "no-uuid": {"options": {97: b""}},
}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(MODELS)),
            st.integers(0, len(NODES) - 1),
            st.integers(0, 5),
            st.sampled_from([67, 4011]),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_an_answer_from_the_rack_is_the_answer_that_would_have_been_decided(
    asked: list[tuple[str, int, int, int]],
) -> None:
    racks = {67: Rack(), 4011: Rack()}
    for model, number, seed, port in asked:
        if port == 4011 and model == "http":
            continue  # has no second step
        data = machine(number, seed=seed, kind=1 if port == 67 else 3, **MODELS[model])
        expected = decided(data, port)
        found = racks[port].answer(data, WORLD.by_mac)

        assert found is None or found == expected
        racks[port].learn(data, expected)
        assert racks[port].answer(data, WORLD.by_mac) == expected


def test_the_second_machine_of_a_model_is_answered_from_the_first() -> None:
    for model, how in MODELS.items():
        rack = Rack()
        first, second = machine(1, **how), machine(5, **how)  # of equal settings
        assert rack.answer(first, WORLD.by_mac) is None
        rack.learn(first, decided(first))

        assert rack.answer(second, WORLD.by_mac) == decided(second), model


def test_a_node_with_other_settings_is_not_answered_from_it() -> None:
    rack = Rack()
    rack.learn(machine(1), decided(machine(1)))

    assert rack.answer(machine(2), WORLD.by_mac) is None  # another loader
    assert rack.answer(machine(9), WORLD.by_mac) is None  # a quirk


def test_a_quirk_of_some_cards_of_a_maker_is_not_given_to_others() -> None:
    quirks = frozenset({"binl@52:54:00:00:00:01"})
    nodes = [Node(node.name, mac=node.mac, quirks=quirks) for node in NODES]
    world = registry(*nodes)
    rack = Rack()
    rack.learn(machine(2), decided(machine(2), world=world))

    assert decided(machine(1), world=world).file == ""
    assert rack.answer(machine(1), world.by_mac) is None


def test_who_is_no_node_is_not_answered_from_it() -> None:
    rack = Rack()
    rack.learn(machine(1), decided(machine(1)))

    assert rack.answer(machine(500), WORLD.by_mac) is None


@pytest.mark.parametrize(
    "packet",
    dhcp_captures("firmware-discover", "ipxe-discover"),
    ids=lambda packet: f"{packet.file}:{packet.kind}",
)
def test_real_machines_of_one_model_are_answered_from_the_first(packet: Captured) -> None:
    """A second machine like the captured one: another second half of the MAC, another UUID."""
    world = registry(*NODES, Node("captured", mac=Mac("52:54:00:99:00:00")))
    other = bytearray(packet.data)
    half = b"\x00\x00\x04"
    other[31:34] = half
    for code, (start, end) in locate(packet.data, (61, 97)).items():
        other[start:end] = b"\x01" + MAKER + half if code == 61 else b"\0" + b"\x77" * 16
    other[4:8] = b"\x12\x34\x56\x78"
    second = bytes(other)
    rack = Rack()
    rack.learn(packet.data, decided(packet.data, world=world))

    assert rack.answer(second, world.by_mac) == decided(second, world=world)


@pytest.mark.parametrize(
    "data",
    [
        machine(1, htype=6),
        machine(1, options={61: bytes(300)}),
    ],
)
def test_an_unusual_packet_is_not_learned(data: bytes) -> None:
    rack = Rack()
    try:
        offer = decided(data)
    except WireError:
        offer = decided(machine(1))
    rack.learn(data, offer)

    assert rack.answer(data, WORLD.by_mac) is None


def test_models_are_bounded() -> None:
    rack = Rack()
    for number in range(2 * MAX_MODELS + 1):
        data = machine(1, options={60: b"PXEClient:Arch:00007:UNDI:%06d" % number})
        rack.learn(data, decided(data))

    assert rack.answer(data, WORLD.by_mac) is not None
    assert len(rack._models) <= MAX_MODELS


@given(st.binary(max_size=300))
def test_locate_finds_what_decode_reads(raw: bytes) -> None:
    data = discover(options={})[:240] + raw
    try:
        places = locate(data, range(256))
    except WireError as exc:
        assert exc.reason in ("truncated-option", "scattered-option")  # noqa: PT017 -- or none
        return
    found = decode(data)

    assert {code: data[start:end] for code, (start, end) in places.items()} == found.options
