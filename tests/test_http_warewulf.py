"""Warewulf's routes, and its rules for secrets where a node is switched to them."""

from __future__ import annotations

import asyncio
import errno
import gzip
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from itertools import count
from pathlib import Path

import pytest

from bootd.boots import warewulf
from bootd.boots.nodekeys import derive
from bootd.http.admission import LARGE
from bootd.http.answer import OpenFile
from bootd.http.recode import Recoded
from bootd.http.send import Aborted
from bootd.model import NetDev, SecuritySettings
from bootd.overlay.compress import compress
from tests.http_site import (
    HERE,
    INITRAMFS,
    KERNEL,
    MAC,
    NODE_SECRET,
    OTHER,
    SECRET,
    STRANGER,
    Reply,
    Service,
    artefact,
    read_reply,
    serving,
)

LOOPS = ("uvloop",)
DASHED = "52-54-00-12-34-56"
KEY = "blue & horse"
ASSET = "assetkey=blue%20%26%20horse"
LOW = 32000
"""Stands in for 1024, below which only root may bind: the real one is in tests/integration."""
_ports = count(20000)


@pytest.fixture
async def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.setattr(warewulf, "PRIVILEGED", LOW)
    async with serving(tmp_path) as running:
        running.change(security="warewulf", asset_key=KEY, overlays_runtime=("keys",))
        yield running


async def ask(
    service: Service, path: str, *, low: bool = True, agent: str = "curl/7.88", method: str = "GET"
) -> Reply:
    """One request, from a port below `LOW` or above it."""
    while True:
        local = ("127.0.0.1", next(_ports) if low else 0)
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", service.server.port, local_addr=local
            )
        except OSError:  # somebody has that port
            continue
        break
    try:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nUser-Agent: {agent}\r\n\r\n"
        writer.write(head.encode())
        return await read_reply(reader, method=method)
    finally:
        writer.close()


SPELLINGS = [
    DASHED,
    "52:54:00:12:34:56",
    "52%3A54%3A00%3A12%3A34%3A56",
    "52:54:00:12:34:56".upper(),
]


@pytest.mark.parametrize("mac", [*SPELLINGS, "/52-54-00-12-34-56"])
async def test_a_mac_address_may_be_spelled_as_warewulfs_clients_do(
    service: Service, mac: str
) -> None:
    for route in ("runtime", "system", "overlay-runtime", "overlay-system"):
        reply = await ask(service, f"/{route}/{mac}?{ASSET}&uuid=x")
        assert reply.status == 200, route
        assert SECRET + b"n001" in reply.body


@pytest.mark.parametrize(
    "path",
    [
        "/kernel/{}",
        "/kernel?wwid={}",
        "/provision/{}?stage=kernel",
        "/provision?wwid={}&stage=kernel",
    ],
)
async def test_a_stage_may_be_asked_for_in_each_of_warewulfs_forms(
    service: Service, path: str
) -> None:
    assert (await ask(service, path.format(DASHED), low=False)).body == KERNEL


async def test_the_neighbour_table_names_a_machine_that_does_not(service: Service) -> None:
    reply = await ask(service, "/initramfs")
    assert (reply.status, "which machine?" in reply.line) == (400, True)

    service.link.known[HERE] = MAC

    assert (await ask(service, "/initramfs")).body == INITRAMFS
    assert f"/ipxe/{DASHED}?" in (await ask(service, "/provision")).text
    assert SECRET in (await ask(service, f"/runtime?{ASSET}")).body


@pytest.mark.parametrize(
    "path",
    ["/provision/{}?stage=nothing", "/provision/{}?stage=b/A/system", "/provision/{}?stage=status",
     "/provision/{}?stage=../etc", "/provision/{}?stage=provision", "/kernel?wwid=nobody",
     "/provision/nobody?stage=kernel", "/system/nobody"],
)  # fmt: skip
async def test_what_is_no_stage_or_no_machine_is_a_bad_request(service: Service, path: str) -> None:
    assert (await ask(service, path.format(DASHED))).status == 400


async def test_an_unknown_machine_gets_no_overlay(service: Service) -> None:
    for route in ("system", "runtime"):
        reply = await ask(service, f"/{route}/{STRANGER}?{ASSET}")
        assert reply.status in (403, 404)


# ---- secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["system", "runtime", "provision"])
@pytest.mark.parametrize(
    ("query", "low", "said"),
    [
        (ASSET, False, "source port below 1024"),
        ("assetkey=guess", True, "asset key is not the one"),
        ("assetkey=", True, "asset key is not the one"),
        ("x=y", True, "asset key is not the one"),
        ("assetkey=blue & horse".replace(" ", "+"), True, "asset key is not the one"),
        ("assetkey=guess", False, "asset key is not the one"),
    ],
)
async def test_each_missing_credential_alone_is_refused(
    service: Service, route: str, query: str, low: bool, said: str
) -> None:
    stage = "&stage=runtime" if route == "provision" else ""

    reply = await ask(service, f"/{route}/{DASHED}?{query}{stage}", low=low)

    assert reply.status == 401
    assert said in reply.line
    assert SECRET not in reply.body


async def test_a_node_that_is_not_switched_keeps_its_own_rules(service: Service) -> None:
    service.change(security="bootd")

    for route in ("system", "runtime"):
        reply = await ask(service, f"/{route}/{DASHED}?{ASSET}")
        assert reply.status == 403
        assert SECRET not in reply.body


async def test_the_port_alone_does_for_a_node_without_an_asset_key(service: Service) -> None:
    service.change(asset_key=None)

    assert SECRET in (await ask(service, f"/runtime/{DASHED}?assetkey=any&uuid=any")).body
    assert (await ask(service, f"/runtime/{DASHED}", low=False)).status == 401


async def test_where_asset_keys_are_required_a_node_without_one_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warewulf, "PRIVILEGED", LOW)
    async with serving(tmp_path, security=SecuritySettings(asset_key="required")) as service:
        service.change(security="warewulf", overlays_runtime=("keys",))

        for route in ("system", "runtime"):
            reply = await ask(service, f"/{route}/{DASHED}?{ASSET}")
            assert (reply.status, SECRET in reply.body) == (401, False)


async def test_a_node_that_names_a_uuid_must_say_it(service: Service) -> None:
    service.change(uuid="01020304-0506-0708-090a-0b0c0d0e0f10")
    path = f"/runtime/{DASHED}?{ASSET}&uuid="

    for good in (
        "01020304-0506-0708-090A-0B0C0D0E0F10", "04030201-0605-0807-090a-0b0c0d0e0f10",
        "%7B01020304-0506-0708-090a-0b0c0d0e0f10%7D",
    ):  # fmt: skip
        assert (await ask(service, path + good)).status == 200
    for bad in ("", "01020304-0506-0708-090a-0b0c0d0e0f11"):
        assert (await ask(service, path + bad)).status == 401


async def test_another_nodes_card_gets_nothing(service: Service) -> None:
    """Root of one node, who knows the other's asset key."""
    service.link.known[HERE] = OTHER

    for route in ("system", "runtime"):
        reply = await ask(service, f"/{route}/{DASHED}?{ASSET}")
        assert (reply.status, "not this machine's" in reply.line) == (401, True)


async def test_a_card_that_no_node_has_needs_the_key_or_the_nodes_address(
    service: Service,
) -> None:
    service.link.known[HERE] = STRANGER
    path = f"/runtime/{DASHED}?{ASSET}"
    assert (await ask(service, path)).status == 200

    service.change(asset_key=None)
    assert (await ask(service, path)).status == 401

    bridge = NetDev("br0", "br0", ip=IPv4Interface("127.0.0.1/8"))
    service.change(network={"br0": bridge})
    assert (await ask(service, path)).status == 200


async def test_the_system_overlay_is_also_given_in_the_boot_window(service: Service) -> None:
    """As the dracut module asks: from any port, in the minutes after the node's DHCP packet."""
    path = f"/system/{DASHED}?{ASSET}"
    refused = await ask(service, path, low=False)
    assert (refused.status, "no DHCP packet" in refused.line) == (401, True)
    boot = service.discover()

    assert SECRET in (await ask(service, path, low=False)).body
    assert (await ask(service, f"/system/{DASHED}", low=False)).status == 401
    assert (await ask(service, f"/runtime/{DASHED}?{ASSET}", low=False)).status == 401

    boot.address = IPv4Address("127.0.0.9")
    assert (await ask(service, path, low=False)).status == 401
    boot.address, boot.window = HERE, 0
    assert (await ask(service, path, low=False)).status == 401


async def test_a_secret_image_needs_what_an_overlay_needs(service: Service) -> None:
    image = replace(service.registry.images["debian"], secret=True)
    service.current.swap(replace(service.registry, images={"debian": image}))

    assert (await ask(service, f"/kernel/{DASHED}?{ASSET}", low=False)).status == 401
    assert (await ask(service, f"/kernel/{DASHED}")).status == 401
    assert (await ask(service, f"/kernel/{DASHED}?{ASSET}")).body == KERNEL
    service.discover()
    assert (await ask(service, f"/kernel/{DASHED}?{ASSET}", low=False)).body == KERNEL


async def test_a_wrong_asset_key_gets_no_kernel_either(service: Service) -> None:
    assert (await ask(service, f"/kernel/{DASHED}?assetkey=guess")).status == 401
    assert (await ask(service, f"/kernel/{DASHED}", low=False)).status == 200


async def test_head_is_refused_and_answered_as_get_is(service: Service) -> None:
    path = f"/runtime/{DASHED}?{ASSET}"
    whole = await ask(service, path)

    head = await ask(service, path, method="HEAD")
    assert head.headers["Content-Length"] == whole.headers["Content-Length"]
    assert (await ask(service, path, low=False, method="HEAD")).status == 401


async def test_wwclient_ends_the_boot(service: Service) -> None:
    """It asks first when its machine is up; what dracut's curl asks for does not end it."""
    boot = service.discover()
    await ask(service, f"/ipxe/{DASHED}", agent="iPXE/1.21")
    await ask(service, f"/runtime/{DASHED}?{ASSET}")
    assert boot.outcome == ""

    await ask(service, f"/runtime/{DASHED}?{ASSET}", agent="Go-http-client/1.1")

    assert boot.outcome == "up"
    assert (await ask(service, f"/system/{DASHED}?{ASSET}", low=False)).status == 401


# ---- compressed forms ----------------------------------------------------------------------------

TOOLS = {"gz": ["gzip", "-dc"], "zst": ["zstd", "-dc"]}


def unpacked(data: bytes, form: str) -> bytes:
    return subprocess.run(TOOLS[form], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize("form", ["gz", "zst"])
@pytest.mark.parametrize("route", ["system", "runtime"])
async def test_overlays_come_compressed_where_that_is_asked_for(
    service: Service, route: str, form: str
) -> None:
    path = f"/{route}/{DASHED}?{ASSET}"
    plain, small = await ask(service, path), await ask(service, f"{path}&compress={form}")

    assert unpacked(small.body, form) == plain.body
    assert len(small.body) == int(small.headers["Content-Length"]) < len(plain.body)
    assert small.headers["ETag"] != plain.headers["ETag"]
    assert "Content-Encoding" not in small.headers


@pytest.mark.parametrize("form", ["gz", "zst"])
async def test_a_boots_own_part_is_in_the_compressed_overlay(service: Service, form: str) -> None:
    service.change(security="bootd", asset_key=None)
    service.discover()
    path = f"/b/{await service.token()}/system"
    plain, small = await service.get(path), await service.get(f"{path}?compress={form}")
    again = await service.get(
        f"{path}?compress={form}", headers={"If-None-Match": small.headers["ETag"]}
    )

    assert unpacked(small.body, form) == plain.body
    assert b"etc/bootd/boot.env" in plain.body
    assert SECRET in plain.body
    assert small.headers["ETag"] != plain.headers["ETag"]
    assert again.status == 304


async def test_a_part_of_a_compressed_overlay(service: Service) -> None:
    service.change(security="bootd", asset_key=None)
    service.discover()
    path = f"/b/{await service.token()}/system?compress=gz"
    whole = await service.get(path)

    first = await service.get(path, headers={"Range": "bytes=0-99"})
    rest = await service.get(
        path, headers={"Range": "bytes=100-", "If-Range": whole.headers["ETag"]}
    )

    assert (first.status, rest.status) == (206, 206)
    assert gzip.decompress(first.body + rest.body) == gzip.decompress(whole.body)


async def test_a_form_that_nobody_knows_is_not_found_and_has_no_body(service: Service) -> None:
    reply = await ask(service, f"/runtime/{DASHED}?{ASSET}&compress=xz")

    assert (reply.status, reply.line) == (404, "compress is one of gz, zst")


async def test_the_runtime_overlay_comes_by_token_too(service: Service) -> None:
    service.change(security="bootd", asset_key=None)
    service.discover()
    token = await service.token()

    assert SECRET in (await service.get(f"/b/{token}/runtime")).body
    assert (await service.get(f"/b/{token}/runtime", source="127.0.0.2")).status == 403


@pytest.mark.parametrize("form", ["gz", "zst"])
@pytest.mark.parametrize("stored", ["", "gz", "zst"])
async def test_files_of_an_image_come_compressed_as_was_asked(
    service: Service, stored: str, form: str
) -> None:
    content = b"070701" + bytes(range(256)) * 20_000
    # As parallel compressors write: several members or frames.
    halves = (content[:3_000_000], content[3_000_000:])
    data = b"".join(compress([half], stored) for half in halves) if stored else content
    image = service.registry.images["debian"]
    files = {**image.artefacts, "image": artefact(service.folder, "image", data)}
    changed = replace(image, artefacts=files)
    service.current.swap(replace(service.registry, images={"debian": changed}))

    reply = await ask(service, f"/provision/{DASHED}?stage=image&compress={form}", low=False)

    assert reply.status == 200
    assert unpacked(reply.body, form) == content
    assert ("Content-Length" in reply.headers) == (form == stored)
    assert "Content-Encoding" not in reply.headers
    assert (await ask(service, f"/image/{DASHED}", low=False)).body == data


async def test_a_damaged_file_is_no_whole_answer_in_another_form(service: Service) -> None:
    image = service.registry.images["debian"]
    data = compress([bytes(9_000_000)], "gz")[:-8] + bytes(8)  # another checksum
    files = {**image.artefacts, "image": artefact(service.folder, "image", data)}
    changed = replace(image, artefacts=files)
    service.current.swap(replace(service.registry, images={"debian": changed}))

    with pytest.raises((asyncio.IncompleteReadError, ConnectionError, ValueError)):
        await ask(service, f"/image/{DASHED}?compress=zst", low=False)
    assert (await service.get("/healthz")).status == 200


def test_a_file_that_becomes_shorter_is_no_whole_one_in_another_form(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(4 << 20))
    opened = OpenFile(os.open(path, os.O_RDONLY), "image")
    source = Recoded(opened, "gz")
    os.truncate(path, 1 << 20)

    with pytest.raises(Aborted, match="file-changed"):
        list(iter(source.read, b""))
    source.close()
    opened.close()


def still_open(path: Path) -> int:
    """How many descriptors of this process are of that file."""
    return [fd.resolve() for fd in Path("/proc/self/fd").iterdir()].count(path)


@pytest.mark.parametrize(
    ("query", "status"),
    [("compress=xz", 404), ("compress=gz" + "&x" * 20, 400), ("compress=gz", 500)],
)
async def test_a_refused_form_holds_no_file_and_no_place(
    service: Service, monkeypatch: pytest.MonkeyPatch, query: str, status: int
) -> None:
    """Anybody may ask, and again and again."""

    def broken(_: OpenFile) -> str:
        raise OSError(errno.EIO, "Input/output error")

    image = service.registry.images["debian"]
    kernel = artefact(service.folder, "kernel", bytes(LARGE))
    changed = replace(image, artefacts={**image.artefacts, "kernel": kernel})
    service.current.swap(replace(service.registry, images={"debian": changed}))
    monkeypatch.setattr("bootd.http.recode.form_of", broken)

    reply = await service.get(f"/kernel/{DASHED}?{query}")

    assert reply.status == status
    assert still_open(Path(kernel.path)) == 0
    assert service.server._site.admission.active == 0


async def test_a_form_that_ends_by_a_fault_is_no_whole_answer_to_an_old_client(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP/1.0 has no chunks: what ends with its connection must not end as others do."""
    pieces = [b"the beginning"]

    def read(_: Recoded) -> bytes:
        return pieces.pop()  # raises at the second time

    monkeypatch.setattr(Recoded, "read", read)
    reader, writer = await service.connect()
    writer.write(f"GET /kernel/{DASHED}?compress=gz HTTP/1.0\r\n\r\n".encode())

    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 10)
    writer.close()


async def test_any_number_of_clients_may_want_another_form(service: Service) -> None:
    content = bytes(range(256)) * 8000
    image = service.registry.images["debian"]
    files = {**image.artefacts, "image": artefact(service.folder, "image", content)}
    changed = replace(image, artefacts=files)
    service.current.swap(replace(service.registry, images={"debian": changed}))

    asked = [ask(service, f"/image/{DASHED}?compress=gz", low=False) for _ in range(20)]
    replies = await asyncio.gather(*asked)

    assert all(gzip.decompress(reply.body) == content for reply in replies)


# ---- files of the site's own ---------------------------------------------------------------------


async def test_the_sites_files_are_for_its_nodes(service: Service) -> None:
    folder = service.folder / "files"
    folder.mkdir()
    (folder / "munge.key").write_bytes(SECRET)
    path = f"/files/munge.key?wwid={DASHED}&"

    assert (await ask(service, path + ASSET)).body == SECRET
    for wrong in (path, f"{path}assetkey=guess", f"/files/munge.key?{ASSET}",
                  f"/files/munge.key?wwid={STRANGER}&{ASSET}", f"/files/../secret?wwid={DASHED}",
                  f"{path}{ASSET}&render=n001", f"/files/none?wwid={DASHED}&{ASSET}"):  # fmt: skip
        reply = await ask(service, wrong)
        assert reply.status in (400, 401, 403, 404), wrong
        assert SECRET not in reply.body
    assert (await ask(service, path + ASSET, low=False)).status == 401


async def test_a_nodes_own_key_opens_the_sites_files_too(service: Service) -> None:
    service.change(security="bootd")
    folder = service.folder / "files"
    folder.mkdir()
    (folder / "munge.key").write_bytes(SECRET)
    path = f"/files/munge.key?wwid={DASHED}"
    key = {"Authorization": f"Bearer {derive(NODE_SECRET, 'n001', MAC)}"}

    assert (await service.get(path, headers=key)).body == SECRET
    assert (await service.get(path)).status == 403
    (folder / "munge.key").chmod(0o600)
    assert (await service.get(path, headers=key)).status == 403
