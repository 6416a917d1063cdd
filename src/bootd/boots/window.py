"""Who may have a boot's secrets now: the window, and the tie between a MAC and an address.

Pure. A boot opens its window with a DHCP packet from a privileged port, which no ordinary user of
a node can send; the window closes when the node reports up, after ``security.boot_window``, or when
the node boots again. The address that asks must be the one that the DHCP exchange or the kernel's
neighbour table ties to the MAC: naming someone else's MAC gives nothing (SECURITY.md A1, A2).

Each function returns an empty string or a reason, one word; `SENTENCES` says it to people.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Final

from bootd.boots.timeline import Boot
from bootd.boots.tokens import Claims
from bootd.model import Mac, Node
from bootd.registry import Registry

SENTENCES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "no-boot": "no DHCP packet of this machine has been seen",
        "up": "this boot is over: the node has reported that it is up",
        "window-closed": "the boot window is closed (security.boot_window)",
        "no-address": "it is not known which address this machine has",
        "wrong-address": "the request comes from an address that is not this machine's",
        "other-boot": "this token is of another boot: the node has booted again since",
        "wrong-asset-key": "its asset key is not the one of this node",
        "wrong-uuid": "its UUID is not the one of this node",
        "wrong-serial": "its serial number is not the one of this node",
        "no-asset-key": "this node has no asset key (security.asset_key: required)",
        "malformed": "this is no token",
        "forged": "this token was not signed here",
        "expired": "this token has expired",
        "unknown-node": "no node has this MAC address any more",
    }
)


class Owner(StrEnum):
    """Who has the client's address on the link, by the kernel's neighbour table."""

    SELF = "self"
    OTHER = "other"  # another node
    STRANGER = "stranger"  # a MAC address that no node has
    UNKNOWN = "unknown"  # no entry: behind a router, or this host itself


def owner(registry: Registry, mac: Mac, neighbour: Mac | None) -> Owner:
    """What the neighbour table's answer means for the machine that boots with `mac`.

    Any card of the node counts: Linux answers ARP for all its addresses on each of its cards.
    """
    if neighbour is None:
        return Owner.UNKNOWN
    if neighbour == mac:
        return Owner.SELF
    node = registry.by_mac.get(neighbour)
    if node is None:
        return Owner.STRANGER
    return Owner.SELF if node is registry.by_mac.get(mac) else Owner.OTHER


Link = Callable[[], Owner]
"""Asks the neighbour table: a system call, so only where the answer matters."""


def tie(boot: Boot, peer: IPv4Address, link: Link) -> str:
    """Whether `peer` is the machine that boots.

    The link is believed before DHCP: it tells who is there now. Behind a router there is no
    neighbour, and the address from the DHCP exchange decides.
    """
    on_link = link()
    if on_link is not Owner.UNKNOWN:
        return "" if on_link is Owner.SELF else "wrong-address"
    if boot.address is None:
        return "no-address"
    return "" if boot.address == peer else "wrong-address"


def grant(boot: Boot | None, peer: IPv4Address, link: Link, now: float) -> str:
    """Whether a token may be given out for `boot` to `peer`; `now` is monotonic."""
    if boot is None:
        return "no-boot"
    return _closed(boot, now) or tie(boot, peer, link)


def admit(boot: Boot, claims: Claims, peer: IPv4Address, link: Link, now: float) -> str:
    """Whether a token that is signed and not expired still opens its boot for `peer`.

    The operating system may have another address than the firmware had (another DHCP client
    identifier, another lease) or another MAC address (a bridge): either one vouches for it.
    """
    if boot.id != claims.boot_id:
        return "other-boot"
    closed = _closed(boot, now)
    if closed:
        return closed
    on_link = link()
    if on_link is Owner.SELF or (peer == claims.address and on_link is not Owner.OTHER):
        return ""
    return "wrong-address"


def identity(node: Node, *, uuid: str, serial: str, asset_key: str, required: bool) -> str:
    """Whether what a machine says of itself is what its node names.

    `required`: a node without an asset key is given nothing (``security.asset_key``).
    """
    return (
        wrong_key(node, asset_key, required=required)
        or wrong_uuid(node, uuid)
        or ("" if _same(node.serial, serial) else "wrong-serial")
    )


def wrong_key(node: Node, said: str, *, required: bool) -> str:
    """Whether `said` is not the node's asset key."""
    if required and not node.asset_key:
        return "no-asset-key"
    return "" if _same(node.asset_key, said) else "wrong-asset-key"


def wrong_uuid(node: Node, said: str) -> str:
    """Whether `said` is not the node's UUID, however it is written.

    SMBIOS before 2.6 did not say in which order the first three fields' bytes stand (DSP0134,
    section 7.2.1), so firmware, iPXE and dmidecode may each show one machine's UUID in another:
    both are taken.
    """
    if not node.uuid:
        return ""
    wanted, given = (_PUNCTUATION.sub("", text.lower()) for text in (node.uuid, said))
    swapped = "".join(given[at : at + 2] for at in _SWAPPED)
    return "" if any([_same(wanted, form) for form in (given, swapped)]) else "wrong-uuid"


_PUNCTUATION: Final = re.compile(r"^urn:uuid:|[{}\s-]", re.ASCII)
_SWAPPED: Final = (6, 4, 2, 0, 10, 8, 14, 12, *range(16, 32, 2))
"""Where the digits of each byte stand when the first three fields are little-endian."""


def _same(wanted: str | None, said: str) -> bool:
    """In constant time. Vendors pad SMBIOS strings with spaces, which no tool shows: at the ends
    they do not count."""
    if not wanted:
        return True
    bare = wanted.strip()
    if bare:
        wanted, said = bare, said.strip()
    return hmac.compare_digest(wanted.encode(), said.encode())


def _closed(boot: Boot, now: float) -> str:
    if boot.outcome == "up":
        return "up"
    return "window-closed" if now > boot.window else ""
