"""How long a DISCOVER waits for its answer while 100 TFTP and 32 HTTP transfers run.

    python bench/loaded.py [--seconds 10] [--rounds 3] [--tftp 100] [--http 32]

The same bootd sends a 1 MB loader by TFTP (windows of 4 blocks, as EDK2 asks) and a 256 MB
initramfs by HTTP again and again, as fast as the clients take them, and fifty times a second one
machine asks by DHCP. Namespaces and cores as in the other benches. Needs root.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# As in `bench/http.py`, which would stand in the way of the standard library's `http`.
sys.path[:] = [str(ROOT), *(p for p in sys.path if Path(p).resolve() != ROOT / "bench")]

import argparse  # noqa: E402 -- after the path is right
import json  # noqa: E402
import os  # noqa: E402
import select  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402

from bench import http, tftp  # noqa: E402
from bench.dhcp import discover  # noqa: E402

Figures = dict[str, float]


def in_background(work: Callable[[], float]) -> int:
    """`work` in a process of its own that gives way to the probe; the end of a pipe that tells what
    it returned."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.nice(10)
        os.write(writing, str(work()).encode())
        os._exit(0)
    os.close(writing)
    return reading


def told(pipe: int) -> float:
    text = os.read(pipe, 100)
    os.close(pipe)
    os.wait()
    if not text:
        sys.exit("a client failed")
    return float(text)


def load(seconds: float, readers: int, downloads: int, interface: str) -> None:
    """The clients; waits for a line, prints JSON."""
    http.wait_for_server()
    print("ready", flush=True)
    sys.stdin.readline()
    loader = tftp.content()

    def read() -> float:
        many = tftp.Clients(tftp.Load("", readers, 4), loader)
        return float(many.run(seconds + 1)["rate"])

    def download() -> float:
        return http.download(downloads, f"/initramfs/{http.MAC}", seconds + 0.5)["rate"]

    pipes = [in_background(work) for work in (read, download)]
    time.sleep(1)
    times = sorted(probe(interface, seconds))
    figures = dict(zip(("tftp", "http"), map(told, pipes), strict=True))
    figures["p50"] = times[len(times) // 2] * 1000
    figures["p99"] = times[len(times) * 99 // 100] * 1000
    figures["worst"] = times[-1] * 1000
    print(json.dumps(figures), flush=True)


def probe(interface: str, seconds: float) -> list[float]:
    """Seconds that each answer took."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    sock.bind(("", 68))
    packet = discover(1)
    one = http.Probe(sock.fileno(), lambda: http.broadcast(sock, packet))
    deadline = time.monotonic() + seconds
    while (now := time.monotonic()) < deadline:
        one.tick(now)
        if select.select([sock], [], [], 0.001)[0]:
            sock.recv(2048)
            one.answered(time.monotonic())
    return one.times


def bootd(folder: Path) -> list[str]:
    """As in `bench/http.py`, and with a loader."""
    command = http.bootd(folder)
    config = folder / "bootd.yaml"
    text = config.read_text()
    assert "tftp: {enabled: false}" in text
    config.write_text(text.replace("tftp: {enabled: false}", "tftp: {max_per_client: 1024}"))
    loaders = folder / "state" / "tftp"
    loaders.mkdir(mode=0o755, exist_ok=True)
    (loaders / tftp.FILE).write_bytes(tftp.content())
    (loaders / tftp.FILE).chmod(0o644)
    return command


def measure(seconds: float, readers: int, downloads: int) -> Figures:
    """One round."""
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as text, tftp.network():
        folder = Path(text)
        folder.chmod(0o755)
        (folder / "files").mkdir()
        with (folder / "files" / "large").open("wb") as file:
            file.writelines(http.content())
        log = (folder / "log").open("w")
        command = bootd(folder)
        running = subprocess.Popen(tftp.inside("server", 0, command), stdout=log, stderr=log)
        numbers = [str(number) for number in (seconds, readers, downloads)]
        asking = subprocess.Popen(
            tftp.inside(
                "client", 1, [sys.executable, __file__, "--at", f"{tftp.PREFIX}c", *numbers]
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            line, _ = asking.communicate("\n", timeout=seconds + 60)
            found: Figures = json.loads(line.partition("ready\n")[2] or "null")
            if not found:
                sys.exit(f"the clients failed: {(folder / 'log').read_text()[-2000:]}")
        finally:
            asking.kill()
            asking.wait()
            running.send_signal(signal.SIGTERM)
            running.wait()
            log.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tftp", type=int, default=100, help="readers")
    parser.add_argument("--http", type=int, default=32, help="downloads")
    parser.add_argument("--at", nargs=4, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.at:
        interface, seconds, readers, downloads = wanted.at
        load(float(seconds), int(readers), int(downloads), interface)
        return
    if os.geteuid() != 0:
        sys.exit("bench/loaded.py makes network namespaces: run it as root")
    rounds = [measure(wanted.seconds, wanted.tftp, wanted.http) for _ in range(wanted.rounds)]
    text = ", ".join(
        f"{name} {statistics.median(found[key] for found in rounds):.2f} {unit}"
        f" ({min(found[key] for found in rounds):.2f} to {max(found[key] for found in rounds):.2f})"
        for name, key, unit in (
            ("DISCOVER p50", "p50", "ms"),
            ("p99", "p99", "ms"),
            ("worst", "worst", "ms"),
            ("TFTP", "tftp", "MB/s"),
            ("HTTP", "http", "GB/s"),
        )
    )
    print(f"{wanted.tftp} TFTP and {wanted.http} HTTP transfers: {text}")


if __name__ == "__main__":
    main()
