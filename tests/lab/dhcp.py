"""Who gives addresses in the lab's network, and the router that announces its IPv6 prefix.

bootd must boot machines beside servers that know nothing of booting, so there is no boot option
here, on purpose. The router announces an IPv6 prefix, as a site's usually does: on a network
without one, the iPXE of Debian 12 waits 16 seconds for such an announcement before it goes on.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from tests.lab.netns import Network
from tests.lab.packages import borrow
from tests.lab.run import LabError, Program


class Site(StrEnum):
    """The site's DHCP server: bootd must boot machines beside each."""

    DNSMASQ = "dnsmasq"  # on a host of its own
    KEA = "kea"  # on a host of its own
    SAME_HOST = "same-host"  # dnsmasq on bootd's host, where it holds port 67 on every address
    NOBODY = "nobody"  # bootd alone


class DhcpServer:
    """What `site` has in a network; leases are not written down, logs are in `folder`."""

    def __init__(self, network: Network, folder: Path, site: Site = Site.DNSMASQ) -> None:
        self._network = network
        self._folder = folder
        self._site = site
        self._programs: list[Program] = []

    async def start(self) -> None:
        """Start the router and the server and wait until each serves."""
        network = self._network
        await self._start("router", network.dhcp, self._router(), "router advertisement on")
        leases = "DHCP, IP range"
        if self._site is Site.DNSMASQ:
            await self._start("dnsmasq", network.dhcp, self._dnsmasq("--bind-interfaces"), leases)
        elif self._site is Site.SAME_HOST:
            await self._start("dnsmasq", network.boot, self._dnsmasq(), leases)
        elif self._site is Site.KEA:
            path, libraries = await asyncio.to_thread(borrow, "kea-dhcp4", "kea-dhcp4-server")
            environment = {
                **os.environ,
                **libraries,
                "KEA_PIDFILE_DIR": str(self._folder),
                "KEA_LOCKFILE_DIR": "none",
            }
            arguments = [str(path), "-c", str(self._kea_configuration())]
            await self._start("kea", network.dhcp, arguments, "DHCP4_STARTED", environment)

    async def stop(self) -> None:
        """End what was started."""
        while self._programs:
            await self._programs.pop().stop()

    async def _start(
        self,
        name: str,
        namespace: str,
        arguments: Sequence[str],
        ready: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start a program and wait until its log says `ready`."""
        log = self._folder / f"{self._network.addresses.network_address}-{name}.log"
        program = await Program.start(
            f"the network's {name}", arguments, namespace=namespace, log=log, env=environment
        )
        self._programs.append(program)
        for _ in range(400):
            if ready in log.read_text(errors="replace"):
                return
            if not program.alive:
                break
            await asyncio.sleep(0.05)
        words = log.read_text(errors="replace").strip()
        raise LabError(f"the network's {name} does not start: {words}")

    def _router(self) -> list[str]:
        prefix = self._network.prefix6
        announced = f"--dhcp-range={prefix.network_address},ra-only,{prefix.prefixlen}"
        return [*_DNSMASQ, announced, "--enable-ra", "--interface=eth0", "--bind-interfaces"]

    def _dnsmasq(self, *more: str) -> list[str]:
        network = self._network
        first, last = network.leases
        return [
            *_DNSMASQ,
            f"--dhcp-range={first},{last},{network.addresses.netmask},12h",
            f"--dhcp-option=option:router,{network.router.ip}",
            "--interface=eth0",
            "--dhcp-authoritative",
            "--no-ping",  # else each first offer waits 3 s for an echo
            *more,
        ]

    def _kea_configuration(self) -> Path:
        network = self._network
        first, last = network.leases
        path = self._folder / "kea.json"
        subnet = {
            "subnet": str(network.addresses),
            "pools": [{"pool": f"{first} - {last}"}],
            "option-data": [{"name": "routers", "data": str(network.router.ip)}],
        }
        logger = {"name": "kea-dhcp4", "severity": "INFO", "output_options": [{"output": "stdout"}]}
        server = {
            "interfaces-config": {"interfaces": ["eth0"]},
            "lease-database": {"type": "memfile", "persist": False},
            "authoritative": True,
            "subnet4": [subnet],
            "loggers": [logger],
        }
        path.write_text(json.dumps({"Dhcp4": server}, indent=2))
        return path


_DNSMASQ = (
    "dnsmasq",
    "--keep-in-foreground",
    "--conf-file=/dev/null",
    "--port=0",  # no DNS
    "--user=root",  # changing user would clear the parent-death signal
    "--group=root",
    "--pid-file=",
    "--leasefile-ro",
    "--log-dhcp",
    "--log-facility=-",
)
