"""Everything is switched on at once: `bench/storm.py`, small enough for every day."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.integration.daemon import ROOT, environment

pytestmark = pytest.mark.integration


def storm(*options: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "storm.py"), "--json", "--seconds", "90", *options],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_two_hundred_boots_complete_although_the_daemon_is_killed_among_them() -> None:
    sizes = ("--nodes", "400", "--kernel", "6", "--initramfs", "16")

    figures = storm("--boots", "200", "--at-once", "200", "--kill", "1.0", *sizes)["on"]

    assert (figures["up"], figures["failed"], figures["restarts"]) == (200, {}, 1)


def test_more_boots_than_may_transfer_wait_their_turn_and_complete() -> None:
    sizes = ("--nodes", "400", "--kernel", "6", "--initramfs", "16")

    figures = storm("--boots", "80", "--at-once", "80", "--limit", "8", *sizes)["on"]

    assert (figures["up"], figures["failed"]) == (80, {})
    assert figures["told_to_wait"] > 0
