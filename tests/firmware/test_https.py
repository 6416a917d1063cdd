"""Whole boots over HTTPS: an iPXE that trusts the site's authority, and ones that do not.

One rack for the whole module; the machines are powered on side by side.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from tests.firmware.rack import (
    FIRMWARE,
    LOADER,
    SCRIPT,
    assert_booted,
    failures,
    the_boot,
    until_up,
)
from tests.firmware.test_boot import typed, until_shell
from tests.lab import image, ipxe
from tests.lab.lab import Lab
from tests.lab.machine import Firmware

pytestmark = [
    pytest.mark.firmware,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

TRUSTS, DOUBTS, OLD = "52:54:00:77:0b:01", "52:54:00:77:0b:02", "52:54:00:77:0b:03"
NODES: Final[dict[str, dict[str, Any]]] = {
    "trusts": {"mac": TRUSTS, "overlays": {"system": ["base"], "runtime": ["live"]}},
    "doubts": {"mac": DOUBTS, "loader": "as-packaged.efi"},
    "old": {"mac": OLD},
}
TLS: Final = {"certificate": "tls/cert.pem", "key": "tls/key.pem", "scripts": True}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    failed_before = request.session.testsfailed
    demo = await asyncio.to_thread(image.build, https=True)
    packaged = await asyncio.to_thread(ipxe.debian_13) / "snponly.efi"
    async with Lab(keep=failures(request)) as lab:
        await asyncio.to_thread(make_authority, lab)
        lab.server.configure(NODES, http={"tls": TLS}, overlays=["overlays"])
        live = lab.server.config.parent / "overlays" / "live" / "rootfs" / "etc"
        live.mkdir(parents=True)
        (live / "issued").write_text("to the node that trusts\n")
        add_loaders(lab, packaged)
        await asyncio.to_thread(lab.server.import_image, demo)
        await lab.server.start()
        await lab.power_on("trusts", TRUSTS, Firmware.UEFI)
        await lab.power_on("doubts", DOUBTS, Firmware.UEFI)
        await lab.power_on("old", OLD, Firmware.UEFI_ROM)
        yield lab
        lab.failed = request.session.testsfailed > failed_before


def make_authority(lab: Lab) -> None:
    """As an operator does it."""
    lab.server.configure(NODES)
    lab.server.command("tls", "init", "--address", str(lab.network.server_ip))


def add_loaders(lab: Lab, packaged: Path) -> None:
    """``snponly.efi`` trusts the authority; ``as-packaged.efi`` trusts ipxe.org's only."""
    lab.server.command("tls", "loader", str(packaged))
    shutil.copy(packaged, lab.server.state / "tftp" / "as-packaged.efi")


def base(lab: Lab) -> str:
    return f"https://{lab.network.server_ip}:9874"


def over_tls(lab: Lab, mac: str) -> dict[str, Any]:
    """By route, whether what a machine was given of it came over TLS."""
    found: dict[str, Any] = {}
    for event in lab.server.events:
        if event.matches("http.request", mac=mac):
            route, secure = event.keys["route"], event.keys.get("tls", False)
            found[route] = found.get(route, True) and secure
    return found


async def test_an_ipxe_that_does_not_trust_the_authority_says_so_and_gets_no_script(
    lab: Lab,
) -> None:
    machine = lab.machines["doubts"]

    await machine.wait_for(r"^iPXE .*Open Source Network Boot Firmware", FIRMWARE + LOADER)
    await machine.wait_for(rf"{base(lab)}/ipxe/\S+ Permission denied \S+/0216eb8f", SCRIPT)
    await machine.wait_for(rf"^bootd: {base(lab)} does not answer, error 0x216eb8f", SCRIPT)
    await machine.power_off()

    assert over_tls(lab, DOUBTS) == {}
    boot = await the_boot(lab, "doubts")
    assert (boot["stage"], boot["outcome"]) == ("loader", "booting")
    assert "script" not in [step["stage"] for step in boot["steps"]]


async def test_a_card_whose_ipxe_has_no_https_is_given_one_that_has(lab: Lab) -> None:
    machine = lab.machines["old"]

    await machine.wait_for(r"^iPXE 1\.0\.0\S* .*Open Source Network Boot", FIRMWARE + LOADER)
    await machine.wait_for(r"tftp://\S+/snponly\.efi\.* ok", SCRIPT)
    await machine.wait_for(rf"{base(lab)}/ipxe/\S+ ok", SCRIPT)
    await machine.wait_for(rf"^bootd: node old, {OLD}", SCRIPT)
    await machine.power_off()

    assert over_tls(lab, OLD)["script"] is True


async def test_a_machine_whose_ipxe_trusts_the_authority_boots_by_https_alone(lab: Lab) -> None:
    machine = lab.machines["trusts"]

    await machine.wait_for(r"^iPXE .*Open Source Network Boot Firmware", FIRMWARE + LOADER)
    await machine.wait_for(rf"{base(lab)}/ipxe/\S+ ok", SCRIPT)
    await machine.wait_for(rf"^bootd: node trusts, {TRUSTS}", SCRIPT)
    await machine.wait_for(rf"^bootd: server {base(lab)}\n", SCRIPT)
    await until_up(machine, "trusts")

    boot = await the_boot(lab, "trusts")
    assert_booted(boot, image.build(https=True))
    parts = ("script", "kernel", "initramfs", "system", "up")
    assert over_tls(lab, TRUSTS) == dict.fromkeys(parts, True)
    assert lab.captured(f"ether src {TRUSTS} and tcp dst port 9874")
    assert lab.captured(f"ether src {TRUSTS} and tcp dst port 9873") == []


async def test_its_runtime_overlay_comes_by_https_too(lab: Lab) -> None:
    machine = lab.machines["trusts"]
    await until_shell(machine)

    await typed(machine, ". /etc/bootd/boot.env")
    await typed(machine, 'key="Authorization: Bearer $(cat /etc/bootd/node.key)"')
    said = await typed(machine, 'wget -q --header "$key" -O - $BOOTD_RUNTIME | cpio -t')
    where = await typed(machine, "echo $BOOTD_RUNTIME")
    await machine.power_off()

    assert "etc/issued" in said.split()
    assert where.strip() == f"{base(lab)}/runtime/{TRUSTS.replace(':', '-')}"
    assert over_tls(lab, TRUSTS)["runtime"] is True
