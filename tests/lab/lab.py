"""The lab as a whole: a network, a plain DHCP server, bootd, and as many machines as are asked for.

    async with Lab() as lab:
        lab.server.configure({"n001": {"mac": MAC}})
        lab.server.import_image(image.build())
        await lab.server.start()
        machine = await lab.power_on("n001", MAC, Firmware.BIOS)
        await machine.wait_for("n001 is up", within=120)

Whatever happens inside, everything is ended and removed; logs, consoles and a packet capture are
kept in `keep` when it failed (or always, with `keep_always`).
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from ipaddress import IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.lab.console import Line
from tests.lab.dhcp import DhcpServer, Site
from tests.lab.machine import Firmware, Machine
from tests.lab.netns import Network
from tests.lab.run import Program, is_alive, run
from tests.lab.server import Event, Server

CAPTURE: Final = "capture.pcap"
_FOLDER: Final = "bootd-lab-"
_CAPTURED: Final = "arp or icmp or udp or tcp[tcpflags] & (tcp-syn|tcp-fin|tcp-rst|tcp-push) != 0"
"""What a capture keeps: all of DHCP and TFTP, and of HTTP the heads and the ends."""


class Lab:
    """Use as an async context manager; nothing is started by the constructor.

    `site` says who gives addresses. `hear` is called with a machine's name and each line of its
    console, `listen` with each event of bootd's log.
    """

    def __init__(
        self,
        *,
        site: Site = Site.DNSMASQ,
        keep: Path | None = None,
        keep_always: bool = False,
        hear: Callable[[str, Line], None] | None = None,
        listen: Callable[[Event], None] | None = None,
    ) -> None:
        self.network = Network()
        self.networks = [self.network]
        self.machines: dict[str, Machine] = {}
        self.failed = False
        self._keep = keep
        self._keep_always = keep_always
        self._hear = hear
        self._stack = AsyncExitStack()
        _sweep_folders()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))
        self.dhcp = DhcpServer(self.network, self.folder, site)
        self.server = Server(self.network, self.folder, listen=listen, ended=self._server_ended)

    async def __aenter__(self) -> Self:
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._stack.callback(self._keep_logs)
        try:
            await self._up(self.network, self.dhcp, CAPTURE)
            self._stack.push_async_callback(self.server.stop)
        except BaseException:
            self.failed = True
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.failed = self.failed or error is not None
        await self._stack.aclose()

    async def add_network(self, addresses: IPv4Network) -> Network:
        """A second network, with a DHCP server of its own: the boot server's eth1 is in it."""
        network = Network(addresses, beside=self.network)
        self.networks.append(network)
        await self._up(network, DhcpServer(network, self.folder), f"{network.device}-{CAPTURE}")
        return network

    async def power_on(
        self,
        name: str,
        mac: str,
        firmware: Firmware,
        *,
        memory: int = 512,
        network: Network | None = None,
        smbios: Sequence[str] = (),
    ) -> Machine:
        """A new diskless machine, powered on; `memory` in MiB, `network` the first where none is
        named, `smbios` what its firmware tells (`Machine`)."""
        hear = self._hear
        machine = Machine(
            name,
            mac,
            firmware,
            network=network or self.network,
            folder=self.folder / "machines" / name,
            memory=memory,
            smbios=smbios,
            listen=(lambda line: hear(name, line)) if hear is not None else None,
        )
        self.machines[name] = machine
        self._stack.push_async_callback(machine.power_off)
        await machine.power_on()
        return machine

    def captured(self, expression: str, *options: str) -> list[str]:
        """What tcpdump says of the packets of the first network that `expression` (a capture
        filter) finds: one line each, or more where `options` ask for them."""
        packets = str(self.folder / CAPTURE)
        return run("tcpdump", "-n", "-r", packets, *options, expression).splitlines()

    async def _up(self, network: Network, dhcp: DhcpServer, capture: str) -> None:
        self._stack.callback(network.down)
        network.up()
        await self._capture(network, capture)
        self._stack.push_async_callback(dhcp.stop)
        await dhcp.start()

    async def _capture(self, network: Network, name: str) -> None:
        tcpdump = await Program.start(
            "tcpdump",
            ["tcpdump", "-i", "br0", "-Z", "root", "-U", "-s", "700",
             "-w", str(self.folder / name), _CAPTURED],
            namespace=network.lan,
            log=self.folder / "tcpdump.log",
        )  # fmt: skip
        self._stack.push_async_callback(tcpdump.stop)

    def _server_ended(self, why: str) -> None:
        for machine in self.machines.values():
            machine.console.close(why)

    def _keep_logs(self) -> None:
        """Everything that explains a failure; not the images, which are only large."""
        if self._keep is None or not (self.failed or self._keep_always):
            return
        shutil.rmtree(self._keep, ignore_errors=True)
        shutil.copytree(
            self.folder, self._keep, ignore=shutil.ignore_patterns("state", "run", "*.fd", "*.sock")
        )


def _sweep_folders() -> None:
    """Remove the folders of labs whose process is dead."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        found = re.fullmatch(_FOLDER + r"(\d+)-\w+", folder.name)
        if found and not is_alive(found[1]):
            shutil.rmtree(folder, ignore_errors=True)
