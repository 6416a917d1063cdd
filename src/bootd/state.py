"""What the daemon learns, kept in `state_dir` and never under /etc/bootd: it survives a restart.

``keys/``         what boot tokens are signed with (`bootd.keyring`)
``keys/nodes/``   what the keys of running nodes are made from, the newest file first
``learned.json``  nodes whose ``boot: once`` is spent
``claims.yaml``   MAC addresses claimed for nodes
``boots.jsonl``   the last boots of every node (`history`)

Every write is to a temporary file, fsync, rename: a reader sees the old file or the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import structlog

from bootd.model import BootTarget, StartError
from bootd.registry import Current, Registry

log = structlog.get_logger()

KEY_BYTES: Final = 32
SETTLE: Final = 0.2
"""Seconds that changes are collected before they are written."""
_LEARNED: Final = "learned.json"


def write_atomic(path: Path, data: bytes | Iterable[bytes], mode: int = 0o600) -> None:
    """Put `data`, one piece or many, at `path` whole or not at all, also when the power fails.

    Raises `OSError`; then what was there before is still there.
    """
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.writelines((data,) if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(fd)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def prepare(state_dir: str, run_dir: str) -> None:
    """Make the folders that the daemon writes to. Raises `StartError` with what to do."""
    for folder, mode in ((state_dir, 0o750), (f"{state_dir}/keys", 0o700), (run_dir, 0o755)):
        path = Path(folder)
        try:
            if not path.is_dir():
                path.mkdir(parents=True)
                path.chmod(mode)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(13, os.strerror(13))
        except OSError as error:
            raise StartError(
                f"{folder}: {error.strerror}. The daemon keeps its state there: make the folder "
                f"and give it to the user that bootd runs as (uid {os.geteuid()})."
            ) from error


def load_node_secrets(state_dir: str) -> tuple[bytes, ...]:
    """What node keys are derived from, newest first (`boots.nodekeys`); the first one is made if
    there is none. They are not exchanged by themselves: running nodes have keys made from them.

    Raises `StartError`.
    """
    folder = Path(state_dir, "keys", "nodes")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        files = sorted(folder.glob("*.key"), key=lambda file: file.stat().st_mtime, reverse=True)
        keys = tuple(key for file in files if len(key := file.read_bytes()) >= KEY_BYTES)
        if not keys:
            keys = (secrets.token_bytes(KEY_BYTES),)
            write_atomic(folder / f"{secrets.token_hex(4)}.key", keys[0])
    except OSError as error:
        raise StartError(f"{folder}: the secrets of node keys: {error}") from error
    return keys


class Learned:
    """What was learned about nodes: plain values, used from the loop and from worker threads."""

    def __init__(self, once_done: Iterable[str] = ()) -> None:
        self.once_done = frozenset(once_done)
        self._lock = threading.Lock()

    @classmethod
    def load(cls, state_dir: str) -> Learned:
        """Read ``learned.json``. A file that is absent or damaged counts as empty: losing it costs
        one more network boot, refusing to start would cost all of them."""
        try:
            value = json.loads(Path(state_dir, _LEARNED).read_bytes())
            return cls(str(name) for name in value["once_done"])
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def save(self, state_dir: str) -> None:
        """Write ``learned.json``. Raises `OSError`."""
        text = json.dumps({"once_done": sorted(self.once_done)}, indent=1)
        write_atomic(Path(state_dir, _LEARNED), text.encode() + b"\n")

    def spend(self, name: str) -> None:
        """Node `name`, which is set to boot ``once``, is up."""
        with self._lock:
            self.once_done |= {name}

    def apply(self, registry: Registry) -> Registry:
        """`registry` with what was learned: ``boot: once`` that is spent is ``boot: local``."""
        spent = {
            name: replace(node, boot=BootTarget.LOCAL)
            for name in self.once_done
            if (node := registry.nodes.get(name)) is not None and node.boot is BootTarget.ONCE
        }
        nodes = MappingProxyType({**registry.nodes, **spent})
        return replace(registry, nodes=nodes) if spent else registry

    def forget(self, registry: Registry) -> None:
        """Drop the flags of nodes that a freshly read `registry` does not set to ``once``: it can
        be set anew."""
        gone = {
            name
            for name in self.once_done
            if (node := registry.nodes.get(name)) is None or node.boot is not BootTarget.ONCE
        }
        with self._lock:
            self.once_done -= gone


class Memory:
    """Brings what is learned to the disk and into the registry, soon after it happens."""

    def __init__(self, learned: Learned, current: Current, state_dir: str) -> None:
        self._learned = learned
        self._current = current
        self._state_dir = state_dir
        self._changed = asyncio.Event()
        self._saved = learned.once_done

    def node_up(self, name: str) -> None:
        """A node reported up: its ``boot: once`` is spent."""
        node = self._current.registry.nodes.get(name)
        if node is not None and node.boot is BootTarget.ONCE:
            self._learned.spend(name)
            self._changed.set()

    def reloaded(self) -> None:
        """A new registry was swapped in: what was learned while it was built may be missing."""
        self._changed.set()

    async def run(self) -> None:
        """Write and apply changes, until cancelled. Changes of one moment make one write."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(SETTLE)
            self._changed.clear()
            await self._save()
            old = self._current.registry
            new = await asyncio.to_thread(self._learned.apply, old)
            if self._current.registry is old:
                self._current.swap(new)
            else:
                self._changed.set()  # a reload came in between: apply to what it brought

    async def _save(self) -> None:
        once_done = self._learned.once_done
        if once_done == self._saved:
            return
        try:
            await asyncio.to_thread(self._learned.save, self._state_dir)
        except OSError as error:
            log.error("state.write-failed", file=error.filename, error=error.strerror)
        else:
            self._saved = once_done
