"""Images: import and build of a root, against the tools that others use, in the same run.

    python bench/image.py [--size 2000] [--rounds 1] [--keep FOLDER]

The root is a copy of what this machine has in /usr, up to `--size` MB. Measured are:
`bootd image import` of that folder (one walk makes the cpio and the squashfs, and digests of
both), the same of a tar.zst archive, `find | cpio | gzip` as Warewulf builds its images, and
mksquashfs alone with bootd's settings. Memory is the peak of the largest process of each. With
`--keep` the root is made once and found again. Needs root, for owners.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOURCE: Final = Path("/usr")
SRC: Final = Path(__file__).resolve().parents[1] / "src"
LIMIT: Final = 220
"""Seconds that a step may take."""


@dataclass(frozen=True)
class Cost:
    """Of one step: seconds, CPU seconds, the largest process's peak of memory in MB, and the
    bytes that it makes."""

    seconds: float
    cpu: float
    memory: float
    size: int = 0


def make_root(folder: Path, size: int) -> Path:
    """Copy files of /usr, in order, until there are `size` MB; and what an import looks for."""
    root = folder / "root"
    if root.exists():
        return root
    new = folder / "root.new"
    left = size * 1_000_000
    for top, folders, files in os.walk(SOURCE):
        folders.sort()
        target = new / Path(top).relative_to("/")
        target.mkdir(parents=True, exist_ok=True)
        for name in sorted(files):
            path = Path(top, name)
            if path.is_symlink() or left > 0:
                shutil.copy2(path, target / name, follow_symlinks=False)
                left -= path.lstat().st_size
        if left <= 0:
            break
    subprocess.run(["tar", "--zstd", "-C", new, "-cf", folder / "root.tar.zst", "."], check=True)
    return new.rename(root)


def run(argv: Sequence[str | Path], env: dict[str, str] | None = None) -> Cost:
    """Run a command to its end and tell what it cost; its children's costs are in it."""
    begun = time.monotonic()
    process = subprocess.Popen(
        [str(word) for word in argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, argv))} fails with {process.returncode}")
    seconds = time.monotonic() - begun
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000)


def bootd(folder: Path, source: Path, name: str) -> Cost:
    """Import `source` into a state of its own."""
    state = folder / f"state-{name}"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()
    config = state / "bootd.yaml"
    config.write_text("state_dir: .\nrun_dir: run\n")
    cost = run(
        ["timeout", str(LIMIT), sys.executable, "-m", "bootd", "--config", config, "image",
         "import", name, source],
        {"PYTHONPATH": str(SRC)},
    )  # fmt: skip
    size = sum(path.stat().st_size for path in state.glob("images/*/2*/image.*"))
    shutil.rmtree(state)
    return Cost(cost.seconds, cost.cpu, cost.memory, size)


def shell(folder: Path, root: Path, program: str, output: str) -> Cost:
    """Run a shell's pipeline in `root` that writes `output`."""
    target = folder / output
    target.unlink(missing_ok=True)
    script = f"cd {root} && {program.format(target=target)}"
    cost = run(["timeout", str(LIMIT), "sh", "-c", script])
    size = target.stat().st_size
    target.unlink()
    return Cost(cost.seconds, cost.cpu, cost.memory, size)


def measure(folder: Path, root: Path) -> dict[str, Cost]:
    """One round of every step."""
    subprocess.run(["tar", "-C", root, "-cf", "/dev/null", "--", "."], check=True)  # cache warm
    squashfs = (
        "mksquashfs . {target} -comp zstd -Xcompression-level 6 -noappend -quiet -no-progress "
        "-no-recovery -mem 96M"
    )
    return {
        "bootd image import FOLDER": bootd(folder, root, "folder"),
        "bootd image import root.tar.zst": bootd(folder, folder / "root.tar.zst", "archive"),
        "find | cpio | gzip": shell(
            folder, root, "find . | cpio -o -H newc --quiet | gzip > {target}", "out.cpio.gz"
        ),
        "mksquashfs alone": shell(folder, root, squashfs, "out.squashfs"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=2000, help="MB of the root")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="where the root is kept")
    parser.add_argument("--prepare", action="store_true", help="only make the root")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="bootd-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        root = make_root(folder, options.size)
        if options.prepare:
            return
        rounds = [measure(folder, root) for _ in range(options.rounds)]
        files = sum(1 for _ in root.rglob("*"))
        size = sum(p.lstat().st_size for p in root.rglob("*") if not p.is_dir())
        print(f"a root of {files} files, {size / 1e6:.0f} MB; median of {options.rounds}")
        print(f"{'':34}{'s':>8}{'CPU s':>8}{'peak MB':>9}{'makes MB':>10}")
        for name in rounds[0]:
            costs = [found[name] for found in rounds]
            seconds = statistics.median(c.seconds for c in costs)
            cpu = statistics.median(c.cpu for c in costs)
            memory = max(c.memory for c in costs)
            print(f"{name:34}{seconds:8.1f}{cpu:8.1f}{memory:9.0f}{costs[0].size / 1e6:10.0f}")
    finally:
        if options.keep is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
