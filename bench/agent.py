"""Refreshing: what ten thousand running nodes cost that ask every minute whether anything is new.

    python bench/agent.py [--nodes 10000] [--interval 60] [--seconds 20] [--rounds 5]

A whole daemon on loopback, on a core of its own where there are two. Each node has fetched its
runtime overlay (hosts of all nodes, 20 files, a template of its own) once; then they ask at their
pace, each on a connection of its own and with its own key, as the agent does, and are told that
nothing is new. What is reported is the daemon's CPU time, of all its threads, as the scheduler
counts it (to the nanosecond, not by its ticks): the median of the rounds, with the lowest and the
highest. Without pause: every node once, sixteen at a time, which is what a question costs a daemon
whose caches are warm. Changed: the overlay is edited and reloaded, and every node fetches it.
Needs no root.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
# As a script this file brings its folder, whose http.py stands in the standard library's way.
sys.path[:] = [p for p in sys.path if Path(p).resolve() != ROOT / "bench"]

import urllib.request  # noqa: E402

from bootd.boots.nodekeys import derive  # noqa: E402
from bootd.model import Mac, parse_mac  # noqa: E402
from bootd.state import load_node_secrets  # noqa: E402

FILES: Final = 20
AT_ONCE: Final = 16


class Daemon:
    """bootd with `count` nodes, in a process of its own."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.macs = [parse_mac("525402" + n.to_bytes(3, "big").hex()) for n in range(count)]
        self._write()
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bootd", "--config", str(folder / "bootd.yaml"), "serve"],
            stdout=self._log,
            stderr=self._log,
            preexec_fn=lambda: pin(0),
        )
        self.until('"bootd.ready"')
        secret = load_node_secrets(str(folder / "state"))[0]
        self.keys = [derive(secret, f"n{n:05}", mac) for n, mac in enumerate(self.macs)]

    def _write(self) -> None:
        settings = {
            "interfaces": ["lo"], "state_dir": "state", "run_dir": "run", "nodes": ["nodes.yaml"],
            "overlays": ["overlays"], "dhcp": {"mode": "off"}, "tftp": {"enabled": False},
            "http": {"port": self.port}, "log": {"format": "json"},
        }  # fmt: skip
        profile = {"overlays": {"runtime": ["hosts", "live"]}, "tags": {"role": "compute"}}
        nodes = {
            f"n{n:05}": {
                "mac": mac, "ip": f"10.{16 + (n >> 16)}.{n >> 8 & 255}.{n & 255}/8",
                "profiles": ["default"], "tags": {"rack": f"r{n // 40}"},
            }
            for n, mac in enumerate(self.macs)
        }  # fmt: skip
        (self.folder / "bootd.yaml").write_text(json.dumps(settings))
        whole = {"profiles": {"default": profile}, "nodes": nodes}
        (self.folder / "nodes.yaml").write_text(json.dumps(whole))
        self.edit("welcome")

    def edit(self, text: str) -> None:
        """The overlay, with that text in the file that every node has for itself."""
        rootfs = self.folder / "overlays/live/rootfs/etc/live"
        rootfs.mkdir(parents=True, exist_ok=True)
        for number in range(FILES):
            (rootfs / f"plain{number:02}").write_text(f"setting = {number}\n" * (20 + number * 4))
        (rootfs / "own.j2").write_text(f"{text} {{{{ node.name }}}}, rack {{{{ tags.rack }}}}\n")

    def reload(self) -> None:
        """By its command, which waits."""
        config = str(self.folder / "bootd.yaml")
        argv = [sys.executable, "-m", "bootd", "--config", config, "reload"]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)

    def until(self, word: str) -> None:
        """Until the log has that word."""
        deadline = time.monotonic() + 180
        while word not in (self.folder / "log").read_text():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise SystemExit((self.folder / "log").read_text())
            time.sleep(0.05)

    def until_compared(self) -> None:
        """Until what follows a fetch is over: each node's boot is compared with what it has now."""
        deadline = time.monotonic() + 180
        url = f"http://127.0.0.1:{self.port}/status"
        while True:
            with urllib.request.urlopen(url) as answer:
                nodes = json.load(answer)["nodes"]
            if all(node["stale"] is not None for node in nodes):
                return
            if time.monotonic() > deadline:
                raise SystemExit("the daemon does not come to an end of comparing boots")
            time.sleep(1)

    def cpu(self) -> float:
        """Seconds of CPU so far, of all threads that live: the daemon ends none (proc(5))."""
        tasks = Path(f"/proc/{self._process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def memory(self) -> float:
        """MB that are resident."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1000

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()


class Nodes:
    """The running nodes: what each has, by its ETag."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._etags = [""] * len(daemon.macs)
        self.fetched = self.same = 0

    async def ask(self, number: int) -> None:
        """One node's refresh."""
        daemon = self._daemon
        head = request(daemon.macs[number], daemon.keys[number], self._etags[number])
        reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port, limit=1 << 24)
        try:
            writer.write(head)
            answer = await reader.read()
        finally:
            writer.close()
        status = answer[9:12]
        if status == b"304":
            self.same += 1
        elif status == b"200":
            self.fetched += 1
            self._etags[number] = answer.partition(b'ETag: "')[2].partition(b'"')[0].decode()
        else:
            raise SystemExit(f"n{number:05}: {answer[:300]!r}")

    async def all(self) -> None:
        """Every node once, a few at a time."""
        numbers = iter(range(len(self._etags)))

        async def some() -> None:
            for number in numbers:
                await self.ask(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(some())

    async def paced(self, rate: float, seconds: float) -> float:
        """One after the other at `rate` a second for that long; the seconds that it took."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(int(rate * seconds)):
                await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
                group.create_task(self.ask(number * 7919 % len(self._etags)))
        return time.monotonic() - began


def pin(core: int) -> None:
    """Keep this process on that core, where there are two: on the other one's, each would find its
    caches full of the other's."""
    if len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})


def request(mac: Mac, key: str, etag: str) -> bytes:
    """As the agent's curl asks."""
    lines = [
        f"GET /runtime/{mac}?boot=0123456789abcdef HTTP/1.1",
        "Host: 127.0.0.1",
        "User-Agent: curl/7.88.1",
        "Accept: */*",
        f"Authorization: Bearer {key}",
        *([f'If-None-Match: "{etag}"'] if etag else []),
        "Connection: close",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def play(daemon: Daemon, given: argparse.Namespace) -> None:
    nodes = Nodes(daemon)
    before, began = daemon.cpu(), time.monotonic()
    await nodes.all()
    first = daemon.cpu() - before
    print(
        f"{nodes.fetched:,} nodes fetched in {time.monotonic() - began:.1f} s, {first:.1f} s CPU."
    )
    await asyncio.to_thread(daemon.until, '"templates.checked"')  # what a start does is over
    shares: list[float] = []
    warm: list[float] = []
    for _ in range(given.rounds):
        await asyncio.to_thread(daemon.until_compared)
        before = daemon.cpu()
        seconds = await nodes.paced(given.nodes / given.interval, given.seconds)
        shares.append(100 * (daemon.cpu() - before) / seconds)
        before = daemon.cpu()
        await nodes.all()
        warm.append(1000 * (daemon.cpu() - before) / given.nodes)
    show(given, shares, warm)
    daemon.edit("changed")
    await asyncio.to_thread(daemon.reload)
    nodes.fetched, before, began = 0, daemon.cpu(), time.monotonic()
    await nodes.all()
    spent = daemon.cpu() - before
    print(
        f"After an edit {nodes.fetched:,} nodes fetched in {time.monotonic() - began:.1f} s, "
        f"{spent:.1f} s CPU, {1000 * spent / nodes.fetched:.2f} ms each. "
        f"Memory {daemon.memory():.0f} MB."
    )


def show(given: argparse.Namespace, shares: Sequence[float], warm: Sequence[float]) -> None:
    rate = given.nodes / given.interval
    print(
        f"{given.nodes:,} nodes that ask every {given.interval:.0f} s ({rate:.0f} a second) take "
        f"{spread(shares, 1)} % of one core, {spread([10 * s / rate for s in shares], 2)} ms a "
        f"question; without pause {spread(warm, 3)} ms a question."
    )


def spread(values: Sequence[float], digits: int) -> str:
    """The median, and the lowest and highest."""
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main(argv: Any = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--interval", type=float, default=60.0, help="seconds")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        daemon = Daemon(Path(name), given.nodes)
        pin(1)
        try:
            asyncio.run(play(daemon, given))
        finally:
            daemon.end()


if __name__ == "__main__":
    main()
