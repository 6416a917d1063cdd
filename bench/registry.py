"""How long 10,000 nodes take from files to a validated registry, and what the event loop notices.

    PYTHONPATH=src python bench/registry.py [--nodes N] [--runs N]

Each run loads in a fresh process, in a thread beside a uvloop event loop that looks at the clock
every millisecond: the longest and the 99th percentile of the gaps between two looks are how long a
DHCP packet would have waited. A second load then is a reload with the first registry in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from bootd.config.load import load
from bootd.registry import Registry, difference

NODE = """\
  n{number:05d}:
    mac: 52:54:00:{a:02x}:{b:02x}:{c:02x}
    ip: 10.{a}.{b}.{c}/8
    profiles: [{profile}]
    tags: {{rack: r{rack}}}
"""
PROFILES = """\
profiles:
  default:
    kernel: {args: [quiet, "console=ttyS0,115200"]}
    overlays: {system: [base]}
  gpu:
    profiles: [default]
    kernel: {args: [~quiet, nouveau.modeset=0]}
    tags: {role: gpu}
"""


def write_files(folder: Path, nodes: int) -> Path:
    """Configuration of `nodes` nodes with five lines each, in files of at most 5,000."""
    config = folder / "bootd.yaml"
    config.write_text("state_dir: state\nnodes: [nodes.yaml, 'nodes.d/*.yaml']\n")
    (folder / "state").mkdir()
    (folder / "nodes.yaml").write_text(PROFILES)
    (folder / "nodes.d").mkdir()
    for begin in range(0, nodes, 5000):
        entries = (_node(number) for number in range(begin, min(begin + 5000, nodes)))
        (folder / "nodes.d" / f"{begin:06d}.yaml").write_text("nodes:\n" + "".join(entries))
    return config


def _node(number: int) -> str:
    a, b, c = number // 60000 + 1, number // 250 % 240, number % 250 + 1
    profile = "gpu" if number % 4 == 0 else "default"
    return NODE.format(number=number, a=a, b=b, c=c, profile=profile, rack=number // 40)


async def _watch(gaps: list[float], done: asyncio.Event) -> None:
    """Note how late each millisecond's turn comes, in seconds."""
    loop = asyncio.get_running_loop()
    before = loop.time()
    while not done.is_set():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        gaps.append(now - before)
        before = now


async def _load(config: str) -> tuple[Registry, float, list[float]]:
    gaps: list[float] = []
    done = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(_watch(gaps, done))
        await asyncio.sleep(0.05)
        begin = time.perf_counter()
        registry = await asyncio.to_thread(load, config)
        seconds = time.perf_counter() - begin
        await asyncio.sleep(0.05)  # what the collector does afterwards counts too
        done.set()
    return registry, seconds, gaps[1:]


async def measure(config: str) -> dict[str, Any]:
    """One process: a first load, then a reload."""
    first, seconds, gaps = await _load(config)
    resident = _rss()
    again, reload_seconds, reload_gaps = await _load(config)
    begin = time.perf_counter()
    changes = difference(first, again)
    compared = time.perf_counter() - begin
    assert not changes.changed
    return {
        "load s": seconds,
        "gap p99 ms": _p99(gaps) * 1000,
        "gap max ms": max(gaps) * 1000,
        "reload s": reload_seconds,
        "reload gap p99 ms": _p99(reload_gaps) * 1000,
        "reload gap max ms": max(reload_gaps) * 1000,
        "difference ms": compared * 1000,
        "RSS after load MB": resident,
        "peak RSS MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "nodes": len(first.nodes),
    }


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def _rss() -> float:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Run it and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        uvloop.install()
        print(json.dumps(asyncio.run(measure(arguments.child))))
        return
    with tempfile.TemporaryDirectory() as folder:
        config = write_files(Path(folder), arguments.nodes)
        command = [sys.executable, __file__, "--child", str(config)]
        runs = [
            json.loads(
                subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            )
            for _ in range(arguments.runs)
        ]
    print(f"{runs[0]['nodes']} nodes, {arguments.runs} runs: median (least to most)")
    for key in runs[0]:
        values = [run[key] for run in runs]
        print(
            f"{key:20} {statistics.median(values):10.2f} ({min(values):.2f} to {max(values):.2f})"
        )


if __name__ == "__main__":
    main()
