"""Warewulf's routes, for images made for it: a machine is named by its MAC address, in the path, as
``?wwid=``, or by the neighbour table, and a stage of its boot by the path or ``?stage=``.

What is no secret is answered to everybody, as by bootd's own routes. Overlays are for nodes with
``security: warewulf`` (`boots.warewulf`): at any time to a privileged source port, and besides, the
system overlay, as long as the node's boot window is open, to the address that the boot is tied to.
That is how Warewulf's dracut module asks for it, and no less than what bootd's own script takes.
"""

from __future__ import annotations

from typing import Final

from bootd.boots.timeline import Boot, Stage
from bootd.http.answer import Answer, Asked, NotFound, Refusal
from bootd.http.handlers.boot import is_up
from bootd.http.handlers.identity import admit_booting
from bootd.http.handlers.overlays import overlay
from bootd.http.routes import Bad, Provision, Route, route
from bootd.http.site import Site
from bootd.model import Mac, Node, dashed, parse_mac

STAGES: Final = ("ipxe", "kernel", "initramfs", "image", "system", "runtime", "grub")
"""What ``?stage=`` may say: each is a route of its own as well."""

_NOT_UP: Final = ("curl/", "iPXE/", "GRUB", "UefiHttpBoot/")
"""Who asks while a machine boots; from whoever else asks, its operating system runs."""


def resolve(site: Site, asked: Asked, asking: Provision) -> Route:
    """The route that has the machine's MAC address in its path. Raises `Refusal`."""
    stage = asking.stage or asked.said("stage") or "ipxe"
    mac = asking.mac or named(site, asked)
    found = route(f"/{stage}/{dashed(mac)}") if stage in STAGES else None
    if found is None or isinstance(found, Provision | Bad):
        raise Refusal(400, "unknown-stage", f"a stage is one of {', '.join(STAGES)}")
    return found


def named(site: Site, asked: Asked) -> Mac:
    """The machine that the query names, or else the neighbour table. Raises `Refusal`."""
    mac = _wwid(asked.said("wwid")) or site.net.neighbour(asked.peer)
    if mac is None:
        raise Refusal(
            400, "no-wwid", "which machine? No MAC address in the path or as wwid, and the "
            "neighbour table does not know yours"
        )  # fmt: skip
    return mac


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


def refreshed(site: Site, asked: Asked, node: Node, boot: Boot) -> None:
    """A runtime overlay was given. wwclient asks for it once its machine is up, and says so in no
    other way: then the boot is over, and with it its window."""
    booting = asked.headers.get("User-Agent", "").startswith(_NOT_UP)
    if asked.method == "GET" and boot.outcome != "up" and not booting:
        is_up(site, asked, node, boot)
