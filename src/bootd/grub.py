"""GRUB's configuration for a node: from the same `BootPlan` as the iPXE script, quoted for GRUB.

Pure. GRUB's language is a shell's: a value is put as one word, in single quotes where it holds
anything that is special there (GRUB manual, "Quoting"), and a control character is refused. A file
on the network is ``(http,SERVER:PORT)/path``; GRUB before 2.12 knows HTTP on port 80 only, and
Debian 12's signed one none, so each URL has a second form, by TFTP.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address
from typing import Any, Final

from bootd import scripts
from bootd.model import BootPlan, BootTarget, Initrd, Mac, Node, ServerAddress, Template, dashed
from bootd.registry import Registry
from bootd.templating import Language, Lines, ScriptError, located, one_line

CONFIG: Final = "grub.cfg.j2"
HOLD: Final = "hold.grub.cfg.j2"
LOCAL: Final = "local.grub.cfg.j2"
SHARED: Final = (CONFIG, HOLD, LOCAL)
"""The templates that every installation has."""
MAX_COUNTDOWN: Final = 600
READY: Final = "set bootd_ready=y\n"
"""What a configuration sources before it loads initrds. GRUB's HTTP (2.12) takes the body of a
refusal for the file: a kernel shows that it is none, an initrd does not."""
TFTP_PORT: Final = 69
"""The only one that GRUB's file names can say."""

_SAFE: Final = re.compile(r"[A-Za-z0-9_.,:/=+@%-]+", re.ASCII)
_HTTP_PORT: Final = 80


def uses(node: Node) -> bool:
    """True where the node's ``loader`` ends in GRUB: ``shim``, ``grub``, or a file called so."""
    return node.loader.rpartition("/")[2].lower().startswith(("shim", "grub"))


# ---- words ---------------------------------------------------------------------------------------


def quote(value: object) -> Lines:
    """`value` as one word of GRUB's language, whatever characters it has; `ScriptError` where one
    of them is a control character.

    Between single quotes nothing is special and no single quote can stand, so that is put outside
    of them, behind a backslash.
    """
    text = str(one_line(value))
    if _SAFE.fullmatch(text):
        return Lines(text)
    return Lines("'" + text.replace("'", "'\\''") + "'")


def put(value: object) -> object:
    """How a value stands in a configuration: as one word, but for what we quoted ourselves."""
    return value if isinstance(value, Lines) else quote(value)


def words(arguments: Iterable[str]) -> Lines:
    """Kernel arguments, each as one word. GRUB's ``linux`` puts double quotes around a word with a
    space in it, which Linux takes off again; double quotes that are there already come off here.

    Raises `ScriptError` for what cannot be passed on: GRUB writes a backslash before a backslash
    and before a single quote.
    """
    made = [quote(word) for argument in arguments for word in _kernel_words(argument)]
    return Lines(" ".join(made))


def _kernel_words(argument: str) -> list[str]:
    """An argument as Linux splits it (lib/cmdline.c, next_arg): at spaces outside double quotes."""
    if "\\" in argument or "'" in argument:
        raise ScriptError(f"kernel argument {argument!r}: GRUB cannot pass a backslash or a '")
    if argument.count('"') % 2:
        raise ScriptError(f"kernel argument {argument!r} has a quote that does not end")
    found = re.findall(r'(?:[^ "]|"[^"]*")+', argument)
    return [word.replace('"', "") for word in found]


def countdown(seconds: int, what: str = "trying again") -> Lines:
    """Lines that wait, and show it. Escape cuts the wait short and never ends the script. GRUB's
    own count stays in its line, which the ``echo`` ends."""
    if not 1 <= seconds <= MAX_COUNTDOWN:
        raise ScriptError(f"countdown of {seconds} s: 1 to {MAX_COUNTDOWN} s are possible")
    return Lines(
        f"echo bootd: {quote(what)} in {seconds} s\nsleep --verbose --interruptible {seconds}\necho"
    )


_GRUB: Final = Language(put, {"quote": quote, "words": words, "countdown": countdown})


# ---- files on the network ------------------------------------------------------------------------


def by_http(url: str) -> str:
    """A URL of ours as GRUB names it: ``http://10.0.0.1:9873/b`` is ``(http,10.0.0.1:9873)/b``."""
    host, _, path = url.removeprefix("http://").partition("/")
    if host.endswith(f":{_HTTP_PORT}"):
        host = host.removesuffix(f":{_HTTP_PORT}")  # which GRUB before 2.12 knows by itself
    return f"(http,{host})/{path}"


def by_tftp(url: str) -> str:
    """The same file by TFTP: ``(tftp,10.0.0.1)/b``."""
    host, _, path = url.removeprefix("http://").partition("/")
    return f"(tftp,{host.partition(':')[0]})/{path}"


def reached(server: ServerAddress, registry: Registry) -> ServerAddress:
    """`server` as GRUB reaches it: it has no TLS."""
    if server.scheme == "http":
        return server
    return ServerAddress(server.ip, registry.settings.http.port)


@dataclass(frozen=True, slots=True)
class _Way:
    """The files of a boot by one protocol, as GRUB names them."""

    name: str
    urls: Mapping[str, str]
    initrds: tuple[str, ...]


def _ways(
    registry: Registry, urls: Mapping[str, str], initrds: Sequence[Initrd] = ()
) -> tuple[_Way, ...]:
    """HTTP, and TFTP where GRUB can reach it: it says no port but 69."""
    tftp = registry.settings.tftp
    ways = {"http": by_http}
    if tftp.enabled and tftp.port == TFTP_PORT:
        ways["tftp"] = by_tftp
    return tuple(
        _Way(
            name,
            {key: named(url) for key, url in urls.items()},
            tuple(named(initrd.url) for initrd in initrds),
        )
        for name, named in ways.items()
    )


def _script_url(mac: Mac, server: ServerAddress) -> dict[str, str]:
    return {"script": f"{server.base}/grub/{dashed(mac)}"}


# ---- configurations ------------------------------------------------------------------------------


def template_of(registry: Registry, node: Node | None) -> Template:
    """The template of this node's configuration: ``NAME.grub.cfg.j2`` where the node has a
    ``template`` of its own and GRUB's version of it exists; of no node, the one of a machine that
    waits. Raises `ScriptError`."""
    if node is None:
        return _shared(registry, HOLD)
    if node.boot is BootTarget.LOCAL:
        return _shared(registry, LOCAL)
    own = registry.templates.get(f"{node.template}.{CONFIG}")
    return own if own is not None else _shared(registry, CONFIG)


def _shared(registry: Registry, name: str) -> Template:
    template = registry.templates.get(name)
    if template is None:
        raise ScriptError(f"there is no template {name}")
    return template


def render(registry: Registry, plan: BootPlan, *, why: str = "", ask: bool = False) -> str:
    """The configuration that boots a plan, whose server must be one that GRUB reaches (`reached`).

    `why` says, for the node's console, why the plan holds no secrets; `ask` is true where a new
    DHCP exchange would help, which GRUB has by starting the machine again. Raises `ScriptError`.
    """
    urls = {**plan.urls, **_script_url(plan.mac, plan.server)}
    ways = _ways(registry, urls, plan.initrds)
    return _render(
        template_of(registry, plan.node),
        {
            "node": plan.node,
            "mac": plan.mac,
            "image": plan.image,
            "server": plan.server,
            "method": plan.method.value,
            "reason": plan.reason,
            "kernel_version": plan.kernel_version,
            "args": plan.args,
            "boot_id": plan.boot_id,
            "secret": plan.secret,
            "why": why,
            "ask": ask,
        },
        ways,
    )


def render_hold(
    registry: Registry, mac: Mac | None, server: ServerAddress, *, why: str, node: Node | None
) -> str:
    """The configuration of a machine that waits: it says `why` and asks again. `mac` is None where
    not even that is known of it."""
    urls = _script_url(mac, server) if mac is not None else _nobody(server)
    values = {"mac": mac, "server": server, "node": node, "why": why}
    return _render(_shared(registry, HOLD), values, _ways(registry, urls))


def render_local(registry: Registry, node: Node, mac: Mac, server: ServerAddress) -> str:
    """The configuration that hands over to the machine's own disk."""
    values = {"node": node, "mac": mac, "server": server}
    ways = _ways(registry, _script_url(mac, server))
    return _render(_shared(registry, LOCAL), values, ways)


def _nobody(server: ServerAddress) -> dict[str, str]:
    return {"script": f"{server.base}/grub/grub.cfg"}


def _render(template: Template, values: Mapping[str, Any], ways: Sequence[_Way]) -> str:
    by_name = {way.name: way for way in ways}
    more = {
        "urls": by_name["http"].urls,
        "ways": ways,
        "ask_again": _ask_again(tuple(way.urls["script"] for way in ways)),
    }
    return _GRUB.render(template, {**values, **more})


@lru_cache(maxsize=256)
def _ask_again(scripts: tuple[str, ...]) -> Lines:
    """Lines that fetch the configuration again, for ever; they end a configuration.

    One that was fetched so comes back here when it is at its end: configurations that called each
    other deeper and deeper would use up GRUB's stack.
    """
    head = ["set bootd_heard=y", 'if [ "$bootd_asking" != y ]; then', "  set bootd_asking=y",
            "  while true; do", "    set bootd_heard=n"]  # fmt: skip
    tries = [
        f'    if [ "$bootd_heard" = n ]; then source {quote(script)}; fi' for script in scripts
    ]
    tail = ['    if [ "$bootd_heard" = n ]; then',
            f"      echo bootd: no answer from {quote(scripts[0])}, asking again in 5 s",
            "      sleep --verbose --interruptible 5", "      echo",
            "    fi", "  done", "fi"]  # fmt: skip
    return Lines("\n".join([*head, *tries, *tail]))


# ---- checking a whole registry -------------------------------------------------------------------

_SAMPLE_SERVER: Final = ServerAddress(IPv4Address("192.0.2.1"))
_SAMPLE_MAC: Final = Mac("02:00:00:00:00:00")
_SAMPLE_TOKEN: Final = "A" * 52


def check(registry: Registry) -> list[str]:
    """Every fault that would keep a node which boots by GRUB from its configuration, as whole
    sentences; and the templates that are shared by all."""
    faults: dict[str, None] = {}
    for name, template in registry.templates.items():
        if name.endswith("grub.cfg.j2"):
            try:
                _GRUB.compile(template)
            except ScriptError as error:
                faults[located(error)] = None
    try:
        for mac in (_SAMPLE_MAC, None):
            render_hold(registry, mac, _SAMPLE_SERVER, why="check", node=None)
    except ScriptError as error:
        faults[located(error)] = None
    seen: set[object] = set()
    for node in registry.nodes.values():
        shape = scripts.shape_of(node)
        if not uses(node) or shape in seen:
            continue
        seen.add(shape)
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
        return
    if node.image not in registry.images:
        return
    for token in (_SAMPLE_TOKEN, None):
        try:
            plan = scripts.plan(registry, node, mac, _SAMPLE_SERVER, token=token, boot_id="0" * 16)
        except scripts.NotBootable:
            return  # it waits, and `scripts.unbootable` says why
        render(registry, plan, why="check", ask=True)
