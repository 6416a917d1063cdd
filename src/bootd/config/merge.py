"""Profiles and nodes as written -> nodes with everything decided, each value with its place. Pure.

The rules are Warewulf's. A nested profile is merged before its parent, a later one over an earlier
one, the node last. Lists append; ``~x`` takes ``x`` away wherever it came from, whichever of the
two was written first. Maps merge deep. Every profile counts once, where it first appears. Unlike
there, a profile that does not exist and profiles that nest in a circle are errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import Any, Final

from bootd.config import devices, nodesets
from bootd.config.faults import MAX_FAULTS, Fault, nearest
from bootd.model import NetDev, Node, Origin

DEFAULT_PROFILE: Final = "default"
"""Given to nodes that name no profiles, and to unknown MACs where the settings say so."""
MAX_NESTING: Final = 64
"""How deep profiles may nest."""

Leaf = tuple[Any, Origin]
"""A value and the place that decided it."""

_NOWHERE: Final = Origin("", 1, 1)
_ATTRIBUTES: Final = {
    "image": "image",
    "kernel.version": "kernel_version",
    "method": "method",
    "loader": "loader",
    "template": "template",
    "boot": "boot",
    "asset_key": "asset_key",
    "uuid": "uuid",
    "serial": "serial",
    "security": "security",
    "comment": "comment",
}
"""Single values by their key, and the attribute of `Node` that holds them."""
_TUPLES: Final = {
    "kernel.args": "kernel_args",
    "overlays.system": "overlays_system",
    "overlays.runtime": "overlays_runtime",
}
_OF_ONE_NODE: Final = ("mac", "ip", "uuid", "serial")


@dataclass(slots=True)
class Fields:
    """Values by dotted key. `lists` still have their ``~x``; `trees` are maps of free names and
    values (``tags.rack``, ``resources.fstab``)."""

    scalars: dict[str, Leaf] = field(default_factory=dict)
    lists: dict[str, tuple[Leaf, ...]] = field(default_factory=dict)
    trees: dict[str, Leaf] = field(default_factory=dict)

    def over(self, below: Fields) -> Fields:
        """These values merged over those of `below`; neither is changed."""
        lists = dict(below.lists)
        for key, items in self.lists.items():
            lists[key] = lists.get(key, ()) + items
        trees = dict(below.trees)
        for key, (value, origin) in self.trees.items():
            trees[key] = (deep(trees[key][0], value) if key in trees else value, origin)
        return Fields({**below.scalars, **self.scalars}, lists, trees)

    def items(self, key: str) -> tuple[Leaf, ...]:
        """What is left of a list when every ``~x`` has done its work."""
        written = self.lists.get(key, ())
        gone = {item[0][1:] for item in written if item[0].startswith("~")}
        if not gone:
            return written
        return tuple(i for i in written if not i[0].startswith("~") and i[0] not in gone)

    def values(self, key: str) -> tuple[Any, ...]:
        """`items` without their places."""
        return tuple(item[0] for item in self.items(key))

    def places(self, prefix: str = "") -> Iterator[tuple[str, Origin]]:
        """Every dotted key with the place that decided it."""
        for key, (_, origin) in (*self.scalars.items(), *self.trees.items()):
            yield prefix + key, origin
        for key in self.lists:
            for number, (_, origin) in enumerate(self.items(key)):
                yield _indexed(prefix + key, number), origin


@dataclass(slots=True)
class Layer:
    """One profile, node or node set as written. `where` is its dotted key; `profiles` still have
    their ``~x``, and are None where the entry does not say."""

    where: str = ""
    origin: Origin = _NOWHERE
    profiles: tuple[Leaf, ...] | None = None
    fields: Fields = field(default_factory=Fields)
    devices: dict[str, Fields] = field(default_factory=dict)

    def over(self, below: Layer) -> Layer:
        """This layer merged over `below`."""
        merged = dict(below.devices)
        for name, device in self.devices.items():
            merged[name] = device.over(merged[name]) if name in merged else device
        profiles = below.profiles
        if self.profiles is not None:
            profiles = (profiles or ()) + self.profiles
        return Layer(self.where, self.origin, profiles, self.fields.over(below.fields), merged)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the files say of nodes; `default` is the profile of that name as a node."""

    nodes: dict[str, Node]
    default: Node | None
    faults: list[Fault]


def resolve(profiles: Mapping[str, Layer], entries: Sequence[tuple[str, Layer]]) -> Resolved:
    """Merge profiles into nodes. `entries` are nodes and node sets in the order written; the same
    name may come twice only as a set and as a node of its own, whose values win."""
    return _Merge(profiles).resolve(entries)


def deep(old: Any, new: Any) -> Any:
    """Two free values merged: maps deep, lists appended, else the new one unless it is empty."""
    if isinstance(old, dict) and isinstance(new, dict):
        merged = dict(old)
        for key, value in new.items():
            merged[key] = deep(old[key], value) if key in old else value
        return merged
    if isinstance(old, list) and isinstance(new, list):
        return old + new
    return old if new is None or new in ("", [], {}) else new


@cache
def _indexed(key: str, number: int) -> str:
    """``kernel.args[0]``, one string for all nodes."""
    return f"{key}[{number}]"


class _Merge:
    def __init__(self, profiles: Mapping[str, Layer]) -> None:
        self._profiles = profiles
        self._faults: list[Fault] = []
        self._chains: dict[tuple[str, ...], dict[str, Origin]] = {}
        self._bases: dict[tuple[str, ...], Layer] = {}
        self._shared: dict[Any, Any] = {}

    def resolve(self, entries: Sequence[tuple[str, Layer]]) -> Resolved:
        """See `resolve`."""
        self._check_circles()
        for layer in (*self._profiles.values(), *(layer for _, layer in entries)):
            self._check_profiles(layer)
        names, sets, own = self._collect(entries)
        nodes: dict[str, Node] = {}
        of_sets: dict[int, Node] = {}
        for name in names:
            of_set, of_node = sets.get(name), own.get(name)
            if of_node is not None:
                written = of_node if of_set is None else of_node.over(of_set)
                nodes[name] = self._node(name, written)
            elif of_set is not None:
                # Nodes that only their set describes differ in nothing but the name.
                if id(of_set) not in of_sets:
                    of_sets[id(of_set)] = self._node(name, of_set)
                nodes[name] = replace(of_sets[id(of_set)], name=name)
        default = None
        if DEFAULT_PROFILE in self._profiles:
            default = self._node(DEFAULT_PROFILE, Layer(where=f"profiles.{DEFAULT_PROFILE}"))
        return Resolved(nodes, default, self._faults)

    # ---- what there is ----

    def _collect(
        self, entries: Sequence[tuple[str, Layer]]
    ) -> tuple[dict[str, None], dict[str, Layer], dict[str, Layer]]:
        """The names of all nodes in the order written, those that sets name, and those that stand
        by themselves."""
        order: dict[str, None] = {}
        sets: dict[str, Layer] = {}
        own: dict[str, Layer] = {}
        for key, layer in entries:
            try:
                names = nodesets.expand(key)
            except ValueError as error:
                self._fault(layer.origin, layer.where, str(error))
                continue
            if len(names) > 1:
                self._check_set(layer, key)
            kept = own if names == [key] else sets
            twice = [name for name in names if name in kept]
            if twice:
                self._twice(layer, kept[twice[0]], twice)
            if len(order) + len(names) > nodesets.MAX_NODES:
                what = f"with these there are more than {nodesets.MAX_NODES} nodes"
                self._fault(layer.origin, layer.where, what)
                return {}, {}, {}
            kept.update(dict.fromkeys(names, layer))
            order.update(dict.fromkeys(names))
        return order, sets, own

    def _twice(self, layer: Layer, other: Layer, names: Sequence[str]) -> None:
        who = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        what = f"{who} is defined twice; the other place is {other.where} at {other.origin}"
        self._fault(layer.origin, layer.where, what)

    def _check_set(self, layer: Layer, key: str) -> None:
        for name in _OF_ONE_NODE:
            if name in layer.fields.scalars:
                origin = layer.fields.scalars[name][1]
                what = f"the nodes of {key} cannot share one {name}; give each node its own entry"
                self._fault(origin, f"{layer.where}.{name}", what)

    def _check_profiles(self, layer: Layer) -> None:
        for number, (name, origin) in enumerate(layer.profiles or ()):
            name = name.removeprefix("~")
            if name not in self._profiles and len(self._faults) <= MAX_FAULTS:
                what = f"there is no profile {name!r}{nearest(name, self._profiles)}"
                self._fault(origin, f"{layer.where}.profiles[{number}]", what)

    def _check_circles(self) -> None:
        done: set[str] = set()
        for name in self._profiles:
            self._walk(name, [], done)

    def _walk(self, name: str, path: list[str], done: set[str]) -> None:
        if name in done:
            return
        path.append(name)
        layer = self._profiles[name]
        for number, (nested, origin) in enumerate(layer.profiles or ()):
            where = f"{layer.where}.profiles[{number}]"
            if nested in path:
                circle = " → ".join((*path[path.index(nested) :], nested))
                self._fault(origin, where, f"profiles nest in a circle: {circle}")
            elif nested in self._profiles and len(path) >= MAX_NESTING:
                self._fault(origin, where, f"profiles nest more than {MAX_NESTING} deep")
            elif nested in self._profiles:
                self._walk(nested, path, done)
        path.pop()
        done.add(name)

    # ---- merging ----

    def _chain(self, written: Sequence[Leaf]) -> dict[str, Origin]:
        """The profiles that `written` asks for, in the order they are merged, with the places that
        name them."""
        names = tuple(item[0] for item in written)
        if names not in self._chains:
            found: dict[str, Origin] = {}
            gone: set[str] = set()
            self._nest(written, found, gone, set(), 0)
            self._chains[names] = {n: o for n, o in found.items() if n not in gone}
        direct = dict(written)
        return {name: direct.get(name, at) for name, at in self._chains[names].items()}

    def _nest(
        self,
        written: Sequence[Leaf],
        found: dict[str, Origin],
        gone: set[str],
        seen: set[str],
        depth: int,
    ) -> None:
        """Add `written` to `found`, nested profiles before their parents."""
        for name, origin in written:
            if name.startswith("~"):
                gone.add(name[1:])
            elif name in self._profiles and name not in seen and depth <= MAX_NESTING:
                seen.add(name)
                self._nest(self._profiles[name].profiles or (), found, gone, seen, depth + 1)
                found[name] = origin

    def _base(self, chain: tuple[str, ...]) -> Layer:
        """The profiles of a chain, merged once for all nodes that have the same ones."""
        if chain not in self._bases:
            base = Layer()
            for name in chain:
                base = self._profiles[name].over(base)
            base.profiles = None
            base.fields.scalars.pop("comment", None)  # it describes the profile
            self._bases[chain] = base
        return self._bases[chain]

    def _node(self, name: str, written: Layer) -> Node:
        asked = written.profiles
        if asked is None:
            is_there = DEFAULT_PROFILE in self._profiles
            asked = ((DEFAULT_PROFILE, _NOWHERE),) if is_there else ()
        chain = self._chain(asked)
        names: tuple[str, ...] = self._share(tuple(chain))
        merged = written.over(self._base(names))
        network, primary = self._network(merged)
        origins = dict(merged.fields.places())
        for device_name, device in merged.devices.items():
            origins.update(device.places(f"network.{device_name}."))
        for number, at in enumerate(chain.values()):
            if at is not _NOWHERE:
                origins[_indexed("profiles", number)] = at
        known = self._known(merged.fields)
        if primary is not None:
            known |= {"network": network, "mac": primary.mac, "ip": primary.ip}
        return Node(name=name, profiles=names, origins=MappingProxyType(origins), **known)

    def _known(self, fields: Fields) -> dict[str, Any]:
        """The attributes of a node that do not concern its network."""
        known: dict[str, Any] = {
            _ATTRIBUTES[key]: leaf[0] for key, leaf in fields.scalars.items() if key in _ATTRIBUTES
        }
        for key in fields.lists:
            if key in _TUPLES:
                known[_TUPLES[key]] = self._share(fields.values(key))
            elif key == "quirks":
                known[key] = self._share(frozenset(fields.values(key)))
        trees: dict[str, dict[str, Any]] = {}
        for key, (value, _) in fields.trees.items():
            area, _, rest = key.partition(".")
            trees.setdefault(area, {})[rest] = value
        known.update((area, MappingProxyType(tree)) for area, tree in trees.items())
        return known

    def _network(self, merged: Layer) -> tuple[Mapping[str, NetDev], NetDev | None]:
        """The devices of a node, and the primary one among them."""
        network = {name: _device(name, fields) for name, fields in merged.devices.items()}
        scalars = merged.fields.scalars
        short: dict[str, Any] = {key: scalars[key][0] for key in ("mac", "ip") if key in scalars}
        if not short:
            return MappingProxyType(network), devices.primary(network)
        name = devices.fitting(network, short)
        if name in network:
            self._check_short(merged, network[name], short)
        network = devices.changed(network, name, short)
        return MappingProxyType(network), network[name]

    def _check_short(self, merged: Layer, device: NetDev, short: Mapping[str, Any]) -> None:
        """`mac` beside a different ``network.boot.mac`` says two things of one card."""
        for key, value in short.items():
            other = getattr(device, key)
            if other is not None and other != value:
                place = merged.devices[device.name].scalars[key][1]
                what = f"{value} here, but {other} in network.{device.name}.{key} ({place})"
                self._fault(merged.fields.scalars[key][1], f"{merged.where}.{key}", what)

    def _share(self, value: Any) -> Any:
        """One object for equal values: ten thousand nodes have a few lists between them."""
        return self._shared.setdefault(value, value)

    def _fault(self, origin: Origin, where: str, what: str) -> None:
        self._faults.append(Fault(origin, where, what))


def _device(name: str, fields: Fields) -> NetDev:
    return devices.device(
        name,
        {key: leaf[0] for key, leaf in fields.scalars.items()},
        {key: fields.values(key) for key in fields.lists},
        {key.partition(".")[2]: leaf[0] for key, leaf in fields.trees.items()},
    )
