"""``state_dir/claims.yaml``: the MAC addresses that were claimed for nodes without one.

    claims:
      n005: {mac: 52:54:00:00:00:05, at: 2026-11-22T17:19:03Z}

bootd's own file: operators read it, only `bootd claim` writes it. What nodes.yaml says wins: a
claim counts while its node is there, has no MAC address, and nobody else has the claimed one.
`parse`, `render` and `apply` are pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bootd.config.devices import claimed
from bootd.config.faults import Fault, config_error
from bootd.config.files import Missing, Unreadable, read
from bootd.config.source import Document
from bootd.config.source import parse as parse_yaml
from bootd.config.values import line
from bootd.config.values import mac as parse_mac
from bootd.model import ConfigError, Mac, Node, Origin
from bootd.state import write_atomic

FILE: Final = "claims.yaml"
_HEAD: Final = "# Written by `bootd claim`. To take a claim back, delete its line and reload.\n"


@dataclass(frozen=True, slots=True)
class Claim:
    """One claimed MAC address; `at` is for people: when, in ISO 8601, or empty."""

    mac: Mac
    at: str = ""
    origin: Origin | None = None


def parse(data: str | bytes, file: str = FILE) -> dict[str, Claim]:
    """Claims by node name. Raises `ConfigError` with every fault."""
    document = parse_yaml(data, file)
    faults = list(document.faults)
    value = document.value
    claims: dict[str, Claim] = {}
    entries: Any = value.get("claims") if isinstance(value, dict) else value
    if entries is None and (value is None or isinstance(value, dict)):
        entries = {}
    if not isinstance(entries, dict):
        faults.append(Fault(document.origin(()), "", "not a map with the key claims"))
        entries = {}
    for name, entry in entries.items():
        try:
            claims[name] = _claim(document, name, entry)
        except ValueError as error:
            origin = document.origin(("claims", name, "mac"))
            faults.append(Fault(origin, f"claims.{name}.mac", str(error)))
    if faults:
        raise config_error(faults)
    return claims


def _claim(document: Document, name: str, entry: Any) -> Claim:
    if not isinstance(entry, dict) or "mac" not in entry:
        raise ValueError("a claim is a map with the key mac")
    at = entry.get("at")
    return Claim(
        parse_mac(entry["mac"]),
        "" if at is None else line(at),
        document.origin(("claims", name, "mac")),
    )


def render(claims: Mapping[str, Claim]) -> str:
    """The file's text, which `parse` reads back."""
    if not claims:
        return _HEAD + "claims: {}\n"
    lines = [
        f"  {name}: {{mac: {claim.mac}" + (f", at: {claim.at}" if claim.at else "") + "}\n"
        for name, claim in claims.items()
    ]
    return _HEAD + "claims:\n" + "".join(lines)


def load(state_dir: str) -> dict[str, Claim]:
    """The claims in `state_dir`, none where there is no file. Raises `ConfigError`."""
    path = Path(state_dir, FILE)
    try:
        return parse(read(str(path)), str(path))
    except Missing:
        return {}
    except Unreadable as error:
        what = f"{error}; move it away to go on without claims"
        raise ConfigError([str(Fault(Origin(str(path), 1, 1), "", what))]) from None


def save(state_dir: str, claims: Mapping[str, Claim]) -> None:
    """Write the claims whole or not at all. Raises `OSError`."""
    write_atomic(Path(state_dir, FILE), render(claims).encode())


def apply(nodes: dict[str, Node], claims: Mapping[str, Claim]) -> dict[str, Node]:
    """`nodes` with the claimed MAC addresses of those that have none."""
    if not claims:
        return nodes
    taken = _macs(nodes.values())
    given = dict(nodes)
    for name, claim in claims.items():
        node = given.get(name)
        if node is not None and node.mac is None and claim.mac not in taken:
            given[name] = claimed(node, claim.mac, claim.origin or Origin(FILE, 1, 1))
            taken.add(claim.mac)
    return given


def _macs(nodes: Iterable[Node]) -> set[Mac]:
    return {mac for node in nodes for mac in node.macs}
