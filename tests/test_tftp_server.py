"""The TFTP shell on loopback: what a socket asks for is sent, and nothing else."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import pytest
from structlog.testing import capture_logs

from bootd import metrics
from bootd.boots.timeline import Boots, Stage
from bootd.files import LoaderFiles, Refused
from bootd.model import (
    ClientKind,
    Mac,
    Node,
    Settings,
    StartError,
    TftpSettings,
    parse_mac,
)
from bootd.registry import Current, Registry
from bootd.tftp import sockets, wire
from bootd.tftp.server import TftpServer
from bootd.tftp.sockets import Arrival
from bootd.tftp.wire import ack
from tests.tftp_client import client

LOOPS = ("asyncio", "uvloop")

MAC = parse_mac("52:54:00:12:34:56")
LOADER = bytes(n * 31 & 255 for n in range(50_000))
EDK2 = ((b"tsize", b"0"), (b"blksize", b"1468"), (b"windowsize", b"4"))


class Loopback:
    """The interfaces of a machine that serves its loopback only."""

    def __init__(self, served: bool = True) -> None:
        self.served = served
        self.addresses: dict[int, tuple[IPv4Interface, ...]] = {}

    def server_address(self, index: int) -> IPv4Address | None:
        return IPv4Address("127.0.0.1") if self.served else None

    def mtu(self, index: int) -> int:
        return 1500

    def neighbour(self, address: IPv4Address) -> Mac | None:
        return None


class Bench:
    def __init__(self, root: Path, net: Loopback, **tftp: Any) -> None:
        settings = Settings(tftp=TftpSettings(**({"port": 0} | tftp)))
        node = Node("n001", mac=MAC, ip=IPv4Interface("127.0.0.9/8"))
        empty: MappingProxyType[str, Any] = MappingProxyType({})
        registry = Registry(settings, {"n001": node}, empty, empty, empty)
        self.root = root
        self.net = net
        self.current = Current(registry)
        self.boots = Boots(new_id=lambda: "0123456789abcdef")
        self.files = LoaderFiles([root])
        self.server = TftpServer(
            current=self.current, boots=self.boots, files=self.files, net=net, keys=[bytes(32)]
        )

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.server.port)

    def limit(self, **tftp: Any) -> None:
        old = self.current.registry
        new = replace(old.settings.tftp, **tftp)
        self.current.swap(replace(old, settings=replace(old.settings, tftp=new)))

    async def answering(self) -> None:
        """Everything sent before this has been handled: requests are handled in order."""
        with client(self.address) as other, pytest.raises(ConnectionError):
            await other.read(b"\n")


@asynccontextmanager
async def bench(root: Path, net: Loopback | None = None, **tftp: Any) -> AsyncIterator[Bench]:
    root.mkdir(exist_ok=True)
    (root / "snponly.efi").write_bytes(LOADER)
    made = Bench(root, net or Loopback(), **tftp)
    await made.server.start()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(made.server.run())
        try:
            yield made
        finally:
            await made.server.stop(0.0)
            running.cancel()
            made.files.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "tftp"


def ignored(reason: str) -> float:
    return metrics.REGISTRY.get_sample_value("bootd_tftp_ignored_total", {"reason": reason}) or 0.0


def ended(outcome: str) -> float:
    name = "bootd_tftp_transfers_total"
    return metrics.REGISTRY.get_sample_value(name, {"outcome": outcome}) or 0.0


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 -- counters and logs have no event to wait for
            await asyncio.sleep(0.002)


# ---- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("single_port", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        (),
        EDK2,
        ((b"blksize", b"1432"), (b"tsize", b"0")),
        ((b"blksize", b"512"), (b"windowsize", b"64")),
        ((b"windowsize", b"16"), (b"blksize", b"1468"), (b"timeout", b"3")),
    ],
)
async def test_a_loader_arrives_whole(
    root: Path, options: tuple[tuple[bytes, bytes], ...], single_port: bool
) -> None:
    async with bench(root, single_port=single_port) as made:
        with client(made.address) as someone:
            assert await someone.read(b"52-54-00-12-34-56/snponly.efi", *options) == LOADER


async def test_many_clients_read_at_once(root: Path) -> None:
    async with bench(root, max_per_client=100) as made, asyncio.TaskGroup() as group:
        readings = []
        opened = [client(made.address) for _ in range(50)]
        for each in opened:
            readings.append(group.create_task(each.__enter__().read(b"snponly.efi", *EDK2[1:])))
        for reading, each in zip(readings, opened, strict=True):
            assert await reading == LOADER
            each.__exit__(None, None, None)


async def test_the_answer_comes_from_the_address_asked_and_a_port_of_its_own(root: Path) -> None:
    async with bench(root) as made:
        with client(("127.0.0.77", made.server.port)) as someone:
            someone.ask(b"snponly.efi")
            _, first = await someone.hear()
            someone.send(wire.error(wire.ErrorCode.UNDEFINED, "enough"), first)
        with client(("127.0.0.77", made.server.port)) as another:
            another.ask(b"snponly.efi")
            _, second = await another.hear()
        assert first[0] == second[0] == "127.0.0.77"
        assert len({first[1], second[1], made.server.port}) == 3


async def test_a_single_port_answers_from_itself(root: Path) -> None:
    async with bench(root, single_port=True) as made:
        with client(("127.0.0.77", made.server.port)) as someone:
            someone.ask(b"snponly.efi", *EDK2)
            assert (await someone.hear())[1] == ("127.0.0.77", made.server.port)


async def test_blocks_fit_the_interface_and_its_limits_can_be_lowered(root: Path) -> None:
    async with bench(root) as made:
        for most, granted in ((None, b"1468"), (1024, b"1024")):
            made.limit(max_blksize=most, max_windowsize=8)
            with client(made.address) as someone:
                someone.ask(b"snponly.efi", (b"blksize", b"65464"), (b"windowsize", b"64"))
                packet, _ = await someone.hear()
                assert packet == b"\0\6blksize\0" + granted + b"\0windowsize\x008\0"


async def test_autoexec_sends_the_machine_to_its_script(root: Path) -> None:
    async with bench(root) as made:
        with client(made.address) as someone:
            own = await someone.read(b"52-54-00-12-34-56/autoexec.ipxe", (b"tsize", b"0"))
            any_ = await someone.read(b"/autoexec.ipxe")
        assert own.startswith(b"#!ipxe\n")
        assert b"http://127.0.0.1:9873/ipxe/52-54-00-12-34-56" in own
        assert b"/ipxe/${netX/mac:hexhyp}" in any_


async def test_a_missing_loader_is_replaced_by_its_alternative(root: Path) -> None:
    async with bench(root) as made:
        (root / "ipxe.pxe").write_bytes(b"bios")
        with client(made.address) as someone:
            assert await someone.read(b"52-54-00-12-34-56/undionly.kpxe") == b"bios"


@pytest.mark.parametrize(
    "name",
    [
        b"grub/grub.cfg",
        b"52-54-00-12-34-56/grub/grub.cfg",
        b"pxelinux.cfg/01-52-54-00-12-34-56",
        b"52-54-00-12-34-56/pxelinux.cfg/01-52-54-00-12-34-56",
        b"\\grub\\grub.cfg\xff",
    ],
)
async def test_the_sites_own_configurations_are_served(root: Path, name: bytes) -> None:
    async with bench(root) as made:
        for path in ("grub/grub.cfg", "pxelinux.cfg/01-52-54-00-12-34-56"):
            (root / path).parent.mkdir()
            (root / path).write_bytes(b"site")
        with client(made.address) as someone:
            assert await someone.read(name) == b"site"


async def test_a_transfer_keeps_the_version_that_it_began_with(root: Path) -> None:
    async with bench(root) as made:
        with client(made.address) as someone:
            someone.ask(b"snponly.efi")
            first, peer = await someone.hear()
            (root / "new").write_bytes(b"new")
            (root / "new").rename(root / "snponly.efi")
            assert await someone.follow(first, peer) == LOADER
            assert await someone.read(b"snponly.efi") == b"new"


async def test_a_lost_packet_is_sent_again_within_milliseconds(root: Path) -> None:
    async with bench(root) as made:
        with client(made.address) as someone:
            someone.ask(b"snponly.efi", *EDK2)
            _, peer = await someone.hear()
            someone.send(ack(0), peer)
            first = [(await someone.hear())[0] for _ in range(4)]
            last, _ = await someone.hear()
            again = [(await someone.hear())[0] for _ in range(4)]
        assert last == first[3]
        assert again == first


async def test_an_answer_that_waited_while_the_loop_was_busy_is_read_before_anything_is_repeated(
    root: Path,
) -> None:
    async with bench(root) as made:
        with client(made.address) as someone:
            someone.ask(b"snponly.efi", (b"blksize", b"1468"))
            _, peer = await someone.hear()
            someone.send(ack(0), peer)
            for block in range(1, 20):
                packet, _ = await someone.hear()
                assert int.from_bytes(packet[2:4]) == block
                someone.send(ack(block), peer)
                time.sleep(0.015)  # noqa: ASYNC251 -- past the transfer's deadline, on purpose
            assert someone.queue.empty()


# ---- refusing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packet", "code", "text"),
    [
        (wire.request(b"nothing.efi"), 1, "not found: nothing.efi"),
        (wire.request(b"52-54-00-12-34-56/nothing.efi"), 1, "not found: nothing.efi"),
        (wire.request(b"../secret"), 2, "refused: dot-dot"),
        (wire.request(b"..\\secret"), 2, "refused: dot-dot"),
        (wire.request(b"a\nb"), 2, "refused: control-character"),
        (wire.request(b"zz-54-00-12-34-56/snponly.efi"), 2, "refused: not-a-mac"),
        (wire.request(b"link"), 2, "refused: outside"),
        (wire.request(b"fifo"), 2, "refused: not-a-file"),
        (wire.request(b"private"), 2, "refused: not-readable"),
        (b"\0\2snponly.efi\0octet\0", 2, "read only"),
        (wire.request(b"snponly.efi", mode=b"mail"), 4, "only octet mode"),
        (b"\0\1snponly.efi", 4, "request is cut off"),
    ],
)
async def test_what_is_not_served_is_refused_with_one_short_error(
    root: Path, packet: bytes, code: int, text: str
) -> None:
    async with bench(root) as made:
        (root.parent / "secret").write_bytes(b"secret")
        (root / "link").symlink_to("../secret")
        (root / "private").touch(mode=0o600)
        os.mkfifo(root / "fifo")
        with client(made.address) as someone:
            someone.send(packet)
            answer, _ = await someone.hear()
            await made.answering()
            assert someone.queue.empty()
        assert answer == b"\0\5\0" + bytes([code]) + text.encode() + b"\0"
        assert len(answer) <= 128
        assert (root / "snponly.efi").read_bytes() == LOADER


@pytest.mark.parametrize(
    "packet",
    [
        b"\0\5\0\0loop\0",
        b"\0\4\0\1",
        b"\0\3\0\1data",
        b"\0\6tsize\x000\0",
        b"",
        b"\0",
        b"\x99" * 20,
    ],
)
async def test_answers_are_never_answered(root: Path, packet: bytes) -> None:
    """CVE-2024-2169: two servers that answer each other's errors never end."""
    async with bench(root) as made:
        with client(made.address) as someone:
            someone.send(packet)
            await made.answering()
            assert someone.queue.empty()


async def test_a_request_from_a_servers_port_is_not_answered(root: Path) -> None:
    before = ignored("low-port")
    async with bench(root) as made:
        await made.answering()
        here = IPv4Address("127.0.0.1")
        packet = wire.request(b"snponly.efi")
        made.server._arrived(Arrival(packet, ("127.0.0.1", 1023), 1, here))
        assert (ignored("low-port"), len(made.server._places)) == (before + 1, 0)
        made.server._arrived(Arrival(packet, ("127.0.0.1", 1024), 1, here))
        assert (ignored("low-port"), len(made.server._places)) == (before + 1, 1)


async def test_an_interface_that_is_not_served_stays_silent_but_our_own_address_does_not(
    root: Path,
) -> None:
    net = Loopback(served=False)
    before = ignored("interface")
    async with bench(root, net) as made:
        with client(made.address) as someone:
            someone.ask(b"snponly.efi")
            await until(lambda: ignored("interface") == before + 1)
            net.addresses = {2: (IPv4Interface("127.0.0.1/8"),)}
            assert await someone.read(b"snponly.efi") == LOADER


async def test_a_file_that_is_being_written_is_asked_for_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(root) as made:
        real, writing = made.files._find, True

        def find(*args: Any) -> Any:
            if writing:
                raise Refused("changing", "snponly.efi")
            return real(*args)

        monkeypatch.setattr(made.files, "_find", find)
        before = ignored("changing")
        with client(made.address) as someone:
            someone.ask(b"snponly.efi")
            await until(lambda: ignored("changing") == before + 1)
            writing = False
            assert await someone.read(b"snponly.efi") == LOADER


# ---- strangers, storms and silence ---------------------------------------------------------------


async def test_a_stranger_is_told_so_and_the_transfer_goes_on(root: Path) -> None:
    async with bench(root) as made:
        with client(made.address) as someone, client(made.address) as stranger:
            someone.ask(b"snponly.efi")
            first, peer = await someone.hear()
            stranger.send(ack(1), peer)
            assert (await stranger.hear())[0][:4] == b"\0\5\0\5"
            stranger.send(wire.error(wire.ErrorCode.UNDEFINED, "kill"), peer)
            assert await someone.follow(first, peer) == LOADER
            assert stranger.queue.empty(), "an ERROR is not answered"


async def test_strangers_are_told_a_few_times_only(root: Path) -> None:
    async with bench(root) as made:
        with client(made.address) as someone, client(made.address) as stranger:
            someone.ask(b"snponly.efi")
            first, peer = await someone.hear()
            for _ in range(40):
                stranger.send(ack(1), peer)
            assert await someone.follow(first, peer) == LOADER, "98 turns of the loop"
            assert stranger.queue.qsize() == 8


async def test_a_closed_port_ends_the_transfer_at_once(root: Path) -> None:
    before = ended("unreachable")
    async with bench(root) as made:
        with client(made.address) as someone:
            someone.ask(b"snponly.efi", *EDK2)
            _, peer = await someone.hear()
            someone.send(ack(0), peer)
            await someone.hear()
        await until(lambda: ended("unreachable") == before + 1)


async def test_a_dead_stranger_does_not_end_the_transfer(root: Path) -> None:
    async with bench(root) as made:
        with client(made.address) as someone:
            someone.ask(b"snponly.efi")
            first, peer = await someone.hear()
            with client(made.address) as stranger:
                stranger.send(ack(1), peer)
            assert await someone.follow(first, peer) == LOADER


async def test_twenty_equal_requests_are_one_transfer(root: Path) -> None:
    async with bench(root) as made:
        with client(made.address) as someone:
            for _ in range(20):
                someone.ask(b"snponly.efi", *EDK2)
            _, peer = await someone.hear()
            await made.answering()
            assert someone.queue.empty()
            someone.send(ack(0), peer)
            assert (await someone.hear())[0][:4] == b"\0\3\0\1"


async def test_another_request_from_the_same_port_begins_anew(root: Path) -> None:
    """PXE ROMs probe and read from one port; the abort of the probe may be lost."""
    before = ended("superseded")
    async with bench(root) as made:
        with client(made.address) as someone:
            someone.ask(b"snponly.efi", (b"tsize", b"0"))
            assert (await someone.hear())[0][:2] == b"\0\6"
            assert await someone.read(b"snponly.efi", (b"blksize", b"1432")) == LOADER
    assert ended("superseded") == before + 1


async def test_silent_clients_do_not_keep_others_out(root: Path) -> None:
    async with bench(root, max_transfers=20, max_per_client=8) as made:
        silent = [client(made.address, address=f"127.0.1.{n % 50}") for n in range(200)]
        for each in silent:
            each.__enter__().ask(b"snponly.efi", *EDK2)
        with client(made.address) as someone:
            assert await someone.read(b"snponly.efi", *EDK2[1:]) == LOADER
        assert len(made.server._places) <= 20
        for each in silent:
            each.__exit__(None, None, None)


async def test_a_client_past_its_share_is_served_when_a_place_is_free(root: Path) -> None:
    before = ignored("per-client")
    async with bench(root, max_per_client=1) as made:
        with client(made.address) as first, client(made.address) as second:
            first.ask(b"snponly.efi", *EDK2)
            _, peer = await first.hear()
            first.send(ack(0), peer)
            await first.hear()
            second.ask(b"snponly.efi")
            await until(lambda: ignored("per-client") == before + 1)
            first.send(wire.error(wire.ErrorCode.UNDEFINED, "enough"), peer)
            await until(lambda: len(made.server._places) == 0)
            assert await second.read(b"snponly.efi") == LOADER


async def test_the_place_is_given_back_however_it_ends(root: Path) -> None:
    async with bench(root) as made:
        with client(made.address) as someone:
            await someone.read(b"snponly.efi")
            with pytest.raises(ConnectionError):
                await someone.read(b"nothing")
        await until(lambda: len(made.server._places) == 0)
        assert (
            metrics.REGISTRY.get_sample_value("bootd_transfers_in_flight", {"protocol": "tftp"})
            == 0
        )


async def test_an_address_that_has_gone_meanwhile_costs_one_request(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    before = ignored("no-socket")
    async with bench(root) as made:
        with client(made.address) as someone:
            with monkeypatch.context() as broken:
                broken.setattr("bootd.tftp.server.OwnChannel", gone)
                someone.ask(b"snponly.efi")
                await until(lambda: ignored("no-socket") == before + 1)
            assert await someone.read(b"snponly.efi") == LOADER


async def test_any_datagrams_leave_it_answering(root: Path) -> None:
    random = Random(1)
    good = [wire.request(b"52-54-00-12-34-56/snponly.efi", EDK2), wire.request(b"snponly.efi")]
    before = metrics.REGISTRY.get_sample_value("bootd_exceptions_total", {"where": "tftp"})
    async with bench(root) as made:
        with client(made.address) as mad, client(made.address) as someone:
            for number in range(3000):
                packet = bytearray(random.choice(good))
                for _ in range(random.randrange(1, 8)):
                    packet[random.randrange(len(packet))] = random.choice((0, 1, 46, 47, 57, 255))
                mad.send(bytes(packet[: random.randrange(len(packet) + 1)]))
                if number % 50 == 0:
                    await made.answering()
            assert await someone.read(b"snponly.efi", (b"blksize", b"1400")) == LOADER
        assert len(made.server._places) <= 8
    after = metrics.REGISTRY.get_sample_value("bootd_exceptions_total", {"where": "tftp"})
    assert after == before


# ---- sending -------------------------------------------------------------------------------------


@pytest.mark.parametrize("single_port", [False, True])
async def test_without_segmentation_datagrams_go_one_by_one(
    root: Path, monkeypatch: pytest.MonkeyPatch, single_port: bool
) -> None:
    """The kernel refuses: an unknown option at first, for a way that can't be segmented later."""
    async with bench(root, single_port=single_port) as made:
        monkeypatch.setattr(sockets, "_UDP_SEGMENT", 9999)
        with client(made.address) as someone:
            assert await someone.read(b"snponly.efi", *EDK2) == LOADER


async def test_blocks_larger_than_the_ways_mtu_are_found_out(root: Path) -> None:
    async with bench(root, max_blksize=9000) as made:
        with client(made.address) as someone:
            options = ((b"blksize", b"9000"), (b"windowsize", b"4"))
            assert await someone.read(b"snponly.efi", *options) == LOADER


# ---- telling -------------------------------------------------------------------------------------


async def test_a_read_is_a_step_of_the_machines_boot_and_one_line(root: Path) -> None:
    async with bench(root) as made:
        made.boots.discover(MAC, "n001", ClientKind.PXE, 7, asyncio.get_running_loop().time())
        with client(made.address) as someone, capture_logs() as lines:
            someone.ask(b"52-54-00-12-34-56/snponly.efi", *EDK2)
            _, peer = await someone.hear()
            someone.send(b"\0\5\0\x08User aborted the transfer\0", peer)
            await until(lambda: len(made.server._places) == 0)
            assert await someone.read(b"52-54-00-12-34-56/snponly.efi", *EDK2[1:]) == LOADER
            await until(lambda: len(made.server._places) == 0)

        boot = made.boots.of(MAC)
        assert boot is not None
        (step,) = boot.steps
        assert (step.stage, step.detail, step.outcome) == (Stage.LOADER, "tftp snponly.efi", "ok")
        assert step.sent == step.size == len(LOADER)
        probe, read = (line for line in lines if line["event"] == "tftp.transfer")
        assert (probe["log_level"], probe["outcome"]) == ("debug", "probe")
        assert read["log_level"] == "info"
        assert {"node": "n001", "mac": MAC, "boot": boot.id}.items() <= read.items()
        assert {"outcome": "ok", "bytes": 50_000, "blksize": 1468, "windowsize": 4}.items() <= (
            read.items()
        )


async def test_autoexec_is_no_second_loader_in_the_timeline(root: Path) -> None:
    async with bench(root) as made:
        made.boots.discover(MAC, "n001", ClientKind.PXE, 7, asyncio.get_running_loop().time())
        with client(made.address) as someone, capture_logs() as lines:
            await someone.read(b"52-54-00-12-34-56/snponly.efi", *EDK2[1:])
            await someone.read(b"52-54-00-12-34-56/autoexec.ipxe", (b"blksize", b"1432"))
            await until(lambda: len(made.server._places) == 0)

        boot = made.boots.of(MAC)
        assert boot is not None
        assert [step.detail for step in boot.steps] == ["tftp snponly.efi"]
        files = [line["file"] for line in lines if line["event"] == "tftp.transfer"]
        assert files == ["snponly.efi", "autoexec.ipxe"]


async def test_a_machine_is_known_by_its_address_where_the_path_does_not_say(root: Path) -> None:
    async with bench(root) as made:
        with client(made.address, address="127.0.0.9") as someone, capture_logs() as lines:
            await someone.read(b"snponly.efi")
            await until(lambda: len(made.server._places) == 0)
        assert [line["node"] for line in lines] == ["n001"]


async def test_a_missing_loader_is_told_and_what_firmware_only_tries_is_not(root: Path) -> None:
    async with bench(root) as made:
        made.boots.discover(MAC, "n001", ClientKind.PXE, 7, asyncio.get_running_loop().time())
        with client(made.address) as someone, capture_logs() as lines:
            for name in (b"shimx64.efi", b"revocations.efi"):
                with pytest.raises(ConnectionError):
                    await someone.read(b"52-54-00-12-34-56/" + name)
        missing, tried = lines
        assert (missing["log_level"], missing["reason"]) == ("warning", "not-found")
        assert tried["log_level"] == "debug"
        boot = made.boots.of(MAC)
        assert boot is not None
        assert [(s.detail, s.outcome) for s in boot.steps] == [("tftp shimx64.efi", "not-found")]


async def test_refusals_fill_the_log_slowly(root: Path) -> None:
    async with bench(root) as made:
        with client(made.address) as someone, capture_logs() as lines:
            for number in range(300):
                with pytest.raises(ConnectionError):
                    await someone.read(b"%d" % number)
        assert 0 < len([line for line in lines if line["event"] == "tftp.refused"]) < 100


async def test_a_fault_of_ours_ends_one_transfer_and_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(root) as made:
        with client(made.address) as someone, capture_logs() as lines:
            with monkeypatch.context() as broken:
                broken.setattr("bootd.tftp.server.negotiate", None)
                someone.ask(b"snponly.efi")
                await until(lambda: lines)
            assert await someone.read(b"snponly.efi") == LOADER
        assert lines[0]["event"] == "tftp.fault"
        assert lines[0]["log_level"] == "error"


# ---- starting and stopping -----------------------------------------------------------------------


async def test_a_taken_port_is_told_in_a_sentence(root: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 0))
        made = Bench(root, Loopback(), port=taken.getsockname()[1])
        with pytest.raises(StartError, match=r"UDP port .* cannot be opened"):
            await made.server.start()
        await made.server.stop()
        made.files.close()


async def test_tftp_can_be_off(root: Path) -> None:
    async with bench(root, enabled=False) as made:
        assert made.server.port == 0


async def test_stopping_waits_for_transfers_and_takes_no_new_ones(root: Path) -> None:
    async with bench(root) as made, asyncio.TaskGroup() as group:
        with client(made.address) as reader, client(made.address) as late:
            reader.ask(b"snponly.efi", *EDK2)
            _, peer = await reader.hear()
            reader.send(ack(0), peer)
            await reader.hear()
            before = ignored("stopping")
            stopping = group.create_task(made.server.stop(asyncio.get_running_loop().time() + 10))
            await asyncio.sleep(0)
            late.ask(b"snponly.efi")
            await until(lambda: ignored("stopping") == before + 1)
            assert not stopping.done()
            reader.send(wire.error(wire.ErrorCode.UNDEFINED, "enough"), peer)
            await stopping


async def test_a_transfer_that_outlasts_the_deadline_is_told(root: Path) -> None:
    async with bench(root) as made:
        with client(made.address) as reader:
            reader.ask(b"snponly.efi", *EDK2)
            _, peer = await reader.hear()
            reader.send(ack(0), peer)
            await reader.hear()
            await made.server.stop(asyncio.get_running_loop().time() + 0.01)
            packet = b"\0\3"
            while packet[1] == wire.DATA:
                packet, _ = await reader.hear()
            assert packet == b"\0\5\0\0server is stopping\0"
