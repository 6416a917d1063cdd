"""Interfaces and neighbours as the kernel tells them; changes are in tests/integration."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd.model import StartError, parse_mac
from bootd.net import Interfaces, read_neighbour
from bootd.registry import Current
from tests.dhcp_messages import registry

LO = socket.if_nametoindex("lo")
MAC = bytes.fromhex("020000000009")


@asynccontextmanager
async def interfaces(*wanted: str) -> AsyncIterator[tuple[Interfaces, Current]]:
    world = registry()
    current = Current(replace(world, settings=replace(world.settings, interfaces=wanted)))
    net = Interfaces(current)
    await net.start()
    try:
        yield net, current
    finally:
        await net.stop()


async def test_a_named_interface_is_served_with_its_address() -> None:
    async with interfaces("lo") as (net, _):
        assert net.server_address(LO) == IPv4Address("127.0.0.1")
        assert net.addresses == {LO: (IPv4Interface("127.0.0.1/8"),)}
        assert (net.name(LO), net.index("lo")) == ("lo", LO)
        assert net.mtu(LO) >= 1500
        assert net.is_ours(bytes((127, 0, 0, 1)))
        assert not net.is_ours(bytes((192, 0, 2, 1)))


async def test_loopback_is_not_served_unless_it_is_named() -> None:
    async with interfaces() as (net, _):
        assert net.server_address(LO) is None
        assert LO not in net.addresses


async def test_an_interface_that_is_not_there_is_said_and_no_fault(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with interfaces("lo", "nosuch0") as (net, _):
        assert list(net.addresses) == [LO]
    said = capsys.readouterr().out

    assert "net.interface-missing" in said
    assert "nosuch0" in said


async def test_after_a_reload_other_interfaces_are_served() -> None:
    async with interfaces("nosuch0") as (net, current):
        assert net.server_address(LO) is None
        old = current.registry
        current.swap(replace(old, settings=replace(old.settings, interfaces=("lo",))))

        assert net.server_address(LO) == IPv4Address("127.0.0.1")


async def test_what_is_unknown_is_answered_with_what_is_safe() -> None:
    async with interfaces("lo") as (net, _):
        assert net.server_address(9999) is None
        assert net.mtu(9999) == 1500
        assert (net.name(9999), net.index("nosuch0")) == ("if9999", 0)
        assert net.neighbour(IPv4Address("127.0.0.9")) is None
        assert net.neighbour(IPv4Address("192.0.2.200")) is None


async def test_a_neighbour_is_not_asked_for_after_the_end() -> None:
    async with interfaces("lo") as (net, _):
        pass

    assert net.neighbour(IPv4Address("127.0.0.9")) is None


class Deaf:
    """An event socket on which something went wrong."""

    def __init__(self, sock: socket.socket, outcome: Exception | bytes) -> None:
        self._sock, self._outcome = sock, outcome

    def recv(self, _size: int) -> bytes:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (OSError(errno.ENOBUFS, "No buffer space available"), "net.events-lost"),
        (BlockingIOError(), ""),
        (struct.pack("=IHHII", 20, 16, 0, 1, 0) + b"\0\0\0\0", "net.fault"),
    ],
)
async def test_events_that_are_lost_or_broken_stop_nothing(
    outcome: Exception | bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with interfaces("lo") as (net, _):
        assert net._events is not None
        net._events = cast(socket.socket, Deaf(net._events, outcome))
        capsys.readouterr()
        net._readable()

        assert net.server_address(LO) == IPv4Address("127.0.0.1")
        assert said in capsys.readouterr().out


async def test_without_netlink_there_is_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr("bootd.net._netlink", refused)
    with pytest.raises(StartError, match="Address family"):
        async with interfaces("lo"):
            pass


# ---- the kernel's answer about one neighbour -----------------------------------------------------


def answer(
    attributes: list[tuple[int, bytes]],
    *,
    state: int = 0x02,
    kind: int = 28,
    cut: int | None = None,
) -> bytes:
    body = struct.pack("=BxxxiHBB", socket.AF_INET, 2, state, 0, 1)
    for code, value in attributes:
        body += struct.pack("=HH", 4 + len(value), code) + value.ljust((len(value) + 3) & ~3, b"\0")
    return (struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body)[:cut]


def test_the_address_of_a_neighbour_is_read() -> None:
    reply = answer([(1, bytes((10, 0, 0, 9))), (2, MAC)])

    assert read_neighbour(reply) == parse_mac("02:00:00:00:00:09")


@pytest.mark.parametrize("state", [0x00, 0x01, 0x20])  # none, incomplete, failed
def test_a_neighbour_that_does_not_answer_is_none(state: int) -> None:
    assert read_neighbour(answer([(2, MAC)], state=state)) is None


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        answer([], kind=2),
        answer([(1, bytes(4))]),
        answer([(2, bytes(8))]),  # an InfiniBand neighbour, say
        answer([(2, MAC)], cut=30),
    ],
)
def test_an_answer_without_an_ethernet_address_is_none(reply: bytes) -> None:
    assert read_neighbour(reply) is None


@given(st.binary(max_size=80))
def test_any_attributes_are_an_address_or_none(attributes: bytes) -> None:
    found = read_neighbour(answer([])[:16] + answer([])[16:] + attributes)

    assert found is None or len(found) == 17
