"""GRUB's and PXELINUX's configurations by HTTP, and the files that shim asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bootd.boots.timeline import Stage
from bootd.model import Arch, Overlay, OverlayEntry
from tests.http_site import HERE, MAC, OTHER, SECRET, Service, artefact, serving

DASHED = "52-54-00-12-34-56"
ELSEWHERE = "127.0.0.9"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    "path",
    [
        f"/grub/{DASHED}",
        "/grub/52:54:00:12:34:56",
        "/grub/grub.cfg",
        "//grub/grub.cfg",
        f"/grub/grub.cfg-01-{DASHED}",
        "/grub/grub.cfg-7F000001",
        "/EFI/debian/grub.cfg",
        "/boot/grub/grub.cfg",
        "/efiboot/grub.cfg",
        f"/{DASHED}/grub.cfg",
        f"/grub?wwid={DASHED}",
        f"/pxelinux.cfg/01-{DASHED}",
    ],
)
async def test_a_booting_machine_gets_its_configuration_under_every_name(
    service: Service, path: str
) -> None:
    service.discover()

    head = await service.get(path, method="HEAD")
    reply = await service.get(path)

    assert reply.status == head.status == 200
    assert reply.headers["Content-Length"] == head.headers["Content-Length"] == str(len(reply.body))
    assert reply.headers["Cache-Control"] == "no-store"
    token = reply.text.partition("/b/")[2].partition("/")[0]
    assert SECRET in (await service.get(f"/b/{token}/system")).body


async def test_the_configuration_is_the_boots_script(service: Service) -> None:
    boot = service.discover()
    await service.get("/grub/grub.cfg", method="HEAD")
    assert not boot.reached(Stage.SCRIPT)

    await service.get("/grub/grub.cfg")

    assert boot.reached(Stage.SCRIPT)
    assert boot.steps[-1].detail == "grub"


async def test_who_asks_without_a_name_gets_only_what_its_address_says(service: Service) -> None:
    service.discover(MAC, IPv4Address(ELSEWHERE))
    service.discover(OTHER, HERE)

    text = (await service.get("/grub/grub.cfg")).text
    assert "node n002" in text
    assert (await service.get("/grub/grub.cfg", source="127.0.0.7")).text.startswith("echo\n")


async def test_naming_another_machine_gives_nothing_of_its_boot(service: Service) -> None:
    boot = service.discover(MAC, IPv4Address(ELSEWHERE))

    for path in (f"/grub/{DASHED}", f"/pxelinux.cfg/01-{DASHED}", f"/{DASHED}/grub.cfg"):
        reply = await service.get(path)
        assert "/b/" not in reply.text
        assert "not this machine" in reply.text
    assert not boot.reached(Stage.SCRIPT)


async def test_an_asset_key_may_be_said_in_the_query_and_is_not_logged(service: Service) -> None:
    service.change(asset_key="blue-horse")
    service.discover()

    with capture_logs() as lines:
        assert "/b/" not in (await service.get(f"/grub/{DASHED}")).text
        assert "/b/" not in (await service.get(f"/grub/{DASHED}?assetkey=guess")).text
        assert "/b/" in (await service.get(f"/grub/{DASHED}?assetkey=blue-horse")).text
    assert "horse" not in str(lines)


async def test_ready_is_said_only_where_the_initrds_would_be_given(service: Service) -> None:
    boot = service.discover()
    token = (await service.get("/grub/grub.cfg")).text.partition("/b/")[2].partition("/")[0]
    steps = len(boot.steps)

    assert (await service.get(f"/b/{token}/ready")).text == "set bootd_ready=y\n"
    assert len(boot.steps) == steps

    initramfs = Path(service.registry.images["debian"].artefacts["initramfs"].path)
    initramfs.rename(initramfs.with_suffix(".away"))
    gone = await service.get(f"/b/{token}/ready")
    assert (gone.status, "bootd_ready=y" in gone.text) == (404, False)
    initramfs.with_suffix(".away").rename(initramfs)

    service.change(overlays_system=("broken",))
    entry = OverlayEntry("etc/x", "template", 0o644, b"{{ nothing }}", source="x.j2")
    broken = {"broken": Overlay("broken", (entry,), "d2")}
    service.current.swap(replace(service.registry, overlays=broken))
    assert (await service.get(f"/b/{token}/ready")).status == 500


async def test_an_unknown_machine_waits_and_is_not_told_404(service: Service) -> None:
    reply = await service.get("/grub/52-54-00-99-99-99")

    assert reply.status == 200
    assert "bootd claim 52:54:00:99:99:99 NODE" in reply.text


async def test_the_sites_own_file_goes_first(service: Service) -> None:
    folder = service.folder / "tftp" / "grub"
    folder.mkdir()
    (folder / "grub.cfg").write_text("echo ours\n")

    assert (await service.get("/grub/grub.cfg")).text == "echo ours\n"


def put(service: Service, *names: str) -> None:
    for name in names:
        (service.folder / "tftp" / name).write_text(name)


async def test_shim_finds_its_companions_beside_itself_and_at_the_root(service: Service) -> None:
    put(service, "shimx64.efi.signed", "grubnetx64.efi.signed", "mmx64.efi.signed")
    put(service, "fbx64.efi.signed", "revocations.efi")

    for path, file in {
        f"/{DASHED}/shimx64.efi": "shimx64.efi.signed",
        f"/{DASHED}//grubx64.efi": "grubnetx64.efi.signed",
        "//grubx64.efi": "grubnetx64.efi.signed",
        f"/{DASHED}/mmx64.efi": "mmx64.efi.signed",
        "/mmx64.efi": "mmx64.efi.signed",
        f"/{DASHED}/fbx64.efi": "fbx64.efi.signed",
        f"/{DASHED}/revocations.efi": "revocations.efi",
    }.items():
        reply = await service.get(path)
        assert (reply.status, reply.text) == (200, file), path
        assert reply.headers["Content-Type"] == "application/efi"


@pytest.mark.parametrize(
    "path",
    [
        f"/{DASHED}/revocations_sku.efi",
        f"/{DASHED}/revocations_sbat.efi",
        f"/{DASHED}/shim_certificate_0.efi",
        f"/{DASHED}/mmx64.efi",
        "/grub/x86_64-efi/command.lst",
        "/grub/x86_64-efi/grub.cfg",
    ],
)
async def test_what_shim_and_grub_only_try_is_not_found_without_a_line_or_a_redirect(
    service: Service, path: str
) -> None:
    boot = service.discover()
    with capture_logs() as lines:
        head, reply = await service.get(path, method="HEAD"), await service.get(path)

    assert head.status == reply.status == 404
    assert [line for line in lines if line["log_level"] != "debug"] == []
    assert boot.steps == []


async def test_a_loader_that_is_missing_stands_in_the_timeline(service: Service) -> None:
    boot = service.discover()

    assert (await service.get(f"/{DASHED}/shimx64.efi")).status == 404

    (step,) = boot.steps
    assert (step.detail, step.outcome) == ("http shimx64.efi", "not-found")


async def test_warewulfs_names_are_of_the_architecture_of_the_machine(service: Service) -> None:
    put(service, "shimx64.efi", "shimaa64.efi", "grubx64.efi", "grubaa64.efi")
    boot = service.discover()

    assert (await service.get("/efiboot/shim.efi")).text == "shimx64.efi"
    assert (await service.get("/efiboot//grub.efi")).text == "grubx64.efi"
    boot.arch = Arch.EFI_ARM64_HTTP
    assert (await service.get("/efiboot/shim.efi")).text == "shimaa64.efi"
    assert (await service.get("/efiboot/grub.efi")).text == "grubaa64.efi"
    assert (await service.get("/efiboot/grubx64.efi")).text == "grubx64.efi"
    assert (await service.get("/efiboot/other.efi")).status == 404


async def test_the_images_own_loaders_go_before_a_packages(service: Service) -> None:
    image = service.registry.images["debian"]
    own = artefact(service.folder, "shimx64.of-the-image", b"MZ of the image")
    artefacts = {**image.artefacts, "shimx64": own}
    images = {"debian": replace(image, artefacts=artefacts)}
    service.current.swap(replace(service.registry, images=images))
    boot = service.discover()

    reply = await service.get(f"/{DASHED}/shimx64.efi")

    assert reply.body == b"MZ of the image"
    assert reply.headers["Content-Type"] == "application/efi"
    assert boot.steps[-1].detail == "http shimx64.efi"
    put(service, "shimx64.efi")
    assert (await service.get(f"/{DASHED}/shimx64.efi")).text == "shimx64.efi"
