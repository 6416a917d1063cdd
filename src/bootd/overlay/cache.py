"""Archives of overlays, rendered when asked for and kept by what they depend on.

The shell around `overlay.render` and `overlay.cpio`: one worker thread, one rendering per archive
however many ask for it, memory bounded. Nothing is written to disk.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from bootd.model import Image, Mac, Node, Overlay, ServerAddress
from bootd.overlay import cpio
from bootd.overlay.compress import compress
from bootd.overlay.hostkeys import HostKeys
from bootd.overlay.manifest import Manifest, manifest
from bootd.overlay.render import Shared, Which, chosen, reads, render
from bootd.overlay.template import ALL_NODES, PER_NODE, RenderError
from bootd.registry import Registry

MAX_BYTES: Final = 64 << 20
"""Bytes of archives kept, with what several of them share counted once."""
MAX_KNOWN: Final = 32_768
"""Archives of which the digest is known although they are not kept themselves."""
MAX_FLIGHTS: Final = 1024
"""Renderings begun ahead of need that may wait; further ones are made when they are asked for."""
_LARGE: Final = 4096
"""Segments from this size on are counted once however many archives hold them."""


@dataclass(frozen=True, slots=True)
class Archive:
    """A newc archive of one node's overlays, without what belongs to one boot.

    `segments` share memory with other archives; `etag` is the SHA-256 of `data` in hex.
    """

    segments: tuple[bytes, ...]
    size: int
    etag: str

    @property
    def data(self) -> bytes:
        """The whole archive, joined anew at each call."""
        return b"".join(self.segments)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """All that an archive was made from: equal inputs give equal bytes. None: not read."""

    overlays: tuple[Overlay, ...]
    node: Node | None
    image: Image | None
    server: ServerAddress | None
    nodes: int | None


@dataclass(frozen=True, slots=True)
class _Known:
    """What is remembered of an archive for longer than the archive: a few hundred bytes."""

    inputs: _Inputs
    etag: str
    files: Manifest


@dataclass(frozen=True, slots=True)
class _Kept:
    inputs: _Inputs
    archive: Archive
    files: Manifest

    @property
    def segments(self) -> tuple[bytes, ...]:
        return self.archive.segments


_Key = tuple[str, Mac | None, Which, ServerAddress]


class OverlayCache:
    """Gives archives. Its methods belong to the event loop's thread."""

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        self._kept: _Lru[_Key, _Kept] = _Lru(max_bytes)
        self._known: OrderedDict[_Key, _Known] = OrderedDict()
        self._files: OrderedDict[str, Manifest] = OrderedDict()
        self._small: _Lru[tuple[str, str], Archive] = _Lru(max_bytes // 4)
        self._shrinking: dict[tuple[str, str], asyncio.Future[Archive]] = {}
        self._flights: dict[tuple[int, _Key], tuple[Registry, asyncio.Future[_Kept]]] = {}
        self._worker = _Worker()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="overlay")

    async def get(
        self, registry: Registry, node: Node, which: Which, server: ServerAddress
    ) -> Archive:
        """The archive of `node` from this snapshot; at once where it is kept.

        Raises `overlay.template.RenderError`.
        """
        key = (node.name, node.mac, which, server)
        kept = self._fresh(registry, node, key)
        if kept is None:
            # Whoever stops waiting (a client that went away) must not stop it for the others.
            kept = await asyncio.shield(self._flight(registry, node, key))
        return kept.archive

    async def digest(
        self, registry: Registry, node: Node, which: Which, server: ServerAddress
    ) -> str:
        """The `Archive.etag` that `get` would give, mostly without making an archive: ten thousand
        nodes ask every minute, and their archives together need not fit into memory.

        Raises `RenderError`.
        """
        world = self._worker.world
        if world.registry is registry:
            sure = world.sure.get((node.name, which))
            if sure is not None and sure[0] is node and sure[1] == server:
                return sure[2]
        key = (node.name, node.mac, which, server)
        if world.registry is not registry:
            run = asyncio.get_running_loop().run_in_executor
            await run(self._executor, self._worker.enter, registry)
        known = self._known.get(key)
        world = self._worker.world
        if known is None or world.registry is not registry:
            return (await self.get(registry, node, which, server)).etag
        if known.inputs == world.inputs(node, key):
            self._known.move_to_end(key)
            world.sure[node.name, which] = (node, server, known.etag)
            return known.etag
        return (await self.get(registry, node, which, server)).etag

    def files(self, etag: str) -> Manifest | None:
        """The paths of an archive made not too long ago, each with a sum of what it was."""
        return self._files.get(etag)

    async def compressed(
        self, registry: Registry, node: Node, which: Which, server: ServerAddress, encoding: str
    ) -> Archive:
        """`get`, compressed (``gz``, ``zst``). Raises `RenderError`, and `ValueError` for another
        encoding."""
        plain = await self.get(registry, node, which, server)
        key = (plain.etag, encoding)
        small = self._small.get(key)
        if small is None:
            small = await asyncio.shield(self._shrink(plain, key))
        return small

    def warm(
        self, registry: Registry, node: Node, server: ServerAddress, which: Which = "system"
    ) -> None:
        """Begin to render what `node` will soon ask for. Raises nothing: whoever asks is told."""
        key = (node.name, node.mac, which, server)
        with suppress(RenderError):
            if len(self._flights) < MAX_FLIGHTS and self._fresh(registry, node, key) is None:
                self._flight(registry, node, key)

    def close(self) -> None:
        """Stop the worker; renderings that have not begun are dropped."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _fresh(self, registry: Registry, node: Node, key: _Key) -> _Kept | None:
        """What is kept for `key`, if it is what this snapshot gives."""
        kept = self._kept.get(key)
        world = self._worker.world
        if kept is None or world.registry is not registry:
            return None
        return kept if world.inputs(node, key) == kept.inputs else None

    def _flight(self, registry: Registry, node: Node, key: _Key) -> asyncio.Future[_Kept]:
        """The rendering of `key` from `registry` that is under way, or a new one."""
        flight = (id(registry), key)
        known = self._flights.get(flight)
        if known is not None:
            return known[1]
        future = asyncio.get_running_loop().run_in_executor(
            self._executor, self._worker.make, registry, node, key, self._kept.get(key)
        )
        self._flights[flight] = (registry, future)  # the reference keeps the id taken
        future.add_done_callback(lambda done: self._landed(flight, done))
        return future

    def _shrink(self, plain: Archive, key: tuple[str, str]) -> asyncio.Future[Archive]:
        known = self._shrinking.get(key)
        if known is not None:
            return known
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._executor, _compress, plain, key[1])
        self._shrinking[key] = future
        future.add_done_callback(lambda done: self._shrunk(key, done))
        return future

    def _shrunk(self, key: tuple[str, str], done: asyncio.Future[Archive]) -> None:
        del self._shrinking[key]
        if not done.cancelled() and done.exception() is None:
            self._small.put(key, done.result())

    def _landed(self, flight: tuple[int, _Key], done: asyncio.Future[_Kept]) -> None:
        del self._flights[flight]
        # Asking for the exception also tells asyncio that it was seen: nobody may be waiting for
        # what was only warmed, and whoever asks for it gets the same exception again.
        if not done.cancelled() and done.exception() is None:
            key, made = flight[1], done.result()
            self._kept.put(key, made)
            _remember(self._known, key, _Known(made.inputs, made.archive.etag, made.files))
            _remember(self._files, made.archive.etag, made.files)


K = TypeVar("K")
T = TypeVar("T")


def _remember(table: OrderedDict[K, T], key: K, value: T) -> None:
    """Put it in as the newest, and forget the oldest where there are too many."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > MAX_KNOWN:
        table.popitem(last=False)


def _compress(plain: Archive, encoding: str) -> Archive:
    data = compress(plain.segments, encoding)
    return Archive((data,), len(data), hashlib.sha256(data).hexdigest())


class _HasSegments(Protocol):
    @property
    def segments(self) -> tuple[bytes, ...]: ...


V = TypeVar("V", bound=_HasSegments)


class _Lru(Generic[K, V]):
    """Archives by key, the least recently used forgotten above `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._large: dict[int, int] = {}
        self._bytes = 0

    def get(self, key: K) -> V | None:
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
        return kept

    def put(self, key: K, kept: V) -> None:
        self._drop(key)
        self._kept[key] = kept
        for segment in kept.segments:
            held = self._large.get(id(segment), 0)
            if len(segment) >= _LARGE:
                self._large[id(segment)] = held + 1
            if not held:
                self._bytes += len(segment)
        while self._bytes > self._max_bytes and self._kept:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: K) -> None:
        old = self._kept.pop(key, None)
        if old is None:
            return
        for segment in old.segments:
            held = self._large.get(id(segment), 1)
            if held > 1:
                self._large[id(segment)] = held - 1
                continue
            self._large.pop(id(segment), None)
            self._bytes -= len(segment)


@dataclass(frozen=True, slots=True)
class _World:
    """What the archives of one registry have in common. `version` counts changes of its nodes."""

    registry: Registry | None = None
    version: int = 0
    shared: Shared = field(default_factory=dict)
    reads: dict[tuple[str, ...], frozenset[str]] = field(default_factory=dict)
    sure: dict[tuple[str, Which], tuple[Node, ServerAddress, str]] = field(default_factory=dict)
    """Digests that were found to be those of this world, by node; the loop's own."""

    def after(self, registry: Registry) -> _World:
        """The world of `registry`: what no node changes stays where all nodes are equal."""
        before = self.registry
        if before is not None and before.nodes == registry.nodes:
            known = {overlay.digest for overlay in registry.overlays.values()}
            shared = {key: made for key, made in self.shared.items() if key[0] in known}
            return _World(registry, self.version, shared)
        return _World(registry, self.version + 1)

    def inputs(self, node: Node, key: _Key) -> _Inputs:
        """What `node`'s archive is made from, as far as its templates read it."""
        assert self.registry is not None
        overlays = tuple(chosen(self.registry, node, key[2]))
        digests = tuple(overlay.digest for overlay in overlays)
        names = self.reads.get(digests)
        if names is None:
            names = self.reads[digests] = reads(overlays)
        return _Inputs(
            overlays,
            node if names & PER_NODE else None,
            self.registry.images.get(node.image or "") if "image" in names else None,
            key[3] if "server" in names else None,
            self.version if names & ALL_NODES else None,
        )


class _Worker:
    """What runs in the worker thread. It alone writes `world`, as a whole."""

    def __init__(self) -> None:
        self.world = _World()
        self._keys: dict[str, HostKeys] = {}
        self._paths: dict[tuple[str, ...], tuple[str, ...]] = {}

    def _host_keys(self, state_dir: str) -> HostKeys:
        """The keys of `state_dir`, which a reload does not change."""
        return self._keys.setdefault(state_dir, HostKeys(state_dir))

    def enter(self, registry: Registry) -> None:
        """Make `registry` the world: compares 10,000 nodes, which is not for the loop."""
        if self.world.registry is not registry:
            self.world = self.world.after(registry)

    def _manifest(self, entries: list[cpio.Entry]) -> Manifest:
        """Nodes with the same paths share them."""
        made = manifest(entries)
        if len(self._paths) > MAX_FLIGHTS:
            self._paths.clear()
        return Manifest(self._paths.setdefault(made.paths, made.paths), made.sums)

    def make(self, registry: Registry, node: Node, key: _Key, kept: _Kept | None) -> _Kept:
        """Render and pack, unless `kept` is what would come out."""
        self.enter(registry)
        world = self.world
        inputs = world.inputs(node, key)
        if kept is not None and kept.inputs == inputs:
            return kept
        secrets = self._host_keys(registry.settings.state_dir)
        entries = render(registry, node, key[2], key[3], shared=world.shared, secrets=secrets)
        segments = tuple(cpio.segments(entries))
        digest = hashlib.sha256()
        for segment in segments:
            digest.update(segment)
        archive = Archive(segments, sum(map(len, segments)), digest.hexdigest())
        return _Kept(inputs, archive, self._manifest(entries))
