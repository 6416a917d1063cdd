"""Overlays: archives a second, cold and warm, and what rendering them costs.

    python bench/overlay.py [--nodes 10000] [--cold 500] [--rounds 3]

Each node has 50 files, 12 of them templates (hosts of all nodes among them), and gets its archive
from `overlay.cache` as the HTTP server asks for it. Cold: nobody asked before. Warm: everybody asks
again. Reload: a registry read anew with one node changed, so that what all nodes share is made
again. Check: every template for every node, as `bootd check` does. Needs no root.

Warewulf 4's own tool, on the same kind of machine, needs 52 ms of CPU a node at 100 nodes and
215 ms at 1,000 (November 2026); it renders the hosts of all nodes for each node.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from types import MappingProxyType
from typing import Final

from bootd.model import Image, NetDev, Node, ServerAddress, Settings, parse_mac
from bootd.overlay import tree
from bootd.overlay.cache import OverlayCache
from bootd.overlay.compress import ENCODINGS, compress
from bootd.overlay.render import check
from bootd.registry import Registry

SERVER: Final = ServerAddress(IPv4Address("10.0.0.1"))
SYSTEM: Final = ("base", "hosts", "networkd", "resolv", "localtime", "site")
PLAIN_FILES: Final = 38
TEMPLATES: Final = 3
"""Of the site; nine more are the distribution's."""


def site(folder: Path) -> None:
    """Overlay ``site``: small files, as /etc has them, and templates of a page."""
    rootfs = folder / "site/rootfs/etc/site"
    rootfs.mkdir(parents=True)
    for number in range(PLAIN_FILES):
        (rootfs / f"plain{number:02}.conf").write_text(f"setting = {number}\n" * (20 + number * 4))
    page = "{% for key, value in tags | dictsort %}{{ key }} = {{ value }}\n{% endfor %}"
    lines = "name = {{ node.name }}, rack {{ tags.rack }}, at {{ node.ip | ip }}\n" * 30
    for number in range(TEMPLATES):
        (rootfs / f"template{number}.conf.j2").write_text(page + lines)


def node(number: int) -> Node:
    mac = parse_mac("525401" + number.to_bytes(3, "big").hex())
    ip = IPv4Interface((int(IPv4Address("10.16.0.1")) + number, 12))
    gateway = IPv4Address("10.16.0.1")
    device = NetDev("boot", "eth0", mac=mac, ip=ip, gateway=gateway, dns=("10.0.0.2",))
    return Node(
        f"n{number:05}",
        mac=mac,
        ip=ip,
        image="debian",
        network=MappingProxyType({"boot": device}),
        overlays_system=SYSTEM,
        tags={"rack": f"r{number // 40}", "role": "compute"},
    )


def registry(count: int, folder: Path) -> Registry:
    return Registry(
        Settings(state_dir=str(folder / "state")),
        nodes=MappingProxyType({made.name: made for made in map(node, range(count))}),
        images={"debian": Image("debian", "20260101-000000-abcd", {}, "6.1.0-31-amd64")},
        overlays=tree.load([str(folder)]),
        templates={},
    )


class Clocks:
    """Wall and CPU seconds of what stands in its block."""

    def __enter__(self) -> Clocks:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self._wall
        self.cpu = time.process_time() - self._cpu


async def ask(cache: OverlayCache, world: Registry, names: list[str]) -> Clocks:
    """Every node of `names` asks once, one after the other."""
    with Clocks() as clocks:
        for name in names:
            await cache.get(world, world.nodes[name], "system", SERVER)
    return clocks


async def play(world: Registry, cold: int) -> dict[str, Clocks]:
    """One round: first archive, cold, warm, after a reload."""
    cache = OverlayCache()
    names = list(world.nodes)
    step = max(1, len(names) // cold)
    asking = names[1::step][:cold]
    try:
        found = {"first": await ask(cache, world, names[:1])}
        found["cold"] = await ask(cache, world, asking)
        found["warm"] = await ask(cache, world, asking * 4)
        changed = {**world.nodes, names[-1]: replace(world.nodes[names[-1]], comment="edited")}
        # Read anew: equal nodes, but other objects, as after a reload.
        other = {name: replace(given) for name, given in changed.items()}
        after = replace(world, nodes=MappingProxyType(other))
        found["reload"] = await ask(cache, after, asking)
    finally:
        cache.close()
    return found


def median(rounds: list[dict[str, Clocks]], key: str, of: Callable[[Clocks], float]) -> float:
    return statistics.median(of(found[key]) for found in rounds)


def report(world: Registry, rounds: list[dict[str, Clocks]], cold: int) -> None:
    print("| archives | a second | CPU ms each |")
    print("|---|---|---|")
    for key, count, title in (
        ("cold", cold, "cold"),
        ("warm", cold * 4, "warm"),
        ("reload", cold, "after a reload that changed one node"),
    ):
        wall = median(rounds, key, lambda clocks: clocks.wall)
        cpu = median(rounds, key, lambda clocks: clocks.cpu)
        print(f"| {title} | {count / wall:,.0f} | {cpu / count * 1000:.3f} |")
    first = median(rounds, "first", lambda clocks: clocks.wall)
    print(f"\nThe first one, with the hosts of {len(world.nodes):,} nodes: {first * 1000:.0f} ms.")


async def sizes(world: Registry) -> None:
    """What one archive weighs, and what making it smaller costs."""
    cache = OverlayCache()
    given = next(iter(world.nodes.values()))
    archive = await cache.get(world, given, "system", SERVER)
    cache.close()
    parts = [f"{archive.size / 1000:,.0f} kB"]
    for encoding in ENCODINGS:
        with Clocks() as clocks:
            data = compress(archive.segments, encoding)
        parts.append(f"{len(data) / 1000:,.0f} kB as {encoding} in {clocks.wall * 1000:.1f} ms")
    print(f"One archive: {', '.join(parts)}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--cold", type=int, default=500, help="nodes that ask in a round")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        site(folder)
        world = registry(given.nodes, folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rounds = [asyncio.run(play(world, given.cold)) for _ in range(given.rounds)]
        report(world, rounds, given.cold)
        asyncio.run(sizes(world))
        with Clocks() as clocks:
            faults = check(world)
        assert not faults, faults
        print(
            f"All templates for all {given.nodes:,} nodes checked in {clocks.wall:.1f} s, "
            f"{clocks.cpu / given.nodes * 1000:.2f} ms of CPU a node."
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"Peak memory {peak:.0f} MB, {before:.0f} MB of it before the first archive.")


if __name__ == "__main__":
    main()
