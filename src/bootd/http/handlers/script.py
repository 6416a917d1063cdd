"""``/ipxe/{mac}``: the script of a node, or the one in which an unknown machine waits."""

from __future__ import annotations

import structlog

from bootd import methods, metrics, scripts
from bootd.boots import given, window
from bootd.boots.timeline import Boot, Stage
from bootd.http.answer import Answer, Asked
from bootd.http.handlers import identity
from bootd.http.site import Site, node_of
from bootd.methods import Machine
from bootd.model import Arch, BootTarget, Mac, Node
from bootd.scripts import ScriptError

log = structlog.get_logger()


def script(site: Site, asked: Asked, mac: Mac | None) -> Answer:
    """The script for whoever boots with `mac`. There always is one: a machine that is told "not
    found" goes on to its next boot device, and nobody sees why."""
    over_tls = asked.registry.settings.http.for_scripts(asked.server)
    if mac is None:
        return Answer(body=(scripts.astray(over_tls).encode(),), reason="not-a-mac")
    node = node_of(asked.registry, mac)
    if over_tls != asked.server:
        # No token, which all the wire could read: whoever has it to boot by asks there for one.
        text = scripts.autoexec(over_tls, mac)
        name = node.name if node is not None else None
        return Answer(body=(text.encode(),), node=name, mac=mac, quiet=True)
    if node is None:
        return _hold(site, asked, mac, None, "no node has its MAC address")
    if node.boot is BootTarget.LOCAL:
        template = asked.registry.templates[scripts.LOCAL]
        text = scripts.render_local(node, mac, asked.server, template)
        return _answer(site, asked, mac, node, text, "local")
    if _must_say_more(asked, node) and not identity.has_said(asked, node):
        text = scripts.introduce(asked.server, mac)
        return Answer(body=(text.encode(),), node=node.name, mac=mac, quiet=True)
    boot = site.boots.of(mac)
    why = identity.wrong(asked, node) or window.grant(
        boot, asked.peer, lambda: site.owner_of(asked, mac), asked.now
    )
    try:
        if boot is None or why:
            return _answer(site, asked, mac, node, _without(asked, node, mac, why), why)
        return _answer(site, asked, mac, node, _with(site, asked, node, boot), "")
    except ScriptError as error:
        log.error("script.failed", node=node.name, mac=mac, reason=str(error))
        return _hold(site, asked, mac, node, str(error))


def _must_say_more(asked: Asked, node: Node) -> bool:
    image = asked.registry.images.get(node.image or "")
    return identity.must_say(node) or (image is not None and methods.undecided(node, image))


def _with(site: Site, asked: Asked, node: Node, boot: Boot) -> str:
    """The script that may fetch secrets, for a boot whose window is open."""
    token = site.gate.token(boot, asked.peer)
    machine = _machine(asked, boot)
    plan = scripts.plan(
        asked.registry, node, boot.mac, asked.server,
        token=token, boot_id=boot.id, machine=machine,
    )  # fmt: skip
    text = scripts.render_ipxe(plan, asked.registry.templates[scripts.template_name(node)])
    given.record(boot, plan, "ipxe", text, token, machine.memory)
    return text


def _machine(asked: Asked, boot: Boot) -> Machine:
    """What is known of who boots: its firmware by DHCP, its memory where its iPXE can tell."""
    said = asked.said("memsize")
    return Machine(
        bios=boot.arch in (Arch.X86_BIOS, Arch.X86_BIOS_HTTP) if boot.arch is not None else None,
        memory=int(said) if said.isascii() and said.isdigit() else None,
        said_by="its iPXE says",
    )


def _without(asked: Asked, node: Node, mac: Mac, why: str) -> str:
    registry = asked.registry
    return scripts.render_ipxe(
        scripts.plan(registry, node, mac, asked.server),
        registry.templates[scripts.template_name(node)],
        why=window.SENTENCES[why],
        ask=scripts.can_ask(registry),
    )


def _hold(site: Site, asked: Asked, mac: Mac, node: Node | None, why: str) -> Answer:
    if node is None:
        site.unknown.held(
            mac, asked.now, serial=asked.said("serial"), product=asked.said("product")
        )
    text = scripts.render_hold(
        mac, asked.server, asked.registry.templates[scripts.HOLD], why=why, node=node
    )
    return _answer(site, asked, mac, node, text, "hold")


def _answer(
    site: Site, asked: Asked, mac: Mac, node: Node | None, text: str, detail: str
) -> Answer:
    boot = site.followed(asked, mac)
    if boot is not None:
        if not boot.reached(Stage.SCRIPT):
            metrics.BOOT_SECONDS.labels(Stage.SCRIPT.value).observe(asked.now - boot.started)
        site.boots.retrying(boot)
        site.boots.note(mac, Stage.SCRIPT, asked.now, detail=detail, size=len(text))
    return Answer(
        body=(text.encode(),),
        node=node.name if node is not None else None,
        mac=mac,
        boot=boot.id if boot is not None else None,
        quiet=detail == "hold",
    )
