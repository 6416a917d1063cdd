"""Filters of overlay templates."""

from __future__ import annotations

import subprocess
from ipaddress import IPv4Interface, IPv6Interface

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootd.model import Node
from bootd.overlay import filters
from bootd.overlay.filters import FILTERS
from bootd.overlay.links import TemplateValueError
from tests.overlay_nodes import PLAIN

ADDRESS = IPv4Interface("10.0.0.11/20")


@pytest.mark.parametrize(
    ("name", "value", "gives"),
    [
        ("ip", ADDRESS, "10.0.0.11"),
        ("ip", "10.0.0.11/20", "10.0.0.11"),
        ("ip", IPv6Interface("2001:db8::1/64"), "2001:db8::1"),
        ("prefix", ADDRESS, 20),
        ("netmask", ADDRESS, "255.255.240.0"),
        ("cidr", ADDRESS, "10.0.0.0/20"),
        ("broadcast", ADDRESS, "10.0.15.255"),
        ("mac", "5254.0012.3456", "52:54:00:12:34:56"),
        ("sh", "it's", "'it'\"'\"'s'"),
        ("sh", "", "''"),
        ("word", "abc", "abc"),
        ("line", "a b: c", "a b: c"),
        ("unit", "my-data.1", r"my\x2ddata.1"),
        ("unit", ".hidden", r"\x2ehidden"),
        ("unit_path", "/srv//my-data/", r"srv-my\x2ddata"),
        ("unit_path", "/", "-"),
        ("systemd", 'a "b" 5% \\', '"a \\"b\\" 5%% \\\\"'),
        ("fstab", "a b\\#", r"a\040b\134\043"),
        ("json", {"b": [1, "x"], "a": None}, '{"a": null, "b": [1, "x"]}'),
        ("json", (ADDRESS, True), '["10.0.0.11/20", true]'),
        ("json", frozenset("ba"), '["a", "b"]'),
        ("fold", ["n003", "n001", "n002"], "n[001-003]"),
        ("fold", [Node("n1"), Node("n2")], "n[1-2]"),
        ("uuid", "a", "3c7fc2a0-e8ab-53a9-93d7-1f1d4ae0bb62"),
    ],
)
def test_filters_give(name: str, value: object, gives: object) -> None:
    if name == "uuid":
        assert FILTERS[name](value) == FILTERS[name](value) != FILTERS[name]("b")
        assert len(FILTERS[name](value)) == len(str(gives))
        return
    assert FILTERS[name](value) == gives


@pytest.mark.parametrize(
    ("form", "gives"),
    [
        ("colon", "52:54:00:12:34:56"),
        ("dash", "52-54-00-12-34-56"),
        ("dot", "5254.0012.3456"),
        ("plain", "525400123456"),
    ],
)
def test_a_mac_address_has_four_forms(form: str, gives: str) -> None:
    assert filters.mac("52:54:00:12:34:56", form) == gives


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, None) for name in ("ip", "mac", "sh", "line", "word", "cidr")),
        *((name, "zz") for name in ("ip", "mac", "netmask", "prefix", "broadcast")),
        ("broadcast", "2001:db8::1/64"),
        *((name, "a\nb") for name in ("sh", "line", "word", "systemd", "fstab", "unit")),
        *(("word", text) for text in ("", "a b", 'a"b', "a:b", "a\\b")),
        ("fstab", ""),
        ("unit_path", "/a/../b"),
        ("fail", "the reason"),
        ("fields", {}),
        ("links", 7),
    ],
)
def test_filters_refuse_with_a_sentence(name: str, value: object) -> None:
    with pytest.raises(TemplateValueError) as caught:
        FILTERS[name](value)
    assert str(caught.value)


def test_an_unknown_form_of_mac_names_the_known_ones() -> None:
    with pytest.raises(TemplateValueError, match="colon, dash, dot, plain"):
        filters.mac("52:54:00:12:34:56", "cisco")


def test_a_machine_id_is_of_version_4_stable_and_per_node() -> None:
    first = filters.machine_id(PLAIN)

    assert first == filters.machine_id(PLAIN) != filters.machine_id(Node("other"))
    assert first[12] == "4"
    assert first[16] in "89ab"
    assert len(first) == 32


def test_the_fields_of_a_node_come_without_its_asset_key() -> None:
    assert "asset_key" not in FILTERS["json"](Node("n", asset_key="secret"))
    assert "secret" not in FILTERS["json"](Node("n", asset_key="secret"))


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=30)


@settings(deadline=None, max_examples=20)
@given(st.lists(TEXT, min_size=1, max_size=5))
def test_a_shell_reads_back_what_was_quoted(words: list[str]) -> None:
    script = "printf '%s\\0' " + " ".join(filters.sh(word) for word in words)

    out = subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout

    assert out.decode().split("\0")[:-1] == words


@settings(deadline=None, max_examples=15)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1,
                        max_size=12), min_size=1, max_size=5))  # fmt: skip
def test_unit_names_are_those_of_systemd_escape(texts: list[str]) -> None:
    out = subprocess.run(
        ["systemd-escape", "--", *texts], capture_output=True, check=True, text=True
    ).stdout

    assert out.rstrip("\n").split(" ") == [filters.unit(text) for text in texts]
