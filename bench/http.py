"""HTTP under load: bootd against nginx, aiohttp on uvloop and Go's file server, in one run.

    python bench/http.py [--seconds 4] [--rounds 3] [--servers bootd,nginx] [--loads 32,256,...]

Large files: clients download 256 MB again and again and throw the bytes away in the kernel, so that
the servers are measured. Small answers: wrk with 64 connections. While 256 clients download, one
more asks bootd for a script fifty times a second, and a machine sends DISCOVER as often. Server and
clients are in network namespaces joined by a veth pair, each on its own core where there are two.
bootd is the whole daemon, with its log. nginx is Debian's, unpacked under ``build/lab`` where it
is not installed, and never started as a service; Go's server is left out where there is no Go.
Needs root, and wrk for the small answers.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# As a script this file would stand in the way of the standard library's `http`.
sys.path[:] = [str(ROOT), *(p for p in sys.path if Path(p).resolve() != ROOT / "bench")]

import argparse  # noqa: E402 -- after the path is right
import contextlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import select  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from typing import Final  # noqa: E402

from bench.dhcp import discover  # noqa: E402
from bench.tftp import (  # noqa: E402
    PREFIX,
    SERVER,
    cpu_seconds,
    inside,
    network,
    peak_megabytes,
    peer,
)

PORT: Final = 9873
SIZE: Final = 256 * 1024 * 1024
MAC: Final = "52-54-00-00-00-01"
LARGE: Final = ("1", "32", "256")
SMALL: Final = ("script", "not-modified")
MIXED: Final = "mixed"
PROBES: Final = 50
"""Scripts and DISCOVERs asked for in a second while others download."""

Figures = dict[str, float]


# ---- clients, in their own process and namespace -------------------------------------------------


class Downloads:
    """`count` connections that download `path` again and again; bytes counted for each."""

    def __init__(self, count: int, path: str) -> None:
        self.request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        self.buffer = bytearray(1 << 20)
        self.epoll = select.epoll()
        self.bytes: dict[int, int] = {}
        self.left: dict[int, int] = {}
        self.sockets: dict[int, socket.socket] = {}
        for _ in range(count):
            sock = socket.create_connection((SERVER, PORT))
            self.sockets[sock.fileno()] = sock
            self.bytes[sock.fileno()] = 0
            self.ask(sock)
            self.epoll.register(sock.fileno(), select.EPOLLIN)

    def ask(self, sock: socket.socket) -> None:
        sock.sendall(self.request)
        self.left[sock.fileno()] = -1

    def poll(self, timeout: float) -> None:
        for fd, _ in self.epoll.poll(timeout):
            sock, left = self.sockets[fd], self.left[fd]
            if left < 0:
                self.header(sock)
                continue
            # On TCP, MSG_TRUNC throws the bytes away where they are (tcp(7)).
            got = sock.recv_into(self.buffer, min(left, len(self.buffer)), socket.MSG_TRUNC)
            if not got:
                sys.exit("the server closed a connection in the middle of a file")
            self.bytes[fd] += got
            self.left[fd] = left - got
            if left == got:
                self.ask(sock)

    def header(self, sock: socket.socket) -> None:
        start = sock.recv(65536, socket.MSG_PEEK)
        head, end, _ = start.partition(b"\r\n\r\n")
        if not end:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            sys.exit(f"the server says {head[:200]!r}")
        fields = head.lower().split(b"content-length: ")[1]
        sock.recv(len(head) + 4)
        self.left[sock.fileno()] = int(fields.split(b"\r\n")[0])


class Probe:
    """Asks `PROBES` times a second, one at a time, and notes how long each answer took."""

    def __init__(self, fd: int, ask: Callable[[], None]) -> None:
        self.fd = fd
        self.ask = ask
        self.times: list[float] = []
        self.asked: float | None = None
        self.due = time.monotonic()

    def tick(self, now: float) -> None:
        if self.asked is None and now >= self.due:
            self.asked, self.due = now, now + 1 / PROBES
            self.ask()
        elif self.asked is not None and now > self.asked + 2:
            self.times.append(2.0)  # lost
            self.asked = None

    def answered(self, now: float) -> None:
        if self.asked is not None:
            self.times.append(now - self.asked)
            self.asked = None

    def p99(self) -> float:
        return sorted(self.times)[int(len(self.times) * 0.99)] * 1000 if self.times else 2000.0


def download(count: int, path: str, seconds: float) -> Figures:
    downloads = Downloads(count, path)
    until(downloads, time.monotonic() + 0.5)
    downloads.bytes = dict.fromkeys(downloads.bytes, 0)
    begun = time.monotonic()
    until(downloads, begun + seconds)
    took = time.monotonic() - begun
    return rates(downloads, took)


def until(downloads: Downloads, deadline: float) -> None:
    while time.monotonic() < deadline:
        downloads.poll(0.1)


def rates(downloads: Downloads, took: float) -> Figures:
    shares = list(downloads.bytes.values())
    total = sum(shares)
    squares = sum(share * share for share in shares)
    return {
        "rate": total / took / 1e9,
        "bytes": float(total),
        "fairness": total * total / (len(shares) * squares) if squares else 0.0,
    }


def mixed(path: str, interface: str, seconds: float) -> Figures:
    """256 downloads, and the probes in a process that goes before them: not the clients' load is
    to be measured."""
    child = os.fork()
    if child == 0:
        os.nice(10)
        until(Downloads(256, path), time.monotonic() + seconds + 2)
        os._exit(0)
    time.sleep(1)
    script = socket.create_connection((SERVER, PORT))
    request = f"GET /ipxe/{MAC} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    dhcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    dhcp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    dhcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    dhcp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    dhcp.bind(("", 68))
    packet = discover(1)
    probes = [
        Probe(script.fileno(), lambda: script.sendall(request)),
        Probe(dhcp.fileno(), lambda: broadcast(dhcp, packet)),
    ]
    deadline = time.monotonic() + seconds
    while (now := time.monotonic()) < deadline:
        for probe in probes:
            probe.tick(now)
        ready, _, _ = select.select([probe.fd for probe in probes], [], [], 0.005)
        now = time.monotonic()
        for probe, sock in zip(probes, (script, dhcp), strict=True):
            if probe.fd in ready:
                sock.recv(65536)
                probe.answered(now)
    os.waitpid(child, 0)
    return {"script_p99": probes[0].p99(), "discover_p99": probes[1].p99(), "bytes": 0.0}


def broadcast(dhcp: socket.socket, packet: bytes) -> None:
    dhcp.sendto(packet, ("255.255.255.255", 67))


def small(headers: list[str], path: str, seconds: float) -> Figures:
    """wrk's requests per second; any answer that is neither 200 nor 304 ends the bench."""
    options = [option for header in headers for option in ("-H", header)]
    run = subprocess.run(
        ["wrk", "-t", "1", "-c", "64", "-d", f"{seconds:g}s", *options,
         f"http://{SERVER}:{PORT}{path}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    if "Non-2xx" in run.stdout:
        sys.exit(f"the server refuses {path}: {run.stdout}")
    return {
        "requests": float(run.stdout.split("Requests/sec:")[1].split()[0]),
        "answers": float(run.stdout.split(" requests in ")[0].split()[-1]),
        "bytes": 0.0,
    }


def clients(load: str, seconds: float, interface: str, large: str, script: str) -> None:
    """One load; waits for a line, prints JSON."""
    wait_for_server()
    tag = etag(large)
    print("ready", flush=True)
    sys.stdin.readline()
    if load in LARGE:
        figures = download(int(load), large, seconds)
    elif load == MIXED:
        figures = mixed(large, interface, seconds)
    elif load == "script":
        figures = small([], script, seconds)
    else:
        figures = small([f"If-None-Match: {tag}"], large, seconds)
    print(json.dumps(figures), flush=True)


def wait_for_server() -> None:
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection((SERVER, PORT), 1).close()
            return
        if time.monotonic() > deadline:
            sys.exit("the server does not answer")
        time.sleep(0.05)


def etag(path: str) -> str:
    with socket.create_connection((SERVER, PORT)) as sock:
        sock.sendall(f"HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head = b""
        while chunk := sock.recv(65536):
            head += chunk
    found = [line for line in head.decode().split("\r\n") if line.lower().startswith("etag: ")]
    return found[0][6:] if found else '"none"'


# ---- servers -------------------------------------------------------------------------------------


def content() -> Iterator[bytes]:
    block = os.urandom(1 << 20)
    for _ in range(SIZE >> 20):
        yield block


def bootd(folder: Path) -> list[str]:
    for name in ("state", "run"):
        (folder / name).mkdir(mode=0o700)
    config = folder / "bootd.yaml"
    config.write_text(
        f"interfaces: [{PREFIX}s]\nstate_dir: state\nrun_dir: run\nnodes: [nodes.yaml]\n"
        "tftp: {enabled: false}\nhttp: {max_image_transfers: 1024}\n"
        "log: {level: info, format: json}\n"
    )
    (folder / "nodes.yaml").write_text(
        "nodes:\n  n001: {mac: '52:54:00:00:00:01', image: demo, kernel: {args: [quiet]}}\n"
    )
    # A kernel as far as the import looks: an x86 boot sector with its signature (boot protocol).
    kernel = bytearray(4096)
    kernel[0x1FE:0x206] = b"\x55\xaa\xeb\x66HdrS"
    kernel[0x206:0x208] = b"\x0f\x02"
    (folder / "kernel").write_bytes(kernel)
    run = [sys.executable, "-m", "bootd"]
    subprocess.run(
        [*run, "image", "--config", str(config), "import", "demo",
         "--kernel", str(folder / "kernel"), "--initramfs", str(folder / "files" / "large")],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return [*run, "serve", "--config", str(config)]


def nginx(folder: Path) -> list[str]:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"  {kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"worker_processes 1; daemon off; master_process off; pid {folder}/pid;\n"
        f"error_log {folder}/error.log; user root;\n"
        "events { worker_connections 4096; }\n"
        "http { sendfile on; tcp_nopush on; keepalive_requests 1000000; access_log off;\n"
        f"{temporary}"
        f"  server {{ listen {PORT} backlog=4096; root {folder}/files; }} }}\n"
    )
    return [*peer("nginx", "nginx-light"), "-c", f"{folder}/nginx.conf"]


AIOHTTP: Final = """
import sys, uvloop
from aiohttp import web
app = web.Application()
app.router.add_static("/", sys.argv[1])
loop = uvloop.new_event_loop()
web.run_app(app, port={port}, loop=loop, access_log=None, print=None)
"""


def aiohttp(folder: Path) -> list[str]:
    (folder / "serve.py").write_text(AIOHTTP.format(port=PORT))
    return [sys.executable, f"{folder}/serve.py", f"{folder}/files"]


GO: Final = """
package main
import ("net/http"; "os")
func main() { panic(http.ListenAndServe(":%d", http.FileServer(http.Dir(os.Args[1])))) }
"""


def go(folder: Path) -> list[str]:
    (folder / "serve.go").write_text(GO % PORT)
    environment = {**os.environ, "GOCACHE": f"{folder}/cache", "GO111MODULE": "off"}
    subprocess.run(
        ["go", "build", "-o", "serve", "serve.go"], cwd=folder, env=environment, check=True
    )
    return ["env", "GOMAXPROCS=1", f"{folder}/serve", f"{folder}/files"]


SERVERS: Final[dict[str, Callable[[Path], list[str]]]] = {
    "bootd": bootd,
    "nginx": nginx,
    "aiohttp": aiohttp,
    "go": go,
}


def paths(server: str) -> tuple[str, str]:
    """Where the large file is, and a small answer."""
    return (f"/initramfs/{MAC}", f"/ipxe/{MAC}") if server == "bootd" else ("/large", "/small")


# ---- one run -------------------------------------------------------------------------------------


def measure(server: str, load: str, seconds: float) -> Figures:
    """One round against one server."""
    # On a disk, as images are, not on tmpfs: the page cache has it all after the first round.
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as text, network():
        folder = Path(text)
        folder.chmod(0o755)
        (folder / "files").mkdir(mode=0o755)
        with (folder / "files" / "large").open("wb") as file:
            file.writelines(content())
        (folder / "files" / "small").write_bytes(b"x" * 2048)
        log = (folder / "log").open("w")
        running = subprocess.Popen(
            inside("server", 0, SERVERS[server](folder)), stdout=log, stderr=log
        )
        arguments = ["--clients", load, "--seconds", str(seconds)]
        arguments += ["--at", f"{PREFIX}c", *paths(server)]
        asking = subprocess.Popen(
            inside("client", 1, [sys.executable, __file__, *arguments]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert asking.stdin is not None
            assert asking.stdout is not None
            if asking.stdout.readline() != "ready\n":
                sys.exit(f"{server}: {(folder / 'log').read_text()[-2000:]}")
            before = cpu_seconds(running.pid)
            asking.stdin.write("\n")
            asking.stdin.flush()
            line = asking.stdout.readline()
            if not line:
                sys.exit(f"{server}, {load}: the clients failed")
            figures: Figures = json.loads(line)
            used = cpu_seconds(running.pid) - before
            figures["cpu"] = used / (figures["bytes"] / 1e9) if figures["bytes"] else 0.0
            if "answers" in figures:
                figures["micros"] = 1e6 * used / figures["answers"]
            figures["peak"] = peak_megabytes(running.pid)
        finally:
            asking.kill()
            asking.wait()
            running.send_signal(signal.SIGTERM)
            running.wait()
            log.close()
    return figures


def applies(server: str, load: str) -> bool:
    return server == "bootd" or load != MIXED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", default=",".join(SERVERS))
    parser.add_argument("--loads", default=",".join((*LARGE, *SMALL, MIXED)))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--clients", metavar="LOAD", help=argparse.SUPPRESS)
    parser.add_argument("--at", nargs=3, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.clients:
        clients(wanted.clients, wanted.seconds, *wanted.at)
        return
    if os.geteuid() != 0:
        sys.exit("bench/http.py makes network namespaces: run it as root")
    servers = [name for name in wanted.servers.split(",") if name != "go" or shutil.which("go")]
    figures: dict[str, dict[str, Figures]] = {}
    for load in wanted.loads.split(","):
        rounds: dict[str, list[Figures]] = {s: [] for s in servers if applies(s, load)}
        for _ in range(wanted.rounds):
            for server, found in rounds.items():
                found.append(measure(server, load, wanted.seconds))
        figures[load] = {server: median(found) for server, found in rounds.items()}
        if not wanted.json:
            print(lines(load, figures[load]), flush=True)
    if wanted.json:
        print(json.dumps(figures))


def median(rounds: list[Figures]) -> Figures:
    """Each figure's median; of a rate, also the lowest and the highest."""
    figures = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    for name in ("rate", "requests"):
        values = [found[name] for found in rounds if name in found]
        if values:
            figures |= {"low": min(values), "high": max(values)}
    return figures


def lines(load: str, found: dict[str, Figures]) -> str:
    """One load: each server, and bootd's ratio to each peer."""
    text = [f"{load:13} {server:8} {shown(figure)}" for server, figure in found.items()]
    ours = found.get("bootd")
    key = "rate" if load in LARGE else "requests"
    for server, figure in found.items():
        if ours is not None and server != "bootd":
            ratio = f"x{ours[key] / figure[key]:.2f}"
            if figure["cpu"]:
                ratio += f", CPU a GB x{ours['cpu'] / figure['cpu']:.2f}"
            text.append(f"{'':13} bootd / {server}: {ratio}")
    return "\n".join(text)


UNITS: Final[dict[str, tuple[str, str]]] = {
    "rate": ("8.2f", "GB/s"),
    "cpu": ("6.2f", "CPU s/GB"),
    "fairness": ("6.2f", "fairness"),
    "requests": ("8.0f", "requests/s"),
    "micros": ("5.0f", "CPU us a request"),
    "script_p99": ("8.1f", "ms script p99"),
    "discover_p99": ("8.1f", "ms DISCOVER p99"),
    "peak": ("6.0f", "MB peak"),
}


def shown(figure: Figures) -> str:
    text = []
    for name, (form, unit) in UNITS.items():
        if figure.get(name):
            decimals = form.partition(".")[2]
            spread = ""
            if name in ("rate", "requests"):
                spread = f" [{figure['low']:.{decimals}} to {figure['high']:.{decimals}}]"
            text.append(f"{figure[name]:{form}}{spread} {unit}")
    return " ".join(text)


if __name__ == "__main__":
    main()
