"""An arm64 machine's own PXE client, and the iPXE of its architecture.

As far as its node's script: a whole boot on an emulated arm64 takes longer than it proves.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.firmware.rack import FIRMWARE, LOADER, SCRIPT, failures, sent, the_boot
from tests.lab import image
from tests.lab.arm64 import arm64
from tests.lab.lab import Lab
from tests.lab.machine import Firmware

pytestmark = [pytest.mark.firmware, pytest.mark.timeout(600)]

MAC = "52:54:00:77:05:01"


async def test_an_arm64_machine_loads_the_ipxe_of_its_architecture_and_reaches_its_script(
    request: pytest.FixtureRequest,
) -> None:
    files = await asyncio.to_thread(arm64)
    demo = await asyncio.to_thread(image.build)
    async with Lab(keep=failures(request)) as lab:
        lab.server.configure({"n001": {"mac": MAC}})
        lab.server.add_loader(files.ipxe)
        await asyncio.to_thread(lab.server.import_image, demo)
        await lab.server.start()
        machine = await lab.power_on("n001", MAC, Firmware.ARM64)

        await machine.wait_for(r">>Start PXE over IPv4", FIRMWARE)
        await machine.wait_for(r"NBP file downloaded successfully", LOADER)
        await machine.wait_for(r"^iPXE .*Open Source Network Boot Firmware", LOADER)
        await machine.wait_for(rf"^bootd: node n001, {MAC}", SCRIPT)
        await machine.power_off()

        boot = await the_boot(lab, "n001")
        assert (boot["firmware"], boot["arch"]) == ("pxe", 11)
        # iPXE since 2023 asks for autoexec.ipxe after itself, which is no second loader.
        loaded = [step["bytes"] for step in boot["steps"] if step["stage"] == "loader"]
        assert loaded == [files.ipxe.stat().st_size]
        assert sent(boot, "script") > 0
