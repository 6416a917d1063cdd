"""The command line without a daemon: help, checks, explanations, exit codes, numbers for people."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner, Result
from rich.console import Console

from bootd.cli import COMMANDS, cli, main
from bootd.cli.client import Client
from bootd.cli.common import duration, size, table
from bootd.cli.status import _picture, row

NODES = """\
profiles:
  default:
    kernel: {args: [quiet]}
    overlays: {system: [base]}
nodes:
  n001: {mac: 52:54:00:12:34:56, ip: 10.0.0.11/24, tags: {rack: r1}, asset_key: hush-hush}
  n002: {boot: local, mac: 52:54:00:12:34:57}
  n003: {}
"""

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Commands that use the daemon's parts make it silent, for a whole process."""
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level, logging.raiseExceptions = handlers, level, raising
    sys.excepthook = sys.__excepthook__


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command with settings of its own, in this process."""
    (tmp_path / "nodes.yaml").write_text(NODES)
    (tmp_path / "bootd.yaml").write_text(
        f"interfaces: [lo]\nstate_dir: {tmp_path}/state\nrun_dir: {tmp_path}/run\n"
    )

    def run_it(*words: str, nodes: str = NODES) -> Result:
        (tmp_path / "nodes.yaml").write_text(nodes)
        return CliRunner().invoke(cli, [*words, "--config", str(tmp_path / "bootd.yaml")])

    return run_it


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_there_is_has_help(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"])

    assert result.exit_code == 0, result.output
    assert "Usage" in result.output


def test_the_settings_may_be_named_before_or_after_the_command_or_by_the_environment(
    tmp_path: Path,
) -> None:
    missing = str(tmp_path / "none.yaml")
    for words, environ in (
        (["--config", missing, "check"], {}),
        (["check", "--config", missing], {}),
        (["check", "-c", missing], {}),
        (["image", "--config", missing, "list"], {}),
        (["image", "list", "--config", missing], {}),
        (["overlay", "list", "-c", missing], {}),
        (["check"], {"BOOTD_CONFIG": missing}),
    ):
        result = CliRunner().invoke(cli, words, env=environ)

        assert result.exit_code == 2
        assert "none.yaml" in result.output


def test_check_of_good_files_is_a_summary(run: Run) -> None:
    result = run("check")

    assert result.exit_code == 0
    assert "3 nodes" in result.output
    assert "without a MAC address, so never booted: n003" in result.output


def test_check_of_broken_files_is_exit_2_with_every_fault(run: Run) -> None:
    broken = NODES.replace("52:54:00:12:34:56", "zz").replace("boot: local", "boot: later")

    result = run("check", nodes=broken)

    assert result.exit_code == 2
    assert "nodes.yaml:6:" in result.stderr
    assert "nodes.yaml:7:" in result.stderr
    assert "2 faults" in result.stderr
    assert result.stdout == ""


def test_check_for_programs_is_json_both_ways(run: Run) -> None:
    good = run("check", "--json")
    bad = run("check", "--json", nodes="nodes: 5\n")

    assert json.loads(good.stdout)["nodes"] == 3
    assert bad.exit_code == 2
    assert json.loads(bad.stdout)["faults"]


def test_check_warns_of_nodes_that_lack_an_asset_key(run: Run, tmp_path: Path) -> None:
    switched = NODES.replace("boot: local,", "boot: local, security: warewulf,")
    weak = run("check", nodes=switched)
    assert "warning: n002: security: warewulf without an asset_key" in weak.output
    assert "asset_key" not in run("check").output

    settings = tmp_path / "bootd.yaml"
    settings.write_text(settings.read_text() + "security: {asset_key: required}\n")

    assert "warning: n[002-003]: without an asset_key" in run("check").output


def test_check_warns_of_a_folder_of_the_site_that_is_not_there(run: Run, tmp_path: Path) -> None:
    settings = tmp_path / "bootd.yaml"
    settings.write_text(settings.read_text() + "overlays: [overlays, more]\ntemplates: [mine]\n")
    (tmp_path / "mine").mkdir()

    result = run("check")

    assert result.exit_code == 0
    assert f"warning: overlays: there is no folder {tmp_path}/more" in result.output
    assert result.output.count("no folder") == 1


def explained(run: Run, *words: str) -> dict[str, Any]:
    result = run("explain", *words, "--server", "10.0.0.1", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert isinstance(answer, dict)
    return answer


def test_explain_gives_every_value_with_its_place(run: Run) -> None:
    values = {each["key"]: each for each in explained(run, "n001")["values"]}

    assert values["mac"]["value"] == "52:54:00:12:34:56"
    assert values["mac"]["origin"].startswith("nodes.yaml:6:")
    assert values["kernel.args[0]"]["value"] == "quiet"
    assert values["kernel.args[0]"]["origin"].startswith("nodes.yaml:3:")
    assert values["tags.rack"]["value"] == "r1"
    assert values["overlays.system[0]"]["value"] == "base"


def test_explain_does_not_show_an_asset_key(run: Run) -> None:
    assert "hush-hush" not in json.dumps(explained(run, "n001"))


def test_explain_answers_for_firmware_and_for_the_loader(run: Run) -> None:
    firmware, loader = explained(run, "n001")["dhcp"]

    assert firmware["boot_file"] == "52-54-00-12-34-56/snponly.efi"
    assert (firmware["siaddr"], firmware["yiaddr"]) == ("10.0.0.1", "0.0.0.0")
    assert loader["boot_file"] == "http://10.0.0.1:9873/ipxe/52-54-00-12-34-56"
    assert firmware["options"]["43 vendor"] == "06:01:08:ff"


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["--arch", "bios"], "undionly.kpxe"),
        (["--arch", "0"], "undionly.kpxe"),
        (["--arch", "arm64"], "snponly-arm64.efi"),
        (["--arch", "x64-http"], "http://10.0.0.1:9873/"),
        (["--class", "HTTPClient"], "http://10.0.0.1:9873/"),
        (["--user-class", "iPXE"], "/ipxe/"),
    ],
)
def test_explain_asks_as_the_machine_would(run: Run, words: list[str], file: str) -> None:
    assert file in explained(run, "n001", *words)["dhcp"][0]["boot_file"]


def test_explain_shows_the_script_and_the_files(run: Run) -> None:
    answer = explained(run, "n001")

    assert answer["script"]["text"].startswith("#!ipxe\n")
    assert answer["script"]["kind"] == "hold"
    assert "image" in answer["script"]["why"]
    assert "etc/hostname" in [entry["path"] for entry in answer["files"]["system"]]


def test_explain_of_a_node_that_boots_its_own_disk(run: Run) -> None:
    answer = explained(run, "52-54-00-12-34-57")

    assert answer["node"] == "n002"
    assert answer["script"]["kind"] == "local"
    assert "its own disk" in answer["decision"]


def test_explain_knows_of_a_node_that_has_booted_once(run: Run, tmp_path: Path) -> None:
    once = NODES.replace("boot: local", "boot: once")
    result = run("explain", "n002", "--json", nodes=once)
    assert "once, then its own disk" in json.loads(result.stdout)["decision"]
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "learned.json").write_text('{"once_done": ["n002"]}')

    answer = json.loads(run("explain", "n002", "--json", nodes=once).stdout)

    assert answer["decision"].endswith(
        "is n002, which boots its own disk: it has booted once, as boot: once says"
    )
    assert answer["script"]["kind"] == "local"
    values = {each["key"]: each["value"] for each in answer["values"]}
    assert values["boot"] == "once"


def test_explain_of_a_machine_that_nobody_knows_is_what_it_would_get(run: Run) -> None:
    answer = explained(run, "52:54:00:00:00:99")

    assert answer["node"] is None
    assert "dhcp.unknown is hold" in answer["decision"]
    assert answer["script"]["kind"] == "hold"


def test_explain_for_people_has_all_parts(run: Run) -> None:
    result = run("explain", "n001", "--server", "10.0.0.1")

    assert result.exit_code == 0
    for part in ("Values", "DECIDED BY", "DHCP: DISCOVER", "Script (hold", "System overlay"):
        assert part in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["n01"], "did you mean 'n001'"),
        (["\x1b[2Jx"], "\\x1b"),
        (["n001", "--arch", "vax"], "one of bios"),
        (["n001", "--arch", "99999"], "below 65536"),
        (["n001", "--server", "here"], "--server here"),
    ],
)
def test_explain_of_nonsense_is_exit_2_with_a_sentence(
    run: Run, words: list[str], said: str
) -> None:
    result = run("explain", *words)

    assert result.exit_code == 2
    assert said in result.output
    assert "\x1b" not in result.output


def test_explain_finds_our_own_address_by_itself(run: Run) -> None:
    result = run("explain", "n001", "--json")

    assert json.loads(result.stdout)["server"] == "http://127.0.0.1:9873"


@pytest.mark.parametrize("file", ["nodes.yaml", "bootd.yaml"])
def test_the_schema_is_one_that_editors_take(file: str) -> None:
    from jsonschema import Draft202012Validator

    schema = json.loads(CliRunner().invoke(cli, ["schema", file]).stdout)

    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("command", ["status", "nodes", "unknown", "reload", "watch"])
def test_without_a_daemon_every_question_is_exit_1_with_what_to_do(run: Run, command: str) -> None:
    result = run(command)

    assert result.exit_code == 1
    assert "systemctl status bootd" in result.output


def test_version_tells_its_own_where_no_daemon_runs(run: Run) -> None:
    result = run("version", "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["daemon"] is None


def test_an_unknown_command_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["chek"])

    assert caught.value.code == 2
    assert "No such command 'chek'; did you mean 'check'?" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_gets_no_traceback() -> None:
    program = f"{sys.executable} -m bootd schema | head -n 1 > /dev/null; echo ${{PIPESTATUS[0]}}"

    result = subprocess.run(
        ["bash", "-c", program],
        env={**os.environ, "PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert "Traceback" not in result.stderr


def test_columns_are_as_wide_as_they_need_to_be() -> None:
    assert table(["A", "B"], [["long", "x"], ["y", ""]]) == "A     B\nlong  x\ny"


def test_what_a_machine_wrote_cannot_move_the_cursor() -> None:
    assert "\x1b" not in table(["A"], [["\x1b[2J"]])


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_440_000, "1.4 MB"),
        (250_000_000, "250 MB"),
        (3_200_000_000, "3.2 GB"),
        (5_000_000_000_000, "5.0 TB"),
    ],
)
def test_sizes_for_people(number: float | None, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.04, "0.0 s"), (21.34, "21.3 s"), (90, "2 min"), (7200, "2 h"), (90000, "1 d")],
)
def test_times_for_people(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_node_under_way_is_one_line() -> None:
    line = row(
        {
            "node": "n001",
            "mac": "52:54:00:12:34:56",
            "stage": "initramfs",
            "bytes": 21_000_000,
            "percent": 42.2,
            "rate": 11_000_000,
            "seconds": 9.31,
            "age": 0.2,
            "stale": None,
            "refresh": None,
            "error": "",
        }
    )

    assert line == [
        "n001",
        "initramfs",
        "21.0 MB",
        "42",
        "11.0 MB/s",
        "9.3 s",
        "0.2 s ago",
        "-",
        "",
    ]


def seen(name: str, stage: str | None, error: str = "") -> dict[str, Any]:
    numbers = dict.fromkeys(("bytes", "percent", "rate"))
    outcome = "up" if stage == "up" else "booting"
    rest = {"outcome": outcome, "seconds": 1.0, "age": 1.0, "error": error}
    numbers |= {"stale": None, "refresh": None}
    return {"node": name, "mac": None, "stage": stage, **numbers, **rest}


def test_a_node_that_runs_something_old_or_refreshes_badly_says_so() -> None:
    up = seen("n001", "up")

    assert row(up)[-2:] == ["?", ""]
    assert row({**up, "stale": []})[-2:] == ["-", ""]
    bad = {"result": "failed", "failed_hooks": 0, "error": "no answer"}
    assert row({**up, "stale": ["kernel", "system"], "refresh": bad})[-2:] == [
        "kernel system",
        "refresh: no answer",
    ]
    hooks = {"result": "ok", "failed_hooks": 1, "error": "failed: x"}
    assert row({**up, "refresh": hooks})[-1] == "refresh: failed: x"
    assert row({**up, "refresh": {**hooks, "failed_hooks": 0}})[-1] == ""


@pytest.mark.parametrize("command", ["status", "nodes"])
def test_a_list_is_of_the_nodes_that_are_named_and_a_name_that_is_none_is_exit_2(
    run: Run, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [{"node": f"n{number:03}"} for number in range(1, 5)]
    answer: Any = names if command == "nodes" else {"nodes": names, "unknown": [{"mac": "x"}]}
    monkeypatch.setattr(Client, "get", lambda *_: answer)

    found = json.loads(run(command, "n[002-003]", "--json").stdout)
    wrong = run(command, "n001", "n04")
    many = run(command, "n[001-009]")
    bad = run(command, "n[1-")

    rows = found if command == "nodes" else found["nodes"]
    assert [row["node"] for row in rows] == ["n002", "n003"]
    assert (wrong.exit_code, wrong.stderr) == (
        2,
        "Error: n04: no node is called that; did you mean 'n004'?\n",
    )
    assert (many.exit_code, many.stderr) == (2, "Error: n[005-009]: no node is called that\n")
    assert bad.exit_code == 2
    assert "n[1- is no node set" in bad.stderr


class Enough(Exception):
    """The reader has seen enough."""


def test_watch_into_a_pipe_is_a_table_or_a_line_of_json_for_each_look(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"nodes": [seen("n001", "up"), seen("n002", None)], "unknown": []}
    monkeypatch.setattr(Client, "get", lambda *_: answer)
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            raise Enough

    monkeypatch.setattr(time, "sleep", sleep)
    plain = run("watch", "--interval", "2.5")
    looks.clear()
    lines = run("watch", "--json").stdout.splitlines()

    assert isinstance(plain.exception, Enough)
    assert plain.stdout.count("1 up (") == 2
    assert "n002" not in plain.stdout
    assert "\x1b" not in plain.stdout
    assert [[row["node"] for row in json.loads(line)] for line in lines] == [["n001"], ["n001"]]
    assert run("watch", "--interval", "0").exit_code == 2


def test_watch_shows_who_boots_first_and_leaves_out_who_never_asked() -> None:
    class Daemon(Client):
        def get(self, *parts: str) -> Any:
            nodes = [seen("n001", "up"), seen("n002", None), seen("n003", "fail", "\x1b[2J[red]x")]
            return {"nodes": nodes, "unknown": []}

    screen = io.StringIO()
    Console(file=screen, width=100).print(_picture(Daemon("nowhere"), ()))

    shown = screen.getvalue()
    assert shown.index("n003") < shown.index("n001")
    assert "n002" not in shown
    assert "1 up" in shown
    assert "\x1b" not in shown
    assert "[red]x" in shown
