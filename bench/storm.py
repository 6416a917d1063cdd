"""A power-on of everything: N whole boots against one bootd, and how long until the last is up.

    python bench/storm.py [--boots 1000] [--at-once 1000] [--admission on,off] [--wire 10]

Each machine does what a UEFI PC does: DISCOVER, the loader by TFTP (windowsize 4, as EDK2 asks),
DISCOVER as iPXE, its script, then what the script names: kernel, initramfs, the node's own overlay;
at last it reports up. It has its own MAC and IP address, behind one router (the clients'
namespace), waits and asks again as firmware and iPXE do, follows Retry-After, and checks the length
of all it gets; one in fifty checks every byte. A boot that gives up is counted and named.

bootd is the whole daemon, its nodes in racks of 40, its log at level info. It and the machines are
in network namespaces, each on its own core where there are two, joined by a veth pair; --wire makes
that a wire of so many Gbit/s. --kill sends the daemon SIGKILL in the middle and starts it again.
Needs root. No storm lasts longer than --seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
# As a script this file brings its folder, whose http.py stands in the standard library's way.
sys.path[:] = [str(ROOT), *(p for p in sys.path if Path(p).resolve() != ROOT / "bench")]

from bench.clients.machines import LOADER, Rack, address, mac  # noqa: E402
from bench.tftp import CLIENT, PREFIX, cpu_seconds, inside, ip, network  # noqa: E402

LOADER_SIZE: Final = 180_000
"""Bytes of iPXE's snponly.efi, as Debian has it."""
RACK: Final = 40


def content(size: int, seed: int) -> bytes:
    """The same bytes for whoever asks; those of seed 1 begin as an x86 kernel does."""
    block = bytes((seed * 31 + n * 7) & 0xFF for n in range(65521))  # prime: no page repeats soon
    data = bytearray((block * (size // len(block) + 1))[:size])
    if seed == 1:
        data[0x1FE:0x208] = b"\x55\xaa\xeb\x66HdrS\x0f\x02"
    return bytes(data)


def machines(wanted: argparse.Namespace) -> None:
    """The client process: says when it is ready, waits for a line, prints JSON."""
    files = {"kernel": content(wanted.kernel, 1), "initramfs": content(wanted.initramfs, 2)}
    rack = Rack(f"{wanted.interface}c", files, content(LOADER_SIZE, 3))
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(rack.run(wanted.boots, wanted.at_once, wanted.seconds)), flush=True)


# ---- the server ----------------------------------------------------------------------------------


class Server:
    """The daemon in its namespace; may be killed and started again."""

    def __init__(self, folder: Path, wanted: argparse.Namespace, *, admission: bool) -> None:
        self.folder = folder
        self.config = folder / "bootd.yaml"
        self.cpu = 0.0
        self.peak = 0.0
        self.process: subprocess.Popen[bytes] | None = None
        write_site(folder, wanted, admission=admission)
        files = ("--kernel", str(folder / "kernel"), "--initramfs", str(folder / "initramfs"))
        run("image", "--config", str(self.config), "import", "demo", *files)

    def start(self) -> None:
        log = (self.folder / "log").open("ab")
        command = [sys.executable, "-m", "bootd", "serve", "--config", str(self.config)]
        self.process = subprocess.Popen(inside("server", 0, command), stdout=log, stderr=log)
        log.close()
        deadline = time.monotonic() + 60
        while b'"bootd.ready"' not in (self.folder / "log").read_bytes().rpartition(b"starting")[2]:
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit((self.folder / "log").read_text()[-2000:])
            time.sleep(0.05)

    def look(self) -> None:
        assert self.process is not None
        if self.process.poll() is not None:
            sys.exit(f"bootd has ended: {(self.folder / 'log').read_text()[-3000:]}")
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        self.peak = max(self.peak, int(status.partition("VmHWM:")[2].split()[0]) / 1024)

    def kill(self) -> None:
        assert self.process is not None
        self.look()
        self.cpu += cpu_seconds(self.process.pid)
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()


def run(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "bootd", *words], check=True, capture_output=True)


def write_site(folder: Path, wanted: argparse.Namespace, *, admission: bool) -> None:
    """Files, settings and nodes."""
    (folder / "state" / "tftp").mkdir(parents=True)
    (folder / "state" / "tftp" / LOADER).write_bytes(content(LOADER_SIZE, 3))
    (folder / "state" / "tftp" / LOADER).chmod(0o644)
    (folder / "kernel").write_bytes(content(wanted.kernel, 1))
    (folder / "initramfs").write_bytes(content(wanted.initramfs, 2))
    http = {"max_image_transfers": (wanted.limit or "auto") if admission else 65536}
    settings = {
        "interfaces": [f"{PREFIX}s"],
        "state_dir": "state",
        "run_dir": "run",
        "nodes": ["nodes.yaml"],
        "http": http,
        "log": {"level": "info", "format": "json"},
    }
    (folder / "bootd.yaml").write_text(json.dumps(settings))
    nodes = {
        f"n{number:05d}": {
            "mac": mac(number).hex(":"),
            "ip": f"{address(number)}/16",
            "profiles": ["default"],
            "tags": {"rack": f"r{number // RACK:03d}"},
        }
        for number in range(wanted.nodes)
    }
    profile = {
        "image": "demo",
        "kernel": {"args": ["quiet", "console=ttyS0,115200"]},
        "overlays": {"system": ["base", "resolv", "hosts", "fstab"]},
    }
    (folder / "nodes.yaml").write_text(
        json.dumps({"profiles": {"default": profile}, "nodes": nodes})
    )


@contextlib.contextmanager
def wired(wanted: argparse.Namespace) -> Iterator[None]:
    """The namespaces; the machines' network is behind the client's."""
    with network():
        ip("-n", f"{PREFIX}-server", "route", "add", "10.99.0.0/16", "via", CLIENT)
        ip("-n", f"{PREFIX}-client", "route", "add", "local", "10.99.0.0/16", "dev", "lo")
        if wanted.wire:
            subprocess.run(
                ["tc", "-n", f"{PREFIX}-server", "qdisc", "add", "dev", f"{PREFIX}s", "root",
                 "tbf", "rate", f"{wanted.wire}gbit", "burst", "4mb", "limit", "16mb"],
                check=True,
            )  # fmt: skip
        yield


def measure(wanted: argparse.Namespace, *, admission: bool) -> dict[str, Any]:
    """One storm."""
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as text, wired(wanted):
        folder = Path(text)
        server = Server(folder, wanted, admission=admission)
        again = [sys.executable, __file__, *sys.argv[1:]]
        asking = subprocess.Popen(
            inside("client", 1, [*again, "--interface", PREFIX]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            server.start()
            assert server.process is not None
            assert asking.stdin is not None
            assert asking.stdout is not None
            if asking.stdout.readline() != "ready\n":
                sys.exit("the machines failed")
            before = cpu_seconds(server.process.pid)
            server.look()
            idle = server.peak
            asking.stdin.write("\n")
            asking.stdin.flush()
            restarts = 0
            if wanted.kill and not select.select([asking.stdout], [], [], wanted.kill)[0]:
                server.kill()
                server.start()
                restarts = 1
            line = asking.stdout.readline()
            if not line:
                sys.exit("the machines failed")
            figures: dict[str, Any] = json.loads(line)
            server.look()
            figures["cpu"] = server.cpu + cpu_seconds(server.process.pid) - before
            figures |= {"peak": server.peak, "idle": idle, "restarts": restarts}
        finally:
            asking.kill()
            asking.wait()
            server.end()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boots", type=int, default=1000, help="machines, each boots once (1000)")
    parser.add_argument("--at-once", type=int, default=1000, help="of them at any time (1000)")
    parser.add_argument("--nodes", type=int, default=10_000, help="nodes in the registry (10000)")
    parser.add_argument("--kernel", type=int, default=8, metavar="MB", help="(8)")
    parser.add_argument("--initramfs", type=int, default=32, metavar="MB", help="(32)")
    parser.add_argument("--admission", default="on", help="on, off or on,off (on)")
    parser.add_argument("--limit", type=int, metavar="N", help="http.max_image_transfers (auto)")
    parser.add_argument("--wire", type=float, metavar="GBIT", help="speed of the server's link")
    parser.add_argument("--kill", type=float, metavar="SECONDS", help="SIGKILL the daemon then")
    parser.add_argument("--seconds", type=float, default=220.0, help="at most, each storm (220)")
    parser.add_argument("--json", action="store_true", help="figures for programs")
    parser.add_argument("--interface", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    wanted.kernel *= 1 << 20
    wanted.initramfs *= 1 << 20
    wanted.nodes = max(wanted.nodes, wanted.boots)
    if wanted.interface:
        machines(wanted)
        return
    if os.geteuid() != 0:
        sys.exit("bench/storm.py makes network namespaces: run it as root")
    for program in ("ip", "tc", "taskset"):
        if shutil.which(program) is None:
            sys.exit(f"bench/storm.py needs {program}: install iproute2 and util-linux")
    figures = {}
    for choice in wanted.admission.split(","):
        figures[choice] = measure(wanted, admission=choice == "on")
        if not wanted.json:
            print(lines(f"admission {choice}", figures[choice]), flush=True)
    if wanted.json:
        print(json.dumps(figures))
    sys.exit(1 if any(figure["failed"] for figure in figures.values()) else 0)


def lines(name: str, figure: dict[str, Any]) -> str:
    """One storm for people."""
    seconds = figure["seconds"] or 1.0
    text = [
        f"{name}: {figure['up']} up, {sum(figure['failed'].values())} failed; the last after "
        f"{seconds:.1f} s, half of them after {figure['half']:.1f} s; "
        f"{figure['up'] / seconds:.1f} boots/s, {figure['bytes'] / seconds / 1e9:.2f} GB/s",
        f"  bootd: {figure['cpu']:.1f} s of CPU ({figure['cpu'] / max(figure['up'], 1) * 1000:.1f} "
        f"ms a boot), at most {figure['peak']:.0f} MB ({figure['idle']:.0f} MB before); "
        f'{figure["told_to_wait"]} times "ask again later"',
    ]
    if figure["restarts"]:
        text.append("  killed once, and started again")
    for stage, found in figure["stages"].items():
        if found:
            text.append(
                f"  {stage:10} p50 {found['p50']:8.3f} s  p99 {found['p99']:8.3f} s"
                f"  max {found['max']:8.3f} s"
            )
    for kind, note in (("failed", "gave up"), ("again", "tried again")):
        text += [f"  {note}: {count} x {why}" for why, count in figure[kind].items()]
    return "\n".join(text)


if __name__ == "__main__":
    main()
