"""``bootd inventory``: what Ansible is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bootd.cli import cli
from bootd.cli.inventory import group_name

NODES = """\
profiles:
  default: {kernel: {args: [quiet]}}
  gpu: {profiles: [default], tags: {role: gpu}}
nodes:
  n001:
    {mac: 52:54:00:12:34:56, ip: 10.0.0.11/24, profiles: [gpu], tags: {rack: r1}, asset_key: hush}
  n002: {resources: {users: [{password: hush}]}}
  n003: {profiles: []}
"""

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "bootd.yaml").write_text(f"state_dir: {tmp_path}/state\n")
    (tmp_path / "nodes.yaml").write_text(NODES)

    def run_it(*words: str) -> Result:
        return CliRunner().invoke(
            cli, ["inventory", *words, "--config", str(tmp_path / "bootd.yaml")]
        )

    return run_it


def test_profiles_and_tags_are_groups_of_nodes(run: Run) -> None:
    listed = json.loads(run("--list").stdout)

    assert listed["default"]["hosts"] == ["n001", "n002"]
    assert listed["gpu"]["hosts"] == ["n001"]
    assert listed["role_gpu"]["hosts"] == ["n001"]
    assert listed["rack_r1"]["hosts"] == ["n001"]
    assert listed["all"]["hosts"] == ["n001", "n002", "n003"]
    assert set(listed["all"]["children"]) == {"default", "gpu", "role_gpu", "rack_r1", "ungrouped"}


def test_a_nodes_variables_are_in_the_list_and_by_themselves(run: Run) -> None:
    listed = json.loads(run("--list").stdout)["_meta"]["hostvars"]
    alone = json.loads(run("--host", "n001").stdout)

    assert listed["n001"] == alone
    assert alone["ansible_host"] == "10.0.0.11"
    assert alone["bootd_mac"] == "52:54:00:12:34:56"
    assert alone["bootd_tags"] == {"role": "gpu", "rack": "r1"}
    assert "ansible_host" not in listed["n002"]


def test_nothing_secret_is_in_it(run: Run) -> None:
    assert "hush" not in run("--list").stdout


@pytest.mark.parametrize("words", [(), ("--list", "--host", "n001"), ("--host", "nobody")])
def test_wrong_input_is_told(run: Run, words: tuple[str, ...]) -> None:
    result = run(*words)

    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("text", "name"),
    [("gpu-a100", "gpu_a100"), ("rack_1.2", "rack_1_2"), ("all", "_all"), ("1st", "_1st")],
)
def test_any_name_becomes_one_that_ansible_takes(text: str, name: str) -> None:
    assert group_name(text) == name
