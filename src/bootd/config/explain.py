"""Every value of a node with the place that decided it, for `bootd explain`. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from bootd.config.checks import find_place
from bootd.model import Node, Origin

SECRET: Final = frozenset({"asset_key"})
"""Keys whose values are not shown."""
_LISTS: Final = (
    ("profiles", "profiles"),
    ("kernel.args", "kernel_args"),
    ("overlays.system", "overlays_system"),
    ("overlays.runtime", "overlays_runtime"),
)
_SINGLE: Final = (
    ("mac", "mac"),
    ("ip", "ip"),
    ("image", "image"),
    ("kernel.version", "kernel_version"),
    ("method", "method"),
    ("loader", "loader"),
    ("template", "template"),
    ("boot", "boot"),
    ("asset_key", "asset_key"),
    ("uuid", "uuid"),
    ("serial", "serial"),
    ("security", "security"),
    ("comment", "comment"),
)
_OF_DEVICE: Final = ("device", "type", "mac", "ip", "ip6", "gateway", "gateway6", "mtu")


class Explained(NamedTuple):
    """One value as text; `origin` is None where it is the default."""

    key: str
    value: str
    origin: Origin | None


def explain(node: Node) -> Iterator[Explained]:
    """Each value of `node` by its dotted key: what the files say first, then defaults that count.
    Secrets are shown as ``***``; what has no value is left out."""
    rows = [Explained(key, value, find_place(node, key)) for key, value in _values(node)]
    yield from (row for row in rows if row.origin is not None)
    yield from (row for row in rows if row.origin is None)


def _values(node: Node) -> Iterator[tuple[str, str]]:
    for key, attribute in _SINGLE:
        value = getattr(node, attribute)
        if value not in (None, ""):
            yield key, "***" if key in SECRET else str(value)
    for key, attribute in _LISTS:
        yield from _items(key, getattr(node, attribute))
    yield from _items("quirks", sorted(node.quirks))
    for name, device in node.network.items():
        for key in _OF_DEVICE:
            value = getattr(device, key)
            if value not in (None, ""):
                yield f"network.{name}.{key}", str(value)
        for key in ("dns", "search"):
            yield from _items(f"network.{name}.{key}", getattr(device, key))
        yield from _tree(f"network.{name}.options", device.options)
    yield from _tree("tags", node.tags)
    yield from _tree("resources", node.resources)


def _items(key: str, values: Any) -> Iterator[tuple[str, str]]:
    for number, value in enumerate(values):
        yield f"{key}[{number}]", str(value)


def _tree(key: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield f"{key}.{name}", text
