"""Profiles, node sets and nodes become nodes: Warewulf's rules, and what we add to them."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd.config import layers, merge, nodesets
from bootd.config.schema import NodesFile
from bootd.config.source import parse
from bootd.config.validate import validate
from bootd.model import BootTarget, Node


def resolve(*texts: str) -> merge.Resolved:
    profiles: dict[str, merge.Layer] = {}
    entries: list[tuple[str, merge.Layer]] = []
    for number, text in enumerate(texts):
        document = parse(textwrap.dedent(text), f"f{number}.yaml" if number else "f.yaml")
        checked, faults = validate(NodesFile, document)
        assert faults == []
        profiles.update(layers.profiles(document, checked))
        entries += layers.nodes(document, checked)
    return merge.resolve(profiles, entries)


def nodes(*texts: str) -> dict[str, Node]:
    resolved = resolve(*texts)
    assert [str(fault) for fault in resolved.faults] == []
    return resolved.nodes


def faults(*texts: str) -> list[str]:
    return [str(fault) for fault in resolve(*texts).faults]


# ---- Warewulf's rules ----------------------------------------------------------------------------


def test_the_worked_example_of_warewulf_merges_to_the_same() -> None:
    node = nodes(
        """
        profiles:
          default: {image: rocky9, overlays: {system: [wwinit, wwclient, hosts], runtime: [hosts]},
                    kernel: {args: [quiet, net.ifnames=1]}, template: default}
          gpu: {kernel: {args: [~quiet, nouveau.modeset=0]}, overlays: {system: [mig]},
                tags: {role: gpu}}
        nodes:
          n1: {profiles: [default, gpu], network: {default: {device: eth0, mac: "AA:BB:CC:00:00:01",
               ip: 10.0.0.11/24}}}
        """
    )["n1"]

    assert node.image == "rocky9"
    assert node.kernel_args == ("net.ifnames=1", "nouveau.modeset=0")
    assert node.overlays_system == ("wwinit", "wwclient", "hosts", "mig")
    assert node.tags == {"role": "gpu"}
    assert node.mac == "aa:bb:cc:00:00:01"


def test_nested_profiles_come_before_their_parent_and_later_ones_win() -> None:
    node = nodes(
        """
        profiles:
          a: {image: a, template: a, loader: a, tags: {x: a}}
          b: {profiles: [a], template: b, loader: b}
          c: {loader: c}
        nodes:
          n1: {profiles: [b, c], tags: {y: n}}
        """
    )["n1"]

    assert (node.image, node.template, node.loader) == ("a", "b", "c")
    assert node.profiles == ("a", "b", "c")
    assert node.tags == {"x": "a", "y": "n"}


def test_a_profile_counts_once_where_it_first_appears() -> None:
    node = nodes(
        """
        profiles:
          base: {kernel: {args: [base]}}
          a: {profiles: [base], kernel: {args: [a]}}
          b: {profiles: [base], kernel: {args: [b]}}
        nodes:
          n1: {profiles: [a, b, base]}
        """
    )["n1"]

    assert node.kernel_args == ("base", "a", "b")
    assert node.profiles == ("base", "a", "b")


def test_a_negated_item_goes_wherever_it_came_from_and_whenever() -> None:
    found = nodes(
        """
        profiles:
          first: {overlays: {system: [~late, base]}}
          second: {overlays: {system: [late, base, other]}}
        nodes:
          n1: {profiles: [first, second]}
          n2: {profiles: [second, first]}
          n3: {profiles: [second], overlays: {system: [~base, ~other]}}
        """
    )

    assert found["n1"].overlays_system == ("base", "base", "other")
    assert found["n2"].overlays_system == ("base", "other", "base")
    assert found["n3"].overlays_system == ("late",)


def test_a_negated_profile_goes_but_what_it_nests_stays() -> None:
    node = nodes(
        """
        profiles:
          base: {image: base}
          gpu: {profiles: [base], tags: {role: gpu}}
          plain: {profiles: [~gpu], tags: {kind: plain}}
        nodes:
          n1: {profiles: [gpu, plain]}
        """
    )["n1"]

    assert node.profiles == ("base", "plain")
    assert node.tags == {"kind": "plain"}
    assert node.image == "base"


def test_an_empty_value_overrides_nothing() -> None:
    node = nodes(
        """
        profiles:
          default: {image: debian-12, kernel: {args: [quiet], version: "6.1"}, tags: {rack: r1},
                    resources: {fstab: [a], deep: {x: 1, y: [1]}}}
        nodes:
          n1: {image: "", kernel: {args: [], version: }, tags: {rack: }, overlays: , mac: ,
               resources: {fstab: , deep: {x: , y: []}}}
        """
    )["n1"]

    assert node.image == "debian-12"
    assert node.kernel_args == ("quiet",)
    assert node.kernel_version == "6.1"
    assert node.tags == {"rack": "r1"}
    assert node.resources == {"fstab": ["a"], "deep": {"x": 1, "y": [1]}}


def test_free_structures_merge_deep_and_their_lists_append() -> None:
    node = nodes(
        """
        profiles:
          default: {resources: {fstab: [{file: /home}], users: {root: {uid: 0}, a: {uid: 1}}}}
        nodes:
          n1: {resources: {fstab: [{file: /opt}, "~x"], users: {a: {shell: sh}}, n: [1]}}
        """
    )["n1"]

    assert node.resources == {
        "fstab": [{"file": "/home"}, {"file": "/opt"}, "~x"],
        "users": {"root": {"uid": 0}, "a": {"uid": 1, "shell": "sh"}},
        "n": [1],
    }


def test_a_profiles_comment_is_not_inherited() -> None:
    found = nodes("profiles: {default: {comment: p}}\nnodes: {n1: {}, n2: {comment: n}}\n")

    assert found["n1"].comment == ""
    assert found["n2"].comment == "n"


# ---- default profile -----------------------------------------------------------------------------


def test_only_a_node_that_names_no_profiles_gets_the_default_one() -> None:
    found = nodes(
        """
        profiles: {default: {image: d}, other: {template: o}}
        nodes: {n1: {}, n2: {profiles: [other]}, n3: {profiles: []}, n4: ,
                n5: {profiles: [~default]}}
        """
    )

    assert {name: node.image for name, node in found.items()} == {
        "n1": "d",
        "n2": None,
        "n3": None,
        "n4": "d",
        "n5": None,
    }


def test_the_default_profile_is_also_a_node_for_unknown_machines() -> None:
    resolved = resolve("profiles: {default: {image: d, tags: {x: y}}}\n")

    assert resolved.default is not None
    assert (resolved.default.image, resolved.default.macs) == ("d", ())
    assert resolve("profiles: {other: {image: d}}\n").default is None


# ---- node sets -----------------------------------------------------------------------------------


def test_a_set_stands_for_its_nodes_and_an_own_entry_wins() -> None:
    found = nodes(
        """
        nodes:
          n002: {mac: "52:54:00:00:00:02", image: own, kernel: {args: [own]}}
          "n[001-003]": {image: shared, kernel: {args: [shared]}, tags: {rack: r1}}
        """
    )

    assert sorted(found) == ["n001", "n002", "n003"]
    assert found["n002"].image == "own"
    assert found["n002"].kernel_args == ("shared", "own")
    assert found["n002"].tags == {"rack": "r1"}
    assert str(found["n002"].origins["image"]) == "f.yaml:3:43"
    assert str(found["n002"].origins["tags.rack"]) == "f.yaml:4:72"
    assert found["n003"].name == "n003"


def test_profiles_of_set_and_node_add_up() -> None:
    found = nodes(
        """
        profiles: {a: {tags: {a: x}}, b: {tags: {b: x}}}
        nodes: {"n[1-2]": {profiles: [a]}, n1: {profiles: [b]}}
        """
    )

    assert found["n1"].profiles == ("a", "b")
    assert found["n2"].profiles == ("a",)


def test_nodes_keep_the_order_in_which_they_are_written() -> None:
    assert list(nodes('nodes: {b: {}, "n[2-3]": {}, a: {}, n3: {}}\n')) == ["b", "n2", "n3", "a"]


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[001-003]", ["n001", "n002", "n003"]),
        ("n[1-9/4]", ["n1", "n5", "n9"]),
        ("a,b", ["a", "b"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("n[1,3]-ib", ["n1-ib", "n3-ib"]),
        ("login1", ["login1"]),
    ],
)
def test_sets_are_clustershells(key: str, names: list[str]) -> None:
    assert nodesets.expand(key) == names


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("n[1-", "not a set of nodes"),
        ("n[5-1]", "not a set of nodes"),
        ("n[1-100001]", "more than 100000"),
        ("n[1-999999999999999]", "more than 100000"),
        ("n[1-1000]m[1-1000]", "more than 100000"),
        ("n[" + "9" * 40 + "-1]", "more than 100000"),
        (",", "not a set of nodes"),
        ("n[1]!n1", "names no node"),
        ("n1-", "cannot be a node's name"),
        ("n" * 65, "cannot be a node's name"),
    ],
)
def test_a_set_that_is_none_or_endless_is_refused(key: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        nodesets.expand(key)


def test_a_set_may_be_as_large_as_the_limit() -> None:
    assert len(nodesets.expand("n[1-100000]")) == 100_000


@given(st.text(alphabet="n12[]-,/^&!@*{}", max_size=20))
def test_any_key_is_names_or_a_value_error(key: str) -> None:
    try:
        names = nodesets.expand(key)
    except ValueError:
        return
    assert names
    assert len(names) <= nodesets.MAX_NODES


# ---- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "profiles: {gpu: {}}\nnodes: {n1: {profiles: [gpuu]}}\n",
            "f.yaml:2:25: nodes.n1.profiles[0]: there is no profile 'gpuu'; did you mean 'gpu'?",
        ),
        (
            "nodes: {n1: {profiles: [~zz]}}\n",
            "f.yaml:1:25: nodes.n1.profiles[0]: there is no profile 'zz'",
        ),
        (
            "profiles:\n  a: {profiles: [b]}\n  b: {profiles: [c]}\n  c: {profiles: [a]}\n",
            "f.yaml:4:18: profiles.c.profiles[0]: profiles nest in a circle: a → b → c → a",
        ),
        (
            "profiles: {a: {profiles: [a]}}\n",
            "f.yaml:1:27: profiles.a.profiles[0]: profiles nest in a circle: a → a",
        ),
        (
            'nodes: {n1: {}, "n[1-2]": {}, "n[2-3]": {}}\n',
            "f.yaml:1:31: nodes.n[2-3]: n2 is defined twice; the other place is nodes.n[1-2] at"
            " f.yaml:1:17",
        ),
        (
            'nodes: {"n[1-2]": {uuid: 00000000-0000-0000-0000-000000000001}}\n',
            "f.yaml:1:26: nodes.n[1-2].uuid: the nodes of n[1-2] cannot share one uuid; give each"
            " node its own entry",
        ),
        (
            "nodes: {n1: {mac: 52:54:00:00:00:01, network: {boot: {mac: 52:54:00:00:00:02}}}}\n",
            "f.yaml:1:19: nodes.n1.mac: 52:54:00:00:00:01 here, but 52:54:00:00:00:02 in"
            " network.boot.mac (f.yaml:1:60)",
        ),
    ],
)
def test_what_cannot_be_merged_is_a_fault_with_its_place(text: str, expected: str) -> None:
    assert faults(text) == [expected]


def test_a_node_that_two_files_define_names_both_places() -> None:
    assert faults("nodes: {n1: {}}\n", "nodes:\n  n1: {}\n") == [
        "f1.yaml:2:3: nodes.n1: n1 is defined twice; the other place is nodes.n1 at f.yaml:1:9"
    ]


def test_profiles_nest_up_to_a_limit_and_long_chains_are_refused_not_followed() -> None:
    def chain(length: int) -> str:
        lines = [f"  p{i}: {{profiles: [p{i + 1}]}}\n" for i in range(length - 1)]
        return "profiles:\n" + "".join(lines) + f"  p{length - 1}: {{image: deep}}\n"

    node = "nodes: {n1: {profiles: [p0]}}\n"
    assert nodes(chain(merge.MAX_NESTING) + node)["n1"].image == "deep"
    assert "profiles nest more than 64 deep" in faults(chain(merge.MAX_NESTING + 1) + node)[0]
    assert faults(chain(3000) + node)


def test_profiles_that_all_nest_each_other_are_refused_quickly() -> None:
    names = [f"p{i}" for i in range(40)]
    text = "profiles:\n" + "".join(f"  {n}: {{profiles: [{', '.join(names)}]}}\n" for n in names)

    assert "in a circle" in faults(text + "nodes: {n1: {profiles: [p0]}}\n")[0]


def test_all_files_together_name_no_more_nodes_than_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nodesets, "MAX_NODES", 10)
    text = 'nodes: {"a[1-6]": {}, "b[1-%d]": {}}\n'

    assert len(nodes(text % 4)) == 10
    assert faults(text % 5) == [
        "f.yaml:1:23: nodes.b[1-5]: with these there are more than 10 nodes"
    ]


# ---- network devices -----------------------------------------------------------------------------


def devices(node: str, profile: str = "{}") -> Node:
    return nodes(f"profiles: {{default: {profile}}}\nnodes: {{n1: {node}}}\n")["n1"]


def test_short_mac_and_ip_make_a_device_named_boot() -> None:
    node = devices("{mac: 5254.0000.0001, ip: 10.0.0.1/24}")

    assert list(node.network) == ["boot"]
    assert node.network["boot"].mac == node.mac == "52:54:00:00:00:01"
    assert node.network["boot"].ip == node.ip
    assert node.network["boot"].device == ""


def test_short_mac_belongs_to_the_device_that_a_profile_describes() -> None:
    node = devices(
        "{mac: 5254.0000.0001, ip: 10.0.0.1/24}",
        "{network: {lan: {device: eno1, gateway: 10.0.0.254, dns: [10.0.0.254]}}}",
    )

    assert list(node.network) == ["lan"]
    assert node.network["lan"].mac == "52:54:00:00:00:01"
    assert str(node.network["lan"].gateway) == "10.0.0.254"
    assert node.network["lan"].device == "eno1"


def test_short_mac_does_not_go_to_a_device_that_is_another_card() -> None:
    node = devices(
        "{mac: 5254.0000.0001, network: {ib0: {type: infiniband}, eth1: {mac: 5254.0000.0002}}}"
    )

    assert node.mac == "52:54:00:00:00:01"
    assert node.network["boot"].mac == node.mac
    assert node.macs == ("52:54:00:00:00:01", "52:54:00:00:00:02")


def test_the_primary_device_is_boot_or_the_first_with_a_mac() -> None:
    named = devices("{network: {eth1: {mac: 5254.0000.0002}, boot: {mac: 5254.0000.0001}}}")
    first = devices("{network: {ib0: {ip: 10.1.0.1/24}, eth1: {mac: 5254.0000.0002}}}")
    none = devices("{network: {eth0: {ip: 10.0.0.1/24}}}")

    assert named.mac == "52:54:00:00:00:01"
    assert first.mac == "52:54:00:00:00:02"
    assert (none.mac, str(none.ip)) == (None, "10.0.0.1/24")


def test_a_device_without_mac_is_named_like_its_key() -> None:
    node = devices("{network: {eth0.100: {ip: 10.0.0.1/24}, x: {mac: 5254.0000.0002}}}")

    assert node.network["eth0.100"].device == "eth0.100"
    assert node.network["x"].device == ""


def test_devices_merge_key_by_key_with_origins() -> None:
    node = devices(
        "{network: {boot: {ip: 10.0.0.1/24, dns: [~10.0.0.9, 10.0.0.8], options: {vlan: 7}}}}",
        "{network: {boot: {mtu: 9000, dns: [10.0.0.9], options: {vlan: 5, routes: [a]}}}}",
    )

    device = node.network["boot"]
    assert (device.mtu, device.dns, device.options) == (
        9000,
        ("10.0.0.8",),
        {"vlan": 7, "routes": ["a"]},
    )
    assert str(node.origins["network.boot.mtu"]) == "f.yaml:1:44"
    assert str(node.origins["network.boot.dns[0]"]).startswith("f.yaml:2:")
    assert str(node.origins["network.boot.options.vlan"]).startswith("f.yaml:2:")


# ---- origins -------------------------------------------------------------------------------------


def test_every_value_knows_the_line_that_decided_it() -> None:
    node = nodes(
        """
        profiles:
          base: {kernel: {args: [quiet, one]}}
          gpu:
            profiles: [base]
            kernel: {args: [~quiet, two]}
        nodes:
          n1:
            profiles: [gpu]
            kernel: {args: [three]}
            boot: local
        """
    )["n1"]

    places = {key: str(origin) for key, origin in node.origins.items()}
    assert places == {
        "kernel.args[0]": "f.yaml:3:33",
        "kernel.args[1]": "f.yaml:6:29",
        "kernel.args[2]": "f.yaml:10:21",
        "boot": "f.yaml:11:11",
        "profiles[0]": "f.yaml:5:16",
        "profiles[1]": "f.yaml:9:16",
    }
    assert node.boot is BootTarget.LOCAL


# ---- properties ----------------------------------------------------------------------------------

WORDS = st.sampled_from(["a", "b", "c", "d", "~a", "~b", "~c"])
LISTS = st.lists(WORDS, max_size=5)


def args(*written: list[str]) -> tuple[str, ...]:
    profiles = {f"p{i}": {"kernel": {"args": items}} for i, items in enumerate(written[:-1])}
    value: dict[str, Any] = {
        "profiles": profiles,
        "nodes": {"n": {"profiles": list(profiles), "kernel": {"args": written[-1]}}},
    }
    return nodes(json.dumps(value))["n"].kernel_args


@given(st.lists(LISTS, min_size=1, max_size=4))
def test_a_merged_list_is_what_was_written_less_what_was_negated(written: list[list[str]]) -> None:
    every = [word for items in written for word in items]
    gone = {word[1:] for word in every if word.startswith("~")}

    assert list(args(*written)) == [w for w in every if w[0] != "~" and w not in gone]


@given(LISTS, LISTS, LISTS)
def test_what_is_negated_does_not_depend_on_the_order(
    one: list[str], two: list[str], three: list[str]
) -> None:
    assert sorted(args(one, two, three)) == sorted(args(three, one, two))


TREES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.integers(0, 9), st.text("xy", min_size=1, max_size=2)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(TREES, TREES, TREES)
def test_deep_merging_is_associative_and_changes_neither_side(a: Any, b: Any, c: Any) -> None:
    before = repr((a, b, c))

    left, right = merge.deep(merge.deep(a, b), c), merge.deep(a, merge.deep(b, c))

    assert repr((a, b, c)) == before
    if all(isinstance(x, dict) and not _kinds_clash(a, b, c) for x in (a, b, c)):
        assert left == right
    assert merge.deep(a, {}) == a
    assert merge.deep(a, "") == a


def _kinds_clash(*values: Any) -> bool:
    """Where a map meets a list or a word, the later one replaces: that is not associative."""
    kinds = {type(value) for value in values if value not in ({}, [], "")}
    if len(kinds) > 1 or not values:
        return True
    maps = [value for value in values if isinstance(value, dict)]
    keys = {key for value in maps for key in value}
    return any(_kinds_clash(*(m[key] for m in maps if key in m)) for key in keys)
