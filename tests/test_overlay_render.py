"""From overlays and a node to what the node gets."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from types import MappingProxyType

import pytest

from bootd.model import (
    DhcpSettings,
    Image,
    Node,
    Overlay,
    OverlayEntry,
    ServerAddress,
    Settings,
    UnknownPolicy,
    parse_mac,
)
from bootd.overlay import tree
from bootd.overlay.cpio import Entry
from bootd.overlay.render import Shared, Which, check, render
from bootd.overlay.template import RenderError
from bootd.registry import Registry

SERVER = ServerAddress(IPv4Address("10.0.0.1"))
N001 = Node(
    "n001",
    mac=parse_mac("52:54:00:12:34:56"),
    ip=IPv4Interface("10.0.0.11/24"),
    image="debian",
    overlays_system=("own",),
    tags={"rack": "r1"},
)


def template(path: str, text: str, mode: int = 0o644) -> OverlayEntry:
    return OverlayEntry(path, "template", mode, text.encode(), source=f"own/rootfs/{path}.j2")


def overlay(*entries: OverlayEntry, name: str = "own") -> Overlay:
    return Overlay(name, entries, digest=f"{name} {hash(entries)}")


def registry(overlays: Iterable[Overlay], nodes: Iterable[Node] = (N001,)) -> Registry:
    return Registry(
        Settings(),
        nodes={node.name: node for node in nodes},
        images={"debian": Image("debian", "20260101-000000-abcd", {})},
        overlays={overlay.name: overlay for overlay in overlays},
        templates={},
    )


def made(
    *overlays: Overlay, node: Node = N001, which: Which = "system", shared: Shared | None = None
) -> dict[str, Entry]:
    entries = render(registry(overlays, (node,)), node, which, SERVER, shared=shared)
    return {entry.path: entry for entry in entries}


def text(template_text: str, node: Node = N001) -> str:
    """What one template makes."""
    return made(overlay(template("x", template_text)), node=node)["x"].content.decode()


def reason(template_text: str, node: Node = N001) -> str:
    with pytest.raises(RenderError) as caught:
        text(template_text, node)
    return str(caught.value)


def test_every_documented_variable_is_there() -> None:
    given = (
        "{{ node.name }} {{ tags.rack }} {{ resources | length }} {{ network | length }} "
        "{{ image.name }} {{ nodes | length }} {{ server.base }} {{ overlay }}"
    )

    assert text(given) == "n001 r1 0 0 debian 1 http://10.0.0.1:9873 own"


def test_the_distribution_base_names_the_node() -> None:
    base = tree.load([])["base"]
    node = Node("n001", mac=N001.mac, ip=N001.ip, image="debian", overlays_system=("base",))

    files = made(base, node=node)

    assert files["etc/hostname"].content == b"n001\n"
    assert b"\n10.0.0.11\tn001\n" in files["etc/hosts"].content
    assert b"n001 (debian 20260101-000000-abcd)" in files["etc/issue"].content
    assert b"NAME=n001\n" in files["etc/bootd/node"].content
    assert len(files["etc/machine-id"].content) == 33


def test_base_renders_for_a_node_that_has_nothing_but_a_name() -> None:
    base = tree.load([])["base"]

    files = made(base, node=Node("bare", overlays_system=("base",)))

    assert b"127.0.1.1\tbare\n" in files["etc/hosts"].content
    assert b"IMAGE=''\n" in files["etc/bootd/node"].content


def test_files_links_and_folders_come_with_mode_and_owner() -> None:
    files = made(
        overlay(
            OverlayEntry("etc/key", "file", 0o600, b"k", uid=5, gid=6),
            OverlayEntry("etc/link", "symlink", 0o777, b"key"),
            OverlayEntry("srv", "dir", 0o1777),
        )
    )

    assert files["etc/key"] == Entry("etc/key", stat.S_IFREG | 0o600, b"k", 5, 6)
    assert files["etc/link"].mode == stat.S_IFLNK | 0o777
    assert files["srv"].mode == stat.S_IFDIR | 0o1777
    assert files["etc"].mode == stat.S_IFDIR | 0o755


def test_a_later_overlay_replaces_an_earlier_ones_file() -> None:
    node = Node("n001", overlays_system=("a", "b"))

    files = made(
        overlay(template("x", "a"), template("only-a", "a"), name="a"),
        overlay(template("x", "b"), name="b"),
        node=node,
    )

    assert (files["x"].content, files["only-a"].content) == (b"b", b"a")


def test_system_and_runtime_overlays_are_apart() -> None:
    node = Node("n001", overlays_system=("a",), overlays_runtime=("b",))
    overlays = (overlay(template("x", ""), name="a"), overlay(template("y", ""), name="b"))

    assert list(made(*overlays, node=node)) == ["x"]
    assert list(made(*overlays, node=node, which="runtime")) == ["y"]


def test_an_undefined_name_is_an_error_with_file_line_and_node() -> None:
    assert reason("fine\n{{ nodee.name }}\n") == (
        "own/rootfs/x.j2:2: node n001: 'nodee' is undefined"
    )


def test_an_attribute_that_no_node_has_is_an_error_with_its_line() -> None:
    assert reason("\n\n{% if true %}\n{{ node.nam }}\n{% endif %}").startswith(
        "own/rootfs/x.j2:4: node n001:"
    )


def test_a_tag_that_this_node_lacks_is_an_error() -> None:
    assert "a map has no 'role'" in reason("{{ tags.role }}")
    frozen = replace(N001, tags=MappingProxyType({}))
    assert "a map has no 'role'" in reason("{{ tags.role }}", frozen)


def test_a_syntax_error_has_its_line() -> None:
    assert reason("a\nb\n{% if %}").startswith("own/rootfs/x.j2:3: node n001: ")


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("{{ node.gateway.ip }}", "a node has no 'gateway'"),
        ("{{ node.uuid }}", "gave None"),
        ("{{ tags.items }}", "parentheses are missing"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ node.__class__ }}", "is unsafe"),
        ("{{ ().__class__.__bases__ }}", "is unsafe"),
        ("{{ tags.update({}) }}", "access to attribute 'update'"),
        ("{% include 'other' %}", "TypeError"),
        ('{{ "a\\u0000b" | sh }}', "control characters"),
        ("{% file node %}{% endfile %}", "not a text"),
        ('{% file "a", 600 %}{% endfile %}', 'as "0600"'),
        ('{% file "a", "0999" %}{% endfile %}', 'as "0600"'),
        ('{% file "a" %}{% endfile %}{% file "a" %}{% endfile %}', "written twice"),
        ('{% file "../a" %}{% endfile %}', "'..'"),
        ('{% file "/a" %}{% endfile %}', "absolute"),
    ],
)
def test_mistakes_are_render_errors_that_say_what(expression: str, says: str) -> None:
    assert says in reason(expression)


def test_a_template_can_make_several_files() -> None:
    files = made(
        overlay(
            template(
                "etc/all",
                '{% for name in ["a", "b"] %}\n'
                '{% file "etc/" ~ name, "0600" %}\nI am {{ name }}\n{% endfile %}\n'
                "{% endfor %}\n",
            )
        )
    )

    assert "etc/all" not in files
    assert files["etc/a"].content == b"I am a\n"
    assert files["etc/b"].mode == stat.S_IFREG | 0o600


def test_a_template_that_makes_files_can_make_its_own_too() -> None:
    files = made(overlay(template("x", 'own\n{% file "y" %}other{% endfile %}')))

    assert (files["x"].content, files["y"].content) == (b"own\n", b"other")


def test_a_template_of_files_that_makes_none_for_a_node_makes_no_empty_file() -> None:
    files = made(
        overlay(template("x", "{% for i in [] %}\n{% file i %}{% endfile %}\n{% endfor %}\n"))
    )

    assert "x" not in files


def test_a_template_can_skip_its_file() -> None:
    files = made(
        overlay(template("etc/gpu", "{% if tags.role is undefined %}{% skip %}{% endif %}x"))
    )

    assert "etc/gpu" not in files


def test_an_empty_template_makes_an_empty_file() -> None:
    assert text("") == ""


@pytest.mark.parametrize(
    ("greedy", "says"),
    [
        (
            "{% for i in range(99999) %}\n{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "x.j2:2: node n001: does not end: more than 10,000,000 turns of loops",
        ),
        (
            '{% set big = "x" * 2**25 %}\n'
            '{% for i in "ab" %}{% file i %}{{ big }}.{% endfile %}{% endfor %}',
            "x.j2:2: node n001: makes more than 64 MiB; overlays are held in memory: put large "
            "files into the image",
        ),
        ("{{ 2 ** (9 ** 9) }}", "x.j2:1: node n001: makes a number of more than 4,096 bits"),
        (
            "{% macro m() %}{{ m() }}{% endmacro %}\n{{ m() }}",
            "x.j2:1: node n001: does not end: a macro or loop calls itself too often",
        ),
    ],
)
def test_a_template_that_would_not_end_or_not_fit_is_an_error(greedy: str, says: str) -> None:
    assert says in reason(greedy)


@pytest.mark.parametrize(
    "again",
    [
        [template("x", '{% file "x" %}a{% endfile %}b')],
        [template("x", "a"), template("y", '{% file "x" %}b{% endfile %}')],
        [template("x", '{% symlink "y", "a" %}'), OverlayEntry("y", "file", 0o644, source="y")],
    ],
)
def test_a_path_that_an_overlay_makes_twice_is_an_error(again: list[OverlayEntry]) -> None:
    with pytest.raises(RenderError, match=r"node n001: makes /[xy], which .* makes too"):
        made(overlay(*again))


def test_what_no_node_changes_is_rendered_once() -> None:
    shared: Shared = {}
    tree = overlay(
        template("etc/hosts", "{% for n in nodes %}{{ n.name }}{% endfor %}"),
        template("etc/hostname", "{{ node.name }}"),
    )
    nodes = [Node(f"n{i}", overlays_system=("own",)) for i in range(3)]
    world = registry([tree], nodes)

    rendered = [
        {e.path: e for e in render(world, node, "system", SERVER, shared=shared)} for node in nodes
    ]

    assert rendered[0]["etc/hosts"].content is rendered[2]["etc/hosts"].content
    assert rendered[0]["etc/hosts"].content == b"n0n1n2"
    assert [files["etc/hostname"].content for files in rendered] == [b"n0", b"n1", b"n2"]


def test_a_template_that_reads_the_server_is_shared_per_server() -> None:
    shared: Shared = {}
    world = registry([overlay(template("x", "{{ server.ip }}"))])
    other = ServerAddress(IPv4Address("10.9.9.9"))

    first = render(world, N001, "system", SERVER, shared=shared)
    second = render(world, N001, "system", other, shared=shared)

    assert (first[0].content, second[0].content) == (b"10.0.0.1", b"10.9.9.9")


def test_a_file_below_anothers_symlink_is_an_error_that_names_the_node() -> None:
    node = Node("n001", overlays_system=("a", "b"))

    with pytest.raises(RenderError, match=r"node n001: 'srv/x' stands below 'srv'"):
        made(
            overlay(OverlayEntry("srv", "symlink", 0o777, b"/data"), name="a"),
            overlay(template("srv/x", ""), name="b"),
            node=node,
        )


def test_check_tells_every_fault_of_every_node_grouped() -> None:
    nodes = [Node(f"n{i}", overlays_system=("own",)) for i in range(10)]
    world = registry(
        [overlay(template("a", "{{ tags.rack }}"), template("b", "\n{{ wrong }}"))], [*nodes, N001]
    )

    faults = check(world)

    assert len(faults) == 2
    assert faults[0].startswith("own/rootfs/a.j2:1:1: nodes.n0, n1, n2 and 7 more: ")
    assert faults[1] == "own/rootfs/b.j2:2:1: nodes.n0, n1, n2 and 8 more: 'wrong' is undefined"


def test_check_finds_nothing_wrong_with_what_renders() -> None:
    assert check(registry([overlay(template("a", "{{ tags.rack }}"))])) == []


def test_check_tries_profile_default_only_where_unknown_machines_boot_it() -> None:
    world = registry([overlay(template("a", "{{ node.ip | ip }}"))])
    default = Node("default", overlays_system=("own",))
    hold = replace(world, default=default)
    boot = replace(hold, settings=Settings(dhcp=DhcpSettings(unknown=UnknownPolicy.DEFAULT)))

    assert check(hold) == []
    assert len(check(boot)) == 1


def test_check_ends_when_it_is_told_to() -> None:
    world = registry([overlay(template("a", "{{ wrong }}"))])

    assert check(world, stop=lambda: True) == []


def test_check_tells_a_symlink_to_nowhere_with_its_template() -> None:
    world = registry([overlay(template("a", '{% symlink "" %}'))])

    (fault,) = check(world)

    assert fault.startswith("own/rootfs/a.j2:1:1: nodes.n001: 'a': the symlink's target is empty")


def test_check_tells_conflicts_between_overlays() -> None:
    node = Node("n001", overlays_system=("a", "b"))
    world = registry(
        [
            overlay(OverlayEntry("srv", "file", 0o644), name="a"),
            overlay(template("srv/x", ""), name="b"),
        ],
        [node],
    )

    assert check(world) == [
        "overlays a, b:1:1: nodes.n001: 'srv/x' stands below 'srv', which is not a directory"
    ]
