"""Who a machine says it is in its request, and what that opens: asset key, UUID, serial number, and
for nodes with ``security: warewulf`` the port that it sends from."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from bootd.boots import warewulf, window
from bootd.http.answer import Asked, Denied, Refusal
from bootd.http.site import Site
from bootd.model import Mac, Node
from bootd.warewulf import switched

MAX_KEY: Final = 256
"""Characters of an asset key or serial number in a query that are looked at."""

_ASSET: Final = frozenset(("assethex", "assetkey"))
_UUID: Final = frozenset(("uuid",))
_SERIAL: Final = frozenset(("serialhex", "serial"))
"""What each is called in a query."""
_SAID: Final[Mapping[str, str]] = MappingProxyType({**window.SENTENCES, **warewulf.SENTENCES})


def must_say(node: Node) -> bool:
    """Whether `node` names something that its machine has to know."""
    return bool(node.asset_key or node.uuid or node.serial)


def has_said(asked: Asked, node: Node) -> bool:
    """Whether the machine has said what it knows, as far as `node` asks for it: as
    `scripts.introduce` lets iPXE do it, or as Warewulf's scripts do."""
    said = {field.partition("=")[0] for field in asked.query.split("&")}
    asked_for = ((node.asset_key, _ASSET), (node.uuid, _UUID), (node.serial, _SERIAL))
    wanted = [names for value, names in asked_for if value]
    return all(said & names for names in wanted or [_ASSET])


def wrong(asked: Asked, node: Node) -> str:
    """Why a machine may not have `node`'s token by what it says of itself; empty: it may."""
    required = _required(asked)
    if not required and not must_say(node):
        return ""
    return window.identity(
        node,
        uuid=asked.said("uuid"),
        serial=_said(asked, "serial"),
        asset_key=_said(asked, "asset", "assetkey"),
        required=required,
    )


def _said(asked: Asked, name: str, plain: str = "") -> str:
    """What a machine said in hex as ``NAMEhex``, or else as it is."""
    text = asked.said(f"{name}hex", 2 * MAX_KEY)
    if not text:
        return asked.said(plain or name, MAX_KEY)
    try:
        return bytes.fromhex(text).decode("utf-8", "replace")
    except ValueError:
        return ""


def _required(asked: Asked) -> bool:
    return asked.registry.settings.security.asset_key == "required"


# ---- Warewulf's rules ----------------------------------------------------------------------------


def admit_booting(site: Site, asked: Asked, node: Node, mac: Mac) -> None:
    """Let a machine have what its boot needs: from a privileged port, or in its boot window from
    the address that is tied to it. Raises `Refusal`."""
    _check_identity(asked, node)
    why = _by_port(site, asked, node, mac)
    if why == "unprivileged-port":
        closed = window.grant(
            site.boots.of(mac), asked.peer, lambda: site.owner_of(asked, mac), asked.now
        )
        if closed:
            raise Refusal(401, why, f"{_SAID[why]}, or while a node boots; {_SAID[closed]}")
    elif why:
        raise Refusal(401, why, _SAID[why])


def admit_running(site: Site, asked: Asked, node: Node, mac: Mac) -> None:
    """Let a machine have its runtime overlay: from a privileged port. Raises `Refusal`."""
    _check_identity(asked, node)
    why = _by_port(site, asked, node, mac)
    if why:
        raise Refusal(401, why, _SAID[why])


def _by_port(site: Site, asked: Asked, node: Node, mac: Mac) -> str:
    return warewulf.admit(node, asked.port, asked.peer, lambda: site.owner_of(asked, mac))


def _check_identity(asked: Asked, node: Node) -> None:
    if not switched(node):
        raise Denied("not-switched", _SAID["not-switched"])
    why = warewulf.identity(
        node,
        asset_key=_said(asked, "asset", "assetkey"),
        uuid=asked.said("uuid"),
        required=_required(asked),
    )
    if why:
        raise Refusal(401, why, _SAID[why])


def refuse_wrong_key(asked: Asked, node: Node) -> None:
    """Whoever says a wrong asset key gets nothing that belongs to a switched node: it is another
    machine, or its key was changed, and both should be seen early. Raises `Refusal`."""
    if switched(node) and "assetkey=" in asked.query:
        _check_identity(asked, node)
