"""What a boot loader that is not iPXE is given: GRUB's and PXELINUX's configuration of a node.

Pure. Asked by TFTP or by HTTP, with a MAC address in the path or from an address that tells it, the
answer is the same, and holds a token under the same conditions as the iPXE script.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final, NamedTuple

from bootd import grub, pxelinux, scripts
from bootd.boots import given, window
from bootd.boots.gate import Gate
from bootd.boots.timeline import Boot
from bootd.loaders import GrubConfig, PxelinuxConfig
from bootd.methods import Machine
from bootd.model import (
    Arch,
    Artefact,
    BootPlan,
    BootTarget,
    Mac,
    Node,
    ServerAddress,
    Template,
    UnknownPolicy,
    dashed,
)
from bootd.registry import Registry
from bootd.templating import ScriptError

Target = GrubConfig | PxelinuxConfig

_MENDED_BY_DHCP: Final = frozenset(("no-boot", "up", "window-closed"))
"""Refusals that a machine ends by starting again."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a machine says of itself; TFTP carries none of it."""

    uuid: str = ""
    serial: str = ""
    asset_key: str = ""


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration. `kind` is ``grub`` or ``pxelinux``, `detail` what the timeline says of it:
    that, and why it holds no token. `fault` says what is wrong with the node's own."""

    text: str = field(repr=False)
    kind: str
    mac: Mac | None
    node: Node | None
    detail: str
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, when (monotonic seconds), and our address as it reaches it."""

    peer: IPv4Address
    server: ServerAddress
    now: float
    said: Said = Said()


class Kind(NamedTuple):
    """What makes the scripts of one loader. `template` tells which one a node's is made from, and
    of no node, which one shows that a machine waits."""

    name: str
    render: Callable[..., str]
    hold: Callable[..., str]
    local: Callable[..., str]
    template: Callable[[Registry, Node | None], Template]


def _ipxe_template(registry: Registry, node: Node | None) -> Template:
    return registry.templates[scripts.template_name(node) if node is not None else scripts.HOLD]


def _ipxe(registry: Registry, plan: BootPlan, *, why: str = "", ask: bool = False) -> str:
    return scripts.render_ipxe(plan, _ipxe_template(registry, plan.node), why=why, ask=ask)


def _ipxe_hold(
    registry: Registry, mac: Mac, server: ServerAddress, *, why: str, node: Node | None
) -> str:
    return scripts.render_hold(mac, server, _ipxe_template(registry, None), why=why, node=node)


def _ipxe_local(registry: Registry, node: Node, mac: Mac, server: ServerAddress) -> str:
    return scripts.render_local(node, mac, server, _ipxe_template(registry, node))


IPXE: Final = Kind("ipxe", _ipxe, _ipxe_hold, _ipxe_local, _ipxe_template)
GRUB: Final = Kind("grub", grub.render, grub.render_hold, grub.render_local, grub.template_of)
PXELINUX: Final = Kind(
    "pxelinux",
    pxelinux.render,
    pxelinux.render_hold,
    pxelinux.render_local,
    pxelinux.template_of,
)


def kind_of(node: Node | None) -> Kind:
    """What the node's ``loader`` reads; iPXE's script where that leaves it open."""
    if node is not None and grub.uses(node):
        return GRUB
    return PXELINUX if node is not None and pxelinux.uses(node) else IPXE


_OF_IMAGES: Final = re.compile(r"(shim|grub|mm)(?:net)?(x64|aa64)\.efi(?:\.signed)?")


def of_the_image(
    gate: Gate, registry: Registry, name: str, mac: Mac | None, peer: IPv4Address
) -> Artefact | None:
    """The boot loader or companion of that name from the image of whoever asks: Secure Boot's
    chain is of one distribution. None where the image has none, or is for booting nodes only."""
    found = _OF_IMAGES.fullmatch(name)
    mac = mac if mac is not None or found is None else gate.machine(registry, peer)
    node = _node(registry, mac) if mac is not None else None
    image = registry.images.get(node.image or "") if node is not None else None
    if found is None or image is None or image.secret:
        return None
    return image.artefacts.get(f"{found[1]}{found[2]}")


def of_the_site(target: Target) -> tuple[str, ...]:
    """The names of files that a site may put among its boot loaders, to be served instead."""
    if isinstance(target, PxelinuxConfig):
        return (f"pxelinux.cfg/01-{dashed(target.mac)}",)
    own = () if target.mac is None else (f"grub/grub.cfg-01-{dashed(target.mac)}",)
    return (*own, "grub/grub.cfg")


def configuration(gate: Gate, registry: Registry, target: Target, asker: Asker) -> Config:
    """The configuration for whoever asks. There always is one: a loader that finds none stops at a
    prompt that nobody sees. Raises `ScriptError` where a template for all machines fails."""
    server = grub.reached(asker.server, registry)
    mac = target.mac if target.mac is not None else gate.machine(registry, asker.peer)
    if mac is None:
        why = "the server does not know who has its address"
        text = grub.render_hold(registry, None, server, why=why, node=None)
        return Config(text, "grub", None, None, "hold")
    kind = GRUB if isinstance(target, GrubConfig) else PXELINUX
    node = _node(registry, mac)
    if node is None:
        text = kind.hold(registry, mac, server, why="no node has its MAC address", node=None)
        return Config(text, kind.name, mac, None, "hold")
    try:
        if node.boot is BootTarget.LOCAL:
            text, detail = kind.local(registry, node, mac, server), "local"
        else:
            text, detail = _boot(kind, gate, registry, node, mac, server, asker)
        return Config(text, kind.name, mac, node, f"{kind.name} {detail}".rstrip())
    except ScriptError as error:
        why = str(error)
        text = kind.hold(registry, mac, server, why=why, node=node)
        return Config(text, kind.name, mac, node, f"{kind.name} hold", fault=why)


def _node(registry: Registry, mac: Mac) -> Node | None:
    node = registry.by_mac.get(mac)
    if node is None and registry.settings.dhcp.unknown is UnknownPolicy.DEFAULT:
        return registry.default
    return node


def _boot(
    kind: Kind,
    gate: Gate,
    registry: Registry,
    node: Node,
    mac: Mac,
    server: ServerAddress,
    asker: Asker,
) -> tuple[str, str]:
    boot = gate.boots.of(mac)
    machine = Machine(bios=_is_bios(boot))
    why = _refused(gate, registry, node, mac, boot, asker)
    if boot is None or why:
        plan = scripts.plan(registry, node, mac, server, machine=machine)
        if plan.image.secret:
            said = window.SENTENCES[why]
            return kind.hold(registry, mac, server, why=said, node=node), why
        ask = why in _MENDED_BY_DHCP and scripts.can_ask(registry)
        return kind.render(registry, plan, why=window.SENTENCES[why], ask=ask), why
    token = gate.token(boot, asker.peer)
    plan = scripts.plan(registry, node, mac, server, token=token, boot_id=boot.id, machine=machine)
    text = kind.render(registry, plan)
    given.record(boot, plan, kind.name, text, token, machine.memory)
    return text, ""


def _is_bios(boot: Boot | None) -> bool | None:
    """Whether the machine's firmware is a BIOS, as its DHCP packet said; None where none did."""
    if boot is None or boot.arch is None:
        return None
    return boot.arch in (Arch.X86_BIOS, Arch.X86_BIOS_HTTP)


def _refused(
    gate: Gate, registry: Registry, node: Node, mac: Mac, boot: Boot | None, asker: Asker
) -> str:
    """Why this machine gets no token now; empty where it does."""
    said = asker.said
    wrong = window.identity(
        node,
        uuid=said.uuid,
        serial=said.serial,
        asset_key=said.asset_key,
        required=registry.settings.security.asset_key == "required",
    )
    return wrong or window.grant(boot, asker.peer, gate.link(registry, mac, asker.peer), asker.now)
