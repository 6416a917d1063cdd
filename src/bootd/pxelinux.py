"""PXELINUX's configuration for a node, which U-Boot's ``pxe`` command and Petitboot read as well.

Pure. The language has no quoting: a keyword takes the rest of its line. A value with a control
character is refused. Files are named by TFTP, as paths from its root; LPXELINUX, which speaks HTTP,
is given URLs where the node's ``loader`` is called so.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Any, Final

from bootd import scripts
from bootd.model import BootPlan, BootTarget, Mac, Node, ServerAddress, Template
from bootd.registry import Registry
from bootd.templating import Language, ScriptError, located, one_line

CONFIG: Final = "pxelinux.cfg.j2"
HOLD: Final = "hold.pxelinux.cfg.j2"
LOCAL: Final = "local.pxelinux.cfg.j2"
MAX_LINE: Final = 2047
"""Characters of a kernel's command line on x86 (COMMAND_LINE_SIZE less its NUL)."""

_PXELINUX: Final = Language(one_line, {})
_BY_HTTP: Final = "lpxelinux"


def uses(node: Node) -> bool:
    """True where the node's ``loader`` is a PXELINUX."""
    return "pxelinux" in node.loader


def render(registry: Registry, plan: BootPlan, *, why: str = "", ask: bool = False) -> str:
    """The configuration that boots a plan. `why` says why the plan holds no secrets; `ask` is true
    where starting the machine again would help. Raises `ScriptError`."""
    named = _url if _BY_HTTP in plan.node.loader else _path
    urls = {name: named(url) for name, url in plan.urls.items()}
    args = " ".join(plan.args)
    if len(args) > MAX_LINE:
        raise ScriptError(f"node {plan.node.name}: the kernel takes {MAX_LINE} characters at most")
    values = {
        "node": plan.node,
        "mac": plan.mac,
        "image": plan.image,
        "server": plan.server,
        "args": plan.args,
        "urls": urls,
        "initrds": [named(initrd.url) for initrd in plan.initrds],
        "secret": plan.secret,
        "why": why,
        "ask": ask,
    }
    return _render(template_of(registry, plan.node), values)


def render_hold(
    registry: Registry, mac: Mac, server: ServerAddress, *, why: str, node: Node | None
) -> str:
    """The configuration of a machine that waits: PXELINUX shows `why` and asks again."""
    values = {"mac": mac, "server": server, "why": why, "node": node}
    return _render(_shared(registry, HOLD), values)


def render_local(registry: Registry, node: Node, mac: Mac, server: ServerAddress) -> str:
    """The configuration that hands over to the machine's own disk."""
    return _render(_shared(registry, LOCAL), {"node": node, "mac": mac, "server": server})


def template_of(registry: Registry, node: Node | None) -> Template:
    """The template of this node's configuration, as `grub.template_of`. Raises `ScriptError`."""
    if node is None:
        return _shared(registry, HOLD)
    if node.boot is BootTarget.LOCAL:
        return _shared(registry, LOCAL)
    own = registry.templates.get(f"{node.template}.{CONFIG}")
    return own if own is not None else _shared(registry, CONFIG)


def _url(url: str) -> str:
    return url


def _path(url: str) -> str:
    """A URL of ours as a path from TFTP's root. PXELINUX puts the folder that it came from before a
    path without a slash in front, and some versions before any; `loaders` knows both."""
    return "/" + url.split("/", 3)[3]


def _shared(registry: Registry, name: str) -> Template:
    template = registry.templates.get(name)
    if template is None:
        raise ScriptError(f"there is no template {name}")
    return template


def _render(template: Template, values: Mapping[str, Any]) -> str:
    return _PXELINUX.render(template, values)


_SAMPLE_SERVER: Final = ServerAddress(IPv4Address("192.0.2.1"))
_SAMPLE_MAC: Final = Mac("02:00:00:00:00:00")


def check(registry: Registry) -> list[str]:
    """Every fault of the templates, and of the nodes whose ``loader`` is a PXELINUX, as whole
    sentences."""
    faults: dict[str, None] = {}
    for name, template in registry.templates.items():
        if name.endswith(CONFIG):
            try:
                _PXELINUX.compile(template)
            except ScriptError as error:
                faults[located(error)] = None
    try:
        render_hold(registry, _SAMPLE_MAC, _SAMPLE_SERVER, why="check", node=None)
    except ScriptError as error:
        faults[located(error)] = None
    for node in registry.nodes.values():
        if uses(node):
            try:
                _try(registry, node)
            except ScriptError as error:
                if located(error) not in faults:
                    faults[located(error, node.name)] = None
    return list(faults)


def _try(registry: Registry, node: Node) -> None:
    mac = node.macs[0] if node.macs else _SAMPLE_MAC
    if node.boot is BootTarget.LOCAL:
        render_local(registry, node, mac, _SAMPLE_SERVER)
    elif node.image in registry.images:
        for token in ("A" * 52, None):
            try:
                plan = scripts.plan(registry, node, mac, _SAMPLE_SERVER, token=token)
            except scripts.NotBootable:
                return  # it waits, and `scripts.unbootable` says why
            render(registry, plan, why="check")
