"""The DHCP shell on loopback: what a socket sends is answered, and told to the boots."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from bootd import metrics
from bootd.boots.timeline import Boots, Stage
from bootd.boots.unknown import Unknown
from bootd.dhcp.server import DhcpServer
from bootd.dhcp.wire import decode, encode
from bootd.model import DhcpMode, Node, ServerAddress, StartError
from bootd.net import Interfaces
from bootd.registry import Current, Registry
from tests.dhcp_messages import DASHED, MAC, discover, ipxe, message, registry


class Bench:
    """A server with a client's socket, whose port is ``dhcp.client_port``."""

    def __init__(self, client: socket.socket, current: Current, unknown: Unknown) -> None:
        ids = iter(range(1, 1 << 30))
        self.client = client
        self.current = current
        self.unknown = unknown
        self.boots = Boots(new_id=lambda: f"{next(ids):016x}")
        self.net = Interfaces(current)
        self.begun: list[tuple[Registry, Node, ServerAddress]] = []
        self.server = DhcpServer(
            current=current,
            boots=self.boots,
            net=self.net,
            on_boot=lambda *begun: self.begun.append(begun),
            unknown=unknown,
        )

    def send(self, data: bytes, port: int | None = None) -> None:
        settings = self.current.registry.settings.dhcp
        self.client.sendto(data, ("127.0.0.1", port or settings.port))

    async def ask(self, data: bytes, port: int | None = None) -> bytes:
        self.send(data, port)
        async with asyncio.timeout(10):
            return await asyncio.get_running_loop().sock_recv(self.client, 2048)

    async def handled(self, data: bytes) -> None:
        """Send what is not answered, and wait until it was handled: what follows is answered."""
        self.send(data)
        await self.ask(encode(ipxe(chaddr=b"\x02".ljust(16, b"\0"))))


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def bench(*nodes: Node, **dhcp: Any) -> AsyncIterator[Bench]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.bind(("127.0.0.1", 0))
        ports = {
            "port": free_port(),
            "pxe_port": free_port(),
            "client_port": client.getsockname()[1],
        }
        world = registry(*nodes, **(ports | dhcp))
        world = replace(world, settings=replace(world.settings, interfaces=("lo",)))
        made = Bench(client, Current(world), Unknown())
        try:
            await made.net.start()
            await made.server.start()
            yield made
        finally:
            await made.server.stop(0.0)
            await made.net.stop(0.0)


def ignored(reason: str) -> float:
    return metrics.REGISTRY.get_sample_value("bootd_dhcp_ignored_total", {"reason": reason}) or 0.0


async def test_a_discover_is_offered_the_loader_and_begins_a_boot() -> None:
    async with bench() as made:
        reply = decode(await made.ask(discover()))

        assert reply.file.decode() == f"{DASHED}/snponly.efi"
        assert reply.siaddr == IPv4Address("127.0.0.1").packed
        boot = made.boots.of(MAC)
        assert boot is not None
        assert (boot.node, boot.stage) == ("n001", Stage.DHCP)
        assert [step.detail for step in boot.steps] == [f"{DASHED}/snponly.efi"]
        assert [(node.name, str(us.ip)) for _, node, us in made.begun] == [("n001", "127.0.0.1")]


async def test_the_pxe_port_answers_from_itself() -> None:
    async with bench() as made:
        port = made.current.registry.settings.dhcp.pxe_port
        made.send(encode(message(3)), port)
        async with asyncio.timeout(10):
            loop = asyncio.get_running_loop()
            data, source = await loop.sock_recvfrom(made.client, 2048)

        assert decode(data).options[53] == b"\x05"
        assert source == ("127.0.0.1", port)


async def test_a_packet_from_another_port_is_answered_but_begins_no_boot() -> None:
    """Only the client port proves that no ordinary program asks."""
    async with bench(client_port=free_port()) as made:
        await made.ask(discover())

        assert made.boots.of(MAC) is None


async def test_a_request_for_an_address_tells_the_boot_its_address() -> None:
    async with bench() as made:
        await made.ask(discover())
        await made.handled(encode(message(3, options={50: bytes((10, 0, 0, 11))})))

        boot = made.boots.of(MAC)
        assert boot is not None
        assert boot.address == IPv4Address("10.0.0.11")


async def test_an_unknown_machine_waits_to_be_claimed() -> None:
    async with bench(Node("n001")) as made:
        await made.ask(
            discover(options={97: b"\0" + bytes(range(16)), 82: b""}),
        )

        (machine,) = made.unknown.in_order()
        assert (machine.mac, machine.count, machine.arch) == (MAC, 1, 7)
        assert machine.uuid == "03020100-0504-0706-0809-0a0b0c0d0e0f"


async def test_what_is_no_dhcp_is_counted_and_the_next_packet_is_answered() -> None:
    async with bench() as made:
        before = ignored("no-cookie")
        await made.handled(bytes(300))

        assert ignored("no-cookie") == before + 1


async def test_a_fault_of_ours_costs_one_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench() as made:

        def broken(*_: object) -> None:
            raise RuntimeError("planted")

        made.server._on_boot = broken
        before = metrics.REGISTRY.get_sample_value(
            "bootd_exceptions_total", {"where": "dhcp-packet"}
        )
        made.send(discover())
        reply = await made.ask(encode(ipxe(chaddr=b"\x02".ljust(16, b"\0"))))

        assert reply
        after = metrics.REGISTRY.get_sample_value(
            "bootd_exceptions_total", {"where": "dhcp-packet"}
        )
        assert after == (before or 0) + 1


async def test_a_taken_port_is_a_start_error_that_names_it() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", 0))
        port = other.getsockname()[1]
        with pytest.raises(StartError, match=str(port)):
            async with bench(port=port):
                pass


async def test_mode_off_opens_no_port() -> None:
    async with bench(mode=DhcpMode.OFF) as made:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("", made.current.registry.settings.dhcp.port))
