"""What routers and dead hosts tell a TFTP transfer, by ICMP; forged here with a raw socket."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from pathlib import Path

import pytest

from bootd.tftp.wire import ack
from tests.test_tftp_server import EDK2, LOADER, Bench, bench, ended, until
from tests.tftp_client import Peer, client

pytestmark = pytest.mark.integration
LOOPS = ("asyncio", "uvloop")

HOST_UNREACHABLE, PORT_UNREACHABLE = 1, 3


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def unreachable(code: int, source: Peer, to: Peer) -> None:
    """Tell `source` that what it sent did not reach `to` (RFC 792)."""
    if os.geteuid() != 0:
        pytest.fail("a raw socket needs root")
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(to[0])
    header = struct.pack("!BBHHHBBH", 0x45, 0, 32, 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    quoted = header + struct.pack("!HHHH", source[1], to[1], 12, 0)
    message = struct.pack("!BBHI", 3, code, 0, 0) + quoted
    message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.sendto(message, (source[0], 0))


def send_again(made: Bench) -> None:
    """Have the one transfer's timer run out now."""
    (session,) = made.server._places
    transfer, channel = session.transfer, session._channel
    assert transfer is not None
    assert channel is not None
    assert transfer.deadline is not None
    transfer.tick(transfer.deadline)
    session._flush(transfer, channel)


async def test_a_host_that_is_away_for_a_moment_gets_the_rest(tmp_path: Path) -> None:
    async with bench(tmp_path / "tftp") as made:
        with client(made.address) as someone:
            someone.ask(b"snponly.efi", *EDK2[1:])
            first, peer = await someone.hear()
            for _ in range(5):
                unreachable(HOST_UNREACHABLE, peer, ("127.0.0.1", someone.port))
                await asyncio.sleep(0.002)
            assert await someone.follow(first, peer) == LOADER


async def test_an_error_that_a_send_met_first_does_not_stop_the_watch(tmp_path: Path) -> None:
    async with bench(tmp_path / "tftp") as made:
        with client(made.address) as someone:
            someone.ask(b"snponly.efi", (b"blksize", b"1468"))
            _, peer = await someone.hear()
            someone.send(ack(0), peer)
            packet, _ = await someone.hear()
            # The transfer's own timer sends next, and meets the number of the error.
            unreachable(HOST_UNREACHABLE, peer, ("127.0.0.1", someone.port))
            send_again(made)
            for block in range(1, 20):
                someone.send(ack(block), peer)
                while int.from_bytes(packet[2:4]) <= block:
                    packet, _ = await someone.hear()


async def test_a_port_that_is_closed_ends_the_transfer(tmp_path: Path) -> None:
    before = ended("unreachable")
    async with bench(tmp_path / "tftp") as made:
        with client(made.address) as someone, client(made.address) as other:
            someone.ask(b"snponly.efi", *EDK2[1:])
            _, peer = await someone.hear()
            unreachable(PORT_UNREACHABLE, peer, ("127.0.0.1", other.port))
            await asyncio.sleep(0.01)
            assert ended("unreachable") == before, "it was said of someone else"
            unreachable(PORT_UNREACHABLE, peer, ("127.0.0.1", someone.port))
            await until(lambda: ended("unreachable") == before + 1)


async def test_errors_do_not_keep_the_loop_busy(tmp_path: Path) -> None:
    async with bench(tmp_path / "tftp") as made:
        with client(made.address) as someone:
            someone.ask(b"snponly.efi", *EDK2[1:])
            _, peer = await someone.hear()
            for _ in range(3):
                unreachable(HOST_UNREACHABLE, peer, ("127.0.0.1", someone.port))
                send_again(made)
            before = time.process_time()
            await asyncio.sleep(0.5)
            assert time.process_time() - before < 0.25
