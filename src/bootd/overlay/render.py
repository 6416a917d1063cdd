"""From overlays and a node to the files it gets. Pure: one registry in, entries or faults out."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Any, Final, Literal

from bootd.model import Node, Overlay, OverlayEntry, ServerAddress
from bootd.overlay.cpio import CpioError, Entry, with_parents
from bootd.overlay.template import (
    Compiled,
    Rendered,
    RenderError,
    compile_template,
    render_template,
)
from bootd.registry import Registry

Which = Literal["system", "runtime"]
Shared = MutableMapping[tuple[object, ...], Rendered]
"""Renderings that are the same for every node of a registry, kept by the caller."""

VARIABLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "node": "the node: name, mac, ip, network, image, tags, resources, kernel_args, …",
        "tags": "the node's tags: tags.rack",
        "resources": "the node's resources",
        "network": "the node's network devices by name: device, mac, ip, gateway, mtu, dns, …",
        "image": "the active generation of the node's image: name, generation, kernel_version",
        "nodes": "every node, in the order of the files",
        "server": "bootd as this node reaches it: ip, http_port, base",
        "overlay": "the name of the overlay that the template belongs to",
    }
)
PER_NODE: Final = frozenset(("node", "tags", "resources", "network", "image"))
"""A template that reads none of these is rendered once for all nodes."""

_TYPES: Final = MappingProxyType(
    {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "symlink": stat.S_IFLNK}
)
EXAMPLE_SERVER: Final = ServerAddress(IPv4Address("192.0.2.1"))
"""What templates are checked with: which interface a node will come in on is not known yet."""
MAX_FAULTS: Final = 100
MAX_NAMED: Final = 3
"""Faults that `check` tells apart, and nodes that it names for each."""


def chosen(registry: Registry, node: Node, which: Which) -> list[Overlay]:
    """The overlays that a node has, in order. Raises `RenderError` where one does not exist."""
    names = node.overlays_system if which == "system" else node.overlays_runtime
    try:
        return [registry.overlays[name] for name in names]
    except KeyError as error:
        raise RenderError("nodes", 1, f"overlay {error} does not exist", node.name) from None


def reads(overlays: Iterable[Overlay]) -> frozenset[str]:
    """The variables that templates of `overlays` read: what an archive depends on."""
    return frozenset().union(*(_reads(overlay) for overlay in overlays))


def _reads(overlay: Overlay) -> Iterator[str]:
    for entry in overlay.entries:
        if entry.kind == "template":
            yield from _compiled(entry).names


def _compiled(entry: OverlayEntry) -> Compiled:
    return compile_template(entry.content, entry.source)


def render(
    registry: Registry,
    node: Node,
    which: Which,
    server: ServerAddress,
    *,
    shared: Shared | None = None,
) -> list[Entry]:
    """Every path that `node` gets, parents included, in archive order.

    A later overlay's path replaces an earlier one's. `shared` is filled with what no node changes;
    give the same mapping for every node of one registry. Raises `RenderError`.
    """
    context = _Context(registry, node, server, {} if shared is None else shared)
    entries: dict[str, Entry] = {}
    for overlay in chosen(registry, node, which):
        for entry in overlay.entries:
            for made in context.entries(overlay, entry):
                entries[made.path] = made
    try:
        return with_parents(entries.values())
    except CpioError as error:
        raise RenderError(f"{which} overlays", 1, str(error), node.name) from None


@dataclass(slots=True)
class _Context:
    """One node's rendering."""

    registry: Registry
    node: Node
    server: ServerAddress
    shared: Shared

    def entries(self, overlay: Overlay, entry: OverlayEntry) -> Iterator[Entry]:
        """The archive's entries of one path of an overlay."""
        if entry.kind != "template":
            kind = _TYPES[entry.kind]
            yield Entry(entry.path, kind | entry.mode, entry.content, entry.uid, entry.gid)
            return
        rendered = self.rendered(overlay, entry)
        if rendered.content is not None:
            yield self._file(entry, entry.path, rendered.content, entry.mode)
        for path, (content, mode) in rendered.files.items():
            yield self._file(entry, path, content, entry.mode if mode is None else mode)

    def _file(self, entry: OverlayEntry, path: str, content: bytes, mode: int) -> Entry:
        try:
            return Entry(path, stat.S_IFREG | mode, content, entry.uid, entry.gid)
        except CpioError as error:
            raise RenderError(entry.source, 1, str(error), self.node.name) from None

    def rendered(self, overlay: Overlay, entry: OverlayEntry) -> Rendered:
        """What a template makes for this node, from `shared` where no node changes it."""
        try:
            compiled = _compiled(entry)
            if compiled.names & PER_NODE:
                return render_template(compiled, self._variables(overlay, compiled))
            key = (overlay.digest, entry.path, self.server if "server" in compiled.names else None)
            known = self.shared.get(key)
            if known is None:
                known = render_template(compiled, self._variables(overlay, compiled))
                self.shared[key] = known
            return known
        except RenderError as error:
            raise RenderError(error.source, error.line, error.reason, self.node.name) from None

    def _variables(self, overlay: Overlay, compiled: Compiled) -> dict[str, Any]:
        node = self.node
        variables: dict[str, Any] = {
            "node": node,
            "tags": node.tags,
            "resources": node.resources,
            "network": node.network,
            "image": self.registry.images.get(node.image or ""),
            "server": self.server,
            "overlay": overlay.name,
        }
        if "nodes" in compiled.names:
            variables["nodes"] = tuple(self.registry.nodes.values())
        return variables


def check(
    registry: Registry,
    *,
    server: ServerAddress = EXAMPLE_SERVER,
    stop: Callable[[], bool] = lambda: False,
) -> list[str]:
    """What is wrong with any node's overlays, as lines ``file:line:1: nodes: what``.

    Every template is rendered for every node that has it, until `stop` says that it has taken long
    enough. The same fault of many nodes is one line that names the first ones.
    """
    faults: dict[tuple[str, int, str], list[str]] = {}
    shared: Shared = {}
    nodes = [*registry.nodes.values(), *([registry.default] if registry.default else [])]
    for node in nodes:
        if stop() or len(faults) >= MAX_FAULTS:
            break
        for error in _faults(registry, node, server, shared):
            faults.setdefault((error.source, error.line, error.reason), []).append(node.name)
    return [
        f"{source}:{line}:1: {_names(names)}: {reason}"
        for (source, line, reason), names in faults.items()
    ]


def _faults(
    registry: Registry, node: Node, server: ServerAddress, shared: Shared
) -> Iterator[RenderError]:
    """Every fault of one node, not only the first of each archive."""
    context = _Context(registry, node, server, shared)
    for names in (node.overlays_system, node.overlays_runtime):
        entries: dict[str, Entry] = {}
        # An overlay that does not exist is the configuration's fault, and told there.
        for overlay in filter(None, map(registry.overlays.get, names)):
            for entry in overlay.entries:
                try:
                    entries.update((made.path, made) for made in context.entries(overlay, entry))
                except RenderError as error:
                    yield error
        try:
            with_parents(entries.values())
        except CpioError as error:
            yield RenderError(", ".join(names), 1, str(error), node.name)


def _names(names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = len(unique) - MAX_NAMED
    shown = ", ".join(unique[:MAX_NAMED])
    return f"nodes.{shown}" + (f" and {more} more" if more > 0 else "")
