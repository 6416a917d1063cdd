"""Claimed MAC addresses: written whole, read back, and never over what the operator wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd.config import claims
from bootd.config.claims import Claim
from bootd.config.explain import Explained, explain
from bootd.model import ConfigError, Mac, Origin, parse_mac
from tests.test_config_load import Site

MACS = st.integers(1, 0xFFFFFF).map(lambda n: parse_mac(f"525400{n:06x}"))
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,8}[0-9]", fullmatch=True)


@given(st.dictionaries(NAMES, MACS, max_size=5))
def test_what_is_written_is_read_back(pairs: dict[str, Mac]) -> None:
    written = {name: Claim(mac, "2026-11-22T17:19:03Z") for name, mac in pairs.items()}

    again = claims.parse(claims.render(written))

    assert {name: (c.mac, c.at) for name, c in again.items()} == {
        name: (c.mac, c.at) for name, c in written.items()
    }


def test_claims_survive_on_disk(tmp_path: Path) -> None:
    mac = parse_mac("52:54:00:00:00:05")
    assert claims.load(str(tmp_path)) == {}

    claims.save(str(tmp_path), {"n005": Claim(mac)})

    (found,) = claims.load(str(tmp_path)).values()
    assert found.mac == mac
    assert found.origin == Origin(str(tmp_path / "claims.yaml"), 3, 15)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("claims: [a]\n", "claims.yaml:1:1: not a map with the key claims"),
        ("a\n", "claims.yaml:1:1: not a map with the key claims"),
        ("claims: {n1: {mac: zz}}\n", "claims.yaml:1:20: claims.n1.mac: 'zz' is not a MAC address"),
        ("claims: {n1: x}\n", "claims.yaml:1:14: claims.n1.mac: a claim is a map with the key mac"),
        ("claims: [\n", "claims.yaml:2:1: not valid YAML: did not find expected node content"),
    ],
)
def test_a_damaged_file_is_told_with_its_place(text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        claims.parse(text)

    assert caught.value.faults[0].startswith(fault)


@given(st.text(max_size=100))
def test_any_text_is_claims_or_a_config_error(text: str) -> None:
    try:
        claims.parse(text)
    except ConfigError as error:
        faults = error.faults
    else:
        return
    assert faults


@pytest.mark.parametrize("text", ["", "{}\n", "claims:\n", "claims: {}\n", "# nothing\n"])
def test_a_file_may_say_nothing(text: str) -> None:
    assert claims.parse(text) == {}


def test_a_claim_gives_a_node_its_mac_and_its_place(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write("nodes.yaml", "nodes:\n  n1: {network: {lan: {device: eno1, ip: 10.0.0.1/24}}}\n")
    site.write("state/claims.yaml", "claims:\n  n1: {mac: 52:54:00:00:00:01}\n")

    registry = site.load()

    node = registry.by_mac[parse_mac("52:54:00:00:00:01")]
    assert (node.name, str(node.ip)) == ("n1", "10.0.0.1/24")
    assert node.network["lan"].mac == node.mac
    assert str(node.origins["mac"]) == f"{tmp_path}/state/claims.yaml:2:13"


def test_what_the_operator_wrote_wins_over_a_claim(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write("nodes.yaml", "nodes: {n1: {mac: 52:54:00:00:00:01}, n2: {}, n3: {}}\n")
    site.write(
        "state/claims.yaml",
        "claims:\n  n1: {mac: 52:54:00:00:00:09}\n  n2: {mac: 52:54:00:00:00:01}\n"
        "  n3: {mac: 52:54:00:00:00:03}\n  gone: {mac: 52:54:00:00:00:04}\n",
    )

    found = site.load().nodes

    assert [found[name].mac for name in ("n1", "n2", "n3")] == [
        "52:54:00:00:00:01",
        None,
        "52:54:00:00:00:03",
    ]


def test_damaged_claims_keep_the_registry_from_loading(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write("state/claims.yaml", "claims: {n1: {mac: zz}}\n")

    assert site.faults() == ["state/claims.yaml:1:20: claims.n1.mac: 'zz' is not a MAC address"]


def test_every_value_of_a_node_is_explained_and_secrets_are_not(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write(
        "nodes.yaml",
        """\
profiles:
  default: {kernel: {args: [quiet]}, asset_key: s3cret, resources: {a: [1]}}
nodes:
  n1:
    mac: 52:54:00:00:00:01
    network: {eth0.100: {ip: 10.0.0.1/24, dns: [10.0.0.9]}}
    tags: {a.b: c}
    quirks: [x, binl]
""",
    )

    rows = list(explain(site.load().nodes["n1"]))

    shown = {row.key: (row.value, str(row.origin) if row.origin else None) for row in rows}
    assert shown["mac"] == ("52:54:00:00:00:01", "nodes.yaml:5:10")
    assert shown["network.eth0.100.mac"] == shown["mac"]
    assert shown["network.eth0.100.ip"] == ("10.0.0.1/24", "nodes.yaml:6:30")
    assert shown["network.eth0.100.dns[0]"] == ("10.0.0.9", "nodes.yaml:6:49")
    assert shown["kernel.args[0]"] == ("quiet", "nodes.yaml:2:29")
    assert shown["tags.a.b"] == ("c", "nodes.yaml:7:17")
    assert shown["resources.a"] == ("[1]", "nodes.yaml:2:72")
    assert shown["asset_key"] == ("***", "nodes.yaml:2:49")
    assert {shown["quirks[0]"][0], shown["quirks[1]"][0]} == {"binl", "x"}
    assert shown["boot"] == ("network", None)
    assert [row.origin is None for row in rows] == sorted(row.origin is None for row in rows)
    assert Explained("method", "auto", None) in rows


def test_claims_that_cannot_be_read_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "claims.yaml").mkdir()

    with pytest.raises(ConfigError, match="a folder, not a file; move it away to go on without"):
        claims.load(str(tmp_path))
