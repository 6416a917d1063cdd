"""Real firmware boots from bootd, beside a DHCP server that knows nothing of booting.

One rack for the whole module: four machines are powered on at once, and each test waits for its
own. What a test expects stands on the machine's serial console and in ``bootd status``.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.firmware.rack import (
    FIRMWARE,
    KERNEL,
    LOADER,
    SCRIPT,
    assert_booted,
    failures,
    sent,
    the_boot,
    until_up,
)
from tests.lab import image
from tests.lab.image import DemoImage
from tests.lab.lab import Lab
from tests.lab.machine import Firmware, Machine

pytestmark = [
    pytest.mark.firmware,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

MACS = {name: f"52:54:00:77:00:0{number}" for number, name in enumerate(["n001", "n002", "n003"])}
STRANGER = "52:54:00:77:00:99"
ASSET, SERIAL, UUID = "R2 & left/7 =?", "CZ32 30XYZ", "4c4c4544-0051-3910-8052-b9c04f4e3332"
SMBIOS = (f"type=1,serial={SERIAL},uuid={UUID}", f"type=3,asset={ASSET}")
"""What the firmware of two machines tells, and their nodes name."""


@dataclass
class Rack:
    """The lab, its image, and the machines by the name of their node; `stranger` has none."""

    lab: Lab
    image: DemoImage
    machines: dict[str, Machine]
    stranger: Machine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rack(request: pytest.FixtureRequest) -> AsyncIterator[Rack]:
    failed_before = request.session.testsfailed
    demo = await asyncio.to_thread(image.build)
    async with Lab(keep=failures(request)) as lab:
        said = {"asset_key": ASSET, "serial": SERIAL, "uuid": UUID}
        nodes = {name: {"mac": mac, **said} for name, mac in MACS.items()}
        nodes["n003"] = {"mac": MACS["n003"]}
        lab.server.configure(nodes)
        await asyncio.to_thread(lab.server.import_image, demo)
        await lab.server.start()
        machines = {
            "n001": await lab.power_on("n001", MACS["n001"], Firmware.BIOS, smbios=SMBIOS),
            "n002": await lab.power_on("n002", MACS["n002"], Firmware.UEFI, smbios=SMBIOS),
            "n003": await lab.power_on("n003", MACS["n003"], Firmware.UEFI_ROM),
        }
        stranger = await lab.power_on("stranger", STRANGER, Firmware.BIOS)
        yield Rack(lab, demo, machines, stranger)
        lab.failed = request.session.testsfailed > failed_before


async def test_a_bios_machine_whose_card_has_ipxe_boots_as_its_node(rack: Rack) -> None:
    machine = rack.machines["n001"]

    await machine.wait_for(r"^SeaBIOS", FIRMWARE)
    await machine.wait_for(r"^iPXE .*Open Source Network Boot Firmware", LOADER)
    await machine.wait_for(rf"^bootd: node n001, {MACS['n001']}", SCRIPT)
    address = await until_up(machine, "n001")

    status = await rack.lab.server.status("n001")
    assert (status["mac"], status["stage"], status["outcome"]) == (MACS["n001"], "up", "up")
    assert (status["firmware"], status["address"]) == ("ipxe", str(address))
    assert_booted(await the_boot(rack.lab, "n001"), rack.image)


async def test_the_node_s_init_reads_the_overlay_that_came_as_second_initrd(rack: Rack) -> None:
    machine = rack.machines["n001"]
    await until_shell(machine)

    hosts = await typed(machine, "cat /etc/hosts")
    modes = await typed(machine, "ls -l /etc/hostname /etc/bootd/boot.env")
    arguments = await typed(machine, "cat /proc/cmdline")

    assert "n001" in hosts
    assert [line.split()[0] for line in modes.splitlines()] == ["-rw-------", "-rw-r--r--"]
    assert "bootd.node=n001" in arguments.split()
    assert f"BOOTIF=01-{MACS['n001'].replace(':', '-')}" in arguments.split()
    assert "/b/" not in arguments  # every user of the node can read its command line


async def test_a_uefi_machine_s_own_pxe_client_loads_ipxe_by_tftp_and_boots(rack: Rack) -> None:
    machine = rack.machines["n002"]

    await machine.wait_for(r">>Start PXE over IPv4", FIRMWARE)
    await machine.wait_for(r"NBP filename is \S*snponly\.efi", LOADER)
    await machine.wait_for(r"NBP file downloaded successfully", LOADER)
    await machine.wait_for(r"^iPXE .*Open Source Network Boot Firmware", LOADER)
    await machine.wait_for(rf"^bootd: node n002, {MACS['n002']}", SCRIPT)
    address = await until_up(machine, "n002")

    status = await rack.lab.server.status("n002")
    assert (status["outcome"], status["address"]) == ("up", str(address))
    boot = await the_boot(rack.lab, "n002")
    assert_booted(boot, rack.image)
    assert (boot["firmware"], boot["arch"]) == ("pxe", 7)
    assert sent(boot, "loader") == Path("/usr/lib/ipxe/snponly.efi").stat().st_size


async def test_a_uefi_machine_whose_card_has_ipxe_boots_as_its_node(rack: Rack) -> None:
    machine = rack.machines["n003"]

    await machine.wait_for(rf"^bootd: node n003, {MACS['n003']}", FIRMWARE + LOADER + SCRIPT)
    await until_up(machine, "n003")

    assert_booted(await the_boot(rack.lab, "n003"), rack.image)


async def test_an_unknown_machine_waits_and_boots_untouched_once_it_is_in_the_file(
    rack: Rack,
) -> None:
    server, machine = rack.lab.server, rack.stranger

    await machine.wait_for(r"^bootd: this machine waits", FIRMWARE + LOADER + SCRIPT)
    await machine.wait_for(rf"^bootd: mac {STRANGER}", SCRIPT)
    unknown = await server.ask("unknown")
    server.write_nodes(
        {**{name: {"mac": mac} for name, mac in MACS.items()}, "n099": {"mac": STRANGER}}
    )
    server.signal(signal.SIGHUP)
    await server.wait_for("registry.loaded", 30, added="n099")
    await machine.wait_for(rf"^bootd: node n099, {STRANGER}", SCRIPT)
    await until_up(machine, "n099")

    assert STRANGER in [each["mac"] for each in unknown]
    assert (await server.status("n099"))["outcome"] == "up"
    assert STRANGER not in [each["mac"] for each in await server.ask("unknown")]
    assert machine.console.text.count("SeaBIOS") == 1  # it was never switched off


async def until_shell(machine: Machine) -> None:
    """Wait for the prompt that the demo image ends in."""
    await machine.wait_for(r"^[/~] # ", FIRMWARE + LOADER + SCRIPT + KERNEL)


async def typed(machine: Machine, command: str) -> str:
    """Type a command at the node's shell; what it prints."""
    machine.type(f"{command}; echo done-$?\n")
    printed = await machine.wait_for(r"(?s).*?^done-\d+$", SCRIPT)
    await machine.wait_for(r"^[/~] # ", SCRIPT)
    *lines, last = printed.splitlines()
    assert last == "done-0", printed
    return "\n".join(lines[1:])
