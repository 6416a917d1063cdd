"""Pages for administrators: status, metrics, events. For ``http.admin_networks`` only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, Final

import prometheus_client

from bootd import metrics, status
from bootd.boots.timeline import Boots, Stage
from bootd.boots.unknown import describe
from bootd.http import statuspage
from bootd.http.answer import Answer, Asked, Denied, NotFound
from bootd.http.site import Site
from bootd.registry import Registry

JSON: Final = "application/json"
HTML: Final = "text/html; charset=utf-8"

_WAREWULF_STAGES: Final = {
    Stage.DHCP: "DHCP",
    Stage.LOADER: "IPXE",
    Stage.SCRIPT: "IPXE",
    Stage.KERNEL: "KERNEL",
    Stage.INITRAMFS: "INITRAMFS",
    Stage.IMAGE: "IMAGE",
    Stage.OVERLAY: "SYSTEM_OVERLAY",
    Stage.RUNTIME: "RUNTIME_OVERLAY",
    Stage.UP: "RUNTIME_OVERLAY",
    Stage.FAIL: "FAILED",
}


async def page(site: Site, asked: Asked, name: str) -> Answer:
    """One of the fixed pages. Raises `Denied` for whoever is no administrator."""
    if name == "healthz":
        return Answer(body=(b"ok\n",), quiet=True)
    if not any(asked.peer in network for network in asked.registry.settings.http.admin_networks):
        raise Denied("admin-only", "this page is for http.admin_networks of bootd.yaml only")
    match name:
        case "status":
            return await _status(site, asked)
        case "metrics":
            body = prometheus_client.generate_latest(metrics.REGISTRY)
            return Answer(body=(body,), type=prometheus_client.CONTENT_TYPE_LATEST, quiet=True)
        case "events":
            stream = site.events.listen(asked.now)
            return Answer(body=stream, type="text/event-stream", quiet=True)
        case "index":
            return await _index(site, asked)
    raise NotFound("there is no such page")


async def _status(site: Site, asked: Asked) -> Answer:
    if asked.said("format") == "warewulf":
        return await _json(site, lambda: warewulf(asked.registry, site.boots))
    return await _json(site, _everything(site, asked))


def _everything(site: Site, asked: Asked) -> Callable[[], dict[str, Any]]:
    """What makes the JSON of ``/status``; to be called in a thread."""
    registry, boots, now = asked.registry, site.boots, asked.now
    machines = site.unknown.in_order()
    transfers = {
        "active": site.admission.active,
        "limit": site.admission.limit,
        "waiting": site.admission.waiting,
    }
    return lambda: {
        "generation": registry.generation,
        "nodes": status.node_rows(registry, boots, now),
        "unknown": [describe(machine, now, boots.offset) for machine in machines],
        "transfers": transfers,
    }


async def _index(site: Site, asked: Asked) -> Answer:
    """The status page."""
    everything, node, stage = _everything(site, asked), asked.said("node"), asked.said("stage")

    def make() -> tuple[str, str]:
        page = _page()
        return statuspage.render(page, everything(), node=node, stage=stage), page

    text, page = await asyncio.get_running_loop().run_in_executor(site.disk, make)
    headers = {
        "Content-Security-Policy": statuspage.policy(page),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return Answer(body=(text.encode(),), type=HTML, headers=headers, quiet=True)


@cache
def _page() -> str:
    return files("bootd").joinpath("data/status.html").read_text("utf-8")


def warewulf(registry: Registry, boots: Boots) -> dict[str, Any]:
    """The form of Warewulf 4's ``/status``, for tools that read it: keys with spaces and all."""
    nodes = {}
    for node in registry.nodes.values():
        boot = status.latest(boots, node)
        nodes[node.name] = {
            "node name": node.name,
            "stage": _WAREWULF_STAGES[boot.stage] if boot is not None else "",
            "sent": boot.steps[-1].detail if boot is not None and boot.steps else "",
            "ipaddr": str(boot.address or "") if boot is not None else "",
            "last seen": int(boot.seen + boots.offset) if boot is not None else 0,
        }
    return {"nodes": nodes}


async def _json(site: Site, make: Callable[[], Any]) -> Answer:
    """Ten thousand nodes take a while: not in the loop."""
    loop = asyncio.get_running_loop()
    text = await loop.run_in_executor(site.disk, lambda: json.dumps(make()) + "\n")
    return Answer(body=(text.encode(),), type=JSON, quiet=True)
