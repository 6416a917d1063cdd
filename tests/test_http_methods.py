"""What a machine is given by method: the script, the second initrd, and the generation it keeps."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest_asyncio

from bootd import explain, scripts
from bootd.boots.timeline import Stage
from bootd.model import Artefact, Image, Kernel, Method, ServerAddress
from bootd.registry import Registry
from tests.http_site import HERE, MAC, SECRET, Service, artefact, serving

SCRIPT = "/ipxe/52-54-00-12-34-56"
SAID = f"{SCRIPT}?uuid=&memsize=&serialhex=&assethex="
ARCHIVE, SQUASHFS = b"070701" + b"root" * 9000, b"hsqs" + b"root" * 8000


def image(folder: Path, generation: str = "7") -> Image:
    """A Debian with two kernels, built both ways."""

    def one(name: str, data: bytes) -> Artefact:
        return artefact(folder, f"{name}-{generation}", data + generation.encode())

    live, own = frozenset(("live-boot",)), one("initrd-612", b"070701")
    new = Kernel("6.12.1", one("kernel-612", b"MZ612"), own, features=live)
    old = Kernel("6.1.9", one("kernel-61", b"MZ61"))
    artefacts = {
        "kernel": new.kernel,
        "initramfs": own,
        "image": one("image", ARCHIVE),
        "squashfs": one("squashfs", SQUASHFS),
    }
    return Image(
        "debian",
        generation,
        MappingProxyType(artefacts),
        kernel_version="6.12.1",
        kernels=(new, old),
        unpacked=300 << 20,
        init="/lib/systemd/systemd",
    )


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(tmp_path) as service:
        activate(service, "7")
        yield service


def activate(service: Service, generation: str) -> None:
    """As ``bootd image activate`` and its reload."""
    images = {"debian": image(service.folder, generation)}
    service.current.swap(replace(service.registry, images=images))


def lines(text: str, word: str) -> list[list[str]]:
    """The script's lines that begin with a command, as words."""
    return [line.split() for line in text.splitlines() if line.split()[:1] == [word]]


def unpack(data: bytes, folder: Path) -> None:
    """As the kernel does."""
    subprocess.run(["cpio", "-idm", "--quiet"], input=data, cwd=folder, check=True)


async def test_the_root_comes_as_initrd_before_the_overlay(service: Service) -> None:
    service.change(method=Method.INITRAMFS, kernel_args=("rdinit=/my/init",))
    service.discover()

    text = (await service.get(SCRIPT)).text
    token = await service.token()

    (kernel,) = lines(text, "kernel")
    assert kernel[3].endswith("/kernel")
    # The node's own arguments come behind: the kernel takes the last.
    assert kernel[4:6] == ["rdinit=/lib/systemd/systemd", "rdinit=/my/init"]
    assert kernel[kernel.index("&&") - 2 :][:2] == ["initrd=image", "initrd=overlay"]
    assert [words[2:4] for words in lines(text, "initrd")] == [
        ["image", f"{service.base}/b/{token}/image"],
        ["overlay", f"{service.base}/b/{token}/system"],
    ]
    assert (await service.get(f"/b/{token}/image")).body == ARCHIVE + b"7"


async def test_a_squashfs_is_fetched_by_hooks_that_come_with_the_overlay(
    service: Service, tmp_path: Path
) -> None:
    service.change(method=Method.SQUASHFS)
    boot = service.discover()

    text = (await service.get(SCRIPT)).text
    token = await service.token()
    hook = await service.get(f"/b/{token}/hook")

    (kernel,) = lines(text, "kernel")
    assert "boot=bootd" in kernel
    assert not [word for word in kernel[4:] if token in word]  # all users of a node can read them
    assert [words[2:4] for words in lines(text, "initrd")] == [
        ["initramfs", f"{service.base}/b/{token}/initramfs"],
        ["overlay", f"{service.base}/b/{token}/hook"],
    ]
    root = tmp_path / "unpacked"
    root.mkdir()
    unpack(hook.body, root)
    assert f"/b/{token}\n" in (root / "etc/bootd/boot.env").read_text()
    inner = (root / "bootd/system.cpio").read_bytes()
    assert inner == (await service.get(f"/b/{token}/system")).body
    assert SECRET + b"n001" in inner
    size = len((await service.get(f"/b/{token}/squashfs")).body)
    assert f"BOOTD_SIZE={size}\n" in (root / "bootd/squashfs.env").read_text()
    assert [step.stage for step in boot.steps][-3:] == [
        Stage.INITRAMFS,
        Stage.OVERLAY,
        Stage.IMAGE,
    ]


async def test_the_hook_is_as_secret_as_the_overlay_in_it(service: Service) -> None:
    service.change(method=Method.SQUASHFS)
    service.discover()
    token = await service.token()
    service.boots.up(service.discover(), 0.0)

    assert (await service.get(f"/b/{token}/hook")).status == 403
    assert (await service.get(f"/b/{'x' * 60}/hook")).status == 403
    assert (await service.get("/hook/52-54-00-12-34-56")).status == 404


async def test_a_boot_keeps_the_generation_and_kernel_that_it_began_with(service: Service) -> None:
    service.change(method=Method.SQUASHFS)
    service.discover()
    await service.get(SCRIPT)
    token = await service.token()

    activate(service, "8")
    service.change(kernel_version="6.1", method=Method.INITRAMFS)

    for part, data in (("squashfs", SQUASHFS), ("kernel", b"MZ612"), ("initramfs", b"070701")):
        assert (await service.get(f"/b/{token}/{part}")).body == data + b"7"
    assert (await service.get("/kernel/52-54-00-12-34-56", source="127.0.0.2")).body == b"MZ618"


async def test_a_node_boots_the_kernel_that_it_names(service: Service) -> None:
    service.change(kernel_version="6.1", method=Method.INITRAMFS)
    service.discover()
    token = await service.token()

    assert (await service.get(f"/b/{token}/kernel")).body == b"MZ617"
    assert (await service.get(f"/b/{token}/initramfs")).status == 404


async def test_auto_asks_the_machine_for_its_memory_once(service: Service) -> None:
    service.discover()

    asking = (await service.get(SCRIPT)).text
    small = (await service.get(SAID.replace("memsize=", "memsize=512"))).text
    unknown = (await service.get(SAID)).text
    service.change(resources={"memory": "512M"})
    written = (await service.get(SCRIPT)).text

    assert "&memsize=${memsize}" in asking
    assert "/b/" not in asking
    assert "method squashfs" in small
    assert "method initramfs" in unknown
    assert "method squashfs" in written


async def test_without_a_token_nothing_leads_to_the_squashfs(service: Service) -> None:
    service.change(method=Method.SQUASHFS)

    text = (await service.get(SCRIPT)).text

    assert not lines(text, "kernel")
    assert "only for a boot whose DHCP exchange was seen" in text


def with_method(registry: Registry, folder: Path, method: Method) -> Registry:
    nodes = {"n001": replace(registry.nodes["n001"], method=method)}
    return replace(registry, nodes=nodes, images={"debian": image(folder)})


async def test_explain_says_how_the_root_comes_and_why(service: Service) -> None:
    registry = with_method(service.registry, service.folder, Method.AUTO)
    us = ServerAddress(HERE)

    answer = explain.explain(registry, MAC, us, [explain.Question(MAC)])

    script = answer["script"]
    assert (script["method"], script["kernel"]) == ("initramfs", "6.12.1")
    assert script["reason"] == "its memory is not known, and the root is small, 300 MiB unpacked"


async def test_a_node_whose_image_cannot_do_as_it_says_waits_and_faults_nothing(
    service: Service,
) -> None:
    registry = with_method(service.registry, service.folder, Method.SQUASHFS)
    plain = replace(
        registry.images["debian"], artefacts={"kernel": artefact(service.folder, "k", b"MZ")},
        kernels=(),
    )  # fmt: skip
    registry = replace(registry, images={"debian": plain})

    assert scripts.check(registry) == []
    assert scripts.unbootable(registry) == [
        "node n001: method squashfs: image debian 7 has no squashfs"
    ]
