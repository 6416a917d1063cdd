"""``bootd doctor``: what it makes of what it finds. The wire itself is in integration tests."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner

from bootd.cli import cli
from bootd.cli.segment import Heard, judge
from bootd.model import DhcpMode, UnknownPolicy

OURS = "10.0.0.1"
LEASE = Heard("10.0.0.9", "10.0.0.50", "", "", netmask=True, after=0.1)
MINE = Heard(OURS, "", "x/snponly.efi", "PXEClient", netmask=False, after=0.01)

Doctor = Callable[..., tuple[int, dict[str, str]]]


def found(*heard: Heard, **settings: Any) -> dict[str, str]:
    """What is said of these offers, and how bad it is."""
    given: dict[str, Any] = {
        "running": True,
        "mode": DhcpMode.PROXY,
        "unknown": UnknownPolicy.HOLD,
        **settings,
    }
    return {finding.what: finding.level for finding in judge("eth1", heard, OURS, **given)}


def worst(*heard: Heard, **settings: Any) -> str:
    levels = found(*heard, **settings).values()
    return max(levels, key=("ok", "warn", "fail").index)


def test_a_dhcp_server_and_bootd_are_all_that_a_boot_needs() -> None:
    assert worst(LEASE, MINE) == "ok"


@pytest.mark.parametrize(
    ("heard", "word"),
    [
        ([MINE], "nobody gives addresses"),
        ([LEASE], "no answer from it"),
        ([replace(LEASE, netmask=False), MINE], "netmask"),
        ([replace(LEASE, vendor_class="PXEClient"), MINE], "option 60"),
        ([LEASE, MINE, replace(MINE, server="10.0.0.8", file="pxe.0")], "another boot server"),
    ],
)
def test_what_keeps_machines_from_booting_is_named(heard: list[Heard], word: str) -> None:
    assert [what for what, level in found(*heard).items() if level == "fail" and word in what]


@pytest.mark.parametrize(
    "heard",
    [
        [LEASE, replace(LEASE, server="10.0.0.8"), MINE],
        [replace(LEASE, file="pxelinux.0"), MINE],
        [LEASE, replace(MINE, after=1.5)],
    ],
)
def test_what_is_only_suspicious_is_a_warning(heard: list[Heard]) -> None:
    assert worst(*heard) == "warn"


def test_an_unknown_machine_need_not_be_answered_where_the_settings_say_so() -> None:
    assert worst(LEASE, unknown=UnknownPolicy.IGNORE) == "ok"
    assert worst(LEASE, running=False) == "ok"
    assert worst(MINE, mode=DhcpMode.RESERVATION) == "ok"


# ---- this machine --------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level, logging.raiseExceptions = handlers, level, raising
    sys.excepthook = sys.__excepthook__


@pytest.fixture
def taken() -> Iterator[int]:
    """A TCP port that another process has."""
    program = (
        "import socket; s = socket.create_server(('127.0.0.1', 0));"
        "print(s.getsockname()[1], flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        yield int(other.stdout.readline())
        other.kill()


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    """Runs the command without the wire; exit code, and levels by what was said."""
    (tmp_path / "nodes.yaml").write_text("nodes: {n001: {mac: 52:54:00:12:34:56}}\n")
    keys = tmp_path / "state/keys"
    keys.mkdir(parents=True)
    (keys / "a.key").write_bytes(bytes(32))
    (keys / "a.key").chmod(0o600)
    loaders = tmp_path / "state/tftp"
    loaders.mkdir()
    for name in ("snponly.efi", "undionly.kpxe"):
        (loaders / name).write_bytes(b"MZ")

    def run(**settings: Any) -> tuple[int, dict[str, str]]:
        config = tmp_path / "bootd.yaml"
        ports: dict[str, Any] = {"http": {"port": 9}, "tftp": {"enabled": False}}
        ports |= {"dhcp": {"mode": "off"}, "interfaces": ["lo"]}
        folders = {"state_dir": f"{tmp_path}/state", "run_dir": f"{tmp_path}/run"}
        config.write_text(json.dumps({**ports, **folders, **settings}))
        words = ["doctor", "--no-wire", "--json", "--config", str(config)]
        result = CliRunner().invoke(cli, words)
        findings = json.loads(result.stdout)["findings"]
        return result.exit_code, {f"{f['about']}: {f['what']}": f["level"] for f in findings}

    return run


def said(findings: dict[str, str], level: str, word: str) -> bool:
    return any(word in what and found == level for what, found in findings.items())


def test_a_server_that_is_in_order_is_told_so(doctor: Doctor) -> None:
    code, findings = doctor()

    assert said(findings, "ok", "1 nodes")
    assert said(findings, "warn", "not running")
    assert said(findings, "ok", "interface lo")
    assert "fail" not in {level for what, level in findings.items() if "belongs to" not in what}
    assert code in (0, 1)  # where there is a user bootd, the folder is not his


def test_faults_of_the_files_are_told_and_the_rest_is_looked_at(
    doctor: Doctor, tmp_path: Path
) -> None:
    (tmp_path / "nodes.yaml").write_text("nodes: {n001: {mac: zz}}\n")

    code, findings = doctor()

    assert code == 1
    assert said(findings, "fail", "nodes.yaml:1:21")
    assert said(findings, "ok", "interface lo")


def test_an_interface_that_is_not_there_is_told(doctor: Doctor) -> None:
    code, findings = doctor(interfaces=["nosuch0"])

    assert code == 1
    assert said(findings, "fail", "interface nosuch0: is not there")


def test_a_taken_port_is_told_with_its_holder(doctor: Doctor, taken: int) -> None:
    code, findings = doctor(http={"port": taken})

    assert code == 1
    assert said(findings, "fail", f"TCP {taken} is held by")


def test_keys_that_others_can_read_are_told(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "state/keys/a.key").chmod(0o644)

    code, findings = doctor()

    assert code == 1
    assert said(findings, "fail", "can be read by others")


def test_a_missing_boot_loader_is_told(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "nodes.yaml").write_text("nodes: {n001: {loader: special.efi}}\n")

    code, findings = doctor()

    assert code == 1
    assert said(findings, "fail", "there is no special.efi")
