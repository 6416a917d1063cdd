"""``bootd image``: what an operator types, sees, and gets as exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bootd.cli import cli
from bootd.cli.client import Client
from bootd.cli.common import Failure

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs ``bootd image …`` on a configuration of its own."""
    config = tmp_path / "bootd.yaml"
    config.write_text("state_dir: state\nrun_dir: run\n")
    (tmp_path / "nodes.yaml").write_text("nodes: {}\n")
    (tmp_path / "k").write_bytes(b"MZ kernel")
    (tmp_path / "i").write_bytes(b"070701 initramfs")

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["--config", str(config), "image", *arguments])

    return run


@pytest.fixture
def imported(run: Run, tmp_path: Path) -> Callable[..., Result]:
    def imported(name: str = "debian", *more: str) -> Result:
        files = ["--kernel", str(tmp_path / "k"), "--initramfs", str(tmp_path / "i")]
        return run("import", name, *files, *more)

    return imported


def listed(run: Run) -> list[dict[str, object]]:
    result = run("list", "--json")
    assert result.exit_code == 0
    found: list[dict[str, object]] = json.loads(result.stdout)
    return found


def test_an_import_is_listed_and_shown(run: Run, imported: Run, tmp_path: Path) -> None:
    result = imported()

    (generation,) = listed(run)
    name = str(generation["generation"])
    assert result.exit_code == 0
    assert f"imported debian {name}: 25 B" in result.stdout
    assert "bootd is not running here" in result.stdout
    assert generation["active"] is True
    assert "debian" in run("list").stdout
    shown = run("show", "debian").stdout
    assert f"debian {name} (active)" in shown
    assert str(tmp_path / "k") in shown


def test_progress_is_a_line_per_file_where_there_is_no_terminal(imported: Run) -> None:
    assert imported().stderr == "kernel: 9 B\ninitramfs: 16 B\n"


def test_a_generation_is_activated_verified_and_deleted(run: Run, imported: Run) -> None:
    first = imported()
    second = imported("debian", "--no-activate")
    assert "not active; `bootd image activate debian" in second.stdout
    old, new = (str(generation["generation"]) for generation in listed(run))

    assert run("activate", "debian").stdout.startswith(f"active: debian {new}")
    assert run("verify", "debian", new).stdout == f"in order: debian {new}\n"
    assert run("delete", "debian", old).exit_code == 0
    assert [generation["generation"] for generation in listed(run)] == [new]
    assert first.exit_code == second.exit_code == 0


def test_no_images_say_how_to_make_one(run: Run) -> None:
    assert "bootd image import NAME" in run("list").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "absent"), "there is no image 'absent'; images: debian"),
        (("activate", "debian", "20200101-000000-abcd"), "has no generation"),
        (("import", "a/b", "--kernel", "k", "--initramfs", "i"), "is not a name"),
        (("import", "x", "--kernel", "/absent", "--initramfs", "i"), "cannot be read"),
        (("import", "x"), "Name a SOURCE, or --kernel FILE and --initramfs FILE"),
    ],
)
def test_what_was_typed_wrong_is_told_with_exit_code_2(
    arguments: tuple[str, ...], says: str, run: Run, imported: Run
) -> None:
    imported()

    result = run(*arguments)

    assert result.exit_code == 2
    assert says in result.stderr


def test_deleting_the_active_generation_is_refused(run: Run, imported: Run) -> None:
    imported()
    (generation,) = listed(run)

    result = run("delete", "debian", str(generation["generation"]))

    assert (result.exit_code, "is active: nodes boot it" in result.stderr) == (2, True)


def test_a_damaged_generation_is_told_and_fails_verification(
    run: Run, imported: Run, tmp_path: Path
) -> None:
    imported()
    (generation,) = listed(run)
    name = str(generation["generation"])
    (tmp_path / f"state/images/debian/{name}/kernel").write_bytes(b"MZ kernal")

    result = run("verify", "debian", name)

    assert result.exit_code == 1
    assert "kernel has the SHA-256" in result.stderr


def test_a_wrong_configuration_is_told_before_anything_is_done(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bootd.yaml").write_text("state_dri: x\n")

    result = run("list")

    assert result.exit_code == 2
    assert "did you mean 'state_dir'" in result.stderr


@pytest.fixture
def daemon(tmp_path: Path) -> None:
    """A socket file, so that a daemon seems to run."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/control.sock").touch()


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        ((200, {}), 0, "the daemon has reloaded"),
        ((400, {"faults": ["nodes.yaml:1:1: broken"]}), 1, "nodes.yaml:1:1: broken"),
        (Failure("no answer."), 1, "The image is active on disk"),
    ],
)
def test_the_running_daemon_is_told_and_what_it_says_is_passed_on(
    answer: tuple[int, object] | Failure,
    code: int,
    says: str,
    imported: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def post(self: Client, *parts: str, body: object = None) -> tuple[int, object]:
        assert parts == ("reload",)
        if isinstance(answer, Failure):
            raise answer
        return answer

    monkeypatch.setattr(Client, "post", post)

    result = imported()

    assert (result.exit_code, says in result.output) == (code, True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A root that boots, in small."""
    folder = tmp_path / "root"
    (folder / "sbin").mkdir(parents=True)
    (folder / "sbin/init").write_text("#!/bin/sh\n")
    (folder / "sbin/init").chmod(0o755)
    return folder


def test_a_folder_is_imported_and_its_warnings_are_told(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "nodes.yaml").write_text(
        """nodes:
  n1: {mac: "52:54:00:00:00:01", image: x, resources: {memory: 64}}
  n2: {mac: "52:54:00:00:00:02", image: x, resources: {memory: 128}}
  n3: {mac: "52:54:00:00:00:03", image: x, resources: {memory: 64G}}
"""
    )

    result = run("import", "x", str(folder), "--kernel", str(tmp_path / "k"))

    assert result.exit_code == 0
    assert "3 files, 0 MB" in result.stderr
    assert "a node holds" in result.stdout
    assert "warning: node n1 (and 1 other node) has 64 MiB of memory" in result.stderr
    assert "method initramfs needs 257 MiB" in result.stderr
    (made,) = listed(run)
    assert made["nodes"] == ["n1", "n2", "n3"]
    assert "3 (n1, …)" in run("list").stdout
    assert "root      of unknown kind, 3 files" in run("show", "x").stdout


def test_one_command_goes_back_and_gc_keeps_what_is_used(
    run: Run, imported: Run, tmp_path: Path
) -> None:
    for _ in range(4):
        imported()
    names = [str(g["generation"]) for g in listed(run)]
    (tmp_path / "nodes.yaml").write_text(
        f'nodes: {{n1: {{mac: "52:54:00:00:00:01", image: debian@{names[0]}}}}}\n'
    )

    assert run("activate", "debian", "--previous").stdout.startswith(f"active: debian {names[2]}")
    both = run("activate", "debian", names[0], "--previous")
    refused = run("delete", "debian", names[0])
    dry = json.loads(run("gc", "--keep", "1", "--dry-run", "--json").stdout)
    gone = run("gc", "--keep", "1")

    assert (both.exit_code, "but not both" in both.stderr) == (2, True)
    assert (refused.exit_code, "node n1 names it" in refused.stderr) == (2, True)
    assert [entry["generation"] for entry in dry] == [names[1]]
    assert f"removed: debian {names[1]}, 25 B\n1 generation, 25 B" in gone.stdout
    assert [g["generation"] for g in listed(run)] == [names[0], *names[2:]]


def test_an_image_that_no_node_boots_is_removed_as_a_whole(
    run: Run, imported: Run, tmp_path: Path
) -> None:
    imported()
    imported("other")
    (tmp_path / "nodes.yaml").write_text('nodes: {n1: {mac: "52:54:00:00:00:01", image: debian}}\n')

    refused = run("delete", "debian", "--all")
    neither = run("delete", "debian")
    gone = run("delete", "other", "--all")

    assert (refused.exit_code, "node n1 boots it" in refused.stderr) == (2, True)
    assert (neither.exit_code, "name the generation" in neither.stderr) == (2, True)
    assert gone.stdout.startswith("deleted: other\n")
    assert [g["name"] for g in listed(run)] == ["debian"]
    assert [path.name for path in (tmp_path / "state/images").iterdir()] == ["debian"]


def test_nothing_is_removed_while_the_configuration_has_faults(
    run: Run, imported: Run, tmp_path: Path
) -> None:
    imported()
    imported()
    (tmp_path / "nodes.yaml").write_text("nodes: {n1: {mac: zz}}\n")

    for words in (("gc", "--keep", "1"), ("delete", "debian", str(listed(run)[0]["generation"]))):
        result = run(*words)
        assert result.exit_code == 1
        assert "cannot be told while the configuration has faults" in result.stderr
    assert len(listed(run)) == 2
    assert listed(run)[0]["nodes"] is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("import", "x", "/absent"), "there is nothing of that name"),
        (("import", "x", "ROOT", "--max-size", "much"), "'much' is not a size"),
        (("import", "x", "ROOT", "--exclude", "../x"), "a path from the root has no .."),
        (("import", "x", "ROOT", "--excludes", "/absent"), "No such file"),
        (("import", "x", "ROOT", "--initramfs", "i"), "--initramfs goes with --kernel"),
        (("import", "x", "ROOT", "--kernel", "ROOT/sbin/init"), "does not begin as a kernel"),
        (("exec", "x"), "Missing argument"),
        (("exec", "absent", "--", "true"), "there is no image 'absent'"),
        (("shell", "debian"), "has no root to work in"),
        (("exec", "debian", "--node", "nobody", "--", "true"), "there is no node nobody"),
        (("gc", "--keep", "0"), "0 is not in the range"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_changes_nothing(
    words: tuple[str, ...], says: str, run: Run, imported: Run, folder: Path
) -> None:
    imported()
    before = listed(run)

    result = run(*(word.replace("ROOT", str(folder)) for word in words))

    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert listed(run) == before


def test_the_profiles_of_suites_are_listed(run: Run) -> None:
    assert "hpc" in run("profiles").stdout
    assert {p["name"] for p in json.loads(run("profiles", "--json").stdout)} >= {"minimal", "hpc"}


def test_a_source_date_that_is_none_is_refused(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")

    result = run("import", "x", str(folder))

    assert (result.exit_code, "no seconds since 1970" in result.stderr) == (2, True)
