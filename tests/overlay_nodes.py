"""Kinds of nodes that the distribution's overlays are tried on, and what they render to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from types import MappingProxyType
from typing import Any, Final

from bootd.model import Image, Mac, NetDev, Node, ServerAddress, Settings, parse_mac
from bootd.overlay import tree
from bootd.overlay.cpio import Entry
from bootd.overlay.render import Which, render
from bootd.overlay.secrets import PLACEHOLDERS, Secrets
from bootd.registry import Registry

SERVER: Final = ServerAddress(IPv4Address("10.0.0.1"))


def mac(number: int) -> Mac:
    return parse_mac(f"52:54:00:00:00:{number:02x}")


def device(name: str, kernel: str, **values: Any) -> NetDev:
    """A device; `options` as the file has them, addresses as text."""
    kinds: dict[str, Callable[[Any], Any]] = {
        "ip": IPv4Interface,
        "ip6": IPv6Interface,
        "gateway": IPv4Address,
        "gateway6": IPv6Address,
    }
    made: dict[str, Any] = {
        key: kinds[key](value) if key in kinds else value for key, value in values.items()
    }
    return NetDev(name, kernel, **made)


def node(name: str, *devices: NetDev, **values: Any) -> Node:
    first = next((found for found in devices if found.mac is not None), None)
    return Node(
        name,
        mac=first.mac if first is not None else None,
        ip=first.ip if first is not None else None,
        image="debian",
        network=MappingProxyType({found.name: found for found in devices}),
        **values,
    )


PLAIN: Final = node(
    "n001",
    device(
        "boot", "eth0", mac=mac(1), ip="10.0.0.11/24", gateway="10.0.0.1", mtu=9000,
        dns=("10.0.0.2", "2001:db8::53"), search=("cluster.example", "example"),
    ),
    tags={"rack": "r1", "timezone": "Europe/Berlin"},
)  # fmt: skip
"""One card with a fixed address."""

BARE: Final = node("bare", device("boot", "", mac=mac(2)))
"""Known by its MAC address only: the site's DHCP server gives it an address."""

NOTHING: Final = Node("nothing")
"""A name, and no device."""

BONDED: Final = node(
    "bonded",
    device("boot", "eno1", mac=mac(3)),
    device("second", "eno2", mac=mac(4)),
    device(
        "bond0", "bond0", type="bond", ip="10.0.0.13/24", mtu=9000, dns=("10.0.0.2",),
        options={"members": ["boot", "eno2"], "mode": "802.3ad", "lacp_rate": "fast",
                 "xmit_hash_policy": "layer3+4"},
    ),
    device(
        "storage", "bond0.100", type="vlan", ip="10.100.0.13/24",
        options={"id": 100, "link": "bond0",
                 "routes": [{"to": "10.200.0.0/16", "via": "10.100.0.1", "metric": 50}]},
    ),
)  # fmt: skip
"""Two cards in a bond, and a VLAN on it with a route."""

FABRIC: Final = node(
    "fabric",
    device("boot", "eth0", mac=mac(5), ip="10.0.0.14/24", gateway="10.0.9.1",
           options={"metric": 100}),
    device("ib0", "ib0", type="infiniband", ip="10.1.0.14/16", mtu=65520,
           options={"mode": "connected", "optional": True}),
)  # fmt: skip
"""InfiniBand beside Ethernet, whose gateway is outside of its own network."""

DUAL: Final = node(
    "dual",
    device(
        "boot", "eth0", mac=mac(6), ip="10.0.0.15/24", ip6="2001:db8::15/64",
        gateway="10.0.0.1", gateway6="fe80::1",
        options={"accept_ra": False, "routes": [
            {"to": "2001:db8:1::/48", "via": "2001:db8::1"},
            {"to": "10.9.0.0/16"},
            {"to": "default", "via": "10.0.0.254", "table": 7},
        ]},
    ),
    device("virt", "br0", type="bridge", ip="192.168.1.1/24",
           options={"members": ["eth1"]}),
)  # fmt: skip
"""IPv4 and IPv6, odd routes, and a bridge over a card that nothing else describes."""

RICH: Final = node(
    "rich",
    device("boot", "eth0", mac=mac(7), ip="10.0.0.16/24"),
    resources={
        "fstab": [
            {"spec": "server:/home", "file": "/home", "vfstype": "nfs", "mntops": "rw,_netdev"},
            {"spec": "tmpfs", "file": "/scratch space", "vfstype": "tmpfs", "mntops": "size=10%"},
            {"spec": "proc", "file": "/proc", "vfstype": "proc", "freq": 0, "passno": 0},
        ],
        "mounts": [
            {"what": "server:/data", "where": "/srv/my-data", "type": "nfs", "options": "ro"},
            {"what": "tmpfs", "where": "/var/scratch", "type": "tmpfs", "options": "size=50%",
             "automount": True},
        ],
        "ntp": {"servers": ["10.0.0.1", "ntp.example prefer"], "pools": ["pool.example"]},
        "groups": {"hpc": 3000, "staff2": {"gid": 3001}},
        "users": {
            "alice": {
                "uid": 2000, "groups": ["hpc", "adm"], "gecos": 'Alice "A" Example, 50%',
                "password": "$6$salt$hash", "sudo": True,
                "authorized_keys": ["ssh-ed25519 AAAA alice@a", "ssh-rsa BBBB 100%"],
            },
            "bob": {"uid": 2001, "group": "hpc", "shell": "/bin/sh", "home": "/srv/bob",
                    "create_home": False, "sudo": "ALL=(root) NOPASSWD: /usr/bin/dmesg"},
            "root": {"password": "$6$root$hash"},
        },
        "ssh": {"authorized_keys": ["ssh-ed25519 CCCC admin@server"], "key_types": ["ecdsa"]},
    },
)  # fmt: skip
"""Everything that resources can say."""

SIX: Final = node(
    "six",
    device("boot", "eth0", mac=mac(8), ip6="2001:db8::17/64", gateway6="2001:db8::1",
           dns=("2001:db8::53",), search=("cluster.example",)),
    device("second", "eth1", mac=mac(9),
           options={"dhcp": False, "dhcp6": True, "accept_ra": True, "optional": True}),
)  # fmt: skip
"""No IPv4 at all: one card with a fixed address, one that is given one."""

LAYERED: Final = node(
    "layered",
    device("boot", "eno1", mac=mac(10), mtu=9000),
    device("second", "eno2", mac=mac(11), mtu=9000),
    device("bond0", "bond0", type="bond", mtu=9000, options={"members": ["boot", "second"]}),
    device("virt", "br0", type="bridge", ip="10.0.0.18/24", ip6="2001:db8::18/64",
           gateway="10.0.0.1", mtu=9000, options={"members": ["bond0"]}),
    device("plain", "eno3", mac=mac(12), mtu=4000, dns=("10.0.0.2",)),
    device("service", "eno3.5", type="vlan", ip="10.5.0.18/24", mtu=1500,
           options={"id": 5, "link": "plain", "metric": 50,
                    "routes": [{"to": "default", "via": "10.5.0.1", "metric": 500}]}),
)  # fmt: skip
"""A bridge over a bond, and a VLAN on a card that asks DHCP, each with a size of packets."""

NODES: Final = (PLAIN, BARE, NOTHING, BONDED, FABRIC, DUAL, RICH, SIX, LAYERED)
NETWORKS: Final = tuple(found for found in NODES if found is not NOTHING)


def registry(nodes: Iterable[Node] = NODES, dirs: Sequence[str] = ()) -> Registry:
    return Registry(
        Settings(),
        nodes={found.name: found for found in nodes},
        images={"debian": Image("debian", "20260101-000000-abcd", {}, "6.1.0-31-amd64")},
        overlays=tree.load(dirs),
        templates={},
    )


def rendered(
    given: Node, *names: str, which: Which = "system", secrets: Secrets = PLACEHOLDERS
) -> dict[str, Entry]:
    """What a node gets of the distribution's overlays `names`, among all of `NODES`."""
    chosen = {"overlays_system": names} if which == "system" else {"overlays_runtime": names}
    with_overlays = replace(given, **chosen)  # type: ignore[arg-type]
    world = registry([*(found for found in NODES if found.name != given.name), with_overlays])
    entries = render(world, with_overlays, which, SERVER, secrets=secrets)
    return {entry.path: entry for entry in entries}


def text(given: Node, overlay: str, path: str) -> str:
    """One file's text."""
    return rendered(given, overlay)[path].content.decode()
