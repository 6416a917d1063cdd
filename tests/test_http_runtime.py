"""``/runtime/{mac}``: a running node's own overlay, for whoever has its key and nobody else."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bootd.boots.nodekeys import derive
from bootd.model import Overlay, OverlayEntry
from tests.http_site import MAC, NODE_SECRET, OTHER, SECRET, STRANGER, Reply, Service, serving

LOOPS = ("uvloop",)
RUNTIME = "/runtime/52-54-00-12-34-56"
REPORT = f"{RUNTIME}/report"
MINE = derive(NODE_SECRET, "n001", MAC)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(tmp_path) as running:
        yield running


async def ask(service: Service, target: str = RUNTIME, key: str = MINE, **more: str) -> Reply:
    headers = {
        "Authorization": f"Bearer {key}",
        **{k.replace("_", "-"): v for k, v in more.items()},
    }
    return await service.get(target, headers=headers)


def _entry(archive: bytes, name: bytes) -> tuple[bytes, bytes]:
    """Head and content of a file in a newc archive."""
    start = archive.index(name + b"\0") - 110
    head = archive[start : start + 110]
    content = start + (110 + len(name) + 1 + 3) // 4 * 4
    return head, archive[content : content + int(head[54:62], 16)]


async def test_the_key_from_the_system_overlay_opens_the_node_s_own_runtime_overlay(
    service: Service,
) -> None:
    service.discover()
    system = await service.get(f"/b/{await service.token()}/system")
    head, key = _entry(system.body, b"etc/bootd/node.key")

    reply = await ask(service, key=key.decode().strip())

    assert head[14:22] == b"00008180"  # a file, 0600
    assert head[22:38] == b"0" * 16  # root's
    assert reply.status == 200
    assert SECRET + b"n001" in reply.body
    assert reply.headers["ETag"] == f'"{hashlib.sha256(reply.body).hexdigest()}"'
    assert reply.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("target", "key", "sentence"),
    [
        (RUNTIME, derive(NODE_SECRET, "n002", OTHER), "not the key of that node"),
        (RUNTIME, derive(NODE_SECRET, "n001", OTHER), "not the key of that node"),
        (RUNTIME, derive(bytes(32), "n001", MAC), "not the key of that node"),
        (RUNTIME, MINE[:-1], "not the key of that node"),
        (RUNTIME, "", "a node shows its key"),
        (f"/runtime/{STRANGER}", MINE, "not the key of that node"),
        (REPORT + "?result=ok", "not-a-key", "not the key of that node"),
    ],
)
async def test_another_key_opens_nothing_and_is_not_logged(
    service: Service, target: str, key: str, sentence: str
) -> None:
    with capture_logs() as lines:
        for method in ("GET", "HEAD"):
            headers = {"Authorization": f"Bearer {key}"}
            reply = await service.get(target, headers=headers, method=method)
            assert reply.status == 403
            assert SECRET not in reply.body
            assert method == "HEAD" or sentence in reply.line

    assert not key or key not in repr(lines)
    assert service.boots.of(MAC) is None


async def test_without_a_header_it_is_refused_whatever_the_query_says(service: Service) -> None:
    assert (await service.get(f"{RUNTIME}?key={MINE}")).status == 403


async def test_what_the_node_has_is_not_sent_again(service: Service) -> None:
    etag = (await ask(service)).headers["ETag"]

    reply = await ask(service, If_None_Match=etag)

    assert (reply.status, reply.body) == (304, b"")
    assert reply.headers["ETag"] == etag
    boot = service.boots.of(MAC)
    assert boot is not None
    assert boot.refresh is not None
    assert (boot.refresh.result, boot.given["runtime"]) == ("unchanged", etag.strip('"'))


async def test_a_change_of_the_node_is_sent_and_one_of_another_node_is_not(
    service: Service,
) -> None:
    etag = (await ask(service)).headers["ETag"]
    service.change("n002", comment="edited")
    assert (await ask(service, If_None_Match=etag)).status == 304

    entry = OverlayEntry("etc/motd", "file", 0o644, b"new", source="motd")
    overlays = {**service.registry.overlays, "keys": Overlay("keys", (entry,), "d2")}
    service.current.swap(replace(service.registry, overlays=overlays))
    reply = await ask(service, If_None_Match=etag)

    assert reply.status == 200
    assert b"etc/motd" in reply.body


async def test_a_node_that_another_process_booted_is_known_to_be_up(service: Service) -> None:
    await ask(service, f"{RUNTIME}?boot=0123456789abcdef")

    boot = service.boots.of(MAC)
    assert boot is not None
    assert (boot.id, boot.node, boot.outcome) == ("0123456789abcdef", "n001", "up")


async def test_a_node_that_refreshes_is_up_at_the_end_of_its_window_though_nothing_reported(
    service: Service,
) -> None:
    boot = service.discover()
    await ask(service, f"{RUNTIME}?boot={boot.id}")
    assert boot.outcome == ""

    boot.window = 0.0
    await ask(service, f"{RUNTIME}?boot={'0' * 16}")  # what ran before this boot
    assert boot.outcome == ""
    await ask(service, f"{RUNTIME}?boot={boot.id}")
    assert boot.outcome == "up"


async def test_a_report_is_kept_and_told(service: Service) -> None:
    digest = "ab" * 32
    query = f"result=ok&digest={digest}&changed=3&hooks=1&error=chronyd+did+not+start"

    with capture_logs() as lines:
        reply = await ask(service, f"{REPORT}?{query}")

    assert (reply.status, reply.text) == (200, "noted\n")
    boot = service.boots.of(MAC)
    assert boot is not None
    described = service.boots.describe(boot, boot.seen)["refresh"]
    assert described["result"] == "ok"
    assert (described["changed"], described["failed_hooks"]) == (3, 1)
    assert described["error"] == "chronyd did not start"
    assert boot.given["runtime"] == digest
    (line,) = [each for each in lines if each["event"] == "node.refreshed"]
    assert (line["node"], line["log_level"]) == ("n001", "warning")


async def test_a_report_that_makes_no_sense_changes_nothing(service: Service) -> None:
    reply = await ask(service, f"{REPORT}?result=great")

    assert reply.status == 400
    assert "ok, unchanged, failed" in reply.line
    boot = service.boots.of(MAC)
    assert boot is None or boot.refresh is None


async def test_numbers_and_digests_of_a_report_are_believed_only_as_such(service: Service) -> None:
    await ask(service, f"{REPORT}?result=failed&digest=xyz&changed=-1&hooks=99999999999")

    boot = service.boots.of(MAC)
    assert boot is not None
    assert boot.refresh is not None
    assert (boot.refresh.digest, boot.refresh.changed, boot.refresh.hooks) == ("", 0, 0)


async def test_an_overlay_that_does_not_render_is_an_error_of_the_server(service: Service) -> None:
    entry = OverlayEntry("etc/x", "template", 0o644, b"{{ tags.nothing }}", source="x.j2")
    overlays = {**service.registry.overlays, "keys": Overlay("keys", (entry,), "d3")}
    service.current.swap(replace(service.registry, overlays=overlays))

    reply = await ask(service)

    assert reply.status == 500
    assert "x.j2:1" in reply.line
