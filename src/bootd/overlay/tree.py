"""Overlay trees on the server, read whole and checked: site over distribution, file by file.

``OVERLAY/rootfs/**`` of the first folder that has a path wins; the distribution's stand below all
of the site's. Nothing is followed: a symlink in a tree is a symlink on the node.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Final

from bootd.model import ConfigError, Overlay, OverlayEntry, safe_name

MAX_OVERLAY: Final = 64 << 20
"""Bytes that one overlay may have: it is held in memory, and goes to every node."""
MAX_ENTRIES: Final = 20_000
"""Paths that one overlay may have."""
MAX_DEPTH: Final = 64
TEMPLATE_SUFFIX: Final = ".j2"
_CLOCK_REALTIME_COARSE: Final = 5
"""The clock of file times, which ticks every few milliseconds (linux/time.h; Python's time module
does not name it)."""
IGNORED: Final = frozenset((".gitkeep", ".gitignore"))
"""Files that only keep a folder in version control."""

SYSTEM_DIRECTORIES: Final[Mapping[str, int]] = MappingProxyType(
    dict.fromkeys(("boot", "etc", "home", "mnt", "opt", "run", "srv", "usr", "var"), 0o755)
    | dict.fromkeys((f"usr/{name}" for name in ("bin", "lib", "local", "sbin", "share")), 0o755)
    | dict.fromkeys((f"var/{name}" for name in ("cache", "lib", "log", "spool")), 0o755)
    | {"root": 0o700, "root/.ssh": 0o700, "tmp": 0o1777, "var/tmp": 0o1777}
)
"""Folders that every image has, with their modes. The kernel applies a directory's mode to one that
is there already, and a checkout knows only its umask: without this an overlay with
``rootfs/tmp/x`` would close /tmp."""


@dataclass(frozen=True, slots=True)
class _Found:
    """One path below a rootfs: relative to it, on the server, and what lstat said."""

    path: str
    file: Path
    stat: os.stat_result

    @property
    def key(self) -> tuple[object, ...]:
        """Equal as long as nobody wrote to it."""
        s = self.stat
        return (self.path, s.st_dev, s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One folder's part of an overlay."""

    folder: Path
    distribution: bool
    found: tuple[_Found, ...]


class OverlayTrees:
    """Reads overlay trees and keeps what has not changed on disk since the last reading."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], tuple[tuple[object, ...], Overlay]] = {}

    def load(self, dirs: Sequence[str]) -> Mapping[str, Overlay]:
        """Every overlay of `dirs` (the site's, first wins) and of the distribution, by name.

        A folder of `dirs` that does not exist is empty. Raises `ConfigError` with all faults:
        unreadable or special files, bad names, overlays over `MAX_OVERLAY` bytes.
        """
        before = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
        faults: list[str] = []
        kept: dict[tuple[str, ...], tuple[tuple[object, ...], Overlay]] = {}
        overlays: dict[str, Overlay] = {}
        for name, layers in _layers(dirs, faults).items():
            key = (name, *(str(layer.folder) for layer in layers))
            signature = tuple(found.key for layer in layers for found in layer.found)
            old = self._kept.get(key)
            if old is not None and old[0] == signature:
                kept[key], overlays[name] = old, old[1]
                continue
            known = len(faults)
            overlays[name] = _read_overlay(name, layers, faults)
            if len(faults) == known and _settled(layers, before):
                kept[key] = (signature, overlays[name])
        if faults:
            raise ConfigError(faults)
        self._kept = kept
        return MappingProxyType(overlays)


_TREES = OverlayTrees()


def load(dirs: Sequence[str]) -> Mapping[str, Overlay]:
    """`OverlayTrees.load` with what this process read before."""
    return _TREES.load(dirs)


def distribution() -> Path:
    """Where the distribution's overlays are."""
    return Path(str(resources.files("bootd"))) / "data" / "overlays"


def _settled(layers: Sequence[_Layer], before: int) -> bool:
    """Whether any write after `before`, taken before the first lstat, must change a file's times:
    two writes in one tick of the clock do not (git calls such files racy)."""
    return all(found.stat.st_ctime_ns < before for layer in layers for found in layer.found)


def _layers(dirs: Sequence[str], faults: list[str]) -> dict[str, list[_Layer]]:
    """Overlay names to their folders that have them, the first to win first."""
    layers: dict[str, list[_Layer]] = {}
    places = [(Path(folder), False) for folder in dirs] + [(distribution(), True)]
    for place, is_distribution in places:
        try:
            folders = sorted(path for path in place.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            continue
        except OSError as error:
            faults.append(f"{place}: overlays: {error.strerror}")
            continue
        for folder in folders:
            if not folder.is_dir():
                continue
            try:
                name = safe_name(folder.name, "overlay")
                found = tuple(_scan(folder / "rootfs"))
            except (ValueError, OSError) as error:
                faults.append(f"{folder}: {_sentence(error)}")
                continue
            layers.setdefault(name, []).append(_Layer(folder, is_distribution, found))
    return layers


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or ''}: {error.strerror}".lstrip(": ")
    return str(error)


def _scan(rootfs: Path) -> Iterator[_Found]:
    """Everything below `rootfs`, folders before what is in them. Raises `OSError`, `ValueError`."""
    count = 0
    pending = [(rootfs, "", 0)]
    while pending:
        folder, prefix, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"{folder} is more than {MAX_DEPTH} folders deep")
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in IGNORED:
                    continue
                count += 1
                if count > MAX_ENTRIES:
                    raise ValueError(f"has more than {MAX_ENTRIES} files; put them into the image")
                if not entry.name.isprintable():
                    raise ValueError(f"{entry.path!a} has a name with unprintable characters")
                path = prefix + entry.name
                yield _Found(path, folder / entry.name, entry.stat(follow_symlinks=False))
                if entry.is_dir(follow_symlinks=False):
                    pending.append((folder / entry.name, f"{path}/", depth + 1))


def _read_overlay(name: str, layers: Sequence[_Layer], faults: list[str]) -> Overlay:
    entries: dict[str, OverlayEntry] = {}
    budget = MAX_OVERLAY
    for layer in layers:
        chosen = [
            (path, found)
            for path, found in _named(layer, faults)
            if path not in entries and not _below_other(path, entries)
        ]
        size = sum(found.stat.st_size for _, found in chosen if stat.S_ISREG(found.stat.st_mode))
        budget -= size
        if budget < 0:
            faults.append(
                f"{layer.folder}: overlay {name} has more than {MAX_OVERLAY >> 20} MiB; "
                "overlays are held in memory: put large files into the image"
            )
            break
        for path, found in chosen:
            try:
                entries[path] = _read_entry(path, found, layer.distribution)
            except (OSError, ValueError) as error:
                faults.append(f"{found.file}: {_reason(error)}")
    ordered = tuple(entries[path] for path in sorted(entries))
    return Overlay(name, ordered, _digest(ordered))


def _reason(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "cannot be read: Permission denied; bootd's user needs to read it"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror}"
    return str(error)


def _named(layer: _Layer, faults: list[str]) -> Iterator[tuple[str, _Found]]:
    """Each path with its name on the node: without ``.j2``, which two files may then share."""
    seen: dict[str, Path] = {}
    for found in sorted(layer.found, key=lambda found: found.path):
        path = found.path
        if stat.S_ISREG(found.stat.st_mode) and path.endswith(TEMPLATE_SUFFIX):
            path = path.removesuffix(TEMPLATE_SUFFIX)
            if not path or path.endswith("/"):
                faults.append(f"{found.file}: {TEMPLATE_SUFFIX} alone names no file on the node")
                continue
        if path in seen:
            faults.append(f"{found.file}: {seen[path]} makes the same file /{path} on the node")
            continue
        seen[path] = found.file
        yield path, found


def _below_other(path: str, entries: Mapping[str, OverlayEntry]) -> bool:
    """Whether a folder that wins has a file or symlink where `path` needs a directory."""
    parent = path.rpartition("/")[0]
    while parent:
        known = entries.get(parent)
        if known is not None and known.kind != "dir":
            return True
        parent = parent.rpartition("/")[0]
    return False


def _read_entry(path: str, found: _Found, is_distribution: bool) -> OverlayEntry:
    mode = stat.S_IMODE(found.stat.st_mode)
    source = str(found.file)
    if stat.S_ISDIR(found.stat.st_mode):
        mode = SYSTEM_DIRECTORIES.get(path, 0o755 if is_distribution else mode)
        return OverlayEntry(path, "dir", mode, source=source)
    if stat.S_ISLNK(found.stat.st_mode):
        target = os.fsencode(found.file.readlink())
        return OverlayEntry(path, "symlink", 0o777, target, source=source)
    if not stat.S_ISREG(found.stat.st_mode):
        raise ValueError("is neither file, folder nor symlink; declare devices in overlay.yaml")
    content = _read_file(found)
    if is_distribution:
        # How it was installed (umask, version control) is not how it stands on the node.
        mode = 0o755 if mode & 0o111 else 0o644
    if not found.path.endswith(TEMPLATE_SUFFIX):
        return OverlayEntry(path, "file", mode, content, source=source)
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is a template, but not UTF-8 at byte {error.start}") from None
    return OverlayEntry(path, "template", mode, content, source=source)


def _read_file(found: _Found) -> bytes:
    """A file's bytes; never waits for a FIFO that took the file's place, never follows a link."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(found.file, flags), "rb") as file:
        now = os.fstat(file.fileno())
        if not stat.S_ISREG(now.st_mode):
            raise ValueError("is no longer a regular file")
        content = file.read(found.stat.st_size + 1)
    if len(content) != found.stat.st_size:
        raise ValueError("changed while it was read; reload again")
    return content


def _digest(entries: Sequence[OverlayEntry]) -> str:
    """SHA-256 over everything that reaches a node, in hex."""
    digest = hashlib.sha256()
    for entry in entries:
        head = f"{entry.path}\0{entry.kind}\0{entry.mode:o}\0{entry.uid}\0{entry.gid}\0"
        digest.update(f"{head}{len(entry.content)}\0".encode("utf-8", "surrogateescape"))
        digest.update(entry.content)
    return digest.hexdigest()
