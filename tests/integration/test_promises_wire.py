"""Promises of the daemon held from outside, with raw sockets and nothing of its own code: whom it
answers and how much, what hostile packets cost, and how it ends (docs/promises.md)."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.integration.daemon import Daemon
from tests.integration.dhcp_site import Site, wait_for

pytestmark = pytest.mark.integration

BOOTD, CLIENT, VICTIM = "10.9.0.2", "10.9.0.50", "10.9.0.99"
MAC, STRANGER = "52:54:00:12:34:56", "52:54:00:77:77:77"
BROADCAST = "255.255.255.255"
DISCOVER, REQUEST, INFORM = 1, 3, 8
PXE = ((60, b"PXEClient:Arch:00007:UNDI:003016"), (93, b"\0\7"), (94, b"\1\3\x10"))
LARGE = b"\x5a" * 400_000

Options = Sequence[tuple[int, bytes]]
Datagram = tuple[bytes, tuple[str, int]]


def packet(
    mac: str = MAC,
    options: Options = PXE,
    *,
    kind: int | None = DISCOVER,
    op: int = 1,
    ciaddr: str = "0.0.0.0",
    giaddr: str = "0.0.0.0",
) -> bytes:
    """A DHCP packet."""
    nobody = bytes(4)
    head = struct.pack("!BBBBIHH", op, 1, 6, 0, random.getrandbits(32), 0, 0x8000)
    head += socket.inet_aton(ciaddr) + nobody + nobody + socket.inet_aton(giaddr)
    head += bytes.fromhex(mac.replace(":", "")).ljust(16, b"\0") + bytes(192) + b"\x63\x82\x53\x63"
    written = [(53, bytes((kind,)))] if kind is not None else []
    body = b"".join(bytes((code, len(value))) + value for code, value in (*written, *options))
    return head + body + b"\xff"


def heard(sock: socket.socket, seconds: float) -> list[Datagram]:
    """What comes in within so many seconds."""
    until = time.monotonic() + seconds
    found = []
    with contextlib.suppress(TimeoutError):
        while (left := until - time.monotonic()) > 0:
            sock.settimeout(left)
            found.append(sock.recvfrom(65536))
    return found


def answer(sock: socket.socket, asked: bytes, seconds: float = 5.0) -> bytes | None:
    """The answer with the packet's transaction id, or None."""
    sock.sendto(asked, (BROADCAST, 67))
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        sock.settimeout(left)
        with contextlib.suppress(TimeoutError):
            data = sock.recv(65536)
            if data[4:8] == asked[4:8]:
                return data
    return None


class Wire:
    """A daemon on one host, and sockets of another."""

    def __init__(self, site: Site, daemon: Daemon) -> None:
        self.site, self.daemon = site, daemon

    def udp(self, port: int = 0) -> socket.socket:
        """A socket of the client's."""
        return self.site.udp("node", "eth0", port)

    def tcp(self, receive_buffer: int = 0) -> socket.socket:
        """A connection to the daemon's HTTP."""
        with self.site.inside("node"):
            sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(10)
        sock.connect((BOOTD, 9873))
        return sock

    def healthy(self) -> bool:
        """Whether HTTP answers."""
        with contextlib.suppress(ConnectionError), self.tcp() as sock:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return b" 200 " in sock.recv(4096)
        return False


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    with Site() as site:
        site.host("boot")
        site.host("node")
        site.wire("boot:eth0", "node:eth0")
        site.ip("boot", f"addr add {BOOTD}/24 dev eth0")
        site.ip("node", f"addr add {CLIENT}/24 dev eth0")
        (tmp_path / "bootd").mkdir()
        settings = {"interfaces": ["eth0"], "dhcp": {}, "tftp": {"port": 69}}
        with site.inside("boot"):
            daemon = Daemon(tmp_path / "bootd", settings={**settings, "http": {"port": 9873}})
            loaders = tmp_path / "bootd/state/tftp"
            loaders.mkdir(parents=True)
            (loaders / "large.bin").write_bytes(LARGE)
            (loaders / "large.bin").chmod(0o644)
            loaders.chmod(0o755)
            with daemon:
                yield Wire(site, daemon)
        assert not [e for e in daemon.rest() if "Traceback" in str(e.get("exception"))]


def test_only_machines_that_boot_are_answered_and_with_little(wire: Wire) -> None:
    """D3, D4, D6."""
    silent = [
        packet(op=2),
        packet(options=[(60, b"MSFT 5.0")]),
        packet(options=[(93, b"\0\7")]),
        packet(options=[(60, b"pxeclient"), (93, b"\0\7")]),
        packet(kind=None),
        *(packet(kind=kind) for kind in (0, 2, 3, 4, 5, 6, 7, 255)),
        packet()[:200],
        packet(options=[(60, b"AAPLBSDPC/i386")], kind=INFORM),
    ]
    with wire.udp(68) as sock:
        for asked in silent:
            sock.sendto(asked, (BROADCAST, 67))
        asked = packet()
        offer = answer(sock, asked)  # they come in order: who is silent now stays so
        assert offer is not None
        sock.sendto(packet(STRANGER), (BROADCAST, 67))
        rest = [data for data, _ in heard(sock, 1.0)]

    ids = {each[4:8] for each in silent}
    assert not [data for data in (offer, *rest) if data[4:8] in ids]
    assert len(rest) == 1  # one datagram for one
    for data in (offer, *rest):
        assert len(data) <= 2 * len(asked)
        assert data[16:20] == bytes(4)  # yiaddr: a proxy gives no address
        assert 255 in data[240:]


def test_nobody_is_sent_what_he_did_not_ask_for(wire: Wire) -> None:
    """D7: addresses that a packet names as relay or client are not written to."""
    wire.site.ip("node", f"addr add {VICTIM}/24 dev eth0")
    with contextlib.ExitStack() as stack:
        victims = []
        with wire.site.inside("node"):
            for port in (67, 68, 4011):
                victim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                victims.append(stack.enter_context(victim))
                victim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                victim.bind((VICTIM, port))
        sock = stack.enter_context(wire.udp(68))
        for kind in (DISCOVER, REQUEST, INFORM):
            for port in (67, 4011):
                sock.sendto(packet(kind=kind, giaddr=VICTIM), (BOOTD, port))
                sock.sendto(packet(kind=kind, ciaddr=VICTIM), (BOOTD, port))
        assert answer(sock, packet()) is not None

        assert [heard(victim, 0.3) for victim in victims] == [[], [], []]


def test_twenty_thousand_broken_packets_in_a_nodes_own_name_keep_it_from_nothing(
    wire: Wire,
) -> None:
    """D1, D2, D8, D11."""
    chance = random.Random(7)
    before = _memory(wire.daemon.pid)
    with wire.udp(68) as sock:
        for number in range(20_000):
            broken = bytearray(packet())
            if number % 2:
                broken = broken[:240] + b"\x35\x01\x01" + chance.randbytes(chance.randrange(400))
            for _ in range(chance.randint(0, 6)):
                broken[chance.randrange(len(broken))] = chance.randrange(256)
            sock.sendto(broken, (BROADCAST, chance.choice((67, 4011))))
            if number % 1000 == 999:
                tries = [answer(sock, packet(), 1.0) for _ in range(2)]
                assert any(tries)

    assert wire.healthy()
    assert _memory(wire.daemon.pid) - before < 32 << 20


def _memory(pid: int) -> int:
    """Bytes of resident memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_a_source_that_never_answers_is_sent_four_small_datagrams(wire: Wire) -> None:
    """T2, T3: whatever it asked for, within the time that the first four take."""
    options = (b"", b"blksize\x0065464\0windowsize\x0064\0", b"timeout\x001\0tsize\x000\0")
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(wire.udp()) for _ in options]
        for sock, asked in zip(sources, options, strict=True):
            for _ in range(20):  # one who repeats himself is one who asks once
                sock.sendto(b"\0\1large.bin\0octet\0" + asked, (BOOTD, 69))
        missing = stack.enter_context(wire.udp())
        missing.sendto(b"\0\1" + b"x" * 300 + b"\0octet\0", (BOOTD, 69))

        assert [len(data) <= 128 for data, _ in heard(missing, 9.0)] == [True]
        for sock in sources:
            got = heard(sock, 0.1)
            assert 1 <= len(got) <= 4
            assert sum(len(data) for data, _ in got) <= 2200


def test_the_listening_port_answers_no_error_and_no_server(wire: Wire) -> None:
    """T14: two servers that answer each other's errors never end."""
    packets = [
        b"\0\5\0\1x\0",
        b"\0\4\0\1",
        b"\0\3\0\1x",
        b"\0\6blksize\x00512\0",
        b"\0\5",
        b"",
        b"\0",
    ]
    with wire.udp() as sock, wire.udp(69) as server:
        for each in packets:
            sock.sendto(each, (BOOTD, 69))
        server.sendto(b"\0\1missing\0octet\0", (BOOTD, 69))
        sock.sendto(b"\0\1missing\0octet\0", (BOOTD, 69))

        assert [data[:4] for data, _ in heard(sock, 1.0)] == [b"\0\5\0\1"]
        assert heard(server, 0.1) == []


def test_without_descriptors_dhcp_goes_on_and_so_does_all_else_afterwards(wire: Wire) -> None:
    """C4."""
    resource.prlimit(wire.daemon.pid, resource.RLIMIT_NOFILE, (128, 128))
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(wire.udp(68))
        for _ in range(300):
            connection = stack.enter_context(wire.tcp())
            connection.sendall(b"GET /large.bin HTTP/1.1\r\nHost: x\r\n\r\n")
        assert all(answer(sock, packet()) is not None for _ in range(5))

    wait_for(wire.healthy, "HTTP after the rush")


def test_a_limit_that_is_lowered_below_what_is_open_leaves_room_for_all_else(wire: Wire) -> None:
    """C4, with descriptors taken away from the daemon as it runs."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(wire.udp(68))
        for _ in range(300):
            connection = stack.enter_context(wire.tcp())
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(1000)
        resource.prlimit(wire.daemon.pid, resource.RLIMIT_NOFILE, (128, 128))

        assert answer(sock, packet()) is not None
        wait_for(wire.healthy, "HTTP beside those that idle")
        wire.daemon.signal(signal.SIGHUP)
        wire.daemon.event("registry.loaded")


def test_a_download_that_stalls_does_not_hold_up_the_end(wire: Wire) -> None:
    """C11."""
    with wire.tcp(receive_buffer=4096) as stalled:
        stalled.sendall(b"GET /large.bin HTTP/1.1\r\nHost: x\r\n\r\n")
        assert stalled.recv(100)
        began = time.monotonic()
        wire.daemon.signal(signal.SIGTERM)

        assert wire.daemon.wait() == 0
        assert time.monotonic() - began < 10
