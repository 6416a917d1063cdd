"""What must hold between resolved nodes, and between them and the rest of the server. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from bootd.config.faults import MAX_FAULTS, Fault, nearest
from bootd.model import Node, Origin


def find_place(node: Node, key: str) -> Origin | None:
    """Where a value of `node` was written, None where it is a default. The primary device's
    addresses are looked for under both their names."""
    for name in (key, *_other_names(node, key)):
        if name in node.origins:
            return node.origins[name]
    return None


def _place(node: Node, key: str) -> Origin:
    """`find_place`, or the nearest place there is: a default can be at fault, too."""
    somewhere = next(iter(node.origins.values()), Origin("nodes.yaml", 1, 1))
    return find_place(node, key) or somewhere


def _other_names(node: Node, key: str) -> Iterator[str]:
    last = key.rpartition(".")[2]
    for name, device in node.network.items():
        if last in ("mac", "ip") and getattr(device, last) == getattr(node, last):
            if key == last:
                yield f"network.{name}.{last}"
            elif key == f"network.{name}.{last}":
                yield last


def duplicates(nodes: Iterable[Node]) -> Iterator[Fault]:
    """A fault for each MAC or IP address that two devices have, naming both places."""
    owners: dict[object, tuple[Node, str]] = {}
    for node in nodes:
        for name, device in node.network.items():
            for key, value in (("mac", device.mac), ("ip", device.ip), ("ip6", device.ip6)):
                if value is None:
                    continue
                address = value if key == "mac" else value.ip  # type: ignore[union-attr] # a Mac is a str
                here = (node, f"network.{name}.{key}")
                first = owners.setdefault(address, here)
                if first is not here:
                    yield _twice(address, first, here)


def _twice(address: object, first: tuple[Node, str], here: tuple[Node, str]) -> Fault:
    (other, other_key), (node, key) = first, here
    what = (
        f"{address} is also {_short(other, other_key)} of {other.name} ({_place(other, other_key)})"
    )
    return Fault(_place(node, key), f"nodes.{node.name}.{_short(node, key)}", what)


def _short(node: Node, key: str) -> str:
    """The key as it was written: ``mac`` where that stood for ``network.boot.mac``."""
    return next((k for k in (key, *_other_names(node, key)) if k in node.origins), key)


def references(
    nodes: Iterable[Node],
    *,
    images: Collection[str],
    overlays: Collection[str],
    templates: Collection[str],
) -> list[Fault]:
    """A fault for each image, overlay and template that a node names and that does not exist: one
    for each place in the files, however many nodes have it from there."""
    found = _Missing()
    for node in nodes:
        if len(found.places) > MAX_FAULTS:
            break
        if node.image is not None and node.image not in images:
            hint = nearest(node.image, images) or "; see bootd image list, bootd image import"
            found.add(node, "image", f"there is no image {node.image!r}{hint}")
        template = f"{node.template}.ipxe.j2"
        if template not in templates:
            known = [name.removesuffix(".ipxe.j2") for name in templates]
            hint = nearest(node.template, known)
            found.add(node, "template", f"there is no template {template!r}{hint}")
        for kind, names in (("system", node.overlays_system), ("runtime", node.overlays_runtime)):
            for number, name in enumerate(names):
                if name not in overlays:
                    what = f"there is no overlay {name!r}{nearest(name, overlays)}"
                    found.add(node, f"overlays.{kind}[{number}]", what)
    return found.faults()


class _Missing:
    """Faults by place, with the nodes that have them."""

    def __init__(self) -> None:
        self.places: dict[tuple[Origin, str], list[tuple[str, str]]] = {}

    def add(self, node: Node, key: str, what: str) -> None:
        self.places.setdefault((_place(node, key), what), []).append((node.name, key))

    def faults(self) -> list[Fault]:
        made = []
        for (origin, what), users in self.places.items():
            name, key = users[0]
            others = f" (and {len(users) - 1} more nodes)" if len(users) > 1 else ""
            made.append(Fault(origin, f"nodes.{name}.{key}", what + others))
        return made
