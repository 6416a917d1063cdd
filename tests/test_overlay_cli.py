"""``bootd overlay``: what an operator types, sees, and gets as exit code."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bootd.cli import cli
from bootd.model import NetDev, Node
from bootd.overlay import reference
from bootd.overlay.links import Link

Run = Callable[..., Result]
DOCS = Path(__file__).parents[1] / "docs" / "templates.md"

NODES = """
profiles: {default: {overlays: {system: [base, ssh], runtime: [hosts]}}}
nodes:
  n001: {mac: 52:54:00:12:34:56, ip: 10.0.0.11/24, profiles: [default]}
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs ``bootd overlay …`` on a configuration of its own, with one file of the site."""
    (tmp_path / "bootd.yaml").write_text("state_dir: state\nrun_dir: run\n")
    (tmp_path / "nodes.yaml").write_text(NODES)
    file = tmp_path / "overlays/base/rootfs/etc/issue"
    file.parent.mkdir(parents=True)
    file.write_text("ours\n")

    def run(*arguments: str) -> Result:
        command = ["--config", str(tmp_path / "bootd.yaml"), "overlay", *arguments]
        return CliRunner().invoke(cli, command)

    return run


def render(run: Run, *arguments: str) -> Result:
    return run("render", *arguments, "n001", "--server", "10.0.0.1")


def test_the_list_says_what_stands_in_front_of_what(run: Run, tmp_path: Path) -> None:
    result = run("list")

    assert result.exit_code == 0
    assert "base " in result.stdout
    assert "site over distribution" in result.stdout
    file = tmp_path / "overlays/base/rootfs/etc/issue"
    assert f"base: {file} stands in front of " in result.stdout


def test_the_list_as_json_has_descriptions_and_shadows(run: Run) -> None:
    listed = {row["name"]: row for row in json.loads(run("list", "--json").stdout)}

    assert listed["hosts"]["description"].startswith("Every node")
    assert [shadow["path"] for shadow in listed["base"]["shadows"]] == ["etc/issue"]


def test_an_overlay_is_shown_with_modes_and_sources(run: Run) -> None:
    shown = run("show", "base").stdout
    told = json.loads(run("show", "base", "--json").stdout)

    assert "/etc/machine-id" in shown
    assert "0444 0:0" in shown
    assert {"etc/issue": "file", "etc/hostname": "template"}.items() <= {
        entry["path"]: entry["kind"] for entry in told["entries"]
    }.items()


def test_owners_by_name_are_shown_as_names(run: Run, tmp_path: Path) -> None:
    (tmp_path / "overlays/base/overlay.yaml").write_text("paths: {etc/issue: {owner: munge}}")

    entries = json.loads(run("show", "base", "--json").stdout)["entries"]
    (issue,) = [entry for entry in entries if entry["path"] == "etc/issue"]

    assert "0644 munge:0" in run("show", "base").stdout
    assert (issue["uid"], issue["gid"]) == ("munge", 0)


def test_folders_that_overlay_yaml_declares_are_shown(run: Run, tmp_path: Path) -> None:
    (tmp_path / "overlays/base/overlay.yaml").write_text("directories: {srv/x: {mode: 0750}}")

    shown = run("show", "base").stdout

    assert re.search(r"/srv/x +dir +0750 0:0", shown)
    assert not re.search(r"/etc +dir", shown)


def test_a_path_gives_exactly_the_nodes_bytes(run: Run) -> None:
    assert render(run, "/etc/hostname").stdout_bytes == b"n001\n"
    assert render(run, "etc/issue").stdout_bytes == b"ours\n"


def test_a_file_of_both_classes_is_the_runtime_overlays(run: Run) -> None:
    assert "ip6-allrouters\n10.0.0.11\tn001\n" in render(run, "/etc/hosts").stdout


def test_an_overlay_gives_all_its_paths_whether_the_node_has_it_or_not(run: Run) -> None:
    shown = render(run, "localtime").stdout

    assert "==> /etc/localtime -> ../usr/share/zoneinfo/UTC (lrwxrwxrwx 0:0)" in shown
    assert "==> /etc/timezone (-rw-r--r-- 0:0)\nUTC\n" in shown


def test_an_archive_is_what_the_node_would_get(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "n001.cpio"

    result = render(run, "system", "--archive", str(file))

    listing = subprocess.run(
        ["cpio", "-it", "--quiet"], input=file.read_bytes(), capture_output=True, check=True
    )
    names = listing.stdout.decode().split()
    assert {"etc/hostname", "etc/ssh/ssh_host_rsa_key"} <= set(names)
    assert f"{len(names)} paths" in result.stdout
    assert file.stat().st_mode & 0o077 == 0
    assert render(run, "system", "--archive", "-").stdout_bytes == file.read_bytes()


def test_rendering_makes_no_keys(run: Run, tmp_path: Path) -> None:
    assert "made when the node first boots" in render(run, "ssh").stdout
    assert not (tmp_path / "state").exists()


def test_the_difference_is_from_the_distributions_file_to_the_sites(run: Run) -> None:
    result = run("diff", "base")

    assert "-{{ node.name }}" in result.stdout
    assert "\n+ours\n" in result.stdout
    assert run("diff", "hosts").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "bas"), "there is no overlay bas; did you mean 'base'?"),
        (("diff", "absent"), "there is no overlay absent"),
        (("render", "/etc/absent", "n001"), "no file that n001's overlays make"),
        (("render", "base", "n01"), "there is no node n01; did you mean 'n001'?"),
        (("render", "chrony", "n001"), "node n001: resources.ntp names neither"),
        (("render", "/etc/hosts", "n001", "--archive", "x"), "not a path"),
        (("render", "base", "n001", "--server", "x"), "--server x"),
    ],
)
def test_what_was_typed_wrong_is_told_with_exit_code_2(
    arguments: tuple[str, ...], says: str, run: Run
) -> None:
    result = run(*arguments)

    assert (result.exit_code, says in result.stderr) == (2, True), result.output


def test_an_archive_that_cannot_be_written_is_a_failure(run: Run) -> None:
    result = render(run, "system", "--archive", "/absent/x")

    assert (result.exit_code, "/absent/x: No such file" in result.stderr) == (1, True)


def test_a_fault_in_a_template_is_told_with_its_place(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "overlays/base/rootfs/etc/motd.j2"
    file.write_text("\n{{ nodee }}")

    result = render(run, "base")

    assert result.exit_code == 2
    assert "overlays/base/rootfs/etc/motd.j2:2:1: nodes.n001: 'nodee' is" in result.stderr


def test_the_documentation_has_the_whole_reference(run: Run) -> None:
    """After a change: ``bootd overlay reference`` prints what docs/templates.md must have."""
    assert run("reference").stdout in DOCS.read_text()


def test_the_reference_names_every_field() -> None:
    properties = {name for name in vars(Link) if isinstance(vars(Link)[name], property)}

    assert set(reference.NODE) == {f.name for f in fields(Node)} - {"asset_key", "origins"} | {
        "macs"
    }
    assert set(reference.DEVICE) == {f.name for f in fields(NetDev)}
    assert set(reference.LINK) == {f.name for f in fields(Link)} | properties
