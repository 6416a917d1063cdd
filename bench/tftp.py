"""TFTP under load: bootd against dnsmasq, tftpd-hpa and atftpd, in one run.

    python bench/tftp.py [--seconds 3] [--rounds 3] [--servers bootd,dnsmasq] [--loads "16 W4,..."]

Clients read a file of 1 MB again and again, in blocks of 1468 bytes, and every read is checked.
Server and clients are in network namespaces joined by a veth pair, each on its own core where
there are two. Losses and round trips are made by the clients, alike for every server: they drop
what they receive, and their own ACKs, by chance; they hold an ACK back. They wait three seconds, as
EDK2 does, before they repeat anything. bootd is the whole daemon. The peers are Debian's, installed
or else unpacked under ``build/lab`` and never started as services. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
# As a script this file brings its folder, whose http.py stands in the standard library's way.
sys.path[:] = [str(ROOT), *(p for p in sys.path if Path(p).resolve() != ROOT / "bench")]

from tests.lab.packages import borrow  # noqa: E402

PREFIX: Final = f"tb{os.getpid()}"
SERVER: Final = "10.98.0.1"
CLIENT: Final = "10.98.0.2"
FILE: Final = "loader.efi"
SIZE: Final = 1_000_000
BLKSIZE: Final = 1468
PATIENCE: Final = 3.0


@dataclass(frozen=True)
class Load:
    """`loss` is a chance from 0 to 1, each way; `delay` is seconds that an ACK is held back."""

    name: str
    clients: int
    windowsize: int
    loss: float = 0.0
    delay: float = 0.0


LOADS: Final = (
    Load("1 W1", 1, 1),
    Load("16 W1", 16, 1),
    Load("256 W1", 256, 1),
    Load("16 W4", 16, 4),
    Load("16 W16", 16, 16),
    Load("16 W1 1%", 16, 1, loss=0.01),
    Load("16 W16 1%", 16, 16, loss=0.01),
    Load("16 W4 5%", 16, 4, loss=0.05),
    Load("1 W16 1ms", 1, 16, delay=0.001),
)
CROWD: Final = Load("1000 W4 50ms", 1000, 4, delay=0.05)


# ---- the clients ---------------------------------------------------------------------------------


class Clients:
    """All readers in one process: epoll and nothing between, so that the servers are measured."""

    def __init__(self, load: Load, content: bytes) -> None:
        self.load = load
        self.blocks = [content[at : at + BLKSIZE] for at in range(0, len(content) + 1, BLKSIZE)]
        self.bytes = 0
        self.reads = 0
        self.wrong = 0
        self.repeats = 0
        self.buffer = bytearray(2048)
        self.random = random.Random(1).random
        self.epoll = select.epoll()
        self.readers: dict[int, Reader] = {}
        self.held: deque[tuple[float, Reader, socket.socket, bytes]] = deque()

    def run(self, seconds: float) -> dict[str, Any]:
        for _ in range(self.load.clients):
            Reader(self).start()
        begun = checked = time.monotonic()
        while (now := time.monotonic()) - begun < seconds:
            for number, _ in self.epoll.poll(0 if self.held else 0.05):
                reader = self.readers.get(number)
                if reader is not None:
                    reader.readable()
            while self.held and self.held[0][0] <= time.monotonic():
                _, reader, sock, packet = self.held.popleft()
                if reader.sock is sock:
                    reader.put(packet)
            if now - checked > 0.1:
                checked = now
                for reader in list(self.readers.values()):
                    if now - reader.heard > PATIENCE:
                        reader.heard = now
                        self.repeats += 1
                        reader.put(reader.last)
        took = time.monotonic() - begun
        return {
            "rate": self.bytes / took / 1e6,
            "bytes": self.bytes,
            "reads": self.reads,
            "wrong": self.wrong,
            "repeats": self.repeats,
        }


class Reader:
    """One client that reads the file again and again, each time from a new port."""

    def __init__(self, clients: Clients) -> None:
        self.clients = clients
        self.window = clients.load.windowsize
        options = f"blksize\0{BLKSIZE}\0"
        if self.window > 1:
            options += f"windowsize\0{self.window}\0"
        self.request = f"\0\1{FILE}\0octet\0{options}".encode()
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def start(self) -> None:
        self.sock.close()
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.bind((CLIENT, 0))
        self.clients.epoll.register(self.sock.fileno(), select.EPOLLIN)
        self.clients.readers[self.sock.fileno()] = self
        self.connected = False
        self.expected, self.left, self.granted = 1, 1, 1
        self.complained = False
        self.got, self.right = 0, True
        self.heard = time.monotonic()
        self.last = self.request
        self.sock.sendto(self.request, (SERVER, 69))

    def put(self, packet: bytes) -> None:
        with contextlib.suppress(OSError):
            if self.connected:
                self.sock.send(packet)
            else:
                self.sock.sendto(packet, (SERVER, 69))

    def readable(self) -> None:
        buffer, loss = self.clients.buffer, self.clients.load.loss
        self.heard = time.monotonic()
        for _ in range(self.granted):
            try:
                if self.connected:
                    size = self.sock.recv_into(buffer)
                else:
                    size, peer = self.sock.recvfrom_into(buffer)
                    self.sock.connect(peer)
                    self.connected = True
            except OSError:
                return
            if loss and self.clients.random() < loss:
                continue
            if buffer[1] == 3:
                if self.data(buffer[2] << 8 | buffer[3], size - 4):
                    return
            elif buffer[1] == 6:
                fields = bytes(buffer[2:size]).split(b"\0")
                granted = dict(zip(fields[::2], fields[1::2], strict=False))
                self.granted = self.left = int(granted.get(b"windowsize", b"1"))
                self.acknowledge(0)
            else:
                raise SystemExit(f"the server refuses: {bytes(buffer[2:size])!r}")

    def data(self, number: int, size: int) -> bool:
        """One block; True where it was the last."""
        if number != self.expected:
            if not self.complained or number == (self.expected - 1) & 0xFFFF:
                self.complained = True
                self.left = self.granted
                self.acknowledge((self.expected - 1) & 0xFFFF)
            return False
        self.complained = False
        self.expected = (number + 1) & 0xFFFF
        self.left -= 1
        self.clients.bytes += size
        if self.clients.buffer[4 : 4 + size] != self.clients.blocks[self.got]:
            self.right = False
        self.got += 1
        if size < BLKSIZE:
            self.acknowledge(number)
            self.finish()
            return True
        if self.left == 0:
            self.left = self.granted
            self.acknowledge(number)
        return False

    def acknowledge(self, number: int) -> None:
        self.last = packet = bytes((0, 4, number >> 8, number & 0xFF))
        load = self.clients.load
        if load.loss and self.clients.random() < load.loss:
            return
        if load.delay:
            self.clients.held.append((time.monotonic() + load.delay, self, self.sock, packet))
        else:
            self.put(packet)

    def finish(self) -> None:
        self.clients.wrong += not (self.right and self.got == len(self.clients.blocks))
        self.clients.reads += 1
        self.clients.epoll.unregister(self.sock.fileno())
        del self.clients.readers[self.sock.fileno()]
        if self.clients.load.delay:
            self.put(self.last)  # before the port is closed
        self.start()


def content() -> bytes:
    return random.Random(0).randbytes(SIZE)


def clients(load: Load, seconds: float) -> None:
    """The load, in its own process and namespace; prints JSON."""
    deadline = time.monotonic() + 30
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(0.2)
        while True:  # until the server answers at all
            probe.sendto(b"\0\1no-such-file\0octet\0", (SERVER, 69))
            with contextlib.suppress(OSError):
                probe.recv(2048)
                break
            if time.monotonic() > deadline:
                sys.exit("the server does not answer")
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(Clients(load, content()).run(seconds)), flush=True)


# ---- the servers ---------------------------------------------------------------------------------


def bootd(folder: Path) -> list[str]:
    for name in ("state", "run", "overlays"):
        (folder / name).mkdir(mode=0o700)
    (folder / "files").rename(folder / "state" / "tftp")
    (folder / "bootd.yaml").write_text(
        f"interfaces: [{PREFIX}s]\nstate_dir: state\nrun_dir: run\nnodes: [nodes.yaml]\n"
        "dhcp: {mode: off}\ntftp: {max_per_client: 1024}\nlog: {level: info, format: json}\n"
    )
    (folder / "nodes.yaml").write_text("nodes: {}\n")
    return [sys.executable, "-m", "bootd", "serve", "--config", str(folder / "bootd.yaml")]


def dnsmasq(folder: Path) -> list[str]:
    return [
        *peer("dnsmasq", "dnsmasq-base"), "--keep-in-foreground", "--conf-file=/dev/null",
        "--port=0", "--user=root", "--pid-file=", "--log-facility=/dev/null", "--enable-tftp",
        f"--tftp-root={folder}/files", "--tftp-max=2000", f"--interface={PREFIX}s",
    ]  # fmt: skip


def tftpd_hpa(folder: Path) -> list[str]:
    program = peer("in.tftpd", "tftpd-hpa")
    return [*program, "-L", "-a", ":69", "-u", "root", "-s", f"{folder}/files"]


def atftpd(folder: Path) -> list[str]:
    program = peer("atftpd", "atftpd")
    return [
        *program, "--daemon", "--no-fork", "--user", "root", "--group", "root",
        "--maxthread", "2000", "--logfile", "/dev/null", f"{folder}/files",
    ]  # fmt: skip


SERVERS: Final[dict[str, Callable[[Path], list[str]]]] = {
    "bootd": bootd,
    "dnsmasq": dnsmasq,
    "tftpd-hpa": tftpd_hpa,
    "atftpd": atftpd,
}


def peer(program: str, package: str) -> list[str]:
    """The program where it is installed, or unpacked from its package, without its service."""
    path, environment = borrow(program, package)
    return ["env", *(f"{name}={value}" for name, value in environment.items()), str(path)]


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_megabytes(process: int) -> float:
    """The most memory it ever had; not a number where it has died."""
    _, found, rest = Path(f"/proc/{process}/status").read_text().partition("VmHWM:")
    return int(rest.split()[0]) / 1024 if found else float("nan")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Two namespaces and a wire."""
    names = (f"{PREFIX}-server", f"{PREFIX}-client")
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", names[0], "link", "add", f"{PREFIX}s", "type", "veth",
           "peer", "name", f"{PREFIX}c", "netns", names[1])  # fmt: skip
        for name, end, address in ((names[0], "s", SERVER), (names[1], "c", CLIENT)):
            ip("-n", name, "address", "add", f"{address}/16", "dev", f"{PREFIX}{end}")
            ip("-n", name, "link", "set", f"{PREFIX}{end}", "up")
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)


def inside(name: str, core: int, arguments: list[str]) -> list[str]:
    cores = sorted(os.sched_getaffinity(0))
    pinned = ["taskset", "-c", str(cores[core])] if len(cores) > 1 else []
    return ["ip", "netns", "exec", f"{PREFIX}-{name}", *pinned, *arguments]


def measure(server: str, load: Load, seconds: float) -> dict[str, Any]:
    """One round against one server."""
    with tempfile.TemporaryDirectory() as text, network():
        folder = Path(text)
        folder.chmod(0o755)
        (folder / "files").mkdir(mode=0o755)
        (folder / "files" / FILE).write_bytes(content())
        log = (folder / "log").open("w")
        running = subprocess.Popen(
            inside("server", 0, SERVERS[server](folder)), stdout=log, stderr=log
        )
        arguments = ["--clients", json.dumps(asdict(load)), "--seconds", str(seconds)]
        reading = subprocess.Popen(
            inside("client", 1, [sys.executable, __file__, *arguments]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert reading.stdin is not None
            assert reading.stdout is not None
            if reading.stdout.readline() != "ready\n":
                sys.exit(f"{server}: {(folder / 'log').read_text()[-2000:]}")
            before = cpu_seconds(running.pid)
            reading.stdin.write("\n")
            reading.stdin.flush()
            line = reading.stdout.readline()
            if not line:
                sys.exit(f"{server}, {load.name}: the clients failed")
            result: dict[str, Any] = json.loads(line)
            used = cpu_seconds(running.pid) - before
            # tftpd-hpa disowns a child for each transfer, whose time nobody is told.
            known = result["bytes"] and server != "tftpd-hpa"
            result["cpu"] = used / (result["bytes"] / 1e9) if known else float("nan")
            result["peak"] = peak_megabytes(running.pid)
        finally:
            reading.kill()
            reading.wait()
            running.send_signal(signal.SIGTERM)
            running.wait()
            log.close()
    if result["wrong"]:
        sys.exit(f"{server}, {load.name}: {result['wrong']} files arrived wrong")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", default=",".join(SERVERS))
    parser.add_argument("--loads", default=",".join(load.name for load in (*LOADS, CROWD)))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--clients", metavar="LOAD", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.clients:
        clients(Load(**json.loads(wanted.clients)), wanted.seconds)
        return
    if os.geteuid() != 0:
        sys.exit("bench/tftp.py makes network namespaces: run it as root")
    for program in ("ip", "taskset"):
        if shutil.which(program) is None:
            sys.exit(f"bench/tftp.py needs {program}: install iproute2 and util-linux")
    servers = wanted.servers.split(",")
    names = wanted.loads.split(",")
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for load in (load for load in (*LOADS, CROWD) if load.name in names):
        rounds: dict[str, list[dict[str, Any]]] = {server: [] for server in servers}
        for _ in range(wanted.rounds):
            for server in servers:
                rounds[server].append(measure(server, load, wanted.seconds))
        figures[load.name] = {
            server: {
                figure: statistics.median(found[figure] for found in results)
                for figure in ("rate", "cpu", "peak", "reads", "repeats")
            }
            | {
                "least": min(found["rate"] for found in results),
                "most": max(found["rate"] for found in results),
            }
            for server, results in rounds.items()
        }
        if not wanted.json:
            print(lines(load.name, figures[load.name]), flush=True)
    if wanted.json:
        print(json.dumps(figures))


def lines(name: str, found: dict[str, dict[str, float]]) -> str:
    """One load: each server, and bootd's ratio to the best peer and to each."""
    text = [
        f"{name:13} {server:10} {figure['rate']:8.1f} MB/s"
        f" ({figure['least']:.0f} to {figure['most']:.0f}) {figure['cpu']:7.2f} CPU s/GB"
        f" {figure['peak']:6.1f} MB peak {figure['reads']:6.0f} files"
        f" {figure['repeats']:4.0f} client waits"
        for server, figure in found.items()
    ]
    ours = found.get("bootd")
    peers = {server: figure for server, figure in found.items() if server != "bootd"}
    if ours and peers:
        ratios = ", ".join(
            f"{server} x{ratio(ours['rate'], figure['rate'])}"
            f" (CPU x{ratio(ours['cpu'], figure['cpu'])})"
            for server, figure in peers.items()
        )
        text.append(f"{'':13} bootd / {ratios}")
    return "\n".join(text)


def ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f}" if theirs else "nan"


if __name__ == "__main__":
    main()
