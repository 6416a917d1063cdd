"""Everything that overlay templates can use, as Markdown, from the code. Pure.

`bootd overlay reference` prints it, docs/templates.md has it, and a test holds both together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from bootd.overlay.filters import FILTERS
from bootd.overlay.template import ALL_NODES, PER_NODE, VARIABLES

STATEMENTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        '{% file "PATH" %}…{% endfile %}': "what is enclosed becomes the file PATH, with owner and "
        "mode of this template; any number of times",
        '{% file "PATH", "0600" %}…{% endfile %}': "the same with a mode of its own",
        '{% symlink "TARGET" %}': "this path becomes a symlink to TARGET; the template ends here",
        '{% symlink "PATH", "TARGET" %}': "PATH becomes a symlink to TARGET",
        "{% skip %}": "this path is not made for this node; the template ends here",
    }
)

NODE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "name": "its name",
        "mac": "MAC address of the device it boots from, or none",
        "ip": "address of that device with prefix length, or none: `node.ip | netmask`",
        "macs": "every MAC address it may boot from",
        "network": "its devices by name, as the variable `network`",
        "profiles": "its profiles, merged order",
        "image": "name of its image (`NAME@GENERATION` where it names one), or none",
        "kernel_version": "kernel version that it asks for, or none",
        "kernel_args": "kernel arguments",
        "method": "initramfs, squashfs or auto",
        "loader": "boot loader",
        "overlays_system": "names of its system overlays, in order",
        "overlays_runtime": "names of its runtime overlays, in order",
        "template": "name of its boot script's template",
        "boot": "network, local or once",
        "uuid": "SMBIOS UUID that is required, or none",
        "serial": "SMBIOS serial number that is required, or none",
        "security": "rules for secrets: bootd or warewulf",
        "quirks": "firmware workarounds",
        "tags": "as the variable `tags`",
        "resources": "as the variable `resources`",
        "comment": "for people",
    }
)
"""Fields of a node that templates are meant to use."""

DEVICE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "name": "its name in the file",
        "device": "the kernel's name of the interface, empty where only the MAC address tells it",
        "type": "ethernet, infiniband, bond, bridge or vlan",
        "mac": "MAC address, or none",
        "ip": "IPv4 address with prefix length, or none",
        "ip6": "IPv6 address with prefix length, or none",
        "gateway": "IPv4 router, or none",
        "gateway6": "IPv6 router, or none",
        "mtu": "bytes, or none",
        "dns": "DNS servers",
        "search": "DNS search domains",
        "options": "what else the file says",
    }
)
"""Fields of a network device as it is written."""

LINK: Final[Mapping[str, str]] = MappingProxyType(
    {
        "name": "its name in the file",
        "id": "the kernel's name, else the one in the file",
        "type": "ethernet, infiniband, bond, bridge or vlan",
        "virtual": "whether it is a bond, bridge or vlan",
        "device": "the kernel's name, empty where only `mac` tells which card it is",
        "mac": "MAC address, or none",
        "addresses": "IPv4 addresses with prefix length",
        "addresses6": "IPv6 addresses with prefix length",
        "dhcp": "whether DHCPv4 is used: `options.dhcp`, else where there is no address",
        "dhcp6": "whether DHCPv6 is used: `options.dhcp6`",
        "accept_ra": "`options.accept_ra`: true, false, or none",
        "mtu": "bytes, or none",
        "dns": "DNS servers; `dns4`, `dns6` are those of one family",
        "dns4": "DNS servers with an IPv4 address",
        "dns6": "DNS servers with an IPv6 address",
        "search": "DNS search domains",
        "routes": "default routes and `options.routes`, each with to, via, metric, table, on_link, "
        "destination, next_hop, ipv6",
        "routes4": "those of IPv4",
        "routes6": "those of IPv6",
        "optional": "`options.optional`: nobody waits for it",
        "metric": "`options.metric`, of default routes and DHCP, or none",
        "members": "ids of the devices in a bond or bridge: `options.members`",
        "master": "id of the bond or bridge that it is in, or empty",
        "master_type": "bond, bridge or empty",
        "parent": "id of the device that a VLAN is on: `options.link`",
        "vlans": "ids of the VLANs on it",
        "vlan_id": "`options.id` of a VLAN, else 0",
        "mode": "`options.mode` of a bond or of InfiniBand (datagram, connected)",
        "parameters": "of a bond: miimon, lacp_rate, xmit_hash_policy; of a bridge: stp",
    }
)
"""What the filter `links` says of a device."""


def reference() -> str:
    """The whole reference."""
    parts = [
        _section("Variables", ("variable", "what it is", "rendered"), _variables()),
        _section("Statements beside Jinja2's own", ("statement", "what it does"), STATEMENTS),
        _section("Filters beside Jinja2's own", ("filter", "what it gives"), _filters()),
        _section("Fields of a node", ("field", "what it is"), NODE),
        _section("Fields of a network device", ("field", "what it is"), DEVICE),
        _section("Fields of `network | links`", ("field", "what it is"), LINK),
    ]
    return "\n".join(parts)


def _variables() -> Iterable[tuple[str, ...]]:
    for name, what in VARIABLES.items():
        per = "per node" if name in PER_NODE else "once; again when any node changes"
        yield name, what, per if name in PER_NODE | ALL_NODES else "once for all nodes"


def _filters() -> Iterable[tuple[str, ...]]:
    for name, function in FILTERS.items():
        yield name, (function.__doc__ or "").partition("\n")[0]


def _section(
    title: str,
    headings: tuple[str, ...],
    rows: Mapping[str, str] | Iterable[tuple[str, ...]],
) -> str:
    lines = [f"## {title}", "", _row(headings), "|---" * len(headings) + "|"]
    items = rows.items() if isinstance(rows, Mapping) else rows
    lines += [_row((f"`{first}`", *others)) for first, *others in items]
    return "\n".join([*lines, ""])


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
