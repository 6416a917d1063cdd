"""The machines of `bench/storm.py`: PCs that boot, all in one process.

Each is a generator that yields while it waits: epoll, timers, and as little else as possible.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import re
import select
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Generator
from typing import Any, Final

from bench.tftp import SERVER

PORT: Final = 9873
LOADER: Final = "snponly.efi"
BLKSIZE: Final = 1468
WINDOW: Final = 4
STAGES: Final = ("dhcp", "loader", "script", "kernel", "initramfs", "overlay", "up", "total")
CHECKED: Final = 50
"""One boot in so many compares every byte."""
PATIENCE: Final = 60.0
"""Seconds without a byte after which a machine drops a connection."""
TRIES: Final = 60
"""How often a machine begins something anew before it gives up."""

Steps = Generator[float, bool, None]
"""What a machine does: yields seconds to wait for its socket, gets whether that was readable."""


def mac(number: int) -> bytes:
    return b"\x52\x54\x02" + number.to_bytes(3, "big")


def address(number: int) -> str:
    return f"10.99.{(number + 1) >> 8}.{(number + 1) & 0xFF}"


class GivesUp(Exception):
    """A machine stops trying; the text says why."""


class Again(Exception):
    """Something broke in a way that firmware or script answers by another try."""


class Machine:
    """One PC from power-on to up."""

    def __init__(self, rack: Rack, number: int) -> None:
        self.rack = rack
        self.number = number
        self.sock: socket.socket | None = None
        self.steps: Steps = self.boot()
        self.wake = 0.0
        self.timer = float("inf")
        self.times: dict[str, float] = {}
        self.answer: bytes = b""
        self.buffered = b""
        self.checks = number % CHECKED == 0

    def boot(self) -> Steps:
        began = mark = time.monotonic()
        yield from self.dhcp(ipxe=False)
        mark = self.done("dhcp", mark)
        yield from self.load()
        mark = self.done("loader", mark)
        yield from self.dhcp(ipxe=True)
        for attempt in range(TRIES):
            try:
                yield from self.script(mark)
                break
            except Again as problem:
                self.rack.again[str(problem)] += 1
                self.close()
                if attempt == TRIES - 1:
                    raise GivesUp(str(problem)) from None
                yield from self.sleep(1 + attempt % 4)
        self.done("total", began)

    def script(self, mark: float) -> Steps:
        """What iPXE does: the script, and what the script says."""
        text = bytearray()
        yield from self.get(f"/ipxe/{mac(self.number).hex('-')}", into=text)
        script = text.decode()
        found = re.search(r"http://[^/]+(/b/[^/\s]+)/", script)
        if found is None:  # "asking DHCP again, so that the server sees who we are"
            yield from self.sleep(2)
            yield from self.dhcp(ipxe=True)
            raise Again("a script without a token")
        mark = self.done("script", mark)
        for kind, url in re.findall(
            r"^(?:kernel|initrd) --name (\S+) http://[^/]+(\S+)", script, re.M
        ):
            yield from self.get(url, expected=self.rack.files.get(kind))
            mark = self.done(kind, mark)
        yield from self.get(f"{found[1]}/up")
        self.done("up", mark)

    def done(self, stage: str, since: float) -> float:
        now = time.monotonic()
        self.times[stage] = now - since
        return now

    def sleep(self, seconds: float) -> Steps:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if (yield left):
                self.close()  # the server has ended a connection that waits

    # ---- DHCP ------------------------------------------------------------------------------------

    def dhcp(self, *, ipxe: bool) -> Steps:
        """DISCOVER until there is an OFFER; then the REQUEST to the site's DHCP server, which bootd
        overhears."""
        self.close()
        self.answer = b""
        for wait in (1, 2, 4, 8, 10, 10) if ipxe else (4, 8, 16, 32):
            self.rack.broadcast(self.message(1, ipxe))
            yield wait
            if self.answer:
                self.rack.broadcast(self.message(3, ipxe))
                return
        raise GivesUp("no DHCP offer")

    def message(self, kind: int, ipxe: bool) -> bytes:
        own = mac(self.number)
        options = [
            (53, bytes((kind,))),
            (57, (1472).to_bytes(2, "big")),
            (93, b"\0\x07"),
            (94, b"\x01\x03\x10"),
            (60, b"PXEClient:Arch:00007:UNDI:003016"),
            (97, b"\0" + bytes(10) + own),
        ]
        if ipxe:
            options += [(77, b"iPXE"), (175, bytes((0x13, 1, 1, 0x18, 1, 1, 0x24, 1, 1)))]
        if kind == 3:
            options += [
                (54, bytes((10, 98, 255, 253))),
                (50, socket.inet_aton(address(self.number))),
            ]
        header = struct.pack("!BBBBIHH", 1, 1, 6, 0, self.number, 0, 0x8000)
        body = bytes(16) + own.ljust(16, b"\0") + bytes(192) + b"\x63\x82\x53\x63"
        tail = b"".join(bytes((code, len(value))) + value for code, value in options)
        return (header + body + tail + b"\xff").ljust(300, b"\0")

    # ---- TFTP ------------------------------------------------------------------------------------

    def load(self) -> Steps:
        for _ in range(8):
            try:
                yield from self.read()
                return
            except Again as problem:
                self.rack.again[str(problem)] += 1
                yield from self.sleep(1)
        raise GivesUp("no loader by TFTP")

    def read(self) -> Steps:
        """One read, as EDK2 makes it."""
        sock = self.open(socket.SOCK_DGRAM)
        name = f"{mac(self.number).hex('-')}/{LOADER}"
        fields = (name, "octet", "tsize", "0", "blksize", BLKSIZE, "windowsize", WINDOW)
        last = b"\0\1" + b"".join(f"{field}\0".encode() for field in fields)
        to: tuple[str, int] | None = (SERVER, 69)
        sock.sendto(last, (SERVER, 69))
        buffer, loader = self.rack.buffer, self.rack.loader
        expected, got, left, silent = 1, 0, WINDOW, 0
        while True:
            if not (yield 1.0):
                silent += 1
                if silent == 6:
                    raise Again("TFTP: no answer")
                with contextlib.suppress(OSError):
                    sock.sendto(last, to) if to is not None else sock.send(last)
                continue
            silent = 0
            for _ in range(WINDOW):
                try:
                    if to is not None:
                        size, peer = sock.recvfrom_into(buffer)
                        sock.connect(peer)
                        to = None
                    else:
                        size = sock.recv_into(buffer)
                except BlockingIOError:
                    break
                except OSError as error:
                    raise Again(f"TFTP: {error.strerror}") from None
                if buffer[1] == 6:
                    last = b"\0\4\0\0"
                elif buffer[1] != 3:
                    raise Again(f"TFTP: {bytes(buffer[4 : size - 1])!r}")
                elif buffer[2] << 8 | buffer[3] != expected & 0xFFFF:
                    last = struct.pack("!HH", 4, (expected - 1) & 0xFFFF)
                    left = WINDOW
                else:
                    if buffer[4:size] != loader[got : got + size - 4]:
                        raise GivesUp("a wrong byte by TFTP")
                    got += size - 4
                    last = struct.pack("!HH", 4, expected & 0xFFFF)
                    expected += 1
                    left -= 1
                    if size - 4 < BLKSIZE:
                        sock.send(last)
                        self.close()
                        if got != len(loader):
                            raise GivesUp("a short loader by TFTP")
                        return
                    if left:
                        continue
                    left = WINDOW
                with contextlib.suppress(OSError):
                    sock.send(last)

    # ---- HTTP ------------------------------------------------------------------------------------

    def get(
        self, target: str, *, expected: bytes | None = None, into: bytearray | None = None
    ) -> Steps:
        """One GET on the connection that there is, for as long as the server says "later"."""
        while True:
            sock = yield from self.connected()
            agent = "iPXE/1.21.1+ (g4e456)"
            sock.send(f"GET {target} HTTP/1.1\r\nHost: x\r\nUser-Agent: {agent}\r\n\r\n".encode())
            status, headers = yield from self.head(sock)
            length = int(headers.get("content-length", "0"))
            wanted = expected if status == 200 and self.checks else None
            yield from self.body(sock, length, wanted, into if status == 200 else None)
            if status == 503 and "retry-after" in headers:
                self.rack.told_to_wait += 1
                yield from self.sleep(int(headers["retry-after"]))
                continue
            if status != 200:
                raise Again(f"status {status}")
            if expected is not None and length != len(expected):
                raise GivesUp(f"{length} bytes of {len(expected)}")
            self.rack.bytes += length
            return

    def connected(self) -> Generator[float, bool, socket.socket]:
        if self.sock is not None:
            return self.sock
        sock = self.open(socket.SOCK_STREAM)
        code = sock.connect_ex((SERVER, PORT))
        if code == errno.EINPROGRESS:
            self.rack.epoll.modify(sock.fileno(), select.EPOLLOUT)
            if not (yield PATIENCE):
                raise Again("HTTP: no connection")
            self.rack.epoll.modify(sock.fileno(), select.EPOLLIN)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise Again(f"HTTP: {os.strerror(code)}")
        return sock

    def head(self, sock: socket.socket) -> Generator[float, bool, tuple[int, dict[str, str]]]:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (yield PATIENCE):
                raise Again("HTTP: no answer")
            data += self.receive(sock, 65536)
        top, _, self.buffered = data.partition(b"\r\n\r\n")
        first, *lines = top.decode("ascii").split("\r\n")
        fields = (line.partition(": ") for line in lines)
        return int(first.split()[1]), {name.lower(): value for name, _, value in fields}

    def body(
        self, sock: socket.socket, length: int, wanted: bytes | None, into: bytearray | None
    ) -> Steps:
        got, piece = len(self.buffered), self.buffered
        if into is not None:
            into += piece
        if wanted is not None and piece != wanted[:got]:
            raise GivesUp("a wrong byte by HTTP")
        buffer = self.rack.buffer
        flags = socket.MSG_TRUNC if wanted is None and into is None else 0
        view = memoryview(wanted) if wanted is not None else None
        while got < length:
            if not (yield PATIENCE):
                raise Again("HTTP: no bytes")
            try:
                # With MSG_TRUNC the kernel throws the bytes away where they are (tcp(7)).
                size = sock.recv_into(buffer, min(length - got, len(buffer)), flags)
            except BlockingIOError:
                continue
            except OSError as error:
                raise Again(f"HTTP: {error.strerror}") from None
            if not size:
                raise Again("HTTP: cut off")
            if view is not None and self.rack.view[:size] != view[got : got + size]:
                raise GivesUp("a wrong byte by HTTP")
            if into is not None:
                into += self.rack.view[:size]
            got += size

    def receive(self, sock: socket.socket, size: int) -> bytes:
        try:
            data = sock.recv(size)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise Again(f"HTTP: {error.strerror}") from None
        if not data:
            raise Again("HTTP: cut off")
        return data

    def open(self, kind: socket.SocketKind) -> socket.socket:
        self.close()
        self.sock = socket.socket(socket.AF_INET, kind)
        self.sock.setblocking(False)
        self.sock.bind((address(self.number), 0))
        self.rack.epoll.register(self.sock.fileno(), select.EPOLLIN)
        self.rack.by_fd[self.sock.fileno()] = self
        return self.sock

    def close(self) -> None:
        if self.sock is not None:
            del self.rack.by_fd[self.sock.fileno()]
            self.sock.close()  # which takes it out of epoll
            self.sock = None


class Rack:
    """All machines in one process: epoll, timers, and as little else as possible."""

    def __init__(self, interface: str, files: dict[str, bytes], loader: bytes) -> None:
        self.files = files
        self.loader = loader
        self.buffer = bytearray(1 << 20)
        self.view = memoryview(self.buffer)
        self.epoll = select.epoll()
        self.by_fd: dict[int, Machine] = {}
        self.timers: list[tuple[float, int]] = []
        self.running: dict[int, Machine] = {}
        self.finished: list[dict[str, float]] = []
        self.ups: list[float] = []
        self.failed: Counter[str] = Counter()
        self.again: Counter[str] = Counter()
        self.told_to_wait = 0
        self.bytes = 0
        self.server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for level, name, value in (
            (socket.SOL_SOCKET, socket.SO_BROADCAST, 1),
            (socket.SOL_SOCKET, 33, 64 << 20),  # SO_RCVBUFFORCE
            (socket.SOL_SOCKET, 32, 8 << 20),  # SO_SNDBUFFORCE
        ):
            self.server.setsockopt(level, name, value)
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        self.server.bind(("", 68))
        self.server.setblocking(False)
        self.epoll.register(self.server.fileno(), select.EPOLLIN)

    def broadcast(self, packet: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            self.server.sendto(packet, ("255.255.255.255", 67))

    def run(self, boots: int, at_once: int, seconds: float) -> dict[str, Any]:
        waiting = deque(range(boots))
        began = time.monotonic()
        while waiting or self.running:
            while waiting and len(self.running) < at_once:
                machine = Machine(self, waiting.popleft())
                self.running[machine.number] = machine
                self.step(machine, False)
            now = time.monotonic()
            if now - began > seconds:
                self.failed["not up in time"] += len(waiting) + len(self.running)
                break
            self.turn(now)
        took = max(self.ups, default=0.0) - began if self.ups else 0.0
        return {
            "up": len(self.finished),
            "failed": dict(self.failed),
            "again": dict(self.again.most_common(8)),
            "told_to_wait": self.told_to_wait,
            "bytes": self.bytes,
            "seconds": took,
            "half": sorted(self.ups)[len(self.ups) // 2] - began if self.ups else 0.0,
            "stages": {
                stage: percentiles([times[stage] for times in self.finished if stage in times])
                for stage in STAGES
            },
        }

    def turn(self, now: float) -> None:
        while self.timers and self.timers[0][0] <= now:
            due, number = heapq.heappop(self.timers)
            machine = self.running.get(number)
            if machine is None or due != machine.timer:
                continue
            machine.timer = float("inf")
            if machine.wake <= now:
                self.step(machine, False)
            else:  # it had something to read meanwhile
                self.set_timer(machine)
        pause = max(min(self.timers[0][0] - now, 0.5), 0) if self.timers else 0.5
        for fd, _ in self.epoll.poll(pause, 256):
            if fd == self.server.fileno():
                self.offers()
            elif (found := self.by_fd.get(fd)) is not None:
                self.step(found, True)

    def offers(self) -> None:
        for _ in range(64):
            try:
                data = self.server.recv(2048)
            except BlockingIOError:
                return
            machine = self.running.get(int.from_bytes(data[4:8], "big"))
            if machine is not None and machine.sock is None and not machine.answer:
                machine.answer = data
                self.step(machine, True)

    def step(self, machine: Machine, readable: bool) -> None:
        try:
            wait = next(machine.steps) if not machine.wake else machine.steps.send(readable)
        except StopIteration:
            self.finished.append(machine.times)
            self.ups.append(time.monotonic())
        except GivesUp as reason:
            self.failed[str(reason)] += 1
        else:
            machine.wake = time.monotonic() + wait
            if machine.wake < machine.timer:
                self.set_timer(machine)
            return
        machine.close()
        del self.running[machine.number]

    def set_timer(self, machine: Machine) -> None:
        machine.timer = machine.wake
        heapq.heappush(self.timers, (machine.timer, machine.number))


def percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    values.sort()
    return {
        "p50": values[len(values) // 2],
        "p99": values[int(len(values) * 0.99)],
        "max": values[-1],
    }
