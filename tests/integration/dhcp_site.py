"""Networks for the DHCP tests: namespaces, wires and bridges, and the programs that run in them.

Names are ``bh<pid>-<number>-<role>``; everything is removed at the end, whatever happened.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.lab.packages import borrow

PATIENCE: Final = 30.0
_CLONE_NEWNET: Final = 0x40000000
_PR_SET_PDEATHSIG: Final = 1
_numbers = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)


def run(*words: str) -> str:
    """A short command's output; its own words where it fails."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr or done.stdout}"
    return done.stdout


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Site:
    """Some hosts, each a namespace, and what joins them."""

    def __init__(self) -> None:
        self._prefix = f"bh{os.getpid()}-{next(_numbers)}"
        self._hosts: list[str] = []
        self._programs: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        for program in self._programs:
            program.kill()
            program.wait(PATIENCE)
        for host in self._hosts:
            run("ip", "netns", "delete", self.name(host))

    def name(self, host: str) -> str:
        """The namespace of a host."""
        return f"{self._prefix}-{host}"

    def host(self, host: str) -> None:
        """A new host with its loopback up."""
        run("ip", "netns", "add", self.name(host))
        self._hosts.append(host)
        self.ip(host, "link set lo up")

    def ip(self, host: str, words: str) -> str:
        """``ip WORDS`` on a host."""
        return run("ip", "-n", self.name(host), *words.split())

    def can(self, host: str, words: str) -> bool:
        """``ip WORDS`` on a host, where this kernel has what it needs."""
        done = subprocess.run(
            ["ip", "-n", self.name(host), *words.split()],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0 or "Unknown device type" in done.stderr, done.stderr
        return done.returncode == 0

    def wire(self, one: str, other: str) -> None:
        """Join ``host:interface`` and ``host:interface``, both up."""
        (host, link), (peer, end) = one.split(":"), other.split(":")
        self.ip(host, f"link add {link} type veth peer name {end} netns {self.name(peer)}")
        self.ip(host, f"link set {link} up")
        self.ip(peer, f"link set {end} up")

    def switch(self, host: str, *plugs: str) -> None:
        """A host that is a switch; each ``host:interface`` is joined to it."""
        self.host(host)
        self.ip(host, "link add br0 type bridge forward_delay 0")
        self.ip(host, "link set br0 up")
        for number, plug in enumerate(plugs):
            self.wire(f"{host}:port{number}", plug)
            self.ip(host, f"link set port{number} master br0")

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """Sockets and processes made here belong to the host."""
        with Path("/proc/thread-self/ns/net").open() as home:
            with Path("/var/run/netns", self.name(host)).open() as there:
                _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def start(
        self, host: str, *words: str, log: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """A program that runs until the end of the site, its output in `log`; `env` is added."""
        with self.inside(host), log.open("wb") as output:
            program = subprocess.Popen(
                words,
                env=os.environ | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
            )
        self._programs.append(program)
        return program

    def udp(self, host: str, interface: str, port: int) -> socket.socket:
        """A UDP socket on one interface of a host, that may broadcast."""
        with self.inside(host):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
            sock.bind(("", port))
        return sock


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Until `condition` holds; it is asked often, and an outcome is all that is asserted."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not in {PATIENCE:.0f} s"
        time.sleep(0.02)


def says(log: Path, words: str) -> None:
    """Wait until a program has said something."""
    wait_for(lambda: words in log.read_text(errors="replace"), f"{log}: {words!r}")


# ---- the site's DHCP servers ---------------------------------------------------------------------


def dnsmasq(site: Site, host: str, interface: str, network: str, folder: Path) -> None:
    """dnsmasq that knows nothing of booting; `network` is the first three numbers of a /24. It
    serves .100 to .150, also for relays."""
    log = folder / "dnsmasq.log"
    site.start(
        host,
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--port=0",
        "--user=root",
        "--pid-file=",
        f"--dhcp-leasefile={folder / 'dnsmasq.leases'}",
        f"--dhcp-range={network}.100,{network}.150,255.255.255.0,1h",
        f"--dhcp-option=option:router,{network}.1",
        f"--interface={interface}",
        "--dhcp-authoritative",
        "--no-ping",
        "--log-facility=-",
        log=log,
    )
    says(log, "DHCP, IP range")


def kea(site: Site, host: str, interface: str, network: str, folder: Path) -> None:
    """Kea that knows nothing of booting; as `dnsmasq`."""
    log, settings = folder / "kea.log", folder / "kea.json"
    settings.write_text(
        f"""{{"Dhcp4": {{
          "interfaces-config": {{"interfaces": ["{interface}"], "dhcp-socket-type": "raw"}},
          "lease-database": {{"type": "memfile", "persist": false}},
          "valid-lifetime": 3600,
          "subnet4": [{{
            "subnet": "{network}.0/24",
            "pools": [{{"pool": "{network}.100 - {network}.150"}}],
            "option-data": [{{"name": "routers", "data": "{network}.1"}}]
          }}],
          "loggers": [{{"name": "kea-dhcp4", "severity": "INFO",
                        "output_options": [{{"output": "stdout"}}]}}]
        }}}}"""
    )
    folder.joinpath("locks").mkdir(exist_ok=True)
    program, libraries = borrow("kea-dhcp4", "kea-dhcp4-server")
    locks = {f"KEA_{which}_DIR": str(folder / "locks") for which in ("PIDFILE", "LOCKFILE")}
    site.start(host, str(program), "-c", str(settings), log=log, env={**libraries, **locks})
    says(log, "DHCP4_STARTED")


DHCP_SERVERS: Final = {"dnsmasq": dnsmasq, "kea-dhcp4": kea}


def relay(site: Site, host: str, clients: str, servers: str, *targets: str, folder: Path) -> None:
    """ISC's relay agent between two interfaces; it adds option 82."""
    log = folder / "dhcrelay.log"
    program, libraries = borrow("dhcrelay", "isc-dhcp-relay")
    site.start(
        host,
        str(program),
        "-d",
        "-4",
        "--no-pid",
        "-a",
        "-id",
        clients,
        "-iu",
        servers,
        *targets,
        log=log,
        env=libraries,
    )
    says(log, "Sending on   Socket/fallback")
