"""The sites that machines boot in: beside Kea, beside a DHCP server on bootd's own host, and in two
networks at once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Network
from typing import Any

import pytest

from tests.firmware.rack import (
    FIRMWARE,
    LOADER,
    SCRIPT,
    assert_booted,
    failures,
    the_boot,
    until_up,
)
from tests.lab import image
from tests.lab.dhcp import Site
from tests.lab.lab import Lab
from tests.lab.machine import Firmware, Machine

pytestmark = [pytest.mark.firmware, pytest.mark.timeout(600)]

FIRST, SECOND = "52:54:00:77:04:01", "52:54:00:77:04:02"
NODES = {"n001": {"mac": FIRST}, "n002": {"mac": SECOND}}


@asynccontextmanager
async def ready(
    request: pytest.FixtureRequest, site: Site = Site.DNSMASQ, second: str = "", **settings: Any
) -> AsyncIterator[Lab]:
    """A lab whose bootd is ready, with a `second` network (its addresses) where there is one."""
    demo = await asyncio.to_thread(image.build)
    keep = failures(request).with_name(f"test_sites-{request.node.name}")
    async with Lab(site=site, keep=keep) as lab:
        lab.server.configure(NODES, **settings)
        await asyncio.to_thread(lab.server.import_image, demo)
        if second:
            await lab.add_network(IPv4Network(second))
        await lab.server.start()
        yield lab


async def until_booted(lab: Lab, machine: Machine, node: str) -> None:
    """Wait for the script and for the node that is up."""
    await machine.wait_for(rf"^bootd: node {node}, {machine.mac}", FIRMWARE + LOADER + SCRIPT)
    await until_up(machine, node)
    await machine.power_off()
    assert_booted(await the_boot(lab, node), image.build())


async def test_machines_boot_beside_kea(request: pytest.FixtureRequest) -> None:
    async with ready(request, Site.KEA) as lab:
        bios = await lab.power_on("n001", FIRST, Firmware.BIOS)
        uefi = await lab.power_on("n002", SECOND, Firmware.UEFI)

        await until_booted(lab, bios, "n001")
        await until_booted(lab, uefi, "n002")

        assert lab.captured(f"src host {lab.network.router.ip} and udp src port 67")


async def test_a_machine_boots_where_dnsmasq_has_port_67_of_bootd_s_host(
    request: pytest.FixtureRequest,
) -> None:
    async with ready(request, Site.SAME_HOST) as lab:
        listening = await lab.server.wait_for("dhcp.listening", 5, port=67)
        bios = await lab.power_on("n001", FIRST, Firmware.BIOS)
        uefi = await lab.power_on("n002", SECOND, Firmware.UEFI)

        await until_booted(lab, bios, "n001")
        await until_booted(lab, uefi, "n002")

        assert "packet socket" in listening.keys["socket"]
        assert "dnsmasq" in listening.keys["socket"]


async def test_a_machine_in_each_of_two_networks_boots_from_the_address_that_is_in_its_own(
    request: pytest.FixtureRequest,
) -> None:
    async with ready(request, second="10.78.0.0/24", interfaces=["eth0", "eth1"]) as lab:
        here = await lab.power_on("n001", FIRST, Firmware.BIOS)
        there = await lab.power_on("n002", SECOND, Firmware.UEFI, network=lab.networks[1])

        await until_booted(lab, here, "n001")
        await until_booted(lab, there, "n002")

        for machine, address in ((here, "10.77.0.2"), (there, "10.78.0.2")):
            servers = set(re.findall(r"(?:http|tftp)://([\d.]+)", machine.console.text))
            assert servers == {address}
