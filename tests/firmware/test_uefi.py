"""What EDK2's own boot clients ask for: PXE with and without its second step, and HTTP boot.

The machines are powered on side by side, and switched off as soon as they have shown enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.firmware.rack import (
    FIRMWARE,
    LOADER,
    SCRIPT,
    assert_booted,
    chaddr,
    failures,
    sent,
    the_boot,
    until_up,
)
from tests.lab import image
from tests.lab.lab import Lab
from tests.lab.machine import Firmware

pytestmark = [
    pytest.mark.firmware,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

PLAIN, BINL, HTTP = "52:54:00:77:02:01", "52:54:00:77:02:02", "52:54:00:77:02:03"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    failed_before = request.session.testsfailed
    demo = await asyncio.to_thread(image.build)
    async with Lab(keep=failures(request)) as lab:
        lab.server.configure(
            {
                "plain": {"mac": PLAIN},
                "binl": {"mac": BINL, "quirks": ["binl"]},
                "http": {"mac": HTTP},
            }
        )
        await asyncio.to_thread(lab.server.import_image, demo)
        await lab.server.start()
        await lab.power_on("http", HTTP, Firmware.UEFI_HTTP)
        await lab.power_on("binl", BINL, Firmware.UEFI)
        await lab.power_on("plain", PLAIN, Firmware.UEFI)
        yield lab
        lab.failed = request.session.testsfailed > failed_before


async def test_uefi_http_boot_goes_all_the_way_without_one_tftp_request(lab: Lab) -> None:
    machine = lab.machines["http"]

    await machine.wait_for(r">>Start HTTP Boot over IPv4", FIRMWARE)
    await machine.wait_for(rf"URI: http://{lab.network.server_ip}:9873/\S+\.efi\n", LOADER)
    await machine.wait_for(r"^iPXE .*Open Source Network Boot Firmware", LOADER)
    await machine.wait_for(rf"^bootd: node http, {HTTP}", SCRIPT)
    await until_up(machine, "http")
    await machine.power_off()

    boot = await the_boot(lab, "http")
    assert_booted(boot, image.build())
    assert (boot["firmware"], boot["arch"]) == ("http", 16)
    assert sent(boot, "loader") == Path("/usr/lib/ipxe/snponly.efi").stat().st_size
    assert lab.captured(f"ether src {HTTP} and udp dst port 67")
    assert lab.captured(f"ether src {HTTP} and udp dst port 69") == []


async def test_a_node_with_the_binl_quirk_is_sent_to_port_4011_and_boots(lab: Lab) -> None:
    machine = lab.machines["binl"]

    await machine.wait_for(r"NBP file downloaded successfully", FIRMWARE + LOADER)
    await machine.wait_for(rf"^bootd: node binl, {BINL}", LOADER + SCRIPT)
    await until_up(machine, "binl")
    await machine.power_off()

    boot = await the_boot(lab, "binl")
    assert_booted(boot, image.build())
    assert sent(boot, "loader") == Path("/usr/lib/ipxe/snponly.efi").stat().st_size
    assert lab.captured(f"ether src {BINL} and udp src port 4011 and udp dst port 4011")
    offer = first_offer(lab, BINL)
    assert '"PXEClient"' in offer
    assert "Vendor-Option (43)" not in offer
    assert "snponly.efi" not in offer


async def test_a_node_without_it_loads_at_once(lab: Lab) -> None:
    machine = lab.machines["plain"]

    await machine.wait_for(rf"^bootd: node plain, {PLAIN}", FIRMWARE + LOADER + SCRIPT)
    await machine.power_off()

    assert lab.captured(f"ether src {PLAIN} and udp dst port 69")
    assert lab.captured(f"ether src {PLAIN} and udp dst port 4011") == []
    offer = first_offer(lab, PLAIN)
    assert "Vendor-Option (43)" in offer
    assert "snponly.efi" in offer


def first_offer(lab: Lab, mac: str) -> str:
    """What tcpdump says of bootd's first offer to `mac`: the one that firmware itself asked for."""
    offers = f"src host {lab.network.server_ip} and udp src port 67 and {chaddr(mac)}"
    return "\n".join(lab.captured(offers, "-vvv", "-c", "1"))
