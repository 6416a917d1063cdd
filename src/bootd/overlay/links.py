"""A node's network devices as the programs that configure them need them: resolved and checked.

Pure. networkd, NetworkManager, ifupdown and netplan say the same things in four languages; what is
to be said is decided here, once, and a mistake is found before any node boots.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from types import MappingProxyType
from typing import Any, Final

from bootd.model import Mac, NetDev

VIRTUAL: Final = ("bond", "bridge", "vlan")
TYPES: Final = ("ethernet", "infiniband", *VIRTUAL)
_NAME: Final = re.compile(r"[^\s/:%]{1,15}", re.ASCII)
_WORD: Final = re.compile(r"[A-Za-z0-9_.:+-]{1,64}", re.ASCII)
_OPTIONS: Final = MappingProxyType(
    {
        "": ("routes", "dhcp", "dhcp6", "accept_ra", "optional", "metric"),
        "bond": ("members", "mode", "miimon", "lacp_rate", "xmit_hash_policy"),
        "bridge": ("members", "stp"),
        "vlan": ("id", "link"),
        "infiniband": ("mode",),
    }
)
"""Options that mean something for a type of device ("" for all)."""
_BOND_MODES: Final = (
    *("balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad"),
    *("balance-tlb", "balance-alb"),
)
_INFINIBAND_MODES: Final = ("datagram", "connected")


class TemplateValueError(ValueError):
    """A value that a template cannot use; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Route:
    """One route: `to` is a network or ``default``; `via` may be empty (on the link)."""

    to: str
    via: str = ""
    metric: int | None = None
    table: int | None = None
    on_link: bool = False

    @property
    def ipv6(self) -> bool:
        """Whether it is a route of IPv6."""
        return ":" in (self.via or self.to)

    @property
    def destination(self) -> str:
        """The network, also of a default route: ``0.0.0.0/0``."""
        return self.to if self.to != "default" else "::/0" if self.ipv6 else "0.0.0.0/0"

    @property
    def next_hop(self) -> str:
        """The router, or the zero address where there is none."""
        return self.via or ("::" if self.ipv6 else "0.0.0.0")


@dataclass(frozen=True, slots=True)
class Link:
    """One device. `device` is the kernel's name, empty where only `mac` tells which it is;
    `id` names its files. `addresses` carry prefix lengths. `routes` include the default ones."""

    name: str
    id: str
    type: str
    device: str = ""
    mac: Mac | None = None
    addresses: tuple[str, ...] = ()
    addresses6: tuple[str, ...] = ()
    dhcp: bool = False
    dhcp6: bool = False
    accept_ra: bool | None = None
    mtu: int | None = None
    dns: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    optional: bool = False
    metric: int | None = None
    members: tuple[str, ...] = ()
    """Ids of the devices in a bond or bridge."""
    master: str = ""
    """Id of the bond or bridge that it is in."""
    master_type: str = ""
    parent: str = ""
    """Id of the device that a VLAN is on."""
    vlans: tuple[str, ...] = ()
    """Ids of the VLANs on it."""
    vlan_id: int = 0
    mode: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Of a bond: miimon, lacp_rate, xmit_hash_policy; of a bridge: stp."""

    @property
    def routes4(self) -> tuple[Route, ...]:
        """Those of IPv4."""
        return tuple(route for route in self.routes if not route.ipv6)

    @property
    def routes6(self) -> tuple[Route, ...]:
        """Those of IPv6."""
        return tuple(route for route in self.routes if route.ipv6)

    @property
    def dns4(self) -> tuple[str, ...]:
        """DNS servers with an IPv4 address."""
        return tuple(server for server in self.dns if ":" not in server)

    @property
    def dns6(self) -> tuple[str, ...]:
        """DNS servers with an IPv6 address."""
        return tuple(server for server in self.dns if ":" in server)

    @property
    def virtual(self) -> bool:
        """Whether the node makes it, and no card does."""
        return self.type in VIRTUAL


def links(network: Mapping[str, NetDev]) -> tuple[Link, ...]:
    """A node's network devices, resolved: bonds, VLANs, routes, DHCP; see Network devices."""
    if not isinstance(network, Mapping):
        raise TemplateValueError("links takes the node's network")
    ids = {name: _id(device) for name, device in network.items()}
    made = {name: _Maker(device, network, ids).link() for name, device in network.items()}
    for name, link in list(made.items()):
        for member in link.members:
            _enslave(made, ids, member, name)
    parents = {link.id: link.parent for link in made.values() if link.parent}
    return tuple(
        replace(link, vlans=tuple(child for child, parent in parents.items() if parent == link.id))
        for link in made.values()
    )


def _id(device: NetDev) -> str:
    """The kernel's name, else the operator's: what the files of a device are called."""
    return device.device or device.name


def _enslave(made: dict[str, Link], ids: Mapping[str, str], member: str, master: str) -> None:
    """Tell a member whose it is. One that the file does not describe gets a description."""
    name = next((name for name, known in ids.items() if known == member), None)
    if name is None:
        known = made.get(member)
        link = known if known is not None else Link(member, member, "ethernet", device=member)
        name = member
    else:
        link = made[name]
    where = f"network.{master}: member {member}"
    if link.master:
        raise TemplateValueError(f"{where} is also in {link.master}")
    if link.addresses or link.addresses6:
        raise TemplateValueError(f"{where} has an address of its own: give it to {master}")
    made[name] = replace(
        link, dhcp=False, dhcp6=False, master=ids[master], master_type=made[master].type, routes=()
    )


class _Maker:
    """One device's link; faults name the device and the option."""

    def __init__(
        self, device: NetDev, network: Mapping[str, NetDev], ids: Mapping[str, str]
    ) -> None:
        self._device = device
        self._network = network
        self._ids = ids
        self._options = device.options

    def link(self) -> Link:
        device = self._device
        self._check()
        bare = device.ip is None and device.ip6 is None
        return Link(
            name=device.name,
            id=self._ids[device.name],
            type=device.type,
            device=device.device,
            mac=device.mac,
            addresses=(str(device.ip),) if device.ip is not None else (),
            addresses6=(str(device.ip6),) if device.ip6 is not None else (),
            dhcp=self._flag("dhcp", bare and device.type != "bridge"),
            dhcp6=self._flag("dhcp6", False),
            accept_ra=self._flag("accept_ra", None),
            mtu=device.mtu,
            dns=tuple(str(self._address("dns", server)) for server in device.dns),
            search=device.search,
            routes=(*self._default_routes(), *self._routes()),
            optional=self._flag("optional", False),
            metric=self._number("metric"),
            members=self._members(),
            parent=self._parent(),
            vlan_id=self._vlan_id(),
            mode=self._mode(),
            parameters=self._parameters(),
        )

    def _fault(self, what: str) -> TemplateValueError:
        return TemplateValueError(f"network.{self._device.name}: {what}")

    def _check(self) -> None:
        device = self._device
        if device.type not in TYPES:
            raise self._fault(f"type {device.type!r} is not one of {', '.join(TYPES)}")
        known = (*_OPTIONS[""], *_OPTIONS.get(device.type, ()))
        for option in self._options:
            if option not in known:
                raise self._fault(f"option {option!r} is not one of {', '.join(known)}")
        if not _NAME.fullmatch(self._ids[device.name]):
            raise self._fault(f"{self._ids[device.name]!r} is not the name of an interface")
        if not device.device and device.mac is None:
            raise self._fault("has neither device nor mac: nothing says which card it is")

    def _flag(self, option: str, default: bool | None) -> Any:
        value = self._options.get(option)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._fault(f"{option} {value!r} is not true or false")
        return value

    def _number(self, option: str, low: int = 0, high: int = 0xFFFF_FFFF) -> int | None:
        value = self._options.get(option)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._fault(f"{option} {value!r} is not a number from {low} to {high}")
        return value

    def _word(self, option: str) -> str | None:
        value = self._options.get(option)
        if value is None:
            return None
        if not _WORD.fullmatch(str(value)):
            raise self._fault(f"{option} {value!r} is not a word")
        return str(value)

    def _address(self, what: str, value: object) -> object:
        try:
            return ip_address(str(value))
        except ValueError:
            raise self._fault(f"{what}: {value!r} is not an IP address") from None

    def _default_routes(self) -> Iterable[Route]:
        device, metric = self._device, self._number("metric")
        if device.gateway is not None:
            on_link = device.ip is not None and device.gateway not in device.ip.network
            yield Route("default", str(device.gateway), metric, on_link=on_link)
        if device.gateway6 is not None:
            inside = device.ip6 is not None and device.gateway6 in device.ip6.network
            outside = not inside and not device.gateway6.is_link_local
            yield Route("default", str(device.gateway6), metric, on_link=outside)

    def _routes(self) -> Iterable[Route]:
        given = self._options.get("routes", [])
        if not isinstance(given, list | tuple):
            raise self._fault(f"routes {given!r} is not a list of routes")
        for route in given:
            if not isinstance(route, Mapping) or not set(route) <= {"to", "via", "metric", "table"}:
                raise self._fault(f"route {route!r} is not a map of to, via, metric, table")
            yield self._route(route)

    def _route(self, route: Mapping[str, Any]) -> Route:
        to = str(route.get("to", ""))
        try:
            to = to if to == "default" else str(ip_network(to))
        except ValueError as error:
            raise self._fault(f"route to {to!r}: {error}") from None
        via = route.get("via")
        metric, table = route.get("metric"), route.get("table")
        for number in (metric, table):
            if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
                raise self._fault(f"route to {to}: {number!r} is not a number")
        text = str(self._address(f"route to {to}: via", via)) if via is not None else ""
        if to == "default" and not text:
            raise self._fault("route to default: via is missing")
        return Route(to, text, metric, table)

    def _other(self, option: str, name: object) -> str:
        """The id of another device, by its name here or the kernel's."""
        text = str(name)
        if text in self._ids:
            return self._ids[text]
        if not _NAME.fullmatch(text):
            raise self._fault(f"{option} {text!r} is not the name of an interface")
        return text

    def _members(self) -> tuple[str, ...]:
        if self._device.type not in ("bond", "bridge"):
            return ()
        given = self._options.get("members", [])
        if not isinstance(given, list | tuple) or (self._device.type == "bond" and not given):
            raise self._fault("members is not a list of devices")
        return tuple(self._other("member", name) for name in given)

    def _parent(self) -> str:
        if self._device.type != "vlan":
            return ""
        if "link" not in self._options:
            raise self._fault("link is missing: the device that the VLAN is on")
        return self._other("link", self._options["link"])

    def _vlan_id(self) -> int:
        if self._device.type != "vlan":
            return 0
        number = self._number("id", 1, 4094)
        if number is None:
            raise self._fault("id is missing: the number of the VLAN")
        return number

    def _mode(self) -> str:
        modes = {"bond": _BOND_MODES, "infiniband": _INFINIBAND_MODES}.get(self._device.type)
        if modes is None:
            return ""
        mode = self._options.get("mode", "active-backup" if "802.3ad" in modes else "datagram")
        if mode not in modes:
            raise self._fault(f"mode {mode!r} is not one of {', '.join(modes)}")
        return str(mode)

    def _parameters(self) -> Mapping[str, Any]:
        if self._device.type == "bridge":
            return MappingProxyType({"stp": self._flag("stp", False)})
        if self._device.type != "bond":
            return MappingProxyType({})
        given = {
            "miimon": self._number("miimon", 0, 60_000),
            "lacp_rate": self._word("lacp_rate"),
            "xmit_hash_policy": self._word("xmit_hash_policy"),
        }
        found = {key: value for key, value in given.items() if value is not None}
        return MappingProxyType({"miimon": 100, **found})
