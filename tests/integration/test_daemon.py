"""The whole daemon on loopback: start, reload, signals, end."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.daemon import NODES, PATIENCE, Daemon, command

pytestmark = pytest.mark.integration


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path) as running:
        yield running


def test_it_says_ready_when_every_part_answers(daemon: Daemon) -> None:
    assert daemon.notified[-1] == "READY=1\nSTATUS=Serving 2 nodes, registry generation 1"
    assert daemon.get("/healthz")[0] == 200
    assert [row["node"] for row in daemon.ask("status")["nodes"]] == ["n001", "n002"]
    assert daemon.event("bootd.ready")["nodes"] == 2


def test_a_reload_serves_the_new_files_and_logs_what_changed(daemon: Daemon) -> None:
    daemon.nodes_file.write_text(NODES + "  n[003-012]: {}\n")

    done = daemon.command("reload")

    assert "n[003-012]" in done.stdout
    event = daemon.event("registry.loaded")
    assert (event["generation"], event["added"]) == (2, "n[003-012]")
    assert len(daemon.ask("nodes")) == 12


def test_a_signal_reloads_and_the_manager_hears_of_it(daemon: Daemon) -> None:
    daemon.nodes_file.write_text(NODES.replace("quiet", "verbose"))

    daemon.signal(signal.SIGHUP)

    assert "MONOTONIC_USEC=" in daemon.notification("RELOADING")
    assert daemon.notification("READY").endswith("registry generation 2")
    assert daemon.event("registry.loaded")["changed"] == "n[001-002]"


def test_a_broken_file_changes_nothing_and_the_command_shows_every_fault(daemon: Daemon) -> None:
    broken = NODES.replace("52:54:00:12:34:56", "zz").replace("quiet]", "quiet], foo: 1")
    daemon.nodes_file.write_text(broken)

    done = daemon.command("reload", check=False)

    assert done.returncode == 2
    assert "nodes.yaml:3:" in done.stderr
    assert "nodes.yaml:6:" in done.stderr
    assert "2 faults" in done.stderr
    faults = [daemon.event("registry.rejected")["fault"] for _ in range(2)]
    assert all(fault.startswith("nodes.yaml:") for fault in faults)
    assert len(daemon.ask("nodes")) == 2
    assert daemon.ask("version")["daemon"]["generation"] == 1


def test_a_storm_of_signals_is_a_few_reloads_and_no_request_fails(daemon: Daemon) -> None:
    for _number in range(500):
        os.kill(daemon.pid, signal.SIGHUP)
        assert daemon.get("/healthz")[0] == 200

    daemon.command("reload")

    assert daemon.ask("version")["daemon"]["generation"] <= 500
    assert daemon.alive()


def test_a_setting_that_needs_a_restart_is_named(daemon: Daemon) -> None:
    text = daemon.config.read_text()
    daemon.config.write_text(text.replace(str(daemon.http), str(daemon.http + 1)))

    done = daemon.command("reload")

    assert "http.port" in done.stderr
    assert daemon.event("registry.restart-needed")["settings"] == "http.port"
    assert daemon.get("/healthz")[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_well_at_once_when_nothing_is_under_way(
    daemon: Daemon, number: signal.Signals
) -> None:
    daemon.signal(number)

    assert daemon.wait(10) == 0
    assert daemon.rest()[-1]["event"] == "bootd.stopped"
    assert not (daemon.folder / "run" / "control.sock").exists()
    assert daemon.stderr.read_text() == ""


def test_a_connection_that_nobody_uses_does_not_hold_up_the_end(daemon: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", daemon.http)) as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        daemon.signal(signal.SIGTERM)

        assert daemon.wait(10) == 0


def test_a_second_signal_does_not_wait(daemon: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", daemon.http)) as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        daemon.signal(signal.SIGTERM)
        daemon.notification("STOPPING")
        daemon.signal(signal.SIGTERM)

        assert daemon.wait(10) == 0


def test_a_broken_file_at_the_start_is_exit_2_with_every_fault_and_nothing_started(
    tmp_path: Path,
) -> None:
    daemon = Daemon(tmp_path, nodes="nodes:\n  n001: {mac: zz}\n  n002: {mc: 1}\n")
    try:
        assert daemon.launch().wait() == 2
        stderr = daemon.stderr.read_text()
        assert "nodes.yaml:2:" in stderr
        assert "nodes.yaml:3:" in stderr
        assert [event["event"] for event in daemon.rest()] == ["registry.rejected"] * 2
        assert not (tmp_path / "run").exists()
        assert not (tmp_path / "state").exists()
    finally:
        daemon.end()


def test_a_settings_file_that_is_not_there_is_exit_2(tmp_path: Path) -> None:
    done = command("serve", "--config", str(tmp_path / "none.yaml"), check=False)

    assert done.returncode == 2
    assert "none.yaml" in done.stderr


# Not DHCP: beside a server that has its port it uses a packet socket.
@pytest.mark.parametrize("which", ["tftp", "http"])
def test_a_port_that_is_taken_is_exit_1_with_who_has_it(tmp_path: Path, which: str) -> None:
    daemon = Daemon(tmp_path)
    kind = socket.SOCK_STREAM if which == "http" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as holder:
        holder.bind(("0.0.0.0", getattr(daemon, which)))
        if which == "http":
            holder.listen()
        try:
            assert daemon.launch().wait() == 1
            stderr = daemon.stderr.read_text()
            assert str(getattr(daemon, which)) in stderr
            assert f"(pid {os.getpid()})" in stderr
            assert "Traceback" not in stderr
            assert daemon.rest()[-1]["event"] == "bootd.cannot-start"
        finally:
            daemon.end()


def test_a_second_daemon_does_not_take_the_first_ones_socket(
    daemon: Daemon, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = {"run_dir": str(daemon.folder / "run")}
    second = Daemon(tmp_path_factory.mktemp("second"), settings=settings)
    try:
        assert second.launch().wait() == 1
        assert "another bootd" in second.stderr.read_text()
        assert len(daemon.ask("nodes")) == 2
    finally:
        second.end()


def test_a_killed_daemons_socket_does_not_keep_the_next_one_from_starting(tmp_path: Path) -> None:
    first = Daemon(tmp_path)
    try:
        first.launch().ready()
        first.signal(signal.SIGKILL)
        first.wait()
    finally:
        first.end()
    (tmp_path / "notify").unlink()
    (tmp_path / "etc").rename(tmp_path / "etc.old")

    with Daemon(tmp_path) as second:
        assert len(second.ask("nodes")) == 2


def test_the_watchdog_is_fed_at_half_its_limit(tmp_path: Path) -> None:
    with Daemon(tmp_path, environ={"WATCHDOG_USEC": "200000"}) as daemon:
        for _number in range(3):
            assert daemon.notification("WATCHDOG") == "WATCHDOG=1"


def test_a_reload_signal_before_the_daemon_is_ready_does_not_kill_it(tmp_path: Path) -> None:
    many = NODES + "".join(f"  m{number:04}: {{}}\n" for number in range(2000))
    daemon = Daemon(tmp_path, nodes=many)
    try:
        daemon.launch()
        _wait_for_python(daemon.pid)
        while not daemon.notified:
            if not daemon.alive():
                break
            daemon.signal(signal.SIGHUP)
            try:
                daemon._manager.settimeout(0.005)
                daemon.notification("READY")
            except TimeoutError:
                continue
        daemon._manager.settimeout(PATIENCE)

        assert daemon.alive()
        assert len(daemon.ask("nodes")) == 2002
    finally:
        daemon.end()


def test_ended_while_it_still_reads_its_files_it_goes_at_once(tmp_path: Path) -> None:
    many = NODES + "".join(f"  m{number:05}: {{}}\n" for number in range(20000))
    daemon = Daemon(tmp_path, nodes=many)
    try:
        daemon.launch()
        _wait_for_python(daemon.pid, signal.SIGTERM)
        daemon.signal(signal.SIGTERM)

        assert daemon.wait(10) == 0
        assert not (tmp_path / "run").exists()
    finally:
        daemon.end()


def _wait_for_python(pid: int, number: signal.Signals = signal.SIGHUP) -> None:
    """Until the process ignores or handles a signal: the window before is the interpreter's own."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/status").read_text()
        masks = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
        if (int(masks["SigIgn"], 16) | int(masks["SigCgt"], 16)) & 1 << number - 1:
            return
    raise AssertionError(f"{number.name} is never handled")


def test_files_that_it_makes_are_for_itself_alone(daemon: Daemon) -> None:
    keys = daemon.folder / "state" / "keys"
    found = list(keys.rglob("*"))

    assert {file.suffix for file in found if file.is_file()} == {".key"}
    assert len(found) == 3  # for boot tokens; the folder for nodes; for their keys
    assert not any(path.stat().st_mode & 0o077 for path in (keys, *found))


def test_status_without_a_daemon_is_exit_1_with_what_to_do(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.end()

    done = daemon.command("status", check=False)

    assert done.returncode == 1
    assert "bootd is not running" in done.stderr
    assert "systemctl status bootd" in done.stderr
