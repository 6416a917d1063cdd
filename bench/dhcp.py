"""DHCP under load: bootd's answers a second, delays and losses against dnsmasq's, in one run.

    python bench/dhcp.py [--seconds 10] [--rounds 3] [--outstanding 100]
    python bench/dhcp.py --load     while bootd sends files as well: bench/loaded.py

Ten thousand machines (BIOS PXE) ask in a closed loop: each reply lets the next one ask. Then they
all ask at once. Server and machines are in network namespaces joined by a veth pair, each on its
own core where there are two. Both servers are proxies: bootd is the whole daemon with ten thousand
nodes in its registry, its log at the level `info` going to a file; dnsmasq has its DHCP log off.
Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

MACHINES: Final = 10_000
PREFIX: Final = f"bench{os.getpid()}"
SERVER: Final = "10.98.0.1"
CLIENT: Final = "10.98.255.254"
LOST_AFTER: Final = 1.0
QUIET: Final = 1.5
CLASS: Final = b"PXEClient:Arch:00000:UNDI:002001"


def mac(number: int) -> bytes:
    return b"\x52\x54\x01" + number.to_bytes(3, "big")


def discover(number: int) -> bytes:
    """What an Intel boot ROM sends; the transaction id is the machine's number."""
    header = struct.pack("!BBBBIHH", 1, 1, 6, 0, number, 0, 0x8000)
    options = [
        (53, b"\x01"),
        (55, bytes((1, 2, 3, 5, 6, 11, 12, 13, 15, 16, 17, 18, 43, 54, 60, 67, 128, 129))),
        (57, (1472).to_bytes(2, "big")),
        (97, b"\0" + bytes(10) + mac(number)),
        (93, b"\0\0"),
        (94, b"\x01\x02\x01"),
        (60, CLASS),
    ]
    tail = b"".join(bytes((code, len(value))) + value for code, value in options)
    body = bytes(16) + mac(number).ljust(16, b"\0") + bytes(192) + b"\x63\x82\x53\x63"
    return (header + body + tail + b"\xff").ljust(300, b"\0")


# ---- the machines --------------------------------------------------------------------------------


class Machines:
    """Ten thousand boot ROMs behind one socket."""

    def __init__(self, interface: str) -> None:
        self.packets = [discover(number) for number in range(MACHINES)]
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for force, plain, size in (
            (33, socket.SO_RCVBUF, 64 << 20),
            (32, socket.SO_SNDBUF, 8 << 20),
        ):
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, force, size)
            except OSError:
                self.sock.setsockopt(socket.SOL_SOCKET, plain, size)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        self.sock.bind(("", 68))
        self.sock.setblocking(False)

    def ask(self, number: int) -> None:
        self.sock.sendto(self.packets[number], ("255.255.255.255", 67))

    def answer(self) -> int | None:
        """The machine that was answered, or None."""
        try:
            data = self.sock.recv(2048)
        except BlockingIOError:
            return None
        return int.from_bytes(data[4:8], "big")

    def loop(self, seconds: float, outstanding: int) -> dict[str, Any]:
        """A closed loop: `outstanding` machines wait for an answer at any time."""
        asked = [0.0] * MACHINES
        delays: list[float] = []
        clock, ask, answer = time.perf_counter, self.ask, self.answer
        order = list(range(MACHINES))
        random.Random(1).shuffle(order)
        upcoming = iter(order * 1000)
        lost = 0
        begun = clock()
        for _ in range(outstanding):
            number = next(upcoming)
            asked[number] = clock()
            ask(number)
        last = clock()
        while (now := clock()) - begun < seconds:
            found = answer()
            if found is None:
                if now - last > LOST_AFTER:
                    waiting = [number for number in order if asked[number]]
                    lost += len(waiting)
                    for number in waiting:
                        asked[number] = now
                        ask(number)
                    last = now
                continue
            if not asked[found]:
                continue
            last = now
            delays.append(now - asked[found])
            asked[found] = 0.0
            number = next(upcoming)
            while asked[number]:
                number = next(upcoming)
            asked[number] = clock()
            ask(number)
        took = clock() - begun
        delays.sort()
        return {
            "replies": len(delays),
            "rate": len(delays) / took,
            "p50": delays[len(delays) // 2] * 1000,
            "p99": delays[len(delays) * 99 // 100] * 1000,
            "lost": lost,
        }

    def drain(self) -> int:
        """Take answers until there are none for a while; how many machines got one."""
        answered: set[int] = set()
        last = time.perf_counter()
        while time.perf_counter() - last < QUIET:
            found = self.answer()
            if found is not None:
                answered.add(found)
                last = time.perf_counter()
        return len(answered)

    def burst(self) -> dict[str, Any]:
        """Everyone at once: how many stay without an answer."""
        self.drain()
        begun = time.perf_counter()
        for number in range(MACHINES):
            self.ask(number)
        sent = time.perf_counter() - begun
        return {"lost": MACHINES - self.drain(), "sent_in": sent}


def machines(interface: str, seconds: float, outstanding: int) -> None:
    """The load, in its own process and namespace; prints JSON."""
    made = Machines(interface)
    deadline = time.monotonic() + 60
    while True:  # until the server answers at all
        made.ask(0)
        time.sleep(0.05)
        if made.answer() is not None:
            break
        if time.monotonic() > deadline:
            sys.exit("the server does not answer")
    made.drain()
    print("ready", flush=True)
    sys.stdin.readline()
    result = made.loop(seconds, outstanding)
    print(json.dumps(result), flush=True)
    sys.stdin.readline()
    print(json.dumps(made.burst()), flush=True)


# ---- the servers ---------------------------------------------------------------------------------


def dnsmasq(_: Path) -> list[str]:
    return [
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--port=0",
        "--user=root",
        "--pid-file=",
        "--leasefile-ro",
        "--quiet-dhcp",
        "--log-facility=/dev/null",
        "--dhcp-range=10.98.0.0,proxy,255.255.0.0",
        "--pxe-service=x86PC,boot,undionly.kpxe",
        f"--interface={PREFIX}s",
    ]


def bootd(folder: Path) -> list[str]:
    (folder / "overlays").mkdir()
    for name in ("state", "run"):
        (folder / name).mkdir(mode=0o700)
    (folder / "bootd.yaml").write_text(
        f"interfaces: [{PREFIX}s]\nstate_dir: state\nrun_dir: run\nnodes: [nodes.yaml]\n"
        "tftp: {port: 10069}\nlog: {level: info, format: json}\n"
    )
    lines = ["profiles:\n  default: {}\nnodes:\n"]
    lines += [
        f'  n{number}: {{mac: "{mac(number).hex(":")}", profiles: [default]}}\n'
        for number in range(MACHINES)
    ]
    (folder / "nodes.yaml").write_text("".join(lines))
    return [sys.executable, "-m", "bootd", "serve", "--config", str(folder / "bootd.yaml")]


SERVERS: Final = {"bootd": bootd, "dnsmasq": dnsmasq}


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_megabytes(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


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


def measure(server: str, seconds: float, outstanding: int) -> dict[str, Any]:
    """One round against one server."""
    with tempfile.TemporaryDirectory() as text, network():
        folder = Path(text)
        log = (folder / "log").open("w")
        command = SERVERS[server](folder)
        running = subprocess.Popen(inside("server", 0, command), stdout=log, stderr=log)
        load = subprocess.Popen(
            inside(
                "client",
                1,
                [sys.executable, __file__, "--machines", f"{PREFIX}c", "--seconds", str(seconds),
                 "--outstanding", str(outstanding)],
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        try:
            assert load.stdin is not None
            assert load.stdout is not None
            if load.stdout.readline() != "ready\n":
                sys.exit(f"{server}: {(folder / 'log').read_text()[-2000:]}")
            before = cpu_seconds(running.pid)
            load.stdin.write("\n")
            load.stdin.flush()
            result: dict[str, Any] = json.loads(load.stdout.readline())
            result["cpu"] = (cpu_seconds(running.pid) - before) * 1e6 / result["replies"]
            load.stdin.write("\n")
            load.stdin.flush()
            result["burst"] = json.loads(load.stdout.readline())
            result["peak"] = peak_megabytes(running.pid)
        finally:
            load.kill()
            load.wait()
            running.send_signal(signal.SIGTERM)
            running.wait()
            log.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--outstanding", type=int, default=100)
    parser.add_argument("--servers", default="dnsmasq,bootd")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--load", action="store_true", help="bench/loaded.py instead")
    parser.add_argument("--machines", metavar="INTERFACE", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.machines:
        machines(wanted.machines, wanted.seconds, wanted.outstanding)
        return
    if wanted.load:
        times = ["--seconds", str(wanted.seconds), "--rounds", str(wanted.rounds)]
        script = Path(__file__).with_name("loaded.py")
        sys.exit(subprocess.run([sys.executable, script, *times], check=False).returncode)
    if os.geteuid() != 0:
        sys.exit("bench/dhcp.py makes network namespaces: run it as root")
    for program in ("ip", "dnsmasq", "taskset"):
        if shutil.which(program) is None:
            sys.exit(f"bench/dhcp.py needs {program}: install dnsmasq-base, iproute2, util-linux")
    servers = wanted.servers.split(",")
    results: dict[str, list[dict[str, Any]]] = {server: [] for server in servers}
    for _ in range(wanted.rounds):
        for server in servers:
            results[server].append(measure(server, wanted.seconds, wanted.outstanding))
    middle = {server: median(rounds) for server, rounds in results.items()}
    print(json.dumps(middle) if wanted.json else table(middle))


def median(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """The middle of each figure."""
    figures = {
        name: statistics.median(found[name] for found in rounds)
        for name in ("rate", "p50", "p99", "cpu", "peak", "lost")
    }
    figures["burst"] = statistics.median(found["burst"]["lost"] for found in rounds)
    for name in ("rate", "p99"):
        values = [found[name] for found in rounds]
        figures[f"{name}_least"], figures[f"{name}_most"] = min(values), max(values)
    return figures


def table(figures: dict[str, dict[str, float]]) -> str:
    lines = [
        f"{'server':10} {'replies/s':>10} {'p50 ms':>8} {'p99 ms':>8} {'CPU us':>8} {'peak MB':>8}"
        f" {'lost in loop':>13} {f'lost of {MACHINES} at once':>23}"
    ]
    lines += [
        f"{server:10} {found['rate']:10.0f} {found['p50']:8.2f} {found['p99']:8.2f}"
        f" {found['cpu']:8.1f} {found['peak']:8.1f} {found['lost']:13.0f} {found['burst']:23.0f}"
        for server, found in figures.items()
    ]
    lines += [
        f"{server:10} replies/s {found['rate_least']:.0f} to {found['rate_most']:.0f},"
        f" p99 {found['p99_least']:.2f} to {found['p99_most']:.2f} ms"
        for server, found in figures.items()
    ]
    if {"bootd", "dnsmasq"} <= figures.keys():
        ours, theirs = figures["bootd"], figures["dnsmasq"]
        lines.append(
            f"bootd / dnsmasq: replies/s x{ours['rate'] / theirs['rate']:.2f},"
            f" p99 x{ours['p99'] / theirs['p99']:.2f}, CPU x{ours['cpu'] / theirs['cpu']:.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
