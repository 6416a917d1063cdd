"""Refusals: the one place that makes answers of them, and writes down whose request it was."""

from __future__ import annotations

from typing import Final

from bootd.http.answer import TEXT, Answer, Asked, Refusal
from bootd.http.routes import BootPart, Provision, Public, Route, Runtime, Script, System
from bootd.http.site import Site
from bootd.model import Mac

_LATER: Final = 503
"""No refusal but a wait."""


def refused(site: Site, asked: Asked, asking: Route, refusal: Refusal) -> Answer:
    """A status and one line that says why; in the boot's timeline too, where one is refused
    something in the middle of it."""
    answer = Answer(
        body=(f"{refusal.sentence}\n".encode(),),
        type=TEXT,
        status=refusal.status,
        headers=refusal.headers,
        reason=refusal.reason,
        quiet=refusal.quiet,
    )
    mac = refusal.mac or _named(asking)
    if mac is None:
        return answer
    answer.mac = mac  # as the request says; `peer` is who said it
    node = asked.registry.by_mac.get(mac)
    answer.node = node.name if node is not None else None
    boot, what = site.followed(asked, mac), _part(asking)
    if boot is not None and what and not boot.outcome and refusal.status != _LATER:
        answer.boot = boot.id
        site.boots.note(mac, boot.stage, asked.now, detail=what, outcome=refusal.reason)
    return answer


def _named(asking: Route) -> Mac | None:
    match asking:
        case Script(mac) | System(mac) | Runtime(mac) | Public(_, mac) | Provision(_, mac):
            return mac
    return None


def _part(asking: Route) -> str:
    """What of a boot was asked for; empty where it is none of it."""
    match asking:
        case System():
            return "system"
        case Runtime():
            return "runtime"
        case Public(name, _) | BootPart(_, name) | Provision(name, _):
            return name
    return ""
