"""The distribution's overlays, for several kinds of node (what reads them tries them in
tests/integration/test_overlay_validators.py)."""

from __future__ import annotations

import json
import re
import stat
from dataclasses import replace

import pytest

from bootd.model import Node, OverlayEntry
from bootd.overlay import tree
from bootd.overlay.render import check
from bootd.overlay.template import RenderError, compile_template
from tests.overlay_nodes import (
    BARE,
    BONDED,
    DUAL,
    FABRIC,
    NETWORKS,
    NODES,
    NOTHING,
    PLAIN,
    RICH,
    device,
    mac,
    node,
    registry,
    rendered,
    text,
)

NAMES = sorted(tree.load([]))
REFUSED = {
    ("ifupdown", "bare"): "ifupdown finds cards by name: give it a device",
    **{("chrony", n.name): "names neither servers nor pools" for n in NODES if n is not RICH},
}
"""Overlays that cannot serve a kind of node, and what they say."""


@pytest.mark.parametrize("given", NODES, ids=lambda given: given.name)
@pytest.mark.parametrize("name", NAMES)
def test_every_overlay_renders_for_every_node_or_says_why_not(name: str, given: Node) -> None:
    reason = REFUSED.get((name, given.name))
    if reason is None:
        assert rendered(given, name)
        return
    with pytest.raises(RenderError, match=reason):
        rendered(given, name)


def test_all_that_fit_together_go_into_one_archive() -> None:
    names = [name for name in NAMES if name not in ("ifupdown", "NetworkManager", "netplan")]

    assert len(rendered(RICH, *names)) > 40


@pytest.mark.parametrize("name", NAMES)
def test_every_overlay_says_what_it_is_for_and_makes_what_it_names(name: str) -> None:
    overlay = tree.load([])[name]
    files = [entry for entry in overlay.entries if entry.kind != "dir"]

    assert overlay.description
    assert files
    text = "".join(
        entry.content.decode(errors="replace")
        for entry in rendered(RICH, name).values()
        if stat.S_ISREG(entry.mode)
    )
    assert not re.search(r"\bNone\b(?!-Match)", text)


def templates() -> list[OverlayEntry]:
    return [
        entry
        for overlay in tree.load([]).values()
        for entry in overlay.entries
        if entry.kind == "template"
    ]


def test_hosts_and_known_hosts_are_rendered_once_for_all_nodes() -> None:
    """10,000 nodes' hosts, 10,000 times, would be Warewulf's O(n²)."""
    shared = {
        entry.path
        for entry in templates()
        if not compile_template(entry.content, entry.source).names & {"node", "tags", "network"}
    }

    assert {"etc/ssh/ssh_known_hosts"} <= shared
    hosts = next(e for e in tree.load([])["hosts"].entries if e.path == "etc/hosts")
    assert compile_template(hosts.content, hosts.source).names == {"nodes"}


def test_every_node_is_in_hosts_by_its_name_and_its_devices() -> None:
    lines = text(NOTHING, "hosts", "etc/hosts").splitlines()

    assert "10.0.0.11\tn001" in lines
    assert "2001:db8::15\tdual" in lines
    assert "10.1.0.14\tfabric-ib0" in lines
    assert "10.100.0.13\tbonded-storage" in lines
    assert not [line for line in lines if line.endswith("\tbare")]


def test_resolv_conf_has_every_devices_servers_once() -> None:
    assert text(PLAIN, "resolv", "etc/resolv.conf").splitlines()[1:] == [
        "search cluster.example example",
        "nameserver 10.0.0.2",
        "nameserver 2001:db8::53",
    ]
    assert "etc/resolv.conf" not in rendered(BARE, "resolv")  # DHCP writes it there


def test_fstab_has_a_line_per_entry_with_blanks_escaped() -> None:
    assert text(RICH, "fstab", "etc/fstab").splitlines()[1:] == [
        "server:/home /home nfs rw,_netdev 0 0",
        r"tmpfs /scratch\040space tmpfs size=10% 0 0",
        "proc /proc proc defaults 0 0",
    ]


def test_a_name_that_is_missing_in_resources_is_told_with_the_line() -> None:
    broken = replace(PLAIN, resources={"fstab": [{"spec": "x"}]})

    with pytest.raises(RenderError, match=r"etc/fstab\.j2:3: node n001: .*'file'"):
        rendered(broken, "fstab")


@pytest.mark.parametrize("given", NETWORKS, ids=lambda given: given.name)
def test_networkd_gets_a_network_file_for_every_device(given: Node) -> None:
    files = rendered(given, "networkd")

    for found in given.network.values():
        assert f"etc/systemd/network/10-bootd-{found.device or found.name}.network" in files


def test_networkd_finds_a_card_by_name_or_by_mac_but_not_what_is_on_it() -> None:
    named = text(PLAIN, "networkd", "etc/systemd/network/10-bootd-eth0.network")
    bare = text(BARE, "networkd", "etc/systemd/network/10-bootd-boot.network")

    assert "[Match]\nName=eth0\n" in named
    assert f"[Match]\nMACAddress={BARE.mac}\n" in bare
    assert "Type=ether\n" in bare  # a VLAN or bond has its card's address
    assert "DHCP=ipv4\n" in bare


def test_networkd_gets_bond_vlan_and_route() -> None:
    files = rendered(BONDED, "networkd")
    folder = "etc/systemd/network/10-bootd-"

    assert b"Kind=bond\n" in files[f"{folder}bond0.netdev"].content
    assert b"TransmitHashPolicy=layer3+4\n" in files[f"{folder}bond0.netdev"].content
    assert b"VLAN=bond0.100\n" in files[f"{folder}bond0.network"].content
    assert b"Bond=bond0\n" in files[f"{folder}eno1.network"].content
    assert b"Id=100\n" in files[f"{folder}bond0.100.netdev"].content
    route = b"[Route]\nDestination=10.200.0.0/16\nGateway=10.100.0.1\nMetric=50\n"
    assert route in files[f"{folder}bond0.100.network"].content


def test_infiniband_gets_its_mode_and_large_packets() -> None:
    files = rendered(FABRIC, "networkd")

    assert b"MTUBytes=65520\n" in files["etc/systemd/network/10-bootd-ib0.network"].content
    assert b'ATTR{mode}="connected"' in files["etc/udev/rules.d/90-bootd-ib0.rules"].content
    assert "transport-mode=connected" in text(
        FABRIC, "NetworkManager", "etc/NetworkManager/system-connections/bootd-ib0.nmconnection"
    )


def test_networkmanagers_connections_are_for_root_only_and_keep_their_uuid() -> None:
    path = "etc/NetworkManager/system-connections/bootd-eth0.nmconnection"
    first, other = rendered(PLAIN, "NetworkManager")[path], rendered(DUAL, "NetworkManager")[path]

    assert stat.S_IMODE(first.mode) == 0o600
    assert first == rendered(PLAIN, "NetworkManager")[path]
    uuid = [line for line in first.content.splitlines() if line.startswith(b"uuid=")]
    assert uuid != [line for line in other.content.splitlines() if line.startswith(b"uuid=")]


def test_networkmanager_searches_domains_without_ipv4_too() -> None:
    given = node("six", device("boot", "eth0", ip6="2001:db8::1/64", search=("x.example",)))

    written = text(
        given, "NetworkManager", "etc/NetworkManager/system-connections/bootd-eth0.nmconnection"
    )

    assert "dns-search=x.example;" in written.partition("[ipv6]")[2]


@pytest.mark.parametrize("name", ["NetworkManager", "netname", "networkd", "systemd-mounts"])
def test_who_has_no_device_and_no_mount_gets_no_empty_file_instead(name: str) -> None:
    files = rendered(NOTHING, name).values()

    assert [entry.path for entry in files if stat.S_ISREG(entry.mode) and not entry.content] == []


def test_cards_are_named_by_mac_address_where_both_are_known() -> None:
    files = rendered(BONDED, "netname")

    link = files["etc/systemd/network/10-bootd-eno2.link"].content.decode()
    assert f"MACAddress={mac(4)}\n" in link
    assert "Name=eno2\n" in link
    assert not [path for path in files if "bond0" in path]


def test_users_passwords_are_only_in_a_file_for_root() -> None:
    files = rendered(RICH, "users")

    having = [path for path, entry in files.items() if b"$6$" in entry.content]
    assert having == ["etc/bootd/passwords"]
    assert stat.S_IMODE(files["etc/bootd/passwords"].mode) == 0o600
    assert stat.S_IMODE(files["etc/sudoers.d/bootd"].mode) == 0o440


@pytest.mark.parametrize(
    ("users", "says"),
    [
        ({"eve": {}}, r"sysusers.*resources.users.eve: uid is missing"),
        ({"e ve": {"uid": 1}}, "'e ve' is not one word"),
        ({"eve": {"uid": 1, "shell": "/bin/sh\nu evil 0"}}, "line breaks"),
        ({"eve": {"uid": 1, "password": "a:b"}}, "is not one word"),
        ({"eve": {"uid": 1, "sudo": "ALL\nroot ALL"}}, "line breaks"),
        ({"eve": {"uid": 1, "authorized_keys": ["a\nb"]}}, "line breaks"),
    ],
)
def test_users_that_would_break_a_file_are_refused(users: dict[str, object], says: str) -> None:
    with pytest.raises(RenderError, match=says):
        rendered(replace(PLAIN, resources={"users": users}), "users")


def test_private_host_keys_are_for_root_and_public_ones_for_all() -> None:
    files = rendered(PLAIN, "ssh")

    for kind in ("ed25519", "ecdsa", "rsa"):
        assert stat.S_IMODE(files[f"etc/ssh/ssh_host_{kind}_key"].mode) == 0o600
        assert stat.S_IMODE(files[f"etc/ssh/ssh_host_{kind}_key.pub"].mode) == 0o644


def test_roots_authorized_keys_are_those_of_resources_or_the_images() -> None:
    entry = rendered(RICH, "ssh")["root/.ssh/authorized_keys"]

    assert entry.content == b"ssh-ed25519 CCCC admin@server\n"
    assert stat.S_IMODE(entry.mode) == 0o600
    assert "root/.ssh/authorized_keys" not in rendered(PLAIN, "ssh")


def test_a_percent_sign_in_a_mount_is_no_specifier_of_systemd() -> None:
    mount = {"what": "server:/50%", "where": "/srv/50%", "options": "size=5%", "automount": True}
    files = rendered(replace(PLAIN, resources={"mounts": [mount]}), "systemd-mounts")

    for entry in files.values():
        if stat.S_ISREG(entry.mode):
            assert entry.content.count(b"%") == 2 * entry.content.count(b"%%")


def test_a_mount_waits_for_the_network_where_it_needs_it() -> None:
    files = rendered(RICH, "systemd-mounts")
    folder = "etc/systemd/system/"

    assert b"After=network-online.target\n" in files[rf"{folder}srv-my\x2ddata.mount"].content
    assert b"network" not in files[f"{folder}var-scratch.mount"].content
    link = files[f"{folder}local-fs.target.wants/var-scratch.automount"]
    assert (stat.S_ISLNK(link.mode), link.content) == (True, b"../var-scratch.automount")


def test_the_time_zone_is_the_tags_or_utc() -> None:
    berlin, utc = (rendered(n, "localtime")["etc/localtime"] for n in (PLAIN, BARE))

    assert berlin.content == b"../usr/share/zoneinfo/Europe/Berlin"
    assert utc.content == b"../usr/share/zoneinfo/UTC"


def test_debug_tells_everything_but_secrets_to_root_only() -> None:
    entry = rendered(replace(RICH, asset_key="hush"), "debug")["etc/bootd/debug.json"]

    told = json.loads(entry.content)
    assert told["node"]["network"]["boot"]["ip"] == "10.0.0.16/24"
    assert b"hush" not in entry.content
    assert stat.S_IMODE(entry.mode) == 0o600


def test_a_wrong_device_is_found_by_check_with_file_line_and_node() -> None:
    broken = node("n1", device("boot", "eth0", mac=mac(1), type="tokenring"))
    world = registry([replace(broken, overlays_system=("networkd",))])

    (fault,) = check(world)

    assert "networkd/rootfs/etc/systemd/network/bootd.network.j2:1:1: nodes.n1: " in fault
    assert "network.boot: type 'tokenring' is not one of ethernet, infiniband" in fault
