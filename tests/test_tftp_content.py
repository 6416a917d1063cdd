"""What TFTP sends besides loaders: configurations, and parts of a boot behind a token."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from bootd.boots.gate import Gate
from bootd.boots.timeline import Boot, Boots, Stage
from bootd.files import LoaderFiles
from bootd.loaders import BootFile, boot_file, firmware_path
from bootd.model import (
    Artefact,
    ClientKind,
    HttpSettings,
    Mac,
    Overlay,
    OverlayEntry,
    ServerAddress,
    Settings,
    TlsSettings,
)
from bootd.overlay.cache import OverlayCache
from bootd.tftp.content import Content, Contents, Missing, Request
from bootd.tftp.wire import ErrorCode
from tests.test_grub import IMAGE, NODE, registry

MAC = Mac("52:54:00:12:34:56")
DASHED = "52-54-00-12-34-56"
HERE, ELSEWHERE = IPv4Address("10.0.0.11"), IPv4Address("10.0.0.66")
SERVER = ServerAddress(IPv4Address("10.0.0.1"))
KERNEL, INITRAMFS = b"MZ" + bytes(9000), b"\x1f\x8b" + bytes(5000)
KEY = bytes(range(32))
TOKEN = b"aB3_-" * 10 + b"zz"
NOW = 1000.0


class Bench:
    def __init__(self, state: Path) -> None:
        files = {"kernel": KERNEL, "initramfs": INITRAMFS}
        folder = state / "images" / "debian-12" / "1"
        folder.mkdir(parents=True)
        (state / "tftp").mkdir()
        artefacts = {}
        for role, data in files.items():
            (folder / role).write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            artefacts[role] = Artefact(str(folder / role), len(data), digest)
        key = OverlayEntry("etc/key", "file", 0o600, b"secret", source="key")
        self.registry = replace(
            registry(replace(NODE, overlays_system=("keys",))),
            settings=Settings(state_dir=str(state)),
            images={"debian-12": replace(IMAGE, artefacts=artefacts)},
            overlays={"keys": Overlay("keys", (key,), "d1")},
        )
        self.tftp = state / "tftp"
        self.folder = folder
        ids = count(1)
        self.boots = Boots(new_id=lambda: f"{next(ids):016x}", window=600, offset=1e9)
        self.link: dict[IPv4Address, Mac] = {}
        self.overlays = OverlayCache()
        self.files, self.images = LoaderFiles([self.tftp]), LoaderFiles([state / "images"])
        self.contents = Contents(
            self.files,
            self.images,
            Gate(self.boots, (KEY,), self.link.get),
            self.overlays,
            (bytes(32),),
        )

    def discover(self) -> Boot:
        boot = self.boots.discover(MAC, "n001", ClientKind.PXE, 7, NOW)
        boot.address = HERE
        return boot

    async def get(self, name: str, peer: IPv4Address = HERE, now: float = NOW) -> Content:
        return await self.contents.find(Request(name.encode(), self.registry, peer, SERVER, now))

    async def refused(self, name: str, peer: IPv4Address = HERE, now: float = NOW) -> Missing:
        with pytest.raises(Missing) as caught:
            await self.get(name, peer, now)
        return caught.value

    async def token(self) -> str:
        text = (await self.get("/grub/grub.cfg")).data.decode()
        return text.partition("/b/")[2].partition("/")[0]

    def close(self) -> None:
        self.files.close()
        self.images.close()
        self.overlays.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("/grub/grub.cfg", "grub"),
        (f"grub/grub.cfg-01-{DASHED}", "grub"),
        (f"/grub/{DASHED}", "grub"),
        ("/grub/grub.cfg-0A00000B", "grub"),
        ("/EFI/debian/grub.cfg", "grub"),
        (f"{DASHED}/grub.cfg", "grub"),
        ("/boot/grub/grub.cfg", "grub"),
        (f"pxelinux.cfg/01-{DASHED}", "pxelinux"),
        (f"{DASHED}/pxelinux.cfg/01-{DASHED}", "pxelinux"),
    ],
)
async def test_every_name_of_a_configuration_gives_the_nodes_own(
    bench: Bench, name: str, kind: str
) -> None:
    bench.discover()

    made = await bench.get(name)

    assert (made.name, made.mac, made.stage) == (kind, MAC, Stage.SCRIPT)
    assert b"/b/" in made.data


async def test_a_machine_that_nobody_knows_waits(bench: Bench) -> None:
    made = await bench.get("/grub/grub.cfg", ELSEWHERE)

    assert made.mac is None
    assert b"this machine waits" in made.data


async def test_the_sites_own_file_goes_first(bench: Bench) -> None:
    (bench.tftp / "grub").mkdir()
    (bench.tftp / "grub" / "grub.cfg").write_text("for all")
    assert (await bench.get("/grub/grub.cfg")).data == b"for all"
    (bench.tftp / "grub" / f"grub.cfg-01-{DASHED}").write_text("for one")
    assert (await bench.get(f"{DASHED}/grub.cfg")).data == b"for one"
    (bench.tftp / "pxelinux.cfg").mkdir()
    (bench.tftp / "pxelinux.cfg" / f"01-{DASHED}").write_text("for this")
    assert (await bench.get(f"/pxelinux.cfg/01-{DASHED}")).data == b"for this"


async def test_the_parts_of_a_boot_are_given_behind_its_token(bench: Bench) -> None:
    boot = bench.discover()
    token = await bench.token()

    kernel = await bench.get(f"/b/{token}/kernel")
    initramfs = await bench.get(f"{DASHED}//b/{token}/initramfs")
    system = await bench.get(f"b/{token}/system")

    ready = await bench.get(f"b/{token}/ready")

    assert (ready.name, ready.data, ready.stage) == ("ready", b"set bootd_ready=y\n", None)
    assert (kernel.name, kernel.data, kernel.stage) == ("kernel", KERNEL, Stage.KERNEL)
    assert (initramfs.data, initramfs.stage) == (INITRAMFS, Stage.INITRAMFS)
    assert (system.name, system.mac, system.stage) == ("system", MAC, Stage.OVERLAY)
    assert b"secret" in system.data
    assert f"BOOTD_URL=http://10.0.0.1:9873/b/{token}\n".encode() in system.data
    assert f"BOOTD_BOOT={boot.id}\n".encode() in system.data
    assert b"etc/bootd/node.key" in system.data


@pytest.mark.parametrize("part", ["kernel", "system", "up", "fail", "hook", "../kernel", "x" * 40])
async def test_what_tftp_has_not_is_not_found_and_no_token_is_named(
    bench: Bench, part: str
) -> None:
    missing = await bench.refused(f"/b/{'A' * 52}/{part}")

    assert "AAAA" not in str(missing) + missing.name + missing.text
    assert missing.code in (ErrorCode.ACCESS_VIOLATION, ErrorCode.NOT_FOUND)


async def test_parts_that_only_http_has_are_not_found(bench: Bench) -> None:
    bench.discover()
    token = await bench.token()

    for part in ("up", "fail", "hook", "runtime", "squashfs"):
        assert (await bench.refused(f"/b/{token}/{part}")).reason == "not-found"
    assert bench.boots.of(MAC) is not None
    assert bench.boots.of(MAC).outcome == ""  # type: ignore[union-attr]


async def test_a_node_with_a_squashfs_gets_what_fetches_it(bench: Bench) -> None:
    image = bench.registry.images["debian-12"]
    (bench.folder / "squashfs").write_bytes(b"hsqs")
    squashfs = Artefact(str(bench.folder / "squashfs"), 4, "ab" * 32)
    artefacts = {**image.artefacts, "squashfs": squashfs}
    images = {"debian-12": replace(image, artefacts=artefacts)}
    bench.registry = replace(bench.registry, images=images)
    bench.discover()
    token = await bench.token()

    hook = await bench.get(f"/b/{token}/hook")

    assert (hook.name, hook.stage) == ("hook", Stage.INITRAMFS)
    assert b"BOOTD_SIZE=4\n" in hook.data
    assert b"secret" in hook.data
    assert (await bench.get(f"/b/{token}/squashfs")).data == b"hsqs"


async def test_a_token_opens_nothing_for_another_address(bench: Bench) -> None:
    bench.discover()
    token = await bench.token()

    for part in ("kernel", "system"):
        assert (await bench.refused(f"/b/{token}/{part}", ELSEWHERE)).reason == "wrong-address"


async def test_a_token_ends_when_the_node_is_up(bench: Bench) -> None:
    boot = bench.discover()
    token = await bench.token()
    bench.boots.up(boot, NOW)

    assert (await bench.refused(f"/b/{token}/system")).reason == "up"


async def test_a_token_ends_with_the_boot_window(bench: Bench) -> None:
    bench.discover()
    token = await bench.token()

    late = await bench.refused(f"/b/{token}/system", now=NOW + 700)
    assert late.reason in ("window-closed", "expired")


async def test_a_public_image_is_given_by_mac_address_and_a_secret_one_is_not(
    bench: Bench,
) -> None:
    assert (await bench.get(f"/kernel/{DASHED}")).data == KERNEL
    assert (await bench.get(f"/initramfs/{DASHED}")).data == INITRAMFS
    assert (await bench.refused("/kernel/52-54-00-99-99-99")).reason == "unknown-node"
    image = replace(bench.registry.images["debian-12"], secret=True)
    bench.registry = replace(bench.registry, images={"debian-12": image})
    assert (await bench.refused(f"/kernel/{DASHED}")).reason == "secret-image"
    bench.discover()
    token = await bench.token()
    assert (await bench.get(f"/b/{token}/kernel")).data == KERNEL


async def test_a_damaged_file_of_an_image_is_refused(bench: Bench) -> None:
    (bench.folder / "kernel").write_bytes(KERNEL[:-1])

    assert (await bench.refused(f"/kernel/{DASHED}")).reason == "damaged"


async def test_a_template_that_fails_for_a_node_leaves_it_waiting_with_the_reason(
    bench: Bench,
) -> None:
    bench.discover()
    template = replace(bench.registry.templates["grub.cfg.j2"], text="{{ nothing }}")
    bench.registry = replace(
        bench.registry, templates={**bench.registry.templates, "grub.cfg.j2": template}
    )

    with capture_logs() as lines:
        made = await bench.get("/grub/grub.cfg")

    assert b"this machine waits" in made.data
    assert [line["event"] for line in lines] == ["script.failed"]


def with_loaders(bench: Bench) -> None:
    """As an image that has its distribution's shim and GRUB."""
    folder = bench.folder / "efi"
    folder.mkdir()
    image = bench.registry.images["debian-12"]
    artefacts = dict(image.artefacts)
    for role in ("shimx64", "grubx64"):
        (folder / f"{role}.efi").write_text(f"{role} of the image")
        size = (folder / f"{role}.efi").stat().st_size
        artefacts[role] = Artefact(str(folder / f"{role}.efi"), size, "0" * 64)
    images = {"debian-12": replace(image, artefacts=artefacts)}
    bench.registry = replace(bench.registry, images=images)


async def test_the_images_own_loaders_go_before_a_packages_and_behind_the_sites(
    bench: Bench, tmp_path: Path
) -> None:
    package = tmp_path / "package"
    package.mkdir()
    for name in ("shimx64.efi.signed", "grubnetx64.efi.signed", "mmx64.efi.signed"):
        (package / name).write_text("of a package")
    bench.contents = replace(bench.contents, files=LoaderFiles([bench.tftp, package]))
    assert (await bench.get(f"{DASHED}/shimx64.efi")).data == b"of a package"
    with_loaders(bench)

    shim = await bench.get(f"{DASHED}/shimx64.efi")
    assert (shim.name, shim.data) == ("shimx64.efi", b"shimx64 of the image")
    assert shim.stage is Stage.LOADER
    assert (await bench.get(f"{DASHED}//grubx64.efi")).data == b"grubx64 of the image"
    assert (await bench.get(f"{DASHED}/mmx64.efi")).data == b"of a package"
    assert (await bench.get("52-54-00-99-99-99/shimx64.efi")).data == b"of a package"
    bench.link[HERE] = MAC
    assert (await bench.get("//grubx64.efi")).data == b"grubx64 of the image"

    (bench.tftp / "grubx64.efi").write_text("of the site")
    assert (await bench.get(f"{DASHED}/grubx64.efi")).data == b"of the site"
    bench.contents.files.close()


@given(st.binary(max_size=60))
def test_no_name_that_is_refused_shows_a_token(rest: bytes) -> None:
    for name in (b"b/" + TOKEN + rest, b"/x/b//" + TOKEN + b"/" + rest, rest + TOKEN):
        part = boot_file(firmware_path(name))
        shown = part.part if isinstance(part, BootFile) else firmware_path(name)
        missing = Missing("not-found", shown, None, None, optional=False)
        assert TOKEN.decode() not in missing.name + missing.text + str(missing)


@pytest.mark.parametrize(
    ("scripts", "base"), [(True, "https://10.0.0.1:9874"), (False, "http://10.0.0.1:9873")]
)
async def test_autoexec_leads_to_where_scripts_are_given(
    bench: Bench, scripts: bool, base: str
) -> None:
    http = HttpSettings(tls=TlsSettings(9874, "cert.pem", "key.pem", scripts))
    bench.registry = replace(bench.registry, settings=replace(bench.registry.settings, http=http))

    text = (await bench.get(f"{DASHED}/autoexec.ipxe")).data.decode()

    assert f"chain --replace --autofree {base}/ipxe/{DASHED} ||" in text.splitlines()
