"""sd_notify without a library, against real datagram sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootd.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What systemd listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        yield sock


def test_ready_says_so_with_a_status_line(manager: socket.socket) -> None:
    notifier = Notifier(manager.getsockname())

    notifier.ready("Serving 3 nodes")

    assert manager.recv(4096) == b"READY=1\nSTATUS=Serving 3 nodes"
    notifier.close()


def test_reloading_carries_the_monotonic_clock_in_microseconds(manager: socket.socket) -> None:
    notifier = Notifier(manager.getsockname())

    notifier.reloading(12.345678)

    assert b"RELOADING=1\nMONOTONIC_USEC=12345678" in manager.recv(4096)
    notifier.close()


def test_an_abstract_socket_is_written_with_an_at_sign() -> None:
    name = f"bootd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        sock.settimeout(5)
        notifier = Notifier(f"@{name}")

        notifier.alive()

        assert sock.recv(4096) == b"WATCHDOG=1"
        notifier.close()


def test_a_line_break_in_a_value_cannot_add_a_field(manager: socket.socket) -> None:
    notifier = Notifier(manager.getsockname())

    notifier.send(STATUS="nodes\nMAINPID=1")

    assert manager.recv(4096) == b"STATUS=nodes MAINPID=1"
    notifier.close()


def test_nothing_happens_without_a_manager() -> None:
    notifier = Notifier.from_environment({})

    assert notifier.send(READY=1) is False
    assert notifier.watchdog is None


def test_a_manager_that_is_gone_hurts_nobody(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))

    assert notifier.send(READY=1) is False
    notifier.close()
    assert notifier.send(READY=1) is False


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_limit_is_read_only_where_it_is_ours(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert Notifier.from_environment(environ).watchdog == seconds
