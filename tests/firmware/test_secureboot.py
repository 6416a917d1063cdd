"""Secure Boot with Microsoft's keys, from power-on to a node that is up: firmware, shim, GRUB and
kernel, each signed for the one before it.

GRUB 2.12 (Debian 13) beside the site's DHCP server, by PXE and by HTTP boot; GRUB 2.06 (Debian 12),
which takes the DHCP server for its boot server and has no HTTP, with bootd alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.firmware.rack import FIRMWARE, KERNEL, LOADER, SCRIPT, failures, sent, the_boot, until_up
from tests.lab import image
from tests.lab.dhcp import Site
from tests.lab.lab import Lab
from tests.lab.machine import Firmware, Machine
from tests.lab.secureboot import signed_loaders

pytestmark = [
    pytest.mark.firmware,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

PXE, HTTP, UNSIGNED = "52:54:00:77:06:01", "52:54:00:77:06:02", "52:54:00:77:06:03"
ALONE = "52:54:00:77:06:04"


async def add_loaders(lab: Lab, release: str) -> None:
    for path in await asyncio.to_thread(signed_loaders, release):
        lab.server.add_loader(path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    failed_before = request.session.testsfailed
    demo = await asyncio.to_thread(image.build)
    async with Lab(keep=failures(request)) as lab:
        lab.server.configure(
            {
                "pxe": {"mac": PXE, "loader": "shim", "image": "other"},
                "http": {"mac": HTTP, "loader": "shim"},
                "unsigned": {"mac": UNSIGNED},
            }
        )
        await add_loaders(lab, "trixie")
        await asyncio.to_thread(lab.server.import_image, demo)
        await asyncio.to_thread(lab.server.import_image, demo, "other")
        await lab.server.start()
        (initramfs,) = (lab.folder / "state" / "images" / "other").rglob("initramfs")
        initramfs.rename(initramfs.with_suffix(".away"))
        await lab.power_on("pxe", PXE, Firmware.SECURE)
        await lab.power_on("http", HTTP, Firmware.SECURE_HTTP)
        yield lab
        lab.failed = request.session.testsfailed > failed_before


async def until_up_securely(machine: Machine, node: str) -> None:
    """Until a node is up, with Secure Boot on and the kernel locked."""
    await machine.wait_for(rf"^bootd: starting the kernel of {node}", KERNEL)
    said = await machine.wait_for(r"^bootd-demo: Secure Boot .*\n", KERNEL)
    assert "Secure Boot 1, lockdown none [integrity]" in said
    await until_up(machine, node)
    await machine.power_off()


async def test_a_signed_chain_boots_by_pxe_and_tries_again_what_fails(lab: Lab) -> None:
    machine = lab.machines["pxe"]

    await machine.wait_for(r">>Start PXE over IPv4", FIRMWARE)
    await machine.wait_for(r"Fetching Netboot Image \S+/grubx64\.efi", LOADER)
    await machine.wait_for(rf"^bootd: node pxe, {PXE}", SCRIPT)
    await machine.wait_for(r"^bootd: pxe: initrd failed: error refused", KERNEL)
    (away,) = (lab.folder / "state" / "images" / "other").rglob("initramfs.away")
    away.rename(away.with_suffix(""))
    await until_up_securely(machine, "pxe")

    boot = await the_boot(lab, "pxe")
    loaded = [step["detail"] for step in boot["steps"] if step["stage"] == "loader"]
    assert loaded == ["tftp shimx64.efi", "tftp grubx64.efi"]
    failed = [step["detail"] for step in boot["steps"] if step["stage"] == "fail"]
    assert failed == ["initrd: error refused"]
    assert_booted(boot)


async def test_a_signed_chain_boots_by_http_without_one_tftp_request(lab: Lab) -> None:
    machine = lab.machines["http"]

    await machine.wait_for(rf"URI: http://{lab.network.server_ip}:9873/\S+/shimx64\.efi", LOADER)
    await machine.wait_for(rf"^bootd: node http, {HTTP}", FIRMWARE + LOADER + SCRIPT)
    await until_up_securely(machine, "http")

    assert_booted(await the_boot(lab, "http"))
    assert lab.captured(f"ether src {HTTP} and udp dst port 69") == []


async def test_firmware_refuses_an_unsigned_loader_and_the_timeline_says_what_to_do(
    lab: Lab,
) -> None:
    machine = await lab.power_on("unsigned", UNSIGNED, Firmware.SECURE)

    await machine.wait_for(r"NBP file downloaded successfully", FIRMWARE + LOADER)
    await machine.wait_for(r"failed to (load|start) .*(Access Denied|Security Violation)", LOADER)
    await machine.power_off()
    boot = await the_boot(lab, "unsigned")
    assert {step["stage"] for step in boot["steps"]} == {"dhcp", "loader"}

    await machine.power_on()
    await machine.wait_for(r"NBP file downloaded successfully", FIRMWARE + LOADER)
    await machine.power_off()
    boots = (await lab.server.ask("timeline", "unsigned"))["boots"]
    (refused,) = [boot for boot in boots if boot["outcome"] == "failed"]
    assert "Secure Boot" in refused["error"]
    assert "loader: shim" in refused["error"]


async def test_debian_12_chain_boots_where_bootd_is_the_dhcp_server(
    request: pytest.FixtureRequest,
) -> None:
    demo = await asyncio.to_thread(image.build)
    async with Lab(site=Site.NOBODY, keep=failures(request)) as lab:
        node = {"mac": ALONE, "loader": "shim", "ip": str(lab.network.reserved)}
        lab.server.configure({"alone": node}, dhcp={"mode": "reservation"})
        await add_loaders(lab, "")
        await asyncio.to_thread(lab.server.import_image, demo)
        await lab.server.start()
        machine = await lab.power_on("alone", ALONE, Firmware.SECURE)

        await machine.wait_for(rf"^bootd: node alone, {ALONE}", FIRMWARE + LOADER + SCRIPT)
        await until_up_securely(machine, "alone")

        boot = await the_boot(lab, "alone")
        assert_booted(boot)
        details = [step["detail"] for step in boot["steps"]]
        assert {"tftp kernel", "tftp initramfs", "tftp system"} <= set(details)


def assert_booted(boot: dict[str, object]) -> None:
    """A boot that came up, with every byte of kernel and initramfs."""
    demo = image.build()
    assert (boot["outcome"], boot["error"]) == ("up", "")
    assert sent(boot, "script") > 0
    assert sent(boot, "kernel") == demo.kernel.stat().st_size
    assert sent(boot, "initramfs") == demo.initramfs.stat().st_size
    assert sent(boot, "overlay") > 0
