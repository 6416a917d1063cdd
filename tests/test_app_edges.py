"""Ports that are taken, the loop's last resort, and the watchdog."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import subprocess
import sys

import pytest
from structlog.testing import capture_logs

from bootd import ports
from bootd.app import FollowedBoots
from bootd.health import ExceptionHandler, feed_watchdog
from bootd.model import (
    ClientKind,
    DhcpSettings,
    HttpSettings,
    Settings,
    StartError,
    TftpSettings,
    parse_mac,
)
from bootd.notify import Notifier

HOLD = """
import socket, sys
kind = socket.SOCK_DGRAM if sys.argv[1] == "udp" else socket.SOCK_STREAM
sock = socket.socket(socket.AF_INET, kind)
sock.bind(("127.0.0.1", 0))
if sys.argv[1] == "tcp":
    sock.listen()
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_who_holds_a_port_is_named_with_its_process(protocol: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, protocol],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        port = int(program.stdout.readline())

        found = ports.holders(protocol, port)

        assert program.stdin is not None
        program.stdin.close()

    (name,) = found
    assert re.fullmatch(rf"python[0-9.]* \(pid {program.pid}\)", name)


def test_our_own_sockets_and_free_ports_have_no_holder() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]

        assert ports.holders("udp", port) == []

    assert ports.holders("udp", port) == []


def test_a_taken_port_is_explained_with_who_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ports, "holders", lambda protocol, port: ["dnsmasq (pid 7)"] if port in (2, 69) else []
    )
    error = StartError("UDP port 69 is taken")
    error.__cause__ = OSError(errno.EADDRINUSE, "Address already in use")
    settings = Settings(http=HttpSettings(1), dhcp=DhcpSettings(port=2, pxe_port=3))

    assert ports.explain(error, settings) == [
        "UDP port 69 is held by dnsmasq (pid 7): stop it, or give bootd another port in bootd.yaml."
    ]
    off = Settings(http=settings.http, dhcp=settings.dhcp, tftp=TftpSettings(enabled=False))
    assert ports.explain(error, off) == []
    assert ports.explain(StartError("something else"), settings) == []


def test_a_node_that_is_up_is_told_by_its_name_and_a_stranger_is_not() -> None:
    told: list[str] = []
    boots = FollowedBoots(new_id=lambda: "b")
    boots.on_up = told.append

    for mac, node in (("52:54:00:12:34:56", "n001"), ("52:54:00:12:34:57", None)):
        boots.up(boots.discover(parse_mac(mac), node, ClientKind.PXE, 7, 0.0), 1.0)

    assert told == ["n001"]


def test_a_flood_of_exceptions_is_a_handful_of_lines_and_a_count() -> None:
    now = 0.0
    handler = ExceptionHandler(lambda: now, limit=3, period=10)
    loop = asyncio.new_event_loop()

    with capture_logs() as logged:
        for _number in range(1000):
            handler(loop, {"message": "socket.accept() out of system resource"})
        now = 11.0
        handler(loop, {"message": "again"})
    loop.close()

    assert [entry["event"] for entry in logged] == [
        *["loop.exception"] * 3,
        "loop.exceptions-suppressed",
        "loop.exception",
    ]
    assert logged[3]["count"] == 997


async def test_the_watchdog_is_fed_only_while_all_is_well() -> None:
    pings: list[bool] = []
    health = iter([True, False, True])
    done = asyncio.Event()

    class Manager(Notifier):
        def alive(self) -> None:
            pings.append(True)

    def healthy() -> bool:
        answer = next(health, None)
        if answer is None:
            done.set()
        return bool(answer)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(feed_watchdog(Manager(None, watchdog=0.002), healthy))
        await done.wait()
        task.cancel()

    assert len(pings) == 2


async def test_without_a_limit_nobody_feeds_the_watchdog() -> None:
    await feed_watchdog(Notifier(None), lambda: pytest.fail("nobody asked"))


def test_the_command_help_is_there_before_the_daemon_libraries() -> None:
    """`bootd status` in a loop must not pay for aiohttp, pydantic and the rest."""
    heavy = {"aiohttp", "pydantic", "uvloop", "pyroute2", "jinja2", "structlog", "rich"}
    program = f"import sys, bootd.cli\nprint(sorted({heavy!r} & set(sys.modules)))"

    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert result.stdout.strip() == "[]"
