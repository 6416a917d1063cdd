"""Archives: one rendering per need, never stale, bounded."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import threading
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from bootd.model import Account, Image, Node, Overlay, OverlayEntry, ServerAddress, Settings
from bootd.overlay import cache as module
from bootd.overlay import cpio
from bootd.overlay.cache import OverlayCache
from bootd.overlay.render import render
from bootd.overlay.template import RenderError
from bootd.registry import Registry

SERVER = ServerAddress(IPv4Address("10.0.0.1"))


def overlay(**files: str) -> Overlay:
    entries = tuple(
        OverlayEntry(path, "template", 0o644, text.encode(), source=path)
        for path, text in files.items()
    )
    return Overlay("own", entries, digest=hashlib.sha256(repr(files).encode()).hexdigest())


def world(tree: Overlay, nodes: Iterable[Node]) -> Registry:
    return Registry(
        Settings(),
        nodes={node.name: node for node in nodes},
        images={},
        overlays={"own": tree},
        templates={},
    )


def nodes(count: int = 3, **more: object) -> list[Node]:
    return [
        Node(f"n{i}", overlays_system=("own",), **more)  # type: ignore[arg-type]
        for i in range(count)
    ]


@pytest.fixture
async def cache() -> AsyncIterator[OverlayCache]:
    cache = OverlayCache()
    yield cache
    cache.close()


@pytest.fixture
def renderings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of nodes, once per rendering."""
    names: list[str] = []

    def counted(registry: Registry, node: Node, *args: object, **more: object) -> list[cpio.Entry]:
        names.append(node.name)
        return render(registry, node, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "render", counted)
    return names


async def test_an_archive_is_the_rendering_packed_and_named_by_its_hash(
    cache: OverlayCache,
) -> None:
    registry = world(overlay(a="{{ node.name }}"), nodes())
    node = registry.nodes["n1"]

    archive = await cache.get(registry, node, "system", SERVER)

    assert archive.data == cpio.archive(render(registry, node, "system", SERVER))
    assert archive.etag == hashlib.sha256(archive.data).hexdigest()
    assert archive.size == len(archive.data)


async def test_an_owner_by_name_follows_the_nodes_image(cache: OverlayCache) -> None:
    """No template reads the image: its users are what the archive depends on."""
    munge = Account("munge", "own/overlay.yaml", 1)
    tree = Overlay("own", (OverlayEntry("key", "file", 0o400, b"x", munge, munge),), "1")
    before = world(tree, nodes(image="debian", resources={"groups": {"munge": 5}}))
    after = world(tree, nodes(image="debian", resources={"groups": {"munge": 6}}))
    wanted = []
    for registry, generation, uid in ((before, "1", 7), (before, "2", 8), (after, "2", 8)):
        image = Image("debian", generation, {}, users={"munge": uid})
        there = replace(registry, images={"debian": image})
        node = there.nodes["n0"]
        archive = await cache.get(there, node, "system", SERVER)
        wanted.append(archive.data == cpio.archive(render(there, node, "system", SERVER)))

    assert wanted == [True, True, True]


async def test_many_who_ask_at_once_share_one_rendering(
    cache: OverlayCache, renderings: list[str]
) -> None:
    registry = world(overlay(a="{{ node.name }}"), nodes())
    asked = [cache.get(registry, registry.nodes["n0"], "system", SERVER) for _ in range(50)]

    archives = await asyncio.gather(*asked)

    assert renderings == ["n0"]
    assert len({archive.etag for archive in archives}) == 1


async def test_what_was_warmed_is_not_rendered_again(
    cache: OverlayCache, renderings: list[str]
) -> None:
    registry = world(overlay(a="{{ node.name }}"), nodes())

    cache.warm(registry, registry.nodes["n0"], SERVER)
    cache.warm(registry, registry.nodes["n0"], SERVER)
    await cache.get(registry, registry.nodes["n0"], "system", SERVER)
    cache.warm(registry, registry.nodes["n0"], SERVER)
    await cache.get(registry, registry.nodes["n0"], "system", SERVER)

    assert renderings == ["n0"]


async def test_a_client_that_goes_away_does_not_stop_the_others(
    cache: OverlayCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(*args: object, **more: object) -> list[cpio.Entry]:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(10)
        return render(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "render", slow)
    registry = world(overlay(a="x"), nodes())
    async with asyncio.TaskGroup() as group:
        ask = (registry, registry.nodes["n0"], "system", SERVER)
        leaves = group.create_task(cache.get(*ask))  # type: ignore[arg-type]
        stays = group.create_task(cache.get(*ask))  # type: ignore[arg-type]
        await begun.wait()
        leaves.cancel()
        go_on.set()

    assert leaves.cancelled()
    assert stays.result().size > 0


async def test_a_reload_that_changes_nothing_keeps_every_archive(
    cache: OverlayCache, renderings: list[str]
) -> None:
    text = "{{ node.name }}{{ nodes | length }}"
    first, second = (world(overlay(a=text), nodes()) for _ in range(2))

    before = await cache.get(first, first.nodes["n0"], "system", SERVER)
    after = await cache.get(second, second.nodes["n0"], "system", SERVER)

    assert after is before
    assert renderings == ["n0"]


async def test_an_edited_node_gets_a_new_archive_and_the_others_keep_theirs(
    cache: OverlayCache, renderings: list[str]
) -> None:
    tree = overlay(a="{{ node.comment }}")
    first = world(tree, nodes())
    second = world(tree, [replace(nodes()[0], comment="new"), *nodes()[1:]])
    for registry in (first, second):
        for name in ("n0", "n1"):
            await cache.get(registry, registry.nodes[name], "system", SERVER)

    archive = await cache.get(second, second.nodes["n0"], "system", SERVER)

    assert b"new" in archive.data
    assert renderings == ["n0", "n1", "n0"]


async def test_a_template_over_all_nodes_is_stale_when_any_node_changes(
    cache: OverlayCache,
) -> None:
    tree = overlay(hosts="{% for n in nodes %}{{ n.name }} {% endfor %}")
    first, second = world(tree, nodes(2)), world(tree, nodes(3))
    await cache.get(first, first.nodes["n0"], "system", SERVER)

    archive = await cache.get(second, second.nodes["n0"], "system", SERVER)

    assert b"n0 n1 n2 " in archive.data


async def test_an_edited_overlay_is_seen_and_the_old_snapshot_still_gives_the_old(
    cache: OverlayCache,
) -> None:
    old, new = world(overlay(a="old"), nodes()), world(overlay(a="new"), nodes())

    contents = [
        (await cache.get(registry, registry.nodes["n0"], "system", SERVER)).data
        for registry in (old, new, old, new)
    ]

    assert [b"old" in data for data in contents] == [True, False, True, False]


async def test_each_servers_address_has_its_own_archive(cache: OverlayCache) -> None:
    registry = world(overlay(a="{{ server.ip }}"), nodes())
    other = ServerAddress(IPv4Address("10.9.9.9"))
    await cache.get(registry, registry.nodes["n0"], "system", SERVER)

    archive = await cache.get(registry, registry.nodes["n0"], "system", other)

    assert b"10.9.9.9" in archive.data


async def test_a_template_error_reaches_who_asks_and_is_not_kept(cache: OverlayCache) -> None:
    broken, good = world(overlay(a="{{ no }}"), nodes()), world(overlay(a="ok"), nodes())
    cache.warm(broken, broken.nodes["n0"], SERVER)

    for _ in range(2):
        with pytest.raises(RenderError, match="'no' is undefined"):
            await cache.get(broken, broken.nodes["n0"], "system", SERVER)
    archive = await cache.get(good, good.nodes["n0"], "system", SERVER)

    assert b"ok" in archive.data


async def test_an_overlay_that_does_not_exist_is_an_error_and_warming_it_none(
    cache: OverlayCache,
) -> None:
    registry = world(overlay(a="x"), nodes())
    node = Node("other", overlays_system=("absent",))

    cache.warm(registry, node, SERVER)

    with pytest.raises(RenderError, match="'absent' does not exist"):
        await cache.get(registry, node, "system", SERVER)


async def test_archives_share_large_files_in_memory_and_the_bound_counts_them_once() -> None:
    cache = OverlayCache(max_bytes=100_000)
    registry = world(overlay(big="x" * 50_000, name="{{ node.name }}"), nodes(20))
    try:
        archives = [
            await cache.get(registry, node, "system", SERVER) for node in registry.nodes.values()
        ]
        again = [
            await cache.get(registry, node, "system", SERVER) for node in registry.nodes.values()
        ]
    finally:
        cache.close()

    assert [a is b for a, b in zip(archives, again, strict=True)] == [True] * 20


def unpacked(tool: str, data: bytes) -> bytes:
    return subprocess.run([tool, "-dc"], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize(("encoding", "tool"), [("gz", "gzip"), ("zst", "zstd")])
async def test_compressed_archives_are_read_by_the_tool_and_made_once(
    encoding: str, tool: str, cache: OverlayCache
) -> None:
    registry = world(overlay(a="{{ node.name }}" + "x" * 10_000), nodes(2))
    ask = (registry, registry.nodes["n0"], "system", SERVER)
    plain = await cache.get(*ask)  # type: ignore[arg-type]

    asked = [cache.compressed(*ask, encoding) for _ in range(5)]  # type: ignore[arg-type]
    small = await asyncio.gather(*asked)

    assert unpacked(tool, small[0].data) == plain.data
    assert small[0].size == len(small[0].data) < plain.size
    assert small[0].etag != plain.etag
    assert all(archive is small[0] for archive in small)
    assert await cache.compressed(*ask, encoding) is small[0]  # type: ignore[arg-type]


async def test_an_encoding_that_nobody_knows_is_refused(cache: OverlayCache) -> None:
    registry = world(overlay(a="x"), nodes(1))

    with pytest.raises(ValueError, match="'br' is not one of gz, zst"):
        await cache.compressed(registry, registry.nodes["n0"], "system", SERVER, "br")


async def test_the_least_recently_used_archive_is_forgotten_at_the_bound(
    renderings: list[str],
) -> None:
    cache = OverlayCache(max_bytes=150_000)
    registry = world(overlay(big="{{ node.name }}" + "x" * 50_000), nodes(3))
    ask = [registry.nodes[name] for name in ("n0", "n1", "n0", "n2", "n0", "n1")]
    try:
        for node in ask:
            await cache.get(registry, node, "system", SERVER)
    finally:
        cache.close()

    assert renderings == ["n0", "n1", "n2", "n1"]


async def test_an_archive_over_the_bound_is_given_but_not_kept(renderings: list[str]) -> None:
    cache = OverlayCache(max_bytes=1000)
    registry = world(overlay(big="{{ node.name }}" + "x" * 50_000), nodes(1))
    try:
        for _ in range(2):
            await cache.get(registry, registry.nodes["n0"], "system", SERVER)
    finally:
        cache.close()

    assert renderings == ["n0", "n0"]
