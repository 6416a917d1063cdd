"""A running machine is kept up to date: its overlays and its node are edited while it runs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from tests.firmware.rack import failures, until_up
from tests.firmware.test_boot import typed, until_shell
from tests.lab import image
from tests.lab.lab import Lab
from tests.lab.machine import Firmware, Machine

pytestmark = [
    pytest.mark.firmware,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

NODE: Final = "n001"
MAC: Final = "52:54:00:77:05:01"
AGENT: Final = "/usr/sbin/bootd-agent 2>&1"
RACK: Final = "rack {{ tags.rack }}\n"


@dataclass
class Site:
    """A lab with one machine that is up, and the folder of the site's own overlays."""

    lab: Lab
    machine: Machine
    overlays: Path

    def edit(self, path: str, text: str | None) -> None:
        """Write a file of an overlay, or remove it."""
        file = self.overlays / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            file.unlink()
        else:
            file.write_text(text)

    def nodes(self, **tags: str) -> None:
        """Edit nodes.yaml: the node's tags."""
        self.lab.server.write_nodes({NODE: node(tags)})

    async def reload(self, outcome: str, **keys: Any) -> None:
        """SIGHUP, and wait for what becomes of it."""
        self.lab.server.signal(signal.SIGHUP)
        await self.lab.server.wait_for(outcome, 30, **keys)

    async def compared(self) -> list[str]:
        """What a reboot would change, as soon as the server has looked."""
        async with asyncio.timeout(30):
            while (stale := await self._stale()) is None:  # noqa: ASYNC110 -- no event tells
                await asyncio.sleep(0.2)
        return stale

    async def _stale(self) -> list[str] | None:
        stale = (await self.lab.server.status(NODE))["stale"]
        assert stale is None or isinstance(stale, list)
        return stale


def node(tags: dict[str, str]) -> dict[str, Any]:
    overlays = {"system": ["base", "agent", "site"], "runtime": ["live"]}
    return {"mac": MAC, "tags": tags, "overlays": overlays}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    failed_before = request.session.testsfailed
    demo = await asyncio.to_thread(image.build)
    async with Lab(keep=failures(request)) as lab:
        lab.server.configure({NODE: node({"rack": "r1"})}, overlays=["overlays"])
        overlays = lab.server.config.parent / "overlays"
        await asyncio.to_thread(lab.server.import_image, demo)
        machine = Site(lab, None, overlays)  # type: ignore[arg-type]  # it is not on yet
        machine.edit("site/rootfs/etc/motd", "welcome\n")
        machine.edit("live/rootfs/etc/live/rack.j2", RACK)
        machine.edit("live/rootfs/etc/live/old", "goes away\n")
        hooks = "on_change: {etc/live/rack: cat /etc/live/rack >> /run/hooked}\n"
        machine.edit("live/overlay.yaml", hooks)
        await lab.server.start()
        machine.machine = await lab.power_on(NODE, MAC, Firmware.BIOS)
        await until_up(machine.machine, NODE)
        await until_shell(machine.machine)
        yield machine
        lab.failed = request.session.testsfailed > failed_before


async def test_the_first_fetch_brings_the_runtime_overlay_with_the_node_s_own_key(
    site: Site,
) -> None:
    assert "-rw-------" in await typed(site.machine, "ls -l /etc/bootd/node.key")

    said = await typed(site.machine, AGENT)

    assert "refreshed: 3 paths changed, 3 in all" in said
    assert "rack r1" in await typed(site.machine, "cat /etc/live/rack /run/hooked")
    status = await site.lab.server.status(NODE)
    assert (status["refresh"]["result"], status["refresh"]["changed"]) == ("ok", 3)
    assert await site.compared() == []


async def test_edits_reach_the_running_node_with_its_next_fetch(site: Site) -> None:
    site.edit("live/rootfs/etc/live/rack.j2", "now in " + RACK)
    site.edit("live/rootfs/etc/live/old", None)
    site.edit("live/rootfs/etc/live/new", "comes\n")
    site.edit(
        "live/overlay.yaml",
        "on_change: {etc/live/rack: cat /etc/live/rack >> /run/hooked}\n"
        "delete: [usr/share/modules/order]\n",
    )
    await typed(site.machine, "mkdir -p /usr/share/modules; echo x > /usr/share/modules/order")
    site.nodes(rack="r2")
    await site.reload("registry.loaded", generation=2)
    assert await site.compared() == ["runtime"]

    said = await typed(site.machine, AGENT)

    assert "refreshed: 5 paths changed, 4 in all" in said
    rack = await typed(site.machine, "cat /etc/live/rack")
    assert rack.strip() == "now in rack r2"
    there = await typed(site.machine, "ls /etc/live /usr/share/modules")
    assert "new" in there.split()
    assert "old" not in there.split()
    assert "order" not in there.split()
    hooked = await typed(site.machine, "cat /run/hooked")
    assert [line.strip() for line in hooked.splitlines()] == ["rack r1", "now in rack r2"]
    assert await site.compared() == []


async def test_a_template_with_an_error_at_a_reload_changes_nothing_on_the_node(
    site: Site,
) -> None:
    site.edit("live/rootfs/etc/live/rack.j2", "{{ tags.nothing }}\n")
    await site.reload("registry.rejected")

    said = await typed(site.machine, AGENT)

    assert said.strip() == ""
    assert (await typed(site.machine, "cat /etc/live/rack")).strip() == "now in rack r2"
    status = await site.lab.server.status(NODE)
    assert status["refresh"]["result"] == "unchanged"
    site.edit("live/rootfs/etc/live/rack.j2", "now in " + RACK)


async def test_what_only_a_boot_can_bring_is_told_with_its_files(site: Site) -> None:
    site.edit("site/rootfs/etc/motd", "welcome back\n")
    await site.reload("registry.loaded", generation=3)

    assert await site.compared() == ["system"]
    explained = await asyncio.to_thread(site.lab.server.command, "explain", NODE)
    assert "Running: what a reboot would change" in explained
    assert "/etc/motd changed" in explained
