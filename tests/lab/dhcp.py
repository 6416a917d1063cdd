"""The site's DHCP server: dnsmasq that gives leases, a router and a netmask, and nothing else.

bootd must boot machines beside a server that knows nothing of booting, so there is no boot option
here, on purpose. The router announces an IPv6 prefix, as a site's usually does: on a network
without one, the iPXE of Debian 12 waits 16 seconds for such an announcement before it goes on.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.lab.netns import Network
from tests.lab.run import LabError, Program


class DhcpServer:
    """dnsmasq in the namespace `network.dhcp`; its lease file and log are in `folder`."""

    def __init__(self, network: Network, folder: Path) -> None:
        self._network = network
        self._log = folder / "dnsmasq.log"
        self._leases = folder / "dnsmasq.leases"
        self._program: Program | None = None

    def _arguments(self) -> list[str]:
        network = self._network
        first, last = network.leases
        return [
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--port=0",  # no DNS
            "--user=root",  # changing user would clear the parent-death signal
            "--group=root",
            "--pid-file=",
            f"--dhcp-leasefile={self._leases}",
            f"--dhcp-range={first},{last},{network.addresses.netmask},12h",
            f"--dhcp-option=option:router,{network.router.ip}",
            f"--dhcp-range={network.prefix6.network_address},ra-only,{network.prefix6.prefixlen}",
            "--enable-ra",
            "--interface=eth0",
            "--bind-interfaces",
            "--dhcp-authoritative",
            "--no-ping",  # else each first offer waits 3 s for an echo
            "--log-dhcp",
            "--log-facility=-",
        ]

    async def start(self) -> None:
        """Start it and wait until it serves its range."""
        self._program = await Program.start(
            "the DHCP server (dnsmasq)",
            self._arguments(),
            namespace=self._network.dhcp,
            log=self._log,
        )
        for _ in range(200):
            if "DHCP, IP range" in self._log.read_text(errors="replace"):
                return
            if not self._program.alive:
                break
            await asyncio.sleep(0.05)
        words = self._log.read_text(errors="replace").strip()
        raise LabError(f"the DHCP server (dnsmasq) does not start: {words}")

    async def stop(self) -> None:
        """End it."""
        if self._program is not None:
            await self._program.stop()
