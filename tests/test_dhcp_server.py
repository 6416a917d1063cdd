"""The DHCP shell on loopback: what a socket sends is answered, and told to the boots."""

from __future__ import annotations

import asyncio
import collections
import errno
import itertools
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import pytest

from bootd import metrics
from bootd.boots.timeline import Boots, Stage
from bootd.boots.unknown import Unknown
from bootd.dhcp import server
from bootd.dhcp.channel import Datagram
from bootd.dhcp.guard import ANSWERS_PER_SECOND, LOOP_OFFERS
from bootd.dhcp.server import DhcpServer
from bootd.dhcp.wire import decode, encode
from bootd.model import DhcpMode, Mac, Node, ServerAddress, StartError, UnknownPolicy
from bootd.net import Interfaces
from bootd.registry import Current, Registry
from tests.dhcp_messages import DASHED, MAC, discover, ipxe, message, registry


class Bench:
    """A server with a client's socket, whose port is ``dhcp.client_port``."""

    def __init__(self, client: socket.socket, current: Current, unknown: Unknown) -> None:
        ids = iter(range(1, 1 << 30))
        self.others = itertools.cycle(range(256))
        self.client = client
        self.current = current
        self.unknown = unknown
        self.boots = Boots(new_id=lambda: f"{next(ids):016x}")
        self.net = Interfaces(current)
        self.begun: asyncio.Queue[tuple[Registry, Node, ServerAddress]] = asyncio.Queue()
        self.server = DhcpServer(
            current=current,
            boots=self.boots,
            net=self.net,
            on_boot=lambda *begun: self.begun.put_nowait(begun),
            unknown=unknown,
        )

    def send(self, data: bytes, port: int | None = None) -> None:
        settings = self.current.registry.settings.dhcp
        self.client.sendto(data, ("127.0.0.1", port or settings.port))

    async def ask(self, data: bytes, port: int | None = None) -> bytes:
        self.send(data, port)
        return await self.receive()

    async def receive(self) -> bytes:
        async with asyncio.timeout(10):
            return await asyncio.get_running_loop().sock_recv(self.client, 2048)

    async def handled(self, data: bytes) -> None:
        """Send what is not answered, and wait until it was handled: what follows is answered."""
        other = bytes((2, 0, 0, 0, 0, next(self.others))).ljust(16, b"\0")
        self.send(data)
        reply = await self.ask(encode(ipxe(chaddr=other)))
        while decode(reply).chaddr != other:
            reply = await self.receive()


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


def faults() -> float:
    name, labels = "bootd_exceptions_total", {"where": "dhcp-packet"}
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


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
        async with asyncio.timeout(10):
            _, node, us = await made.begun.get()
        assert (node.name, str(us.ip)) == ("n001", "127.0.0.1")


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


async def test_a_fault_of_ours_costs_one_packet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bench() as made:
        note = made.boots.note

        def broken(mac: Mac, *rest: Any, **more: Any) -> Any:
            if mac == MAC:
                raise RuntimeError("planted")
            return note(mac, *rest, **more)

        monkeypatch.setattr(made.boots, "note", broken)
        before = faults()
        for _ in range(3):
            await made.handled(discover())

        assert faults() == before + 3
    said = capsys.readouterr().out
    assert said.count("dhcp.fault") == 1
    assert discover().hex() in said


async def test_beside_a_server_that_has_the_port_a_packet_socket_is_used(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", 0))
        port = other.getsockname()[1]
        async with bench(port=port) as made:
            reply = decode(await made.ask(discover()))

            assert reply.file.decode() == f"{DASHED}/snponly.efi"
            assert made.boots.of(MAC) is not None
    said = capsys.readouterr().out
    assert f"packet socket: UDP port {port} is held by " in said


async def test_a_taken_port_without_packet_sockets_says_who_has_it_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(server, "PacketChannel", refused)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", 0))
        port = other.getsockname()[1]
        with pytest.raises(StartError) as caught:
            async with bench(port=port):
                pass

    for words in (f"UDP port {port} is held by", "CAP_NET_RAW", "stop the other server"):
        assert words in str(caught.value)


class Filled:
    """A channel with a queue of datagrams, that remembers whom it answered."""

    port, drops, description = 67, 0, "filled"

    def __init__(self, datagrams: list[Datagram]) -> None:
        self._datagrams = collections.deque(datagrams)
        self.answered: list[bytes] = []

    def fileno(self) -> int:
        raise NotImplementedError

    def receive(self) -> Datagram | None:
        return self._datagrams.popleft() if self._datagrams else None

    def send(self, data: bytes, to: tuple[str, int], interface: int, source: bytes) -> None:
        self.answered.append(data[28:34])

    def close(self) -> None:
        raise NotImplementedError


async def test_in_a_flood_of_invented_machines_nodes_are_answered_first() -> None:
    lo = socket.if_nametoindex("lo")
    packet = discover(chaddr=b"\x02".ljust(16, b"\0"))
    packets = [packet[:31] + number.to_bytes(3, "big") + packet[34:] for number in range(20_000)]
    packets.append(discover())
    channel = Filled([Datagram(data, lo, ("0.0.0.0", 68), b"") for data in packets])
    before = ignored("overloaded")
    async with bench() as made:
        while len(channel.answered) < 3000:
            made.server._readable(channel)
            await asyncio.sleep(0)

    node = bytes.fromhex(MAC.replace(":", ""))
    assert node in channel.answered[:2000]
    assert ignored("overloaded") > before


async def test_invented_machines_wait_in_so_much_memory_and_no_more() -> None:
    lo = socket.if_nametoindex("lo")
    packet = discover(chaddr=b"\x02".ljust(16, b"\0")).ljust(1400, b"\0")
    packets = [packet[:31] + number.to_bytes(3, "big") + packet[34:] for number in range(8000)]
    channel = Filled([Datagram(data, lo, ("0.0.0.0", 68), b"") for data in packets])
    before = ignored("overloaded")
    async with bench() as made:
        for _ in range(20):
            made.server._readable(channel)

        waiting = sum(len(datagram.data) for _, datagram, _ in made.server._strangers)
        assert waiting == made.server._strangers_bytes
        assert waiting <= server._STRANGERS_BYTES + len(packet)
        assert ignored("overloaded") > before


async def test_invented_machines_that_boot_what_the_default_says_share_the_lines_of_strangers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with bench(unknown=UnknownPolicy.DEFAULT) as made:
        made.current.swap(replace(made.current.registry, default=Node("default")))
        for number in range(300):
            await made.ask(discover(chaddr=(b"\x02" + number.to_bytes(5, "big")).ljust(16, b"\0")))

    assert 0 < capsys.readouterr().out.count("dhcp.offer") < 100


async def test_an_answer_kept_is_given_with_the_new_transaction_id() -> None:
    async with bench() as made:
        first = await made.ask(discover(xid=1, secs=0))
        second = await made.ask(discover(xid=2, secs=4))

        assert decode(second).xid == 2
        assert decode(second)._replace(xid=1) == decode(first)


async def test_after_a_reload_nothing_old_is_answered() -> None:
    async with bench() as made:
        await made.ask(discover())
        old = made.current.registry
        made.current.swap(replace(old, nodes={"n001": Node("n001", mac=MAC, loader="ipxe")}))

        assert decode(await made.ask(discover())).file.decode() == f"{DASHED}/ipxe.efi"


async def test_one_machine_that_asks_all_the_time_is_answered_so_often_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bench() as made:
        now = asyncio.get_running_loop().time()
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
        before = ignored("rate-limited")
        for number in range(2 * ANSWERS_PER_SECOND + 5):
            made.send(discover(xid=number))
        await made.handled(bytes(1))

        assert ignored("rate-limited") > before


async def test_a_machine_that_goes_round_in_circles_is_named_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with bench() as made:
        for number in range(3 * LOOP_OFFERS):
            await made.ask(discover(xid=number))
    said = capsys.readouterr().out

    assert said.count("dhcp.chainload-loop") == 1
    assert "never fetched" in said


async def test_no_circle_where_a_script_was_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    async with bench() as made:
        for number in range(LOOP_OFFERS + 2):
            await made.ask(discover(xid=number))
            made.boots.note(MAC, Stage.SCRIPT, asyncio.get_running_loop().time())

    assert "dhcp.chainload-loop" not in capsys.readouterr().out


async def test_a_refused_machine_is_named_once_with_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with bench() as made:
        for _ in range(3):
            await made.handled(discover(arch=2))
    said = [line for line in capsys.readouterr().out.splitlines() if "dhcp.ignore" in line]

    assert len(said) == 1
    assert "unsupported-arch" in said[0]
    assert MAC in said[0]


async def test_a_relay_that_is_not_listed_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    async with bench() as made:
        for _ in range(3):
            await made.handled(discover(giaddr=bytes((10, 2, 0, 1))))
    said = [line for line in capsys.readouterr().out.splitlines() if "relay-not-listed" in line]

    assert len([line for line in said if "10.2.0.1" in line]) == 1


async def test_each_stage_of_a_boot_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    async with bench() as made:
        for number in range(5):
            await made.ask(discover(xid=number))
        for number in range(5):
            await made.ask(encode(ipxe(xid=number)))
    said = [line for line in capsys.readouterr().out.splitlines() if "dhcp.offer" in line]

    assert len(said) == 2
    assert all("n001" in line for line in said)


async def test_in_reservation_mode_the_boot_has_the_address_it_was_given() -> None:
    node = Node("n001", mac=MAC, ip=IPv4Interface("127.0.0.11/8"))
    async with bench(node, mode=DhcpMode.RESERVATION) as made:
        await made.ask(discover())
        wanted = {50: IPv4Address("127.0.0.11").packed, 54: IPv4Address("127.0.0.1").packed}
        reply = decode(await made.ask(encode(message(3, options=wanted))))

        assert reply.yiaddr == IPv4Address("127.0.0.11").packed
        boot = made.boots.of(MAC)
        assert boot is not None
        assert boot.address == IPv4Address("127.0.0.11")


async def test_mode_off_opens_no_port() -> None:
    async with bench(mode=DhcpMode.OFF) as made:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("", made.current.registry.settings.dhcp.port))
