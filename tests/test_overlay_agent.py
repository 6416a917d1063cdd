"""What the agent overlay brings, and what tells a running node which commands to run."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootd.model import ConfigError, Node, Overlay, Settings
from bootd.overlay import paths
from bootd.overlay.manifest import differing, manifest
from bootd.overlay.render import EXAMPLE_SERVER, Which, render
from bootd.overlay.template import RenderError
from bootd.overlay.tree import OverlayTrees
from bootd.registry import Registry
from tests.overlay_nodes import PLAIN, rendered


def load(folder: Path, rules: str, **files: str) -> Overlay:
    """Overlay ``own`` with that overlay.yaml, and files whose ``_`` stands for a slash."""
    for name, text in files.items():
        file = folder / "own/rootfs" / name.replace("_", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "own/overlay.yaml").write_text(rules)
    return OverlayTrees().load([str(folder)])["own"]


def made(overlay: Overlay, which: Which, **tags: str) -> dict[str, bytes]:
    node = Node("n001", overlays_system=("own",), overlays_runtime=("own",), tags=tags)
    registry = Registry(Settings(), {"n001": node}, {}, {"own": overlay}, {})
    return {e.path: e.content for e in render(registry, node, which, EXAMPLE_SERVER)}


def test_each_path_that_fits_is_told_with_its_command(tmp_path: Path) -> None:
    rules = "on_change: {etc/app/**: reload app, etc/*: [one, two], etc/gone: three}\n"
    rules += "delete: [etc/gone]\n"
    overlay = load(tmp_path, rules, etc_app_a="1", etc_app_b_c="1", etc_x="1")

    runtime = made(overlay, "runtime")["etc/bootd/on_change.d/runtime"].decode()

    assert runtime.splitlines() == [
        "/etc/app/a\treload app",
        "/etc/app/b/c\treload app",
        "/etc/gone\tone",
        "/etc/x\tone",
        "/etc/gone\ttwo",
        "/etc/x\ttwo",
        "/etc/gone\tthree",
    ]
    assert "etc/bootd/on_change.d/runtime" not in made(overlay, "system")


def test_an_overlay_that_a_node_has_not_runs_nothing_there(tmp_path: Path) -> None:
    rules = 'on_change: {etc/x: reload}\nwhen: tags.role == "gpu"\n'
    overlay = load(tmp_path, rules, etc_x="1")

    assert "etc/bootd/on_change.d/runtime" in made(overlay, "runtime", role="gpu")
    assert made(overlay, "runtime") == {}


def test_another_command_is_another_overlay(tmp_path: Path) -> None:
    first = load(tmp_path, "on_change: {etc/x: one}\n", etc_x="1")
    second = load(tmp_path, "on_change: {etc/x: two}\n")

    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("rules", "fault"),
    [
        ("on_change: [x]", "where a map is expected"),
        ("on_change: {etc/x: 5}", "5 where a command is expected"),
        ("on_change: {etc/x: ' '}", "where a command is expected"),
        ('on_change: {etc/x: "a\\nb"}', "a command is one line of at most 1000 characters"),
        (f"on_change: {{etc/x: {'a' * 1001}}}", "a command is one line of at most 1000"),
        ("on_change: {/etc/x: a}", "is absolute"),
        ("on_change: {bin/x: a}", "use usr/bin/x"),
        ("on_change: {a/**/**/**/**/b: a}", "more than 3 **"),
    ],
)
def test_what_cannot_be_a_command_is_told_with_its_place(
    tmp_path: Path, rules: str, fault: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, rules, etc_x="1")

    assert "overlay.yaml:1:" in str(raised.value)
    assert fault in str(raised.value)


def test_the_longest_command_is_taken(tmp_path: Path) -> None:
    assert load(tmp_path, f"on_change: {{etc/x: {'a' * 1000}}}", etc_x="1").on_change


def test_a_path_with_a_line_end_is_refused() -> None:
    """The agent's lists have one path in each line."""
    assert paths.fault("etc/a\nb") == "'etc/a\\nb' has an unprintable character in it"


def test_the_agent_asks_at_the_tag_s_interval_with_a_quarter_of_it_as_jitter() -> None:
    node = Node("n001", tags={"agent_interval": "600"})

    timer = rendered(node, "agent")["etc/systemd/system/bootd-agent.timer"].content.decode()
    settings = rendered(node, "agent")["etc/bootd/agent"].content.decode()

    assert "OnUnitInactiveSec=600\nRandomizedDelaySec=150\n" in timer
    assert "INTERVAL=600\n" in settings
    assert "INTERVAL=60\n" in rendered(PLAIN, "agent")["etc/bootd/agent"].content.decode()


@pytest.mark.parametrize("interval", ["9", "86401", "often", "-5"])
def test_an_interval_that_is_none_is_told(interval: str) -> None:
    with pytest.raises(RenderError, match="seconds from 10 to 86400"):
        rendered(Node("n001", tags={"agent_interval": interval}), "agent")


def test_what_differs_between_two_archives_is_told_by_path(tmp_path: Path) -> None:
    before = load(tmp_path, "{}", etc_a="1", etc_b="1", etc_c="1")
    (tmp_path / "own/rootfs/etc/c").unlink()
    (tmp_path / "own/rootfs/etc/b").chmod(0o600)
    after = load(tmp_path, "{}", etc_a="1", etc_d="1")
    node = Node("n001", overlays_system=("own",))
    manifests = [
        manifest(render(Registry(Settings(), {"n001": node}, {}, {"own": it}, {}), node, "system",
                        EXAMPLE_SERVER))
        for it in (before, after)
    ]  # fmt: skip

    assert differing(*manifests) == {"etc/b": "changed", "etc/c": "removed", "etc/d": "added"}
    assert differing(manifests[0], manifests[0]) == {}
