"""The running daemon's state as plain values: what the command line and the status page show.

Pure: `now` is monotonic seconds. Numbers are bytes and seconds, times are wall-clock seconds since
1970. Nothing in here is secret.
"""

from __future__ import annotations

from typing import Any, Final

from bootd.boots.timeline import Boot, Boots, Step, describe_refresh
from bootd.model import Node, parse_mac
from bootd.registry import Registry

BUSY: Final = "busy"
"""The outcome of a step that was put off: too many large transfers are under way."""
BOOT_PATIENCE: Final = 1800.0
"""Seconds after which a boot that was not heard of holds no image any more."""


def progress(step: Step, now: float) -> dict[str, Any]:
    """Bytes sent of a step, of how many, percent, and bytes per second."""
    seconds = (step.ended if step.ended is not None else now) - step.begun
    percent = 100 * step.sent / step.size if step.size else None
    return {
        "bytes": step.sent,
        "size": step.size,
        "percent": round(min(percent, 100.0), 1) if percent is not None else None,
        "rate": round(step.sent / seconds) if step.sent and seconds > 0.001 else None,
    }


_NOTHING: dict[str, Any] = {"bytes": None, "size": None, "percent": None, "rate": None}


def boot_row(boot: Boot, now: float, offset: float) -> dict[str, Any]:
    """One boot in one line: its stage, what moves at the moment, its age and error.

    `age` is seconds since the machine was last heard; `seconds` is how long the boot took, or has
    been going on; `waits` is true of one that was told to ask again; `stale` what a reboot would
    change of a node that is up, None where that is not known; `offset` is wall-clock less monotonic
    seconds.
    """
    # Firmware leaves transfers behind that nobody ends before they time out: what counts is now.
    stage, last = boot.stage, boot.steps[-1] if boot.steps else None
    running = [step for step in boot.steps if step.ended is None and step.stage is stage]
    shown = running[-1] if running else last
    ended = boot.ended if boot.ended is not None else now
    if boot.state == "local" and last is not None:
        ended = last.begun
    heard = max(boot.seen, shown.moved or 0.0) if shown is not None else boot.seen
    return {
        "boot": boot.id,
        "stage": stage.value,
        "outcome": boot.state,
        "waits": shown is not None and shown.outcome == BUSY and not boot.outcome,
        "error": boot.error,
        **(progress(shown, now) if shown is not None else _NOTHING),
        "address": str(boot.address) if boot.address is not None else None,
        "firmware": boot.kind.value if boot.kind is not None else None,
        "started": round(boot.started + offset, 3),
        "seconds": round(max(ended - boot.started, 0.0), 3),
        "age": round(max(now - heard, 0.0), 3),
        "stale": list(boot.stale) if boot.stale is not None and boot.outcome == "up" else None,
        "refresh": describe_refresh(boot.refresh, now, offset),
    }


_NEVER: dict[str, Any] = {
    "boot": None,
    "stage": None,
    "outcome": None,
    "waits": False,
    "error": "",
    **_NOTHING,
    "address": None,
    "firmware": None,
    "started": None,
    "seconds": None,
    "age": None,
    "stale": None,
    "refresh": None,
}


def latest(boots: Boots, node: Node) -> Boot | None:
    """The newest boot of a node: it may have booted from more than one of its cards."""
    seen = [boot for mac in node.macs if (boot := boots.of(mac)) is not None]
    return max(seen, key=lambda boot: boot.seen, default=None)


def node_rows(registry: Registry, boots: Boots, now: float) -> list[dict[str, Any]]:
    """Every node of the registry with its newest boot; keys that have no value yet are None."""
    rows = []
    for node in registry.nodes.values():
        boot = latest(boots, node)
        rows.append(
            {
                "node": node.name,
                "mac": boot.mac if boot is not None else node.mac,
                **(boot_row(boot, now, boots.offset) if boot is not None else _NEVER),
            }
        )
    return rows


def unknown_rows(registry: Registry, boots: Boots, now: float) -> list[dict[str, Any]]:
    """Machines that asked but no node names, the latest first."""
    strangers = [boot for boot in boots if boot.mac not in registry.by_mac]
    strangers.sort(key=lambda boot: boot.seen, reverse=True)
    return [{"mac": boot.mac, **boot_row(boot, now, boots.offset)} for boot in strangers]


def describe_node(registry: Registry, node: Node) -> dict[str, Any]:
    """What the registry says of a node, without its secrets (asset key)."""
    image = registry.images.get(node.image or "")
    return {
        "node": node.name,
        "macs": list(node.macs),
        "ip": str(node.ip) if node.ip is not None else None,
        "profiles": list(node.profiles),
        "image": node.image,
        "generation": image.generation if image is not None else None,
        "kernel_args": list(node.kernel_args),
        "overlays": {
            "system": list(node.overlays_system),
            "runtime": list(node.overlays_runtime),
        },
        "boot": node.boot.value,
        "tags": dict(node.tags),
        "comment": node.comment,
    }


def timeline(registry: Registry, boots: Boots, who: str, now: float) -> dict[str, Any] | None:
    """All kept boots of a node or MAC address, oldest first; None where nobody is called that."""
    node = registry.find(who)
    try:
        macs = node.macs if node is not None else (parse_mac(who),)
    except ValueError:
        return None
    seen = [boot for mac in macs for boot in boots.history(mac)]
    if node is None and not seen:
        return None
    seen.sort(key=lambda boot: boot.started)
    return {
        "node": node.name if node is not None else None,
        "boots": [boots.describe(boot, now) for boot in seen],
    }


def images_in_use(registry: Registry, boots: Boots, now: float) -> list[dict[str, str]]:
    """The generations that the daemon gives to nodes, and those that boots in progress began with,
    each with the reason in words."""
    nodes = (*registry.nodes.values(), *([registry.default] if registry.default else []))
    given = {node.image: node.name for node in reversed(nodes)}
    rows = [
        {"name": image.name, "generation": image.generation, "why": f"node {given[key]} boots it"}
        for key, image in registry.images.items()
        if key in given
    ]
    for boot in boots:
        if boot.image is None or boot.outcome or now - boot.seen > BOOT_PATIENCE:
            continue
        who = boot.node or boot.mac
        rows.append(
            {
                "name": boot.image.name,
                "generation": boot.image.generation,
                "why": f"{who} is booting it ({boot.stage.value})",
            }
        )
    return rows
