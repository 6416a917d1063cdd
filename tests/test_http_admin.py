from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bootd.boots.timeline import Stage
from bootd.http import events, server
from bootd.http.events import MAX_LISTENERS
from bootd.model import HttpSettings
from tests.http_site import MAC, STRANGER, Service, read_reply, serving, until

LOOPS = ("uvloop",)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(tmp_path) as running:
        yield running


async def test_status_has_every_node_and_who_waits(service: Service) -> None:
    service.discover()
    await service.get(f"/b/{await service.token()}/kernel")
    await service.get("/ipxe/52-54-00-99-99-99")

    reply = await service.get("/status")
    status = json.loads(reply.body)

    assert reply.headers["Content-Type"] == "application/json"
    assert [node["node"] for node in status["nodes"]] == ["n001", "n002"]
    assert (status["nodes"][0]["stage"], status["nodes"][0]["percent"]) == ("kernel", 100.0)
    assert [machine["mac"] for machine in status["unknown"]] == [STRANGER]


async def test_status_in_warewulfs_form(service: Service) -> None:
    service.discover()
    await service.get(f"/b/{await service.token()}/kernel")

    nodes = json.loads((await service.get("/status?format=warewulf")).body)["nodes"]

    assert nodes["n001"]["node name"] == "n001"
    assert nodes["n001"]["stage"] == "KERNEL"
    assert nodes["n001"]["ipaddr"] == "127.0.0.1"
    assert nodes["n001"]["last seen"] > 1_700_000_000
    assert nodes["n002"] == {
        "node name": "n002", "stage": "", "sent": "", "ipaddr": "", "last seen": 0,
    }  # fmt: skip


async def test_metrics_are_what_prometheus_reads(service: Service) -> None:
    await service.get("/kernel/52-54-00-12-34-56")
    await service.get("/ipxe/zz")

    families = {
        family.name: family
        for family in text_string_to_metric_families((await service.get("/metrics")).text)
    }

    requests = {
        (sample.labels["route"], sample.labels["status"])
        for sample in families["bootd_http_requests"].samples
    }
    assert ("kernel", "200") in requests
    assert families["bootd_http_sent_bytes"].samples[0].value > 0
    under_way = families["bootd_transfers_in_flight"].samples
    assert {sample.labels["protocol"] for sample in under_way} == {"http", "tftp"}


@pytest.mark.parametrize("page", ["/status", "/metrics", "/events"])
async def test_pages_are_for_admin_networks_only(service: Service, page: str) -> None:
    http = replace(service.registry.settings.http, admin_networks=(IPv4Network("127.0.0.1/32"),))
    settings = replace(service.registry.settings, http=http)
    service.current.swap(replace(service.registry, settings=settings))

    reply = await service.get(page, source="127.0.0.2")

    assert (reply.status, "admin_networks" in reply.line) == (403, True)
    assert (await service.get("/healthz", source="127.0.0.2")).status == 200


async def next_event(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next event of the stream, whatever chunks it comes in."""
    while True:
        line = await asyncio.wait_for(reader.readline(), 10)
        if line.startswith(b"data: "):
            found: dict[str, Any] = json.loads(line[6:])
            return found


async def listen(service: Service) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await service.connect()
    writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"Content-Type: text/event-stream\r\n" in head
    assert b"Transfer-Encoding: chunked\r\n" in head
    return reader, writer


async def test_events_tell_what_is_and_what_moves(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "TICK", 0.01)
    async with service.running():
        service.discover()
        reader, writer = await listen(service)
        assert (await next_event(reader))["stage"] == "dhcp"

        token = await service.token()
        assert (await next_event(reader))["stage"] == "script"
        await service.get(f"/b/{token}/up")

        event = await next_event(reader)
        assert (event["node"], event["mac"], event["stage"]) == ("n001", MAC, "up")
        writer.close()


async def test_a_listener_that_has_gone_is_noticed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "QUIET", 0.02)
    _, writer = await listen(service)

    writer.close()

    await until(lambda: not service.server._site.events._listeners)


async def test_listeners_are_bounded(service: Service) -> None:
    listening = [await listen(service) for _ in range(MAX_LISTENERS)]
    await until(lambda: len(service.server._site.events._listeners) == MAX_LISTENERS)

    reader, writer = await service.connect()
    writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await read_reply(reader)).status == 503

    for _, other in [*listening, (reader, writer)]:
        other.close()


async def test_stop_ends_the_streams(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        reader, writer = await listen(service)
        loop = asyncio.get_running_loop()
        began = loop.time()

        await service.server.stop(began + 20)

        assert loop.time() - began < 10
        assert (await reader.read()).endswith(b"0\r\n\r\n")
        writer.close()


LARGE = 6 << 20


async def hold(service: Service, agent: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Begin a large download and leave it there."""
    reader, writer = await service.connect()
    writer.write(
        f"GET /kernel/52-54-00-12-34-56 HTTP/1.1\r\nHost: x\r\nUser-Agent: {agent}\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def test_above_the_limit_those_who_can_wait_are_told_to(tmp_path: Path) -> None:
    async with serving(tmp_path, http=HttpSettings(port=0, max_image_transfers=1)) as service:
        kernel = service.registry.images["debian"].artefacts["kernel"]
        Path(kernel.path).write_bytes(bytes(LARGE))
        object.__setattr__(kernel, "size", LARGE)
        path, ipxe = "/kernel/52-54-00-12-34-56", {"User-Agent": "iPXE/1.21.1"}
        reader, writer = await hold(service, "iPXE/1.21.1")

        refused = await service.get(path, headers=ipxe)
        assert refused.status == 503
        assert refused.line == "1 large transfers are under way: ask again"
        assert 1 <= int(refused.headers["Retry-After"]) <= 30
        curl = await service.get(path, headers={"User-Agent": "curl/7.88.1"})
        assert curl.status == 503

        boot = service.discover()
        for _ in range(3):
            assert (await service.get(path, headers=ipxe)).status == 503
        assert [(step.stage, step.outcome) for step in boot.steps] == [(Stage.KERNEL, "busy")]
        [row, _] = json.loads((await service.get("/status")).body)["nodes"]
        assert (row["stage"], row["waits"]) == ("kernel", True)

        firmware = await service.get(path, headers={"User-Agent": "UefiHttpBoot/1.0"})
        assert firmware.status == 200
        assert (await service.get("/boot/snponly.efi", headers=ipxe)).status == 200
        assert (await service.get(path, method="HEAD", headers=ipxe)).status == 200

        await reader.readexactly(LARGE)
        await until(lambda: service.server._site.admission.active == 0)
        assert (await service.get(path, headers=ipxe)).status == 200
        writer.close()


async def test_a_large_transfer_that_is_aborted_gives_its_place_back(tmp_path: Path) -> None:
    async with serving(tmp_path, http=HttpSettings(port=0, max_image_transfers=1)) as service:
        kernel = service.registry.images["debian"].artefacts["kernel"]
        Path(kernel.path).write_bytes(bytes(LARGE))
        object.__setattr__(kernel, "size", LARGE)
        _, writer = await hold(service, "iPXE/1.21.1")
        assert service.server._site.admission.active == 1

        writer.transport.abort()

        await until(lambda: service.server._site.admission.active == 0)
