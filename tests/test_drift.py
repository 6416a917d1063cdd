"""Would a reboot change anything? What boots gave their nodes against what they would get now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bootd.boots.given import differing, of_script
from bootd.boots.nodekeys import derive
from bootd.boots.timeline import Boot
from bootd.drift import Drift
from bootd.model import BootTarget, Image, Overlay, OverlayEntry, Template
from bootd.overlay.cache import OverlayCache
from tests.http_site import MAC, NODE_SECRET, OTHER, Service, artefact, serving

LOOPS = ("uvloop",)


@dataclass
class Site:
    """An HTTP service, and who compares what its nodes were given."""

    service: Service
    drift: Drift

    async def booted(self) -> Boot:
        """Node n001 with a whole boot behind it."""
        boot = self.service.discover(MAC)
        token = await self.service.token()
        for part in ("kernel", "initramfs", "system", "up"):
            assert (await self.service.get(f"/b/{token}/{part}")).status == 200
        return boot

    async def refreshed(self) -> None:
        """n001 has its runtime overlay, and says so."""
        headers = {"Authorization": f"Bearer {derive(NODE_SECRET, 'n001', MAC)}"}
        got = await self.service.get(f"/runtime/{MAC}", headers=headers)
        digest = got.headers["ETag"].strip('"')
        report = f"/runtime/{MAC}/report?result=ok&digest={digest}"
        assert (await self.service.get(report, headers=headers)).status == 200

    def change(self, **values: Any) -> None:
        """As a reload of files in which that has changed."""
        self.service.current.swap(replace(self.service.registry, **values))
        self.drift.forget()

    def change_node(self, **values: Any) -> None:
        self.service.change(**values)
        self.drift.forget()

    async def stale(self, boot: Boot) -> tuple[str, ...] | None:
        await self.drift.look()
        return boot.stale

    async def why(self, boot: Boot) -> dict[str, Any]:
        registry = self.service.registry
        found = await self.drift.explain(registry, registry.by_mac[boot.mac], boot)
        return {each["what"]: each for each in found}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with serving(tmp_path) as service:
        overlays: OverlayCache = service.server._site.overlays
        yield Site(service, Drift(current=service.current, boots=service.boots, overlays=overlays))


async def test_a_node_that_just_booted_has_what_it_would_get(site: Site) -> None:
    boot = await site.booted()
    assert boot.stale is None

    assert await site.stale(boot) == ()
    assert set(boot.given) >= {"kernel", "initramfs", "args", "script", "system"}


async def test_an_edited_overlay_is_told_with_its_files(site: Site) -> None:
    boot = await site.booted()
    old = site.service.registry.overlays["keys"]
    entry = OverlayEntry("etc/motd", "file", 0o644, b"new", source="motd")
    site.change(overlays={"keys": Overlay("keys", (*old.entries, entry), "d2")})

    assert await site.stale(boot) == ("system",)
    assert (await site.why(boot))["system"]["files"] == {"etc/motd": "added"}


async def test_a_boot_by_grub_is_compared_by_its_own_script(site: Site) -> None:
    site.change_node(loader="shim")
    boot = site.service.discover(MAC)
    config = (await site.service.get("/grub/grub.cfg-01-52-54-00-12-34-56")).text
    token = config.split("/b/")[1].split("/")[0]
    for part in ("system", "up"):
        assert (await site.service.get(f"/b/{token}/{part}")).status == 200
    assert await site.stale(boot) == ()

    templates = dict(site.service.registry.templates)
    name = "grub.cfg.j2"
    templates[name] = Template(name, templates[name].text + "\necho x\n", name)
    site.change(templates=templates)

    assert await site.stale(boot) == ("script",)


async def test_what_comes_out_the_same_is_not_told(site: Site) -> None:
    """A comment is what archives are made from, but nothing that is in them."""
    boot = await site.booted()

    site.change_node(comment="edited")

    assert await site.stale(boot) == ()


async def test_another_kernel_is_told_by_its_name(site: Site, tmp_path: Path) -> None:
    boot = await site.booted()
    image = site.service.registry.images["debian"]
    files = {**image.artefacts, "kernel": artefact(tmp_path, "kernel2", b"newer")}
    newer = Image(
        "debian", "2", files, kernels=tuple(
            replace(kernel, kernel=files["kernel"]) for kernel in image.kernels
        ),
    )  # fmt: skip
    site.change(images={"debian": newer})

    assert await site.stale(boot) == ("kernel",)
    told = (await site.why(boot))["kernel"]
    assert told["before"] == image.artefacts["kernel"].sha256
    assert told["now"] == files["kernel"].sha256


async def test_other_arguments_are_told_as_they_are(site: Site) -> None:
    boot = await site.booted()

    site.change_node(kernel_args=("quiet",))

    assert await site.stale(boot) == ("args",)
    assert "quiet" in (await site.why(boot))["args"]["now"].split()
    assert "quiet" not in (await site.why(boot))["args"]["before"].split()


async def test_another_boot_script_is_told(site: Site) -> None:
    boot = await site.booted()
    templates = dict(site.service.registry.templates)
    given = templates["default.ipxe.j2"]
    templates["default.ipxe.j2"] = Template(given.name, given.text + "\necho x\n", given.source)
    site.change(templates=templates)

    assert await site.stale(boot) == ("script",)


async def test_an_image_that_is_gone_is_told(site: Site) -> None:
    boot = await site.booted()
    site.change(images={})

    assert await site.stale(boot) == ("kernel", "initramfs", "args")
    assert "is not imported" in (await site.why(boot))["args"]["now"]


async def test_the_runtime_overlay_is_told_until_the_node_has_fetched_it(site: Site) -> None:
    boot = await site.booted()
    await site.refreshed()
    assert await site.stale(boot) == ()

    entry = OverlayEntry("etc/motd", "file", 0o644, b"new", source="motd")
    overlays = {**site.service.registry.overlays, "now": Overlay("now", (entry,), "d3")}
    site.change(overlays=overlays)
    site.change_node(overlays_runtime=("keys", "now"))
    assert await site.stale(boot) == ("runtime",)

    await site.refreshed()
    assert await site.stale(boot) == ()


async def test_who_boots_from_its_own_disk_or_is_under_way_is_not_compared(site: Site) -> None:
    boot = await site.booted()
    site.change_node(boot=BootTarget.LOCAL, kernel_args=("quiet",))
    other = site.service.discover(OTHER)

    assert await site.stale(boot) == ()
    assert other.stale is None


async def test_an_overlay_that_fails_now_is_told_and_nothing_ends(site: Site) -> None:
    boot = await site.booted()
    entry = OverlayEntry("etc/x", "template", 0o644, b"{{ tags.nothing }}", source="x.j2")
    site.change(overlays={"keys": Overlay("keys", (entry,), "d4")})

    assert await site.stale(boot) == ("system",)
    assert "does not render: x.j2:1" in (await site.why(boot))["system"]["now"]


async def test_it_looks_by_itself_after_a_reload(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bootd.drift.PERIOD", 0.01)
    boot = await site.booted()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(site.drift.run())
        async with asyncio.timeout(10):
            while boot.stale is None:  # noqa: ASYNC110 -- nothing tells it, so it is looked for
                await asyncio.sleep(0.01)
            site.change_node(kernel_args=("quiet",))
            while boot.stale != ("args",):  # noqa: ASYNC110 -- as above
                await asyncio.sleep(0.01)
        task.cancel()


def test_a_script_is_the_same_whatever_its_token_and_boot() -> None:
    first = of_script("kernel http://x/b/AAA/kernel # 123", "AAA", "123")

    assert first == of_script("kernel http://x/b/BBB/kernel # 456", "BBB", "456")
    assert first != of_script("kernel http://y/b/BBB/kernel # 456", "BBB", "456")


def test_a_script_that_differs_with_its_files_is_told_by_the_files() -> None:
    before = {"kernel": "1", "script": "1", "args": "a"}

    assert differing(before, {"kernel": "2", "script": "2", "args": "a"}) == ("kernel",)
    assert differing(before, {"kernel": "1", "script": "2", "args": "a"}) == ("script",)
    more = {**before, "squashfs": "3", "script": "2"}
    assert differing(before, more) == ("squashfs",)
    assert differing({}, more) == ()
