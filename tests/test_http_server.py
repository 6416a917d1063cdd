from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bootd.boots.timeline import Stage
from bootd.files import LoadedFile, Refused
from bootd.model import BootTarget
from tests.http_site import (
    HERE,
    INITRAMFS,
    KERNEL,
    LOADER,
    MAC,
    OTHER,
    SECRET,
    STRANGER,
    Service,
    read_reply,
    serving,
    until,
)

LOOPS = ("uvloop", "asyncio")


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(tmp_path) as running:
        yield running


def outcome(service: Service, stage: Stage) -> tuple[str, int]:
    boot = service.boots.of(MAC)
    assert boot is not None
    step = next(step for step in reversed(boot.steps) if step.stage is stage)
    return step.outcome, step.sent


async def test_a_boot_from_script_to_up(service: Service) -> None:
    boot = service.discover()
    token = await service.token()

    assert (await service.get(f"/b/{token}/kernel")).body == KERNEL
    assert (await service.get(f"/b/{token}/initramfs")).body == INITRAMFS
    assert SECRET + b"n001" in (await service.get(f"/b/{token}/system")).body
    assert (await service.get(f"/b/{token}/up", method="POST")).text == "n001 is up\n"

    assert boot.outcome == "up"
    assert outcome(service, Stage.KERNEL) == ("ok", len(KERNEL))
    assert [step.stage for step in boot.steps] == [
        Stage.SCRIPT,
        Stage.KERNEL,
        Stage.INITRAMFS,
        Stage.OVERLAY,
        Stage.UP,
    ]


async def test_the_overlay_begins_with_this_boots_own_files(
    service: Service, tmp_path: Path
) -> None:
    boot = service.discover()
    token = await service.token()

    body = (await service.get(f"/b/{token}/system")).body

    target = tmp_path / "unpacked"
    target.mkdir()
    await asyncio.to_thread(
        subprocess.run, ["cpio", "-idm", "--quiet"], input=body, cwd=target, check=True
    )
    env = target / "etc/bootd/boot.env"
    assert env.read_text() == (
        f"BOOTD_URL={service.base}/b/{token}\nBOOTD_BOOT={boot.id}\nBOOTD_NODE=n001\n"
        f"BOOTD_MAC={MAC}\nBOOTD_RUNTIME={service.base}/runtime/52-54-00-12-34-56\n"
    )
    assert env.stat().st_mode & 0o7777 == 0o600
    assert (target / "etc/key").read_bytes() == SECRET + b"n001"


async def test_an_unknown_machine_holds_and_is_listed(service: Service) -> None:
    reply = await service.get("/ipxe/52-54-00-99-99-99?uuid=1-2&serial=ABC%0a123")

    assert reply.status == 200
    assert "this machine waits: no node has its MAC address" in reply.text
    assert [(w.mac, w.serial) for w in service.unknown.in_order()] == [(STRANGER, "ABC?123")]


async def test_a_node_without_an_image_holds(service: Service) -> None:
    service.change(image=None)
    service.discover()

    assert "node n001: no image is set" in (await service.get("/ipxe/52-54-00-12-34-56")).text


async def test_a_node_that_boots_locally_is_told_so(service: Service) -> None:
    service.change(boot=BootTarget.LOCAL)

    assert "sanboot" in (await service.get("/ipxe/52-54-00-12-34-56")).text


async def test_a_claimed_machine_gets_its_script_at_the_next_request(service: Service) -> None:
    service.discover(STRANGER)
    assert "waits" in (await service.get("/ipxe/52-54-00-99-99-99")).text

    service.change("n002", mac=STRANGER)
    service.boots.rename(lambda mac: n.name if (n := service.registry.by_mac.get(mac)) else None)

    assert "kernel --name kernel" in (await service.get("/ipxe/52-54-00-99-99-99")).text


@pytest.mark.parametrize("mac", ["zz", "52-54-00", "ff-ff-ff-ff-ff-ff", "{{7*191}}", "%0achain"])
async def test_a_garbage_mac_is_a_400_of_one_line(service: Service, mac: str) -> None:
    reply = await service.get(f"/kernel/{mac}")

    assert reply.status == 400
    assert "1337" not in reply.line


async def test_urls_come_from_the_socket_never_from_the_host_header(service: Service) -> None:
    service.discover()
    for headers in ({"Host": "evil"}, {"Host": "evil:80", "X-Forwarded-Host": "evil"}):
        text = (await service.get("/ipxe/52-54-00-12-34-56", headers=headers)).text
        assert "evil" not in text
        assert service.base in text
    absolute = await service.get("http://evil/ipxe/52-54-00-12-34-56")
    assert "evil" not in absolute.text


PUBLIC = [
    "/healthz",
    "/ipxe/52-54-00-12-34-56",
    "/ipxe/52-54-00-99-99-99",
    "/kernel/52-54-00-12-34-56",
    "/boot/snponly.efi",
    "/52-54-00-12-34-56/snponly.efi",
    "/52-54-00-12-34-56/autoexec.ipxe",
    "/nothing",
    "/ipxe/zz",
]


@pytest.mark.parametrize("path", PUBLIC)
async def test_head_is_get_without_the_body(service: Service, path: str) -> None:
    get = await service.get(path)
    head = await service.get(path, method="HEAD")

    get.headers.pop("Date")
    head.headers.pop("Date")
    assert (head.status, head.headers) == (get.status, get.headers)
    assert int(head.headers["Content-Length"]) == len(get.body)


@pytest.mark.parametrize("path", PUBLIC)
async def test_firmware_gets_plain_http_1_1(service: Service, path: str) -> None:
    """What EDK2, shim and GRUB stumble over (WIRE.md 3.1)."""
    reply = await service.get(
        path, headers={"Accept-Encoding": "gzip, br, zstd", "Connection": "keep-alive"}
    )

    assert reply.head.startswith(b"HTTP/1.1 ")
    assert b"\r\nContent-Length: " in reply.head  # GRUB compares case-sensitively
    for never in ("Transfer-Encoding", "Content-Encoding", "Location", "Connection"):
        assert never not in reply.headers
    assert reply.status < 300 or reply.status >= 400


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/52-54-00-12-34-56/snponly.efi", "application/efi"),
        ("/52-54-00-12-34-56/autoexec.ipxe", "text/plain; charset=utf-8"),
        ("/ipxe/52-54-00-12-34-56", "text/plain; charset=utf-8"),
        ("/kernel/52-54-00-12-34-56", "application/octet-stream"),
    ],
)
async def test_content_types_are_those_that_edk2_wants(
    service: Service, path: str, kind: str
) -> None:
    assert (await service.get(path)).headers["Content-Type"] == kind


@pytest.mark.parametrize(
    "path",
    [
        "/52-54-00-12-34-56/snponly.efi",
        "//52-54-00-12-34-56//snponly.efi",
        "/52-54-00-12-34-56/./snponly.efi",
        "/boot/snponly.efi",
        "//snponly.efi",
        "/%73nponly.efi",
    ],
)
async def test_a_loader_has_one_content_under_all_its_names(service: Service, path: str) -> None:
    assert (await service.get(path)).body == LOADER


async def test_a_connection_serves_one_request_after_the_other(service: Service) -> None:
    reader, writer = await service.connect()
    request = b"GET /kernel/52-54-00-12-34-56 HTTP/1.1\r\nHost: x\r\n\r\n"
    for _ in range(3):
        writer.write(request)
        assert (await read_reply(reader)).body == KERNEL
    writer.close()


async def test_pipelined_requests_are_answered_in_their_order(service: Service) -> None:
    reader, writer = await service.connect()
    paths = ["/healthz", "/kernel/52-54-00-12-34-56", "/nothing", "/boot/snponly.efi", "/healthz"]
    writer.write(b"".join(f"GET {p} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for p in paths))

    bodies = [(await read_reply(reader)).body for _ in paths]

    assert bodies == [b"ok\n", KERNEL, b"there is no such file\n", LOADER, b"ok\n"]
    writer.close()


@pytest.mark.parametrize("count", [1, 2])
async def test_a_client_that_closes_its_side_gets_its_answers(service: Service, count: int) -> None:
    reader, writer = await service.connect()
    writer.write(b"GET /kernel/52-54-00-12-34-56 HTTP/1.1\r\nHost: x\r\n\r\n" * count)
    writer.write_eof()

    for _ in range(count):
        assert (await read_reply(reader)).body == KERNEL
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "TRACE", "OPTIONS", "PATCH", "PROPFIND"])
async def test_other_methods_do_nothing(service: Service, method: str) -> None:
    reply = await service.get("/boot/snponly.efi", method=method)

    assert reply.status == 405
    assert reply.headers["Allow"] == "GET, HEAD"
    assert reply.line == "only GET and HEAD here"


async def test_post_is_for_up_and_fail_only(service: Service) -> None:
    service.discover()
    token = await service.token()

    assert (await service.get(f"/b/{token}/system", method="POST")).status == 405
    assert (await service.get(f"/b/{token}/up", method="HEAD")).status == 405
    assert (await service.get(f"/b/{token}/fail?step=kernel", method="POST")).status == 200


async def test_a_script_for_no_mac_address_asks_again_as_the_card_that_there_is(
    service: Service,
) -> None:
    """iPXE's ``${mac}`` is empty where there is no net0, and what answers 404 ends a boot."""
    with capture_logs() as logs:
        reply = await service.get("/ipxe/%24%7Bmac%7D")

    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    lines = reply.text.splitlines()
    assert lines[0] == "#!ipxe"
    assert f"chain --replace --autofree {service.base}/ipxe/${{netX/mac:hexhyp}} ||" in lines
    assert "${mac}" not in reply.text
    assert [line["outcome"] for line in logs] == ["not-a-mac"]


async def test_a_failure_is_seen_and_a_retry_takes_it_back(service: Service) -> None:
    boot = service.discover()
    token = await service.token()

    await service.get(f"/b/{token}/fail?step=initramfs&errno=2d0c613b")
    assert (boot.outcome, boot.error) == ("failed", "initramfs: error 2d0c613b")

    await service.token()
    assert boot.outcome == ""


async def test_a_failing_report_cannot_write_lines_or_much(service: Service) -> None:
    boot = service.discover()
    token = await service.token()

    await service.get(f"/b/{token}/fail?step=%0aroot%1b[31m{'x' * 500}&errno=%00")

    assert boot.error.isprintable()
    assert len(boot.error) < 200


async def test_an_aborted_download_is_not_counted_as_sent(service: Service, tmp_path: Path) -> None:
    large = 32 * 1024 * 1024
    kernel = service.registry.images["debian"].artefacts["kernel"]
    os.truncate(kernel.path, large)
    object.__setattr__(kernel, "size", large)
    boot = service.discover()
    token = await service.token()

    reader, writer = await service.connect()
    writer.write(f"GET /b/{token}/kernel HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await reader.readexactly(1000)
    writer.transport.abort()

    step = boot.steps[-1]
    await until(lambda: step.ended is not None)
    assert step.outcome == "aborted"
    assert step.sent < large


async def test_a_file_that_is_missing_is_a_404_that_says_so(service: Service) -> None:
    Path(service.registry.images["debian"].artefacts["kernel"].path).unlink()

    reply = await service.get("/kernel/52-54-00-12-34-56")

    assert (reply.status, reply.line) == (404, "the kernel of this image is gone from the server")


async def test_a_file_that_an_image_never_had_is_a_404_that_says_which(service: Service) -> None:
    squashfs = await service.get("/squashfs/52-54-00-12-34-56")
    archive = await service.get("/image/52-54-00-12-34-56")
    service.change(image=None)
    nothing = await service.get("/kernel/52-54-00-12-34-56")

    assert (squashfs.status, squashfs.line) == (404, "image debian has no squashfs")
    assert archive.line == "image debian has no archive of a root file system"
    assert (nothing.status, nothing.line) == (404, "node n001 has no image")


async def test_a_file_that_is_not_what_was_imported_is_not_sent(service: Service) -> None:
    Path(service.registry.images["debian"].artefacts["kernel"].path).write_bytes(b"shorter")

    assert (await service.get("/kernel/52-54-00-12-34-56")).status == 500


async def test_a_boot_keeps_its_generation_when_another_one_is_activated(
    service: Service, tmp_path: Path
) -> None:
    from dataclasses import replace

    from tests.http_site import artefact

    service.discover()
    token = await service.token()
    old = service.registry.images["debian"]
    (tmp_path / "2").mkdir()
    new = {role: artefact(tmp_path / "2", role, b"new") for role in old.artefacts}
    images = {"debian": replace(old, generation="2", artefacts=new)}
    service.current.swap(replace(service.registry, images=images))

    assert (await service.get(f"/b/{token}/kernel")).body == KERNEL
    assert (await service.get(f"/b/{await service.token()}/kernel")).body == b"new"


async def test_blobs_go_by_content_and_may_be_kept_for_ever(service: Service) -> None:
    digest = service.registry.images["debian"].artefacts["kernel"].sha256

    reply = await service.get(f"/blob/sha256/{digest}")

    assert reply.body == KERNEL
    assert "immutable" in reply.headers["Cache-Control"]
    assert (await service.get(f"/blob/sha256/{'0' * 64}")).status == 404
    assert (await service.get(f"/blob/sha256/{digest.upper()}")).status == 404


async def test_a_range_continues_a_download(service: Service) -> None:
    whole = await service.get("/kernel/52-54-00-12-34-56")
    etag = whole.headers["ETag"]

    rest = await service.get(
        "/kernel/52-54-00-12-34-56", headers={"Range": "bytes=100000-", "If-Range": etag}
    )
    stale = await service.get(
        "/kernel/52-54-00-12-34-56", headers={"Range": "bytes=100000-", "If-Range": '"old"'}
    )
    same = await service.get("/kernel/52-54-00-12-34-56", headers={"If-None-Match": etag})

    assert (rest.status, rest.body) == (206, KERNEL[100000:])
    assert rest.headers["Content-Range"] == f"bytes 100000-{len(KERNEL) - 1}/{len(KERNEL)}"
    assert (stale.status, stale.body) == (200, KERNEL)
    assert (same.status, same.body) == (304, b"")


async def test_curl_agrees(service: Service) -> None:
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--fail", "-r", "10-19", "-o", "-",
        f"{service.base}/kernel/52-54-00-12-34-56",
        f"{service.base}//boot//snponly.efi",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()

    assert out == KERNEL[10:20] + LOADER[10:20]


async def test_memory_and_files_of_any_size_arrive_whole(service: Service, tmp_path: Path) -> None:
    for size in (0, 1, 65535, 65536, 65537, 300_000):
        data = bytes(size)
        (tmp_path / "tftp" / f"f{size}").write_bytes(data)
        assert (await service.get(f"/f{size}")).body == data


async def test_other_machines_cannot_write_into_a_timeline(service: Service) -> None:
    boot = service.discover(OTHER, address=HERE)
    steps = len(boot.steps)

    await service.get("/kernel/52-54-00-12-34-57", source="127.0.0.2")
    await service.get("/52-54-00-12-34-57/snponly.efi", source="127.0.0.2")

    assert len(boot.steps) == steps


@pytest.mark.parametrize(
    ("reason", "status"), [("busy", 503), ("changing", 503), ("outside", 403), ("io-error", 403)]
)
async def test_a_loader_that_cannot_be_read_now_is_asked_for_again(
    service: Service, monkeypatch: pytest.MonkeyPatch, reason: str, status: int
) -> None:
    async def get(*names: str) -> LoadedFile:
        raise Refused(reason, names[0])

    monkeypatch.setattr(service.server._site.files, "get", get)

    reply = await service.get("/boot/snponly.efi")

    assert (reply.status, reason in reply.line) == (status, True)
    assert ("Retry-After" in reply.headers) == (status == 503)


async def test_without_descriptors_an_image_is_asked_for_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("bootd.http.site.os.open", full)

    reply = await service.get("/kernel/52-54-00-12-34-56")

    assert (reply.status, reply.headers["Retry-After"]) == (503, "2")
