"""``/runtime/{mac}``: a running node's own overlay, and how its refreshing went."""

from __future__ import annotations

import re
from typing import Final

import structlog

from bootd import metrics
from bootd.boots import nodekeys
from bootd.boots.timeline import Boot, Refresh
from bootd.http.answer import BINARY, TEXT, Answer, Asked, Denied, Refusal, asked_form
from bootd.http.handlers.identity import admit_running
from bootd.http.handlers.overlays import digest, overlay, refuse_plain, tag
from bootd.http.handlers.warewulf import refreshed
from bootd.http.routes import Runtime
from bootd.http.site import Site
from bootd.model import Mac, Node
from bootd.warewulf import switched

log = structlog.get_logger()

RESULTS: Final = ("ok", "unchanged", "failed")
"""How a node may say that a refresh ended."""
MAX_ERROR: Final = 200
_BOOT_ID: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NUMBER: Final = re.compile(r"\d{1,6}", re.ASCII)


async def runtime(site: Site, asked: Asked, route: Runtime) -> Answer:
    """Check who asks, then answer. Raises `Denied` or another `Refusal`."""
    refuse_plain(asked)
    node = admitted(site, asked, route.mac)
    boot = _boot(site, asked, route.mac, node)
    if route.report and asked.method == "HEAD":
        raise Refusal(405, "method", "a report is a GET", {"Allow": "GET"})
    if route.report:
        answer = _reported(site, asked, node, boot)
    else:
        answer = await _overlay(site, asked, node, boot)
        if switched(node):
            refreshed(site, asked, node, boot)
    answer.node, answer.mac, answer.boot = node.name, boot.mac, boot.id
    return answer


def admitted(site: Site, asked: Asked, mac: Mac) -> Node:
    """The node with `mac`, if whoever asks may have its runtime overlay: it has the node's key, or
    Warewulf's rules hold and it fits them. Raises `Refusal`. The one place that decides it."""
    node = asked.registry.by_mac.get(mac)
    key = nodekeys.bearer(asked.headers.get("Authorization", ""))
    if node is not None and switched(node) and not key:
        admit_running(site, asked, node, mac)
        return node
    if not key:
        raise Denied("no-key", "a node shows its key here: Authorization: Bearer KEY")
    # What an unknown node is told is no different: nobody learns which nodes there are.
    if not nodekeys.fits(site.node_secrets, key, node.name if node is not None else "", mac):
        raise Denied("wrong-key", "this is not the key of that node; a new boot brings one")
    assert node is not None  # no key is given to a node without a name
    return node


def _boot(site: Site, asked: Asked, mac: Mac, node: Node) -> Boot:
    """The boot that the node is in: it names it, in case this process was started since."""
    known = site.boots.of(mac)
    # Ten thousand nodes ask each minute: of most there is nothing to learn from it.
    said = asked.said("boot") if known is None or known.outcome != "up" else ""
    boot = site.boots.running(mac, said if _BOOT_ID.fullmatch(said) else "", node.name, asked.now)
    if boot.address is None:
        boot.address = asked.peer
    boot.server = boot.server or asked.server.base
    return boot


async def _overlay(site: Site, asked: Asked, node: Node, boot: Boot) -> Answer:
    """The archive; or nothing where the node has it, without making it again."""
    form = asked_form(asked)
    had = asked.headers.get("If-None-Match", "")
    if had:
        etag = await digest(site, asked, node, "runtime")
        if had == tag(etag, form):
            _unchanged(site, asked, boot, etag)
            return Answer(body=(), type=BINARY, etag=had, quiet=True)
    answer, _ = await overlay(site, asked, node, "runtime")
    return answer


def _unchanged(site: Site, asked: Asked, boot: Boot, etag: str) -> None:
    if asked.method != "HEAD":
        _has(site, boot, etag)
        boot.refresh = Refresh(asked.now, "unchanged", etag)
        metrics.REFRESHES.inc("unchanged")


def _has(site: Site, boot: Boot, digest: str) -> None:
    """The node has the runtime overlay with that digest; another one is compared anew."""
    if boot.given.get("runtime") != digest:
        boot.given["runtime"] = digest
        site.boots.compare(boot)


def _reported(site: Site, asked: Asked, node: Node, boot: Boot) -> Answer:
    """What the node says of a refresh: kept for status, told in one line of the log."""
    result, digest = asked.said("result"), asked.said("digest")
    if result not in RESULTS:
        raise Refusal(400, "malformed", f"result is one of {', '.join(RESULTS)}")
    digest = digest if _DIGEST.fullmatch(digest) else ""
    changed, hooks = _number(asked.said("changed")), _number(asked.said("hooks"))
    error = asked.said("error", MAX_ERROR)
    boot.refresh = Refresh(asked.now, result, digest, changed, hooks, error)
    if result != "failed" and digest:
        _has(site, boot, digest)
    metrics.REFRESHES.inc(result)
    tell = log.warning if result == "failed" or hooks else log.info
    tell(
        "node.refreshed",
        node=node.name,
        mac=boot.mac,
        boot=boot.id,
        result=result,
        changed=changed,
        failed_hooks=hooks or None,
        error=error or None,
    )
    return Answer(body=(b"noted\n",), type=TEXT, quiet=True)


def _number(text: str) -> int:
    return int(text) if _NUMBER.fullmatch(text) else 0
