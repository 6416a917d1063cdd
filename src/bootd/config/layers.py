"""Entries of nodes.yaml as `config.schema` checked them -> layers that `config.merge` merges. Pure.

A layer's values carry the place they were written at.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from bootd.config.merge import Fields, Layer, Leaf
from bootd.config.schema import NodesFile, ProfileSpec
from bootd.config.source import Document, Position, YamlList, YamlMap, plain
from bootd.model import Origin


def profiles(document: Document, checked: NodesFile) -> list[tuple[str, Layer]]:
    """The profiles of one file, in the order written."""
    return _entries(document, "profiles", checked.profiles)


def nodes(document: Document, checked: NodesFile) -> list[tuple[str, Layer]]:
    """The nodes and node sets of one file, in the order written."""
    return _entries(document, "nodes", checked.nodes)


def _entries(document: Document, section: str, specs: Any) -> list[tuple[str, Layer]]:
    if not specs:
        return []
    tree: YamlMap = document.value[section]
    return [
        (name, _layer(document.file, section, name, tree, spec)) for name, spec in specs.items()
    ]


def _layer(file: str, section: str, name: str, tree: YamlMap, spec: ProfileSpec | None) -> Layer:
    layer = Layer(f"{section}.{name}", Origin(file, *tree.marks[name][0]))
    if spec is not None:
        _read(file, spec, tree[name], layer.fields)
        layer.profiles = layer.fields.lists.pop("profiles", None)
        if spec.network:
            below = tree[name]["network"]
            for device, device_spec in spec.network.items():
                layer.devices[device] = Fields()
                _read(file, device_spec, below[device], layer.devices[device])
    return layer


def _read(
    file: str, spec: BaseModel, tree: YamlMap | None, fields: Fields, above: str = ""
) -> None:
    """Put what `spec` says into `fields`; `tree` is the same map as read, which knows places."""
    written = spec.model_fields_set
    for key in tree or ():
        if key not in written or key == "network":
            continue
        assert tree is not None
        value, below, at = getattr(spec, key), tree[key], tree.marks[key][1]
        name = above + key
        if isinstance(value, tuple):
            fields.lists[name] = tuple(_items(file, value, below))
        elif isinstance(value, BaseModel):
            _read(file, value, below, fields, f"{name}.")
        elif isinstance(value, dict):
            for free, item in value.items():
                if item is not None and item != "":
                    origin = Origin(file, *below.marks[free][1])
                    fields.trees[f"{name}.{free}"] = (plain(item), origin)
        elif value is not None:
            fields.scalars[name] = _leaf(file, value, at)


def _items(file: str, value: tuple[Any, ...], tree: YamlList) -> list[Leaf]:
    return [_leaf(file, item, at) for item, at in zip(value, tree.marks, strict=True)]


def _leaf(file: str, value: Any, at: Position) -> Leaf:
    return value, Origin(file, *at)
