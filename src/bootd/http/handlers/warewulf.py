"""Warewulf's routes, for images made for it: a machine is named by its MAC address, in the path, as
``?wwid=``, or by the neighbour table, and a stage of its boot by the path or ``?stage=``.

What is no secret is answered to everybody, as by bootd's own routes. Overlays are for nodes with
``security: warewulf`` (`boots.warewulf`): at any time to a privileged source port, and besides, the
system overlay, as long as the node's boot window is open, to the address that the boot is tied to.
That is how Warewulf's dracut module asks for it, and no less than what bootd's own script takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import structlog

from bootd import metrics
from bootd.boots import warewulf, window
from bootd.boots.timeline import Boot, Stage
from bootd.http.answer import Answer, Asked, Denied, NotFound, Refusal
from bootd.http.handlers.overlays import overlay
from bootd.http.routes import Bad, Provision, Route, route
from bootd.http.site import Site
from bootd.model import Mac, Node, dashed, parse_mac

log = structlog.get_logger()

_NOT_UP: Final = ("curl/", "iPXE/", "GRUB", "UefiHttpBoot/")
"""Who asks while a machine boots; from whoever else asks, its operating system runs."""
_SAID: Final[Mapping[str, str]] = MappingProxyType({**window.SENTENCES, **warewulf.SENTENCES})


def resolve(site: Site, asked: Asked, asking: Provision) -> Route:
    """The route that has the machine's MAC address in its path. Raises `Refusal`."""
    stage = asking.stage or asked.said("stage") or "ipxe"
    mac = asking.mac or _wwid(asked.said("wwid")) or site.net.neighbour(asked.peer)
    if mac is None:
        raise Refusal(
            400, "no-wwid", "which machine? No MAC address in the path or as wwid, and the "
            "neighbour table does not know yours"
        )  # fmt: skip
    found = route(f"/{stage}/{dashed(mac)}") if stage in STAGES else None
    if found is None or isinstance(found, Provision | Bad):
        raise Refusal(400, "unknown-stage", f"a stage is one of {', '.join(STAGES)}")
    return found


STAGES: Final = ("ipxe", "kernel", "initramfs", "image", "system", "runtime", "grub")


def _wwid(text: str) -> Mac | None:
    try:
        return parse_mac(text) if text else None
    except ValueError:
        raise Refusal(400, "not-a-mac", "wwid is a MAC address") from None


async def system(site: Site, asked: Asked, mac: Mac) -> Answer:
    """``/system/{mac}``. Raises `Refusal`."""
    node = asked.registry.by_mac.get(mac)
    if node is None:
        raise NotFound("no node has this MAC address", "unknown-node")
    boot = site.boots.of(mac)
    admit_booting(site, asked, node, mac)
    answer, digest = await overlay(site, asked, node, "system")
    answer.mac = mac
    if boot is not None and asked.method == "GET":
        boot.server, boot.given["system"] = asked.server.base, digest
        answer.boot = boot.id
        answer.step = site.boots.begin(mac, Stage.OVERLAY, asked.now, size=answer.size)
    return answer


def admit_booting(site: Site, asked: Asked, node: Node, mac: Mac) -> None:
    """Let a machine have what its boot needs: from a privileged port, or in its boot window from
    the address that is tied to it. Raises `Refusal`."""
    _check_identity(asked, node)
    why = _by_port(site, asked, node, mac)
    if why == "unprivileged-port":
        closed = window.grant(
            site.boots.of(mac), asked.peer, lambda: site.owner_of(asked, mac), asked.now
        )
        if closed:
            raise Refusal(401, why, f"{_SAID[why]}, or while a node boots; {_SAID[closed]}")
    elif why:
        raise Refusal(401, why, _SAID[why])


def admit_running(site: Site, asked: Asked, node: Node, mac: Mac) -> None:
    """Let a machine have its runtime overlay: from a privileged port. Raises `Refusal`."""
    _check_identity(asked, node)
    why = _by_port(site, asked, node, mac)
    if why:
        raise Refusal(401, why, _SAID[why])


def _by_port(site: Site, asked: Asked, node: Node, mac: Mac) -> str:
    return warewulf.admit(node, asked.port, asked.peer, lambda: site.owner_of(asked, mac))


def _check_identity(asked: Asked, node: Node) -> None:
    if not warewulf.switched(node):
        raise Denied("not-switched", _SAID["not-switched"])
    why = warewulf.identity(
        node,
        asset_key=asked.said("assetkey"),
        uuid=asked.said("uuid"),
        required=asked.registry.settings.security.asset_key == "required",
    )
    if why:
        raise Refusal(401, why, _SAID[why])


def refuse_wrong_key(asked: Asked, node: Node) -> None:
    """Whoever says a wrong asset key gets nothing that belongs to a switched node: it is another
    machine, or its key was changed, and both should be seen early. Raises `Refusal`."""
    if warewulf.switched(node) and "assetkey=" in asked.query:
        _check_identity(asked, node)


def refreshed(site: Site, asked: Asked, node: Node, boot: Boot) -> None:
    """A runtime overlay was given. wwclient asks for it once its machine is up, and says so in no
    other way: then the boot is over, and with it its window."""
    if boot.outcome == "up" or asked.method != "GET" or not boot.reached(Stage.SCRIPT):
        return
    if not asked.headers.get("User-Agent", "").startswith(_NOT_UP):
        is_up(site, asked, node, boot)


def is_up(site: Site, asked: Asked, node: Node, boot: Boot) -> None:
    """A node is known to be up: its boot ends."""
    site.boots.up(boot, asked.now)
    seconds = asked.now - boot.started
    metrics.BOOT_SECONDS.labels(Stage.UP.value).observe(seconds)
    log.info("boot.up", node=node.name, mac=boot.mac, boot=boot.id, seconds=round(seconds, 3))
