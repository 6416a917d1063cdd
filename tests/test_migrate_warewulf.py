"""``bootd import warewulf``: a Warewulf 4 server's files become bootd's."""

from __future__ import annotations

import json
import os
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from bootd.cli import cli
from bootd.config.load import load
from bootd.migrate.gotemplate import translate
from bootd.migrate.nodesconf import Cluster
from bootd.overlay import tree

NODES = """\
nodeprofiles:
  default:
    system overlay: [wwinit, wwclient, hosts, syncuser, site]
    runtime overlay: [hosts]
    kernel: {args: [quiet, net.ifnames=1]}
    ipxe template: default
    init: /sbin/init
    root: initramfs
    network devices:
      default: {netmask: 255.255.252.0, gateway: 10.0.0.1, tags: {DNS1: 10.0.0.1}}
  gpu: {kernel: {args: [~quiet, nouveau.modeset=0]}, system overlay: [mig], tags: {role: gpu}}
nodes:
  n1:
    profiles: [default, gpu]
    asset key: hush
    primary network: default
    network devices:
      a: {type: infiniband, device: ib0, ipaddr: 10.1.0.11, netmask: 255.255.0.0}
      default: {device: eth0, hwaddr: "AA:BB:CC:00:00:01", ipaddr: 10.0.0.11}
  n2: {profiles: [default], discoverable: true, network devices: {default: {ipaddr: 10.0.0.12}}}
  n3: {network devices: {default: {ipaddr: 10.0.0.13}}, ipmi: {username: admin}}
"""


def convert(**parts: Any) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    cluster = Cluster(parts.get("profiles", {}), parts.get("nodes", {}))
    cluster.network = parts.get("network")
    return cluster.convert(), list(cluster.report)


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A Warewulf server's folder."""
    folder = tmp_path / "warewulf"
    etc = folder / "overlays/site/rootfs/etc"
    etc.mkdir(parents=True)
    (folder / "nodes.conf").write_text(NODES)
    (folder / "warewulf.conf").write_text(
        "ipaddr: 10.0.0.1\nnetmask: 255.255.254.0\nwarewulf: {port: 8080}\n"
        "dhcp: {template: static}\nnfs: {enabled: true}\n"
    )
    (etc / "motd.ww").write_text("I am {{ .Id }}{{- /* who else */ -}}\n")
    (etc / "list.ww").write_text("{{range .AllNodes}}x{{end}}\n")
    (etc / "plain").write_text("as it is")
    (etc / "plain").chmod(0o640)
    (etc / "link").symlink_to("plain")
    os.mkfifo(etc / "fifo")
    return folder


def take_over(server: Path, *words: str) -> Result:
    target = server.parent / "new"
    return CliRunner().invoke(cli, ["import", "warewulf", str(server), "-o", str(target), *words])


def test_the_new_files_are_in_order_and_mean_the_same(server: Path) -> None:
    result = take_over(server)
    assert result.exit_code == 0, result.output

    registry = load(str(server.parent / "new/bootd.yaml"))

    n1 = registry.nodes["n1"]
    assert (n1.mac, str(n1.ip)) == ("aa:bb:cc:00:00:01", "10.0.0.11/22")
    assert n1.kernel_args == ("net.ifnames=1", "nouveau.modeset=0")
    assert n1.overlays_system == ("base", "agent", "hosts", "site")
    assert n1.overlays_runtime == ("hosts",)
    assert n1.asset_key == "hush"
    assert dict(n1.tags) == {"role": "gpu"}
    assert str(n1.network["a"].ip) == "10.1.0.11/16"
    assert n1.network["default"].dns == ("10.0.0.1",)
    assert str(registry.nodes["n2"].ip) == "10.0.0.12/22"
    assert registry.nodes["n3"].profiles == ()
    assert str(registry.nodes["n3"].ip) == "10.0.0.13/23"
    assert registry.settings.http.port == 8080
    assert registry.settings.dhcp.mode == "reservation"


def test_what_is_left_is_told_and_written_down(server: Path) -> None:
    answer = json.loads(take_over(server, "--json").stdout)

    left = {line["where"]: line["what"] for line in answer["left"]}
    assert "claim" in left["node n2"]
    assert "users" in left["profile default: overlay syncuser"]
    assert "profile gpu: overlay mig" in left
    assert "node n3: ipmi" in left
    assert "warewulf.conf: nfs" in left
    assert "list.j2" in left["overlay site: /etc/list.ww"]
    assert "overlay site: /etc/fifo" in left
    assert not any("init" in where.split(": ")[-1] for where in left)
    report = (server.parent / "new/report.txt").read_text()
    assert report.count("\n") == len(answer["left"])


def test_overlays_are_copied_with_modes_links_and_what_can_be_translated(server: Path) -> None:
    take_over(server)

    etc = server.parent / "new/overlays/site/rootfs/etc"
    assert (etc / "motd.j2").read_text() == "I am {{ node.name }}{#- -#}\n"
    assert (etc / "plain").stat().st_mode & 0o777 == 0o640
    assert (etc / "link").readlink() == Path("plain")
    assert not (etc / "list.j2").exists()
    assert (server.parent / "new/unconverted/site/etc/list.ww").exists()


def test_owners_of_an_overlays_files_are_what_they_were(server: Path) -> None:
    etc = server / "overlays/site/rootfs/etc"
    (etc / "a[1]").touch()
    uid, gid = (107, 115) if os.getuid() == 0 else (os.getuid(), os.getgid())
    for path in etc.iterdir():
        os.chown(path, uid, gid, follow_symlinks=False)

    take_over(server)

    overlay = tree.load([str(server.parent / "new/overlays")])["site"]
    owners = {e.path: (e.uid, e.gid) for e in overlay.entries if e.kind != "dir"}
    paths = ("etc/a[1]", "etc/link", "etc/motd", "etc/plain")
    assert owners == dict.fromkeys(paths, (uid, gid))


def test_nothing_is_written_over_and_nothing_half(server: Path) -> None:
    new = server.parent / "new"
    new.mkdir()
    (new / "mine").touch()

    assert take_over(server).exit_code == 2
    assert [path.name for path in new.iterdir()] == ["mine"]
    (new / "mine").unlink()
    (server / "nodes.conf").write_text("nodes: {n1: [}\n")
    assert take_over(server).exit_code == 2
    assert not list(new.iterdir())
    (server / "nodes.conf").unlink()
    assert "no nodes.conf" in take_over(server).stderr


@pytest.mark.parametrize(
    ("device", "network", "address"),
    [
        ({"ipaddr": "10.0.0.1", "netmask": "255.255.255.0"}, None, "10.0.0.1/24"),
        ({"ipaddr": "10.0.0.1/16"}, None, "10.0.0.1/16"),
        ({"ipaddr": "10.0.0.1"}, IPv4Network("10.0.0.0/22"), "10.0.0.1/22"),
        ({"ipaddr": "10.0.0.1"}, None, "10.0.0.1"),
        ({"ipaddr": "ten"}, IPv4Network("10.0.0.0/22"), None),
        ({"ipaddr": "UNDEF"}, None, None),
    ],
)
def test_addresses_get_their_prefix_length(
    device: dict[str, str], network: IPv4Network | None, address: str | None
) -> None:
    made, _ = convert(
        nodes={"n1": {"network devices": {"d": {"device": "eth0", **device}}}}, network=network
    )

    assert made["nodes"]["n1"]["network"]["d"].get("ip") == address


def test_profiles_in_a_circle_and_missing_ones_are_survived() -> None:
    made, left = convert(
        profiles={"a": {"profiles": ["b"]}, "b": {"profiles": ["a", "~gone"]}},
        nodes={"n1": {"profiles": ["a"], "network devices": {"d": {"ipaddr": "10.0.0.1"}}}},
    )

    assert made["profiles"]["b"] == {"profiles": ["a"]}
    assert ("profile b", "profile ~gone does not exist; left out") in left


@pytest.mark.parametrize(
    ("args", "found"),
    [("a b='c d'", ["a", "b=c d"]), ("a 'b", ["a", "'b"]), (["a b"], ["a b"]), ("", None)],
)
def test_kernel_arguments_of_all_ages_are_read(args: Any, found: list[str] | None) -> None:
    made, _ = convert(nodes={"n1": {"kernel": {"args": args}}})

    assert made["nodes"]["n1"].get("kernel", {}).get("args") == found


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("{{.Id}}", "{{ node.name }}"),
        ("a {{- .Tags.rack -}} b", "a {{- tags.rack -}} b"),
        ("{{/* x */}}", "{# #}"),
        ("no action", "no action"),
        ("{{ if .Id }}x{{ end }}", None),
        ("{{ .NetDevs.default.Hwaddr }}", None),
        ("{% raw %}", None),
    ],
)
def test_only_plain_variables_are_translated(theirs: str, ours: str | None) -> None:
    assert translate(theirs) == ours


KEYS = ["profiles", "kernel", "args", "network devices", "d", "ipaddr", "netmask", "hwaddr", "x"]
KEYS += ["tags", "system overlay", "resources", "ipmi", "comment"]
_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from("abc"), _plain), st.dictionaries(st.sampled_from("xyz"), _plain)
)
def test_any_content_is_converted_or_reported(
    profiles: dict[str, Any], nodes: dict[str, Any]
) -> None:
    made, _ = convert(profiles=profiles, nodes=nodes)

    assert made["nodes"].keys() == nodes.keys()
