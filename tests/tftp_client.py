"""A TFTP client for tests, small enough to misbehave on purpose; for any event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from bootd.tftp import wire

PATIENCE = 10.0
"""Seconds; only a failing test waits so long."""

Peer = tuple[str, int]
Options = tuple[tuple[bytes, bytes], ...]


class Client:
    """One socket. What arrives is queued with its sender."""

    def __init__(self, server: Peer, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.queue: asyncio.Queue[tuple[bytes, Peer]] = asyncio.Queue()

    @property
    def port(self) -> int:
        port: int = self.sock.getsockname()[1]
        return port

    def readable(self) -> None:
        try:
            while True:
                self.queue.put_nowait(self.sock.recvfrom(70_000))
        except OSError:
            return

    def send(self, packet: bytes, to: Peer | None = None) -> None:
        self.sock.sendto(packet, to or self.server)

    def ask(self, name: bytes, *options: tuple[bytes, bytes]) -> None:
        self.send(wire.request(name, options))

    async def hear(self) -> tuple[bytes, Peer]:
        async with asyncio.timeout(PATIENCE):
            return await self.queue.get()

    async def read(self, name: bytes, *options: tuple[bytes, bytes]) -> bytes:
        """The whole file, politely. Raises `ConnectionError` with an ERROR's code and text."""
        self.ask(name, *options)
        return await self.follow(*await self.hear())

    async def follow(self, packet: bytes, peer: Peer) -> bytes:
        """Read on from the first packet of the transfer."""
        got, block, blksize, windowsize = bytearray(), 0, 512, 1
        while True:
            if packet[1] == wire.ERROR:
                raise ConnectionError(int.from_bytes(packet[2:4]), packet[4:-1].decode())
            if packet[1] == wire.OACK:
                fields = packet[2:].split(b"\0")
                given = dict(zip(fields[::2], fields[1::2], strict=False))
                blksize = int(given.get(b"blksize", blksize))
                windowsize = int(given.get(b"windowsize", windowsize))
                self.send(wire.ack(0), peer)
            elif int.from_bytes(packet[2:4]) == (block + 1) & 0xFFFF:
                block += 1
                got += packet[4:]
                done = len(packet) - 4 < blksize
                if done or block % windowsize == 0:
                    self.send(wire.ack(block), peer)
                if done:
                    return bytes(got)
            packet, source = await self.hear()
            assert source == peer, "one transfer, one port"


@contextmanager
def client(server: Peer, address: str = "127.0.0.1", port: int = 0) -> Iterator[Client]:
    """A client on a port of its own."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind((address, port))
        made = Client(server, sock)
        loop.add_reader(sock.fileno(), made.readable)
        try:
            yield made
        finally:
            loop.remove_reader(sock.fileno())
