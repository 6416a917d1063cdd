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
