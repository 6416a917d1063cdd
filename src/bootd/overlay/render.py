"""From overlays and a node to the files it gets. Pure: one registry in, entries or faults out."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Any, Final, Literal

from bootd.model import (
    Account,
    Condition,
    Node,
    Overlay,
    OverlayEntry,
    ServerAddress,
    UnknownPolicy,
)
from bootd.overlay import paths
from bootd.overlay.cpio import CpioError, Entry, with_parents
from bootd.overlay.links import TemplateValueError
from bootd.overlay.owners import Kind, OwnerError, number
from bootd.overlay.rules import glob
from bootd.overlay.secrets import PLACEHOLDERS, Secrets
from bootd.overlay.template import (
    PER_NODE,
    Compiled,
    Made,
    Rendered,
    RenderError,
    compile_condition,
    compile_template,
    fits,
    render_template,
)
from bootd.registry import Registry

Which = Literal["system", "runtime"]
Shared = MutableMapping[tuple[object, ...], Rendered]
"""Renderings that are the same for every node of a registry, kept by the caller."""

DELETE_LIST: Final = "etc/bootd/delete.d/"
"""Where a node finds what it shall remove, one path a line, in a file per class of overlays."""
HOOKS_LIST: Final = "etc/bootd/on_change.d/"
"""Where the agent finds what to do when a path of the runtime overlays is new: the path, a tab, and
a command in each line."""
TMPFILES: Final = "etc/tmpfiles.d/bootd-delete.conf"
"""The same for systemd, which removes it before the first service starts."""
GENERATOR: Final = "etc/systemd/system-generators/bootd-delete"
"""What keeps systemd from loading a unit that is to be removed: it reads units before that."""
EXAMPLE_SERVER: Final = ServerAddress(IPv4Address("192.0.2.1"))
"""What templates are checked with: which interface a node will come in on is not known yet."""
_OWNERS: Final = frozenset(("image", "resources"))
"""What owners that are written as names depend on."""
MAX_FAULTS: Final = 100
MAX_NAMED: Final = 3
"""Faults that `check` tells apart, and nodes that it names for each."""

_TYPES: Final = MappingProxyType(
    {
        "file": stat.S_IFREG,
        "dir": stat.S_IFDIR,
        "symlink": stat.S_IFLNK,
        "char": stat.S_IFCHR,
        "block": stat.S_IFBLK,
        "fifo": stat.S_IFIFO,
    }
)


def chosen(registry: Registry, node: Node, which: Which) -> list[Overlay]:
    """The overlays that a node has, in order. Raises `RenderError` where one does not exist."""
    names = node.overlays_system if which == "system" else node.overlays_runtime
    try:
        return [registry.overlays[name] for name in names]
    except KeyError as error:
        raise RenderError("nodes", 1, f"overlay {error} does not exist", node.name) from None


def reads(overlays: Iterable[Overlay]) -> frozenset[str]:
    """The variables that templates and conditions read: what an archive depends on."""
    return frozenset().union(*(name for overlay in overlays for name in _reads(overlay)))


def _reads(overlay: Overlay) -> Iterator[frozenset[str]]:
    for condition in (overlay.when, *(entry.when for entry in overlay.entries)):
        if condition is not None:
            yield compile_condition(condition).names
    for entry in overlay.entries:
        if entry.kind == "template":
            yield compile_template(entry.content, entry.source).names
        if isinstance(entry.uid, Account) or isinstance(entry.gid, Account):
            yield _OWNERS


def render(
    registry: Registry,
    node: Node,
    which: Which,
    server: ServerAddress,
    *,
    shared: Shared | None = None,
    secrets: Secrets = PLACEHOLDERS,
) -> list[Entry]:
    """Every path that `node` gets, parents included, in archive order.

    A later overlay's path replaces an earlier one's. `shared` is filled with what no node changes;
    give the same mapping for every node of one registry. Without `secrets` something that is none
    stands in for keys. Raises `RenderError`.
    """
    context = _Context(registry, node, server, {} if shared is None else shared, secrets)
    faults: list[RenderError] = []
    entries = context.tree(chosen(registry, node, which), which, faults)
    if faults:
        raise faults[0]
    return entries


@dataclass(slots=True)
class _Context:
    """One node's rendering."""

    registry: Registry
    node: Node
    server: ServerAddress
    shared: Shared
    secrets: Secrets

    def tree(
        self, overlays: Sequence[Overlay], which: Which, faults: list[RenderError]
    ) -> list[Entry]:
        """All entries in archive order; what is wrong is added to `faults`, and left out."""
        entries: dict[str, Entry] = {}
        deleted: dict[str, Overlay] = {}
        hooks: list[tuple[str, str]] = []
        for overlay in overlays:
            try:
                if not self._fits(overlay, overlay.when):
                    continue
            except RenderError as error:
                faults.append(error)
                continue
            hooks += overlay.on_change
            for path in overlay.delete:
                deleted[path] = overlay
                entries = {p: e for p, e in entries.items() if not f"{p}/".startswith(f"{path}/")}
            makers: dict[str, str] = {}
            for entry in overlay.entries:
                try:
                    for made in self._entries(overlay, entry):
                        self._once(made, entry, makers)
                        self._restore(made, entry, deleted)
                        entries[made.path] = made
                except RenderError as error:
                    faults.append(error)
        if which == "runtime":
            files = {path for path, made in entries.items() if not stat.S_ISDIR(made.mode)}
            made_hooks = _hooks_list(hooks, sorted(files.union(deleted)))
            entries.update((made.path, made) for made in made_hooks)
        entries.update((made.path, made) for made in _delete_lists(sorted(deleted), which))
        entries.update((made.path, made) for made in _parted(entries.values()))
        try:
            return with_parents(entries.values())
        except CpioError as error:
            names = ", ".join(overlay.name for overlay in overlays)
            faults.append(RenderError(f"overlays {names}", 1, str(error), self.node.name))
            return []

    def _once(self, made: Entry, entry: OverlayEntry, makers: dict[str, str]) -> None:
        """One overlay makes a path once: which of two would be there, nobody has said."""
        if made.path in makers:
            reason = f"makes /{made.path}, which {makers[made.path]} makes too"
            raise RenderError(entry.source, 1, reason, self.node.name)
        makers[made.path] = entry.source

    def _restore(self, made: Entry, entry: OverlayEntry, deleted: dict[str, Overlay]) -> None:
        """A file that an earlier overlay deletes is there after all; in a folder that one deletes
        nothing can be, since the node deletes after it has unpacked."""
        if not stat.S_ISDIR(made.mode):
            deleted.pop(made.path, None)
        for path, overlay in deleted.items():
            if f"{made.path}/".startswith(f"{path}/"):
                del deleted[path]  # one fault is enough
                reason = f"/{made.path} stands in /{path}, which overlay {overlay.name} deletes"
                raise RenderError(entry.source, 1, reason, self.node.name)

    def _fits(self, overlay: Overlay, condition: Condition | None) -> bool:
        if condition is None:
            return True
        try:
            return fits(condition, self._variables(overlay, compile_condition(condition)))
        except RenderError as error:
            raise RenderError(error.source, error.line, error.reason, self.node.name) from None

    def _entries(self, overlay: Overlay, entry: OverlayEntry) -> Iterator[Entry]:
        """The archive's entries of one path of an overlay."""
        if not self._fits(overlay, entry.when):
            return
        owner = self._number(entry.uid, "user"), self._number(entry.gid, "group")
        if entry.kind != "template":
            mode = _TYPES[entry.kind] | entry.mode
            link = f"{overlay.name}/{entry.hardlink}" if entry.hardlink else ""
            yield Entry(
                entry.path,
                mode,
                entry.content,
                *owner,
                rdev=entry.rdev,
                hardlink=link,
            )
            return
        rendered = self._rendered(overlay, entry)
        if rendered.own is not None:
            yield self._made(entry, entry.path, rendered.own, owner)
        for path, made in rendered.others.items():
            fault = paths.fault(path)
            if fault is not None:
                raise RenderError(entry.source, 1, fault, self.node.name)
            yield self._made(entry, path, made, owner)

    def _number(self, who: int | Account, kind: Kind) -> int:
        """The uid or gid on this node."""
        if isinstance(who, int):
            return who
        try:
            return number(who, kind, self.node, self.registry.images.get(self.node.image or ""))
        except OwnerError as error:
            raise RenderError(who.file, who.line, str(error), self.node.name) from None

    def _made(self, entry: OverlayEntry, path: str, made: Made, owner: tuple[int, int]) -> Entry:
        mode = entry.mode if made.mode is None else made.mode
        mode = stat.S_IFLNK | 0o777 if made.link else stat.S_IFREG | mode
        try:
            return Entry(path, mode, made.content, *owner)
        except CpioError as error:
            raise RenderError(entry.source, 1, str(error), self.node.name) from None

    def _rendered(self, overlay: Overlay, entry: OverlayEntry) -> Rendered:
        """What a template makes for this node, from `shared` where no node changes it."""
        try:
            compiled = compile_template(entry.content, entry.source)
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
        for name in compiled.names & _COSTLY.keys():
            try:
                variables[name] = _COSTLY[name](self)
            except TemplateValueError as error:
                raise RenderError(compiled.source, 1, str(error), node.name) from None
        return variables

    def known_hosts(self) -> list[tuple[Node, str]]:
        """Every node whose overlays give it host keys, with its public one."""
        keyed: dict[tuple[str, ...], bool] = {}
        nodes = []
        for node in self.registry.nodes.values():
            names = (*node.overlays_system, *node.overlays_runtime)
            if names not in keyed:
                overlays = [
                    self.registry.overlays[name] for name in names if name in self.registry.overlays
                ]
                keyed[names] = "host_keys" in reads(overlays)
            if keyed[names]:
                nodes.append(node)
        return list(zip(nodes, self.secrets.public_keys(nodes), strict=True))


_COSTLY: Final[Mapping[str, Callable[[_Context], Any]]] = MappingProxyType(
    {
        "nodes": lambda context: tuple(context.registry.nodes.values()),
        "host_keys": lambda context: context.secrets.host_keys(context.node),
        "known_hosts": _Context.known_hosts,
    }
)
"""Variables that are made only for templates that read them."""


_GENERATOR: Final = """\
#!/bin/sh
# Hides units (and what calls for them) that the boot server's overlays delete, from the first
# reading on: systemd reads units before tmpfiles.d removes them.
[ ! -e /run/bootd-deleted ] || exit 0
while IFS= read -r path; do
    case $path in
        */systemd/system/*)
            hidden=$2/${path#*/systemd/system/}
            mkdir -p "${hidden%/*}" && ln -sf /dev/null "$hidden"
            ;;
    esac
done < /etc/bootd/delete.d/system
"""


def _delete_lists(deleted: list[str], which: Which) -> Iterator[Entry]:
    """What tells the node to remove `deleted`; an archive itself can only add."""
    if not deleted:
        return
    lines = "".join(f"/{path}\n" for path in deleted)
    yield Entry(f"{DELETE_LIST}{which}", stat.S_IFREG | 0o644, lines.encode())
    if which == "system":
        rules = "".join(f"R! /{path}\n" for path in deleted) + "f! /run/bootd-deleted\n"
        yield Entry(TMPFILES, stat.S_IFREG | 0o644, rules.encode())
        if any("/systemd/system/" in path for path in deleted):
            yield Entry(GENERATOR, stat.S_IFREG | 0o755, _GENERATOR.encode())


def _parted(entries: Iterable[Entry]) -> list[Entry]:
    """Hard links that overlay.yaml gives different owners or modes: they are files of their own."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.hardlink:
            groups.setdefault(entry.hardlink, []).append(entry)
    return [
        replace(entry, hardlink="")
        for group in groups.values()
        for entry in group
        if len({(each.mode, each.uid, each.gid, each.content) for each in group}) > 1
    ]


def _hooks_list(hooks: Iterable[tuple[str, str]], found: list[str]) -> Iterator[Entry]:
    """What tells the agent which command belongs to which path: it matches no patterns."""
    lines = "".join(
        f"/{path}\t{command}\n"
        for pattern, command in dict.fromkeys(hooks)
        for path in filter(glob(pattern), found)
    )
    if lines:
        yield Entry(f"{HOOKS_LIST}runtime", stat.S_IFREG | 0o644, lines.encode())


def check(
    registry: Registry,
    *,
    server: ServerAddress = EXAMPLE_SERVER,
    stop: Callable[[], bool] = lambda: False,
    nodes: Sequence[Node] | None = None,
    shared: Shared | None = None,
) -> list[str]:
    """What is wrong with any node's overlays, as lines ``file:line:1: nodes: what``.

    Every template is rendered for every node that has it, or for `nodes`, until `stop` says that it
    has taken long enough. The same fault of many nodes is one line that names the first ones.
    `shared` is as for `render`.
    """
    faults: dict[tuple[str, int, str], list[str]] = {}
    shared = {} if shared is None else shared
    for node in checked(registry) if nodes is None else nodes:
        if stop() or len(faults) >= MAX_FAULTS:
            break
        for error in _faults(registry, node, server, shared):
            faults.setdefault((error.source, error.line, error.reason), []).append(node.name)
    return [
        f"{source}:{line}:1: {_names(names)}: {reason}"
        for (source, line, reason), names in faults.items()
    ]


def checked(registry: Registry) -> list[Node]:
    """Every node that may get something."""
    nodes = list(registry.nodes.values())
    if registry.default is not None and registry.settings.dhcp.unknown is UnknownPolicy.DEFAULT:
        nodes.append(registry.default)
    return nodes


def _faults(
    registry: Registry, node: Node, server: ServerAddress, shared: Shared
) -> list[RenderError]:
    """Every fault of one node, not only the first of each archive."""
    context = _Context(registry, node, server, shared, PLACEHOLDERS)
    faults: list[RenderError] = []
    classes: Mapping[Which, tuple[str, ...]] = {
        "system": node.overlays_system,
        "runtime": node.overlays_runtime,
    }
    for which, names in classes.items():
        # An overlay that does not exist is the configuration's fault, and told there.
        known = [registry.overlays[name] for name in names if name in registry.overlays]
        context.tree(known, which, faults)
    return faults


def _names(names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = len(unique) - MAX_NAMED
    shown = ", ".join(unique[:MAX_NAMED])
    return f"nodes.{shown}" + (f" and {more} more" if more > 0 else "")
