"""bootd alone: nodes with an `ip` have address and boot from it, and nobody else has one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from ipaddress import IPv4Address

import pytest
import pytest_asyncio

from tests.firmware.rack import (
    FIRMWARE,
    LOADER,
    SCRIPT,
    assert_booted,
    chaddr,
    failures,
    the_boot,
    until_up,
)
from tests.lab import image
from tests.lab.dhcp import Site
from tests.lab.lab import Lab
from tests.lab.machine import Firmware

pytestmark = [
    pytest.mark.firmware,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

BIOS, UEFI, STRANGER = "52:54:00:77:03:01", "52:54:00:77:03:02", "52:54:00:77:03:99"
LEASES = "udp src port 67 and udp[24:4] != 0"
"""DHCP replies that give an address: `yiaddr` is set."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    failed_before = request.session.testsfailed
    demo = await asyncio.to_thread(image.build)
    async with Lab(site=Site.NOBODY, keep=failures(request)) as lab:
        lab.server.configure(
            {
                "bios": {"mac": BIOS, "ip": "10.77.0.31/24"},
                "uefi": {"mac": UEFI, "ip": "10.77.0.32/24"},
            },
            dhcp={"mode": "reservation"},
        )
        await asyncio.to_thread(lab.server.import_image, demo)
        await lab.server.start()
        await lab.power_on("stranger", STRANGER, Firmware.BIOS)
        await lab.power_on("bios", BIOS, Firmware.BIOS)
        await lab.power_on("uefi", UEFI, Firmware.UEFI)
        yield lab
        lab.failed = request.session.testsfailed > failed_before


async def test_a_bios_machine_boots_with_the_address_of_its_node(lab: Lab) -> None:
    machine = lab.machines["bios"]

    await machine.wait_for(rf"^bootd: node bios, {BIOS}", FIRMWARE + LOADER + SCRIPT)
    address = await until_up(machine, "bios")
    await machine.power_off()

    assert address == IPv4Address("10.77.0.31")
    assert_booted(await the_boot(lab, "bios"), image.build())


async def test_a_uefi_machine_boots_with_the_address_of_its_node(lab: Lab) -> None:
    machine = lab.machines["uefi"]

    await machine.wait_for(r"Station IP address is 10\.77\.0\.32\n", FIRMWARE + LOADER)
    await machine.wait_for(rf"^bootd: node uefi, {UEFI}", LOADER + SCRIPT)
    address = await until_up(machine, "uefi")
    await machine.power_off()

    assert address == IPv4Address("10.77.0.32")
    assert_booted(await the_boot(lab, "uefi"), image.build())


async def test_a_machine_of_no_node_gets_no_address(lab: Lab) -> None:
    machine = lab.machines["stranger"]

    await machine.wait_for(r"^(No more network devices|Nothing to boot)", FIRMWARE + LOADER)
    await machine.power_off()

    assert lab.captured(f"ether src {STRANGER} and udp dst port 67")
    assert lab.captured(f"{LEASES} and {chaddr(STRANGER)}") == []
    assert lab.captured(f"{LEASES} and {chaddr(BIOS)}")  # the filter finds what there is
    assert STRANGER in [each["mac"] for each in await lab.server.ask("unknown")]


async def test_every_address_in_the_network_came_from_bootd(lab: Lab) -> None:
    assert lab.captured(f"{LEASES} and src host {lab.network.server_ip}")
    assert lab.captured(f"udp src port 67 and not src host {lab.network.server_ip}") == []
