"""A machine boots from the service that a real systemd runs: installed user, sandbox and all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.container.nspawn import ROOT, Container
from tests.firmware.rack import FIRMWARE, LOADER, SCRIPT, failures, until_up
from tests.lab import image
from tests.lab.image import DemoImage
from tests.lab.lab import Lab
from tests.lab.machine import Firmware

pytestmark = [pytest.mark.firmware, pytest.mark.container, pytest.mark.timeout(900)]

NODE, MAC = "n001", "52:54:00:77:01:01"
BOOTD_YAML = """\
interfaces: [eth0]
nodes: [nodes.yaml]
"""
NODES_YAML = f"""\
profiles:
  default:
    image: demo
    kernel: {{args: [quiet, "console=ttyS0,115200"]}}
    overlays: {{system: [base]}}
nodes:
  {NODE}: {{mac: {MAC}, profiles: [default]}}
"""


@dataclass
class Site:
    """A lab whose boot server is a container with systemd."""

    lab: Lab
    container: Container


@pytest_asyncio.fixture
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    failed_before = request.session.testsfailed
    demo = await asyncio.to_thread(image.build)
    async with Lab(keep=failures(request)) as lab:
        with _container(lab, demo) as container:
            yield Site(lab, container)
            lab.failed = request.session.testsfailed > failed_before
            (lab.folder / "journal.log").write_text("\n".join(container.journal()))


@contextmanager
def _container(lab: Lab, demo: DemoImage) -> Iterator[Container]:
    """The service, installed, configured and started. Blocks the loop: no machine is on yet."""
    with Container(namespace=lab.network.boot) as container:
        container.install_bootd()
        container.write("/etc/bootd/bootd.yaml", BOOTD_YAML)
        container.write("/etc/bootd/nodes.yaml", NODES_YAML)
        container.run(
            "bootd", "image", "import", "demo",
            "--kernel", _inside(demo.kernel), "--initramfs", _inside(demo.initramfs),
        )  # fmt: skip
        container.run("systemctl", "start", "bootd")
        yield container


def _inside(path: Path) -> str:
    """Where the container sees a file of this checkout."""
    return str(Path("/src") / path.relative_to(ROOT))


async def test_a_machine_boots_from_the_service_that_systemd_runs(site: Site) -> None:
    machine = await site.lab.power_on(NODE, MAC, Firmware.BIOS)

    await machine.wait_for(rf"^bootd: node {NODE}, {MAC}", FIRMWARE + LOADER + SCRIPT)
    await until_up(machine, NODE)

    status = site.container.run("bootd", "status", NODE, "--json").stdout
    assert '"outcome": "up"' in status
    assert any(line.startswith("boot.up ") for line in site.container.journal(f"BOOTD_NODE={NODE}"))
    assert site.container.property("User") == "bootd"
