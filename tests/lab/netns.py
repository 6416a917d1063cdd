"""The lab's network: a bridge in a namespace of its own, a DHCP server's and a boot server's
namespace beside it, and a tap for each machine. The host's own network is never touched.

Names are ``bd<pid>-<number>-<role>``: unique for each lab, and a lab that was killed can be told by
its dead process; `sweep` takes away what it left.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network
from typing import Final

from tests.lab.run import LabError, is_alive, run

ADDRESSES: Final = IPv4Network("10.77.0.0/24")
ROLES: Final = ("lan", "dhcp", "boot")
_NAME = re.compile(r"bd(?P<pid>\d+)-\d+-(?:" + "|".join(ROLES) + ")")
_numbers = itertools.count(1)


def _names() -> list[str]:
    return [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.strip()]


def require_root() -> None:
    """`LabError` for anyone but root."""
    if os.geteuid() != 0:
        raise LabError("the lab makes network namespaces, which only root may; run it as root")


def sweep() -> list[str]:
    """Remove the namespaces of labs whose process is dead; the names removed."""
    stale = [
        name for name in _names() if (match := _NAME.fullmatch(name)) and not is_alive(match["pid"])
    ]
    for name in stale:
        with contextlib.suppress(LabError):  # another lab that starts now sweeps as well
            run("ip", "netns", "delete", name)
    return stale


class Network:
    """Three namespaces and what joins them; `up` makes them, `down` removes them.

    The plan of addresses in `addresses`: .1 the DHCP server, which is also the router; .2 the boot
    server; .31 free for a reservation; .100 to .199 leases. The router has `prefix6` as well. A
    second network is made `beside` the first: it has the same boot server, whose `device` there is
    eth1.
    """

    def __init__(
        self, addresses: IPv4Network = ADDRESSES, *, beside: Network | None = None
    ) -> None:
        prefix = f"bd{os.getpid()}-{next(_numbers)}"
        self.lan, self.dhcp, self.boot = (f"{prefix}-{role}" for role in ROLES)
        self.device = "eth0"
        self._own = [self.lan, self.dhcp, self.boot]
        if beside is not None:
            self.boot, self.device = beside.boot, "eth1"
            self._own = [self.lan, self.dhcp]
        self.addresses = addresses
        self.router = self._interface(1)
        self.server = self._interface(2)
        self.reserved = self._interface(31)
        self.leases = (addresses[100], addresses[199])
        self.prefix6 = IPv6Network("fd77:77::/64")
        self._taps = itertools.count(0)

    def _interface(self, host: int) -> IPv4Interface:
        return IPv4Interface(f"{self.addresses[host]}/{self.addresses.prefixlen}")

    @property
    def server_ip(self) -> IPv4Address:
        """The boot server's address."""
        return self.server.ip

    def up(self) -> None:
        """Make everything; on a failure nothing is left. `LabError` without root or namespaces."""
        require_root()
        sweep()
        try:
            self._build()
        except LabError as exc:
            self.down()
            raise LabError(
                f"the lab's network cannot be made: {exc} (it needs CAP_SYS_ADMIN and"
                " CAP_NET_ADMIN: a virtual machine or a privileged container)"
            ) from exc
        except BaseException:
            self.down()
            raise

    def _build(self) -> None:
        for namespace in self._own:
            run("ip", "netns", "add", namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
        # No forward delay: a machine that PXE boots does not wait for a bridge to learn.
        run("ip", "-n", self.lan, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        run("ip", "-n", self.lan, "link", "set", "br0", "up")
        for namespace, port, device, address in (
            (self.dhcp, "to-dhcp", "eth0", self.router),
            (self.boot, "to-boot", self.device, self.server),
        ):
            run("ip", "-n", self.lan, "link", "add", port, "type", "veth",
                "peer", "name", device, "netns", namespace)  # fmt: skip
            run("ip", "-n", self.lan, "link", "set", port, "master", "br0", "up")
            run("ip", "-n", namespace, "address", "add", str(address), "dev", device)
            run("ip", "-n", namespace, "link", "set", device, "up")
        router6 = f"{self.prefix6[1]}/{self.prefix6.prefixlen}"
        run("ip", "-n", self.dhcp, "address", "add", router6, "dev", "eth0", "nodad")

    def tap(self) -> str:
        """A new tap in the bridge, in namespace `lan`; its name."""
        name = f"tap{next(self._taps)}"
        run("ip", "-n", self.lan, "tuntap", "add", name, "mode", "tap")
        run("ip", "-n", self.lan, "link", "set", name, "master", "br0", "up")
        return name

    def down(self) -> None:
        """Remove the namespaces, and with them every device; twice is fine."""
        there = set(_names())
        for namespace in self._own:
            if namespace in there:
                run("ip", "netns", "delete", namespace)
