"""Boot scripts: what a node boots (`BootPlan`), and iPXE's text from it and a template.

Pure: templates come in as text, scripts go out as text. iPXE has no quoting: a value is put as it
is, and refused where it would be more than a part of its line (`templating.one_line`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Any, Final

from bootd import methods, warewulf
from bootd.methods import NOBODY, Choice, Machine
from bootd.model import (
    BootPlan,
    BootTarget,
    DhcpMode,
    Image,
    Initrd,
    Mac,
    Method,
    Node,
    ServerAddress,
    Template,
    dashed,
)
from bootd.registry import Registry
from bootd.templating import Language, Lines, located, one_line
from bootd.templating import ScriptError as ScriptError

HOLD: Final = "hold.ipxe.j2"
LOCAL: Final = "local.ipxe.j2"
MAX_COUNTDOWN: Final = 60

_WORDS_OF_IPXE: Final = frozenset(("||", "&&"))


class NotBootable(ScriptError):
    """The node's image as it is now cannot be booted as the node says."""


def template_name(node: Node) -> str:
    """The template that makes this node's iPXE script."""
    return LOCAL if node.boot is BootTarget.LOCAL else f"{node.template}.ipxe.j2"


def plan(
    registry: Registry,
    node: Node,
    mac: Mac,
    server: ServerAddress,
    *,
    token: str | None = None,
    boot_id: str = "",
    machine: Machine = NOBODY,
) -> BootPlan:
    """What `node`, asking with `mac`, boots from `server`.

    With a `token` all URLs lead to this boot; without one they lead to what is public, and there is
    none for the overlay. `machine` is what is known of who asks. Raises `ScriptError` where the
    node has no image or one that it cannot boot (`NotBootable`), or an argument that iPXE would
    read as the end of the command.
    """
    image = registry.images.get(node.image) if node.image is not None else None
    if image is None:
        what = f"image {node.image!r} is not imported" if node.image else "no image is set"
        raise ScriptError(f"node {node.name}: {what}")
    for argument in node.kernel_args:
        if argument in _WORDS_OF_IPXE or argument.startswith("#"):
            raise ScriptError(
                f"node {node.name}: kernel argument {argument!r} would end iPXE's command there"
            )
    choice = _choice(node, image, machine, token)
    image = methods.narrowed(image, choice.kernel)
    urls = _urls(image, choice, mac, server, token)
    return BootPlan(
        node=node,
        mac=mac,
        image=image,
        server=server,
        method=choice.method,
        args=(
            *(() if warewulf.brings_init(node) else methods.arguments(choice, image)),
            *warewulf.arguments(node, mac, server, staged=choice.staged),
            *node.kernel_args,
            f"BOOTIF=01-{dashed(mac)}",
            f"bootd.node={node.name}",
            f"bootd.server={server.base}",
        ),
        urls=MappingProxyType(urls),
        boot_id=boot_id,
        secret=token is not None,
        initrds=tuple(_initrds(choice, image, urls)),
        kernel_version=choice.kernel.version,
        reason=choice.reason,
    )


def _choice(node: Node, image: Image, machine: Machine, token: str | None) -> Choice:
    try:
        choice = methods.choose(node, image, machine)
        if token is None and choice.method is Method.SQUASHFS:
            return methods.without_token(node, image, choice)
    except methods.MethodError as error:
        raise NotBootable(f"node {node.name}: {error}") from None
    return choice


def _urls(
    image: Image, choice: Choice, mac: Mac, server: ServerAddress, token: str | None
) -> dict[str, str]:
    urls = {"script": f"{server.base}/ipxe/{dashed(mac)}"}
    if token is None:
        public = (role for role in image.artefacts if not image.secret)
        return urls | {role: f"{server.base}/{role}/{dashed(mac)}" for role in public}
    live = ["hook"] if choice.method is Method.SQUASHFS else []
    roles = (*image.artefacts, "system", *live, "ready", "up", "fail")
    return urls | {role: f"{server.base}/b/{token}/{role}" for role in roles}


def _initrds(choice: Choice, image: Image, urls: Mapping[str, str]) -> Iterator[Initrd]:
    """What the kernel unpacks, in order: the root or what fetches it, then what is the node's."""
    live = choice.method is Method.SQUASHFS
    root = "initramfs" if live or choice.staged or image.archive is None else "image"
    if root in urls:
        yield Initrd(root, urls[root])
    if choice.staged:
        return
    node = "hook" if live else "system"
    if node in urls:
        yield Initrd("overlay", urls[node])


def render_ipxe(plan: BootPlan, template: Template, *, why: str = "", ask: bool = False) -> str:
    """The iPXE script that boots a plan.

    `why` says, for the node's console, why the plan holds no secrets; `ask` is true where a new
    DHCP exchange would help. Raises `ScriptError`.
    """
    return _render(
        template,
        {
            "node": plan.node,
            "mac": plan.mac,
            "image": plan.image,
            "server": plan.server,
            "method": plan.method.value,
            "reason": plan.reason,
            "kernel_version": plan.kernel_version,
            "args": plan.args,
            "initrds": plan.initrds,
            "urls": plan.urls,
            "boot_id": plan.boot_id,
            "secret": plan.secret,
            "why": why,
            "ask": ask,
        },
    )


def render_hold(
    mac: Mac, server: ServerAddress, template: Template, *, why: str, node: Node | None = None
) -> str:
    """The iPXE script of a machine that waits: it says `why` on its console and asks again."""
    return _render(
        template,
        {
            "mac": mac,
            "server": server,
            "node": node,
            "why": why,
            "urls": _waiting_urls(mac, server),
        },
    )


def render_local(node: Node, mac: Mac, server: ServerAddress, template: Template) -> str:
    """The iPXE script that hands over to the machine's own disk."""
    return _render(
        template,
        {"node": node, "mac": mac, "server": server, "urls": _waiting_urls(mac, server)},
    )


def _waiting_urls(mac: Mac, server: ServerAddress) -> dict[str, str]:
    return {"script": f"{server.base}/ipxe/{dashed(mac)}"}


def autoexec(server: ServerAddress, mac: Mac | None = None) -> str:
    """``autoexec.ipxe``: what iPXE runs instead of its own autoboot (iPXE 1.21 and later, EFI).

    `mac` is the machine's where the path named it; otherwise iPXE fills in the card it came from
    (``netX``; plain ``${mac}`` may be another card). Never ends: where it would, firmware goes on
    to the next boot device.
    """
    return _ask(server, dashed(mac) if mac is not None else _OWN)


def astray(server: ServerAddress) -> str:
    """For a machine whose address for its script names no MAC address, such as that of a card
    without one (``${mac}`` where there is no ``net0``): it asks again as the card that it came
    from. Whatever it named is not repeated."""
    told = f"echo bootd: the address of this script names no MAC address. This card has {_OWN}"
    return _ask(server, _OWN, told, countdown(10, "asking again as that"))


_OWN: Final = "${netX/mac:hexhyp}"
"""The MAC address of the card that iPXE came from."""


def _ask(server: ServerAddress, name: str, *first: str) -> str:
    """A script that asks for the one of machine `name` until there is an answer."""
    lines = (
        "#!ipxe",
        *first,
        ":ask",
        "isset ${netX/ip} || dhcp netX || dhcp || goto wait",
        f"chain --replace --autofree {server.base}/ipxe/{name} ||",
        ":wait",
        f"echo bootd: {server.base} does not answer, error ${{errno}}",
        countdown(5, "asking again"),
        "dhcp netX || dhcp ||",
        "goto ask",
    )
    return "\n".join(lines) + "\n"


def introduce(server: ServerAddress, mac: Mac) -> str:
    """What a machine is given that must say more of itself: it asks again with what its firmware
    tells (SMBIOS UUID, serial number, asset tag) and its memory in MiB, which few iPXE builds know.
    In hex: older iPXE's ``uristring`` leaves an ``&``."""
    url = f"{server.base}/ipxe/{dashed(mac)}"
    lines = (
        "#!ipxe",
        ":ask",
        f"chain --replace --autofree {url}?uuid=${{uuid}}&memsize=${{memsize}}"
        "&serialhex=${serial:hexraw}&assethex=${asset:hexraw} ||",
        f"echo bootd: {server.base} does not answer, error ${{errno}}",
        countdown(5, "asking again"),
        "dhcp netX || dhcp ||",
        "goto ask",
    )
    return "\n".join(lines) + "\n"


@lru_cache(maxsize=64)
def countdown(seconds: int, what: str = "trying again") -> Lines:
    """iPXE lines that wait, and show it: ``bootd: trying again in 5 s: 5...4...3...2...1...``

    Ctrl-C cuts a second short and never ends the script. ``prompt --timeout`` would be shorter, but
    takes any key that a serial line invents for an answer.
    """
    if not 1 <= seconds <= MAX_COUNTDOWN:
        raise ScriptError(f"countdown of {seconds} s: 1 to {MAX_COUNTDOWN} s are possible")
    lines = [f"echo -n bootd: {one_line(what)} in {seconds} s: "]
    for left in range(seconds, 0, -1):
        lines += [f"echo -n {left}...", "sleep 1 ||"]
    return Lines("\n".join([*lines, "echo"]))


_IPXE: Final = Language(one_line, {"countdown": countdown})


def _render(template: Template, values: Mapping[str, Any]) -> str:
    text = _IPXE.render(template, values)
    if not text.startswith("#!ipxe\n"):
        raise ScriptError(f"{template.source}:1: an iPXE script begins with the line #!ipxe")
    return text


# ---- checking a whole registry -------------------------------------------------------------------

_SAMPLE_TOKEN: Final = "A" * 52
_SAMPLE_SERVER: Final = ServerAddress(IPv4Address("192.0.2.1"))
_SAMPLE_MAC: Final = Mac("02:00:00:00:00:00")


def check(registry: Registry, server: ServerAddress = _SAMPLE_SERVER) -> list[str]:
    """Every fault that would keep a node of `registry` from its script, as whole sentences.

    Each node's script is made once with and once without a token; `server` stands for any. A node
    whose image is missing is not a fault of its script: it is given the hold script.
    """
    faults: dict[str, None] = {}
    _check_compiled(registry, faults)
    _check_shared(registry, server, faults)
    seen: set[object] = set()
    for node in registry.nodes.values():
        template = registry.templates.get(template_name(node))
        if template is None:
            faults[f"node {node.name}: there is no template {template_name(node)}"] = None
            continue
        shape = shape_of(node)
        if shape in seen:
            continue
        seen.add(shape)
        try:
            _try(registry, node, server, template)
        except ScriptError as error:
            if located(error) not in faults:
                faults[located(error, node.name)] = None
    return list(faults)


def shape_of(node: Node) -> object:
    """What of a node a script depends on, but for its name and addresses, which every node has and
    which are valid by their types: ten thousand nodes are a few dozen scripts."""
    return (
        node.template,
        node.boot,
        node.image,
        node.kernel_args,
        node.kernel_version,
        node.method,
        node.loader,
        node.security,
        node.quirks,
        node.mac is None,
        node.ip is None,
        tuple((d.name, d.ip is None, d.gateway is None) for d in node.network.values()),
        bool(node.overlays_system),
        tuple(node.tags.items()),
        tuple(node.resources),
        node.comment,
    )


def _try(registry: Registry, node: Node, server: ServerAddress, template: Template) -> None:
    mac = node.macs[0] if node.macs else _SAMPLE_MAC
    if node.boot is BootTarget.LOCAL:
        render_local(node, mac, server, template)
        return
    if node.image not in registry.images:
        return
    for token in (_SAMPLE_TOKEN, None):
        try:
            made = plan(registry, node, mac, server, token=token, boot_id="0" * 16)
        except NotBootable:
            return  # as with a missing image: it waits, `unbootable` says why
        render_ipxe(made, template, why="check", ask=True)


def unbootable(registry: Registry, server: ServerAddress = _SAMPLE_SERVER) -> list[str]:
    """Why nodes would wait instead of booting, as sentences: their images are missing, or cannot be
    booted as the nodes say. No fault of the files: the next import may mend it."""
    found = []
    for node in registry.nodes.values():
        if node.boot is not BootTarget.LOCAL:
            try:
                plan(registry, node, _SAMPLE_MAC, server, token=_SAMPLE_TOKEN)
            except ScriptError as error:
                found.append(str(error))
    return found


def _check_compiled(registry: Registry, faults: dict[str, None]) -> None:
    """Each boot script's template by itself: one that no node with an image uses yet counts too."""
    for name, template in registry.templates.items():
        if name.endswith(".ipxe.j2"):
            try:
                _IPXE.compile(template)
            except ScriptError as error:
                faults[located(error)] = None


def _check_shared(registry: Registry, server: ServerAddress, faults: dict[str, None]) -> None:
    hold = registry.templates.get(HOLD)
    if hold is None:
        faults[f"there is no template {HOLD}"] = None
        return
    try:
        render_hold(_SAMPLE_MAC, server, hold, why="check")
    except ScriptError as error:
        faults[located(error)] = None


def can_ask(registry: Registry) -> bool:
    """Whether a new DHCP exchange opens a boot's window: not where bootd does not see DHCP."""
    return registry.settings.dhcp.mode is not DhcpMode.OFF
