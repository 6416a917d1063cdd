"""What the daemon learns, kept in `state_dir` and never under /etc/bootd: it survives a restart.

``keys/``         what boot tokens are signed with; the newest file first, older ones still accepted
``learned.json``  nodes whose ``boot: once`` is spent
``claims.yaml``   MAC addresses claimed for nodes

Every write is to a temporary file, fsync, rename: a reader sees the old file or the new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from bootd.model import BootTarget, StartError
from bootd.registry import Registry

KEY_BYTES: Final = 32
_LEARNED: Final = "learned.json"


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put `data` at `path` whole or not at all, also when the power fails.

    Raises `OSError`; then what was there before is still there.
    """
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
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


def load_keys(state_dir: str) -> tuple[bytes, ...]:
    """The keys that tokens are signed with, newest first; the first one is made if there is none.

    Raises `StartError`.
    """
    folder = Path(state_dir, "keys")
    try:
        files = sorted(folder.glob("*.key"), key=lambda file: file.stat().st_mtime, reverse=True)
        keys = tuple(key for file in files if len(key := file.read_bytes()) >= KEY_BYTES)
        if not keys:
            keys = (secrets.token_bytes(KEY_BYTES),)
            write_atomic(folder / f"{secrets.token_hex(4)}.key", keys[0])
    except OSError as error:
        raise StartError(f"{folder}: the keys for boot tokens: {error}") from error
    return keys


class Learned:
    """What was learned about nodes. Plain values in memory; `save` is for a worker thread."""

    def __init__(self, once_done: Iterable[str] = ()) -> None:
        self.once_done = frozenset(once_done)

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

    def apply(self, registry: Registry) -> Registry:
        """`registry` with what was learned: ``boot: once`` that is spent is ``boot: local``."""
        spent = {
            name: replace(node, boot=BootTarget.LOCAL)
            for name in self.once_done
            if (node := registry.nodes.get(name)) is not None and node.boot is BootTarget.ONCE
        }
        return replace(registry, nodes={**registry.nodes, **spent}) if spent else registry

    def forget(self, registry: Registry) -> None:
        """Drop the flags of nodes that are no longer set to ``once``: it can be set anew."""
        self.once_done = frozenset(
            name
            for name in self.once_done
            if (node := registry.nodes.get(name)) is not None and node.boot is BootTarget.ONCE
        )
