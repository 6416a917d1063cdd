"""The rules that hold the code in shape, as tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_imports_only_go_downward_and_pure_modules_do_no_io() -> None:
    result = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr


def test_scapy_stays_out_of_the_daemon() -> None:
    """It costs 0.7 s and 37 MB to import; only `bootd doctor` and tests may use it."""
    program = "import sys, bootd.app; print(sorted(m for m in sys.modules if m == 'scapy'))"

    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )

    assert result.stdout.strip() == "[]"
