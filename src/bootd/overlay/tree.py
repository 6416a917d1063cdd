"""Overlay trees, read whole and checked: site over distribution, file by file.

``OVERLAY/rootfs/**`` of the first folder that has a path wins; the distribution's stand below all
of the site's. What the overlay.yaml files say holds for whichever file won, the site's word last.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Final

from bootd.config.source import parse
from bootd.model import ConfigError, Overlay, OverlayEntry, safe_name
from bootd.overlay import paths, rules, scan
from bootd.overlay.scan import Found, Layer

MAX_OVERLAY: Final = 64 << 20
"""Bytes that one overlay may have: it is held in memory, and goes to every node."""
TEMPLATE_SUFFIX: Final = ".j2"

SYSTEM_DIRECTORIES: Final[Mapping[str, int]] = MappingProxyType(
    dict.fromkeys(("boot", "etc", "home", "mnt", "opt", "run", "srv", "usr", "var"), 0o755)
    | dict.fromkeys((f"usr/{name}" for name in ("bin", "lib", "local", "sbin", "share")), 0o755)
    | dict.fromkeys((f"var/{name}" for name in ("cache", "lib", "log", "spool")), 0o755)
    | {"root": 0o700, "root/.ssh": 0o700, "tmp": 0o1777, "var/tmp": 0o1777}
)
"""Folders that every image has, with their modes. The kernel applies a directory's mode to one that
is there already, and a checkout knows only its umask: without this an overlay with
``rootfs/tmp/x`` would close /tmp. overlay.yaml can still say otherwise."""

_CLOCK_REALTIME_COARSE: Final = 5
"""The clock of file times, which ticks every few milliseconds (linux/time.h; Python's time module
does not name it)."""

_Signature = tuple[object, ...]


class OverlayTrees:
    """Reads overlay trees and keeps what has not changed on disk since the last reading."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], tuple[_Signature, Overlay]] = {}

    def load(self, dirs: Sequence[str]) -> Mapping[str, Overlay]:
        """Every overlay of `dirs` (the site's, first wins) and of the distribution, by name.

        A folder of `dirs` that does not exist is empty. Raises `ConfigError` with all faults:
        unreadable or special files, bad names, paths that would break a node, overlays over
        `MAX_OVERLAY` bytes, mistakes in overlay.yaml.
        """
        before = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
        faults: list[str] = []
        kept: dict[tuple[str, ...], tuple[_Signature, Overlay]] = {}
        overlays: dict[str, Overlay] = {}
        for name, layers in _layers(dirs, faults).items():
            key = (name, *(str(layer.folder) for layer in layers))
            signature = tuple(found.key for layer in layers for found in layer.everything)
            old = self._kept.get(key)
            if old is not None and old[0] == signature:
                kept[key], overlays[name] = old, old[1]
                continue
            known = len(faults)
            overlays[name] = _Reading(name, layers, faults).overlay()
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


def _settled(layers: Sequence[Layer], before: int) -> bool:
    """Whether any write after `before`, taken before the first lstat, must change a file's times:
    two writes in one tick of the clock do not (git calls such files racy)."""
    return all(found.stat.st_ctime_ns < before for layer in layers for found in layer.everything)


def _layers(dirs: Sequence[str], faults: list[str]) -> dict[str, list[Layer]]:
    """Overlay names to their folders that have them, the first to win first."""
    layers: dict[str, list[Layer]] = {}
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
                layer = scan.scan(folder, distribution=is_distribution)
            except (ValueError, OSError) as error:
                faults.append(f"{folder}: {_sentence(error)}")
                continue
            layers.setdefault(name, []).append(layer)
    return layers


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or ''}: {error.strerror}".lstrip(": ")
    return str(error)


@dataclass(slots=True)
class _Reading:
    """One overlay being read; what is wrong goes to `faults`."""

    name: str
    layers: Sequence[Layer]
    faults: list[str]

    def overlay(self) -> Overlay:
        """The overlay of all layers."""
        said = [(layer, self._rules(layer)) for layer in self.layers]
        known = len(self.faults)
        entries = self._entries(said)
        whole = len(self.faults) == known
        for layer, spoken in reversed(said):
            self._apply(layer, spoken, entries, whole=whole)
        first_said = [spoken for _, spoken in said]
        deleted = dict.fromkeys(path for spoken in first_said for path in spoken.delete)
        for path in deleted:
            if path in entries:
                self.faults.append(
                    f"{self.layers[0].folder}: {scan.RULES} deletes {path}, which the overlay has"
                )
        ordered = tuple(entries[path] for path in sorted(entries))
        made = Overlay(
            self.name,
            ordered,
            "",
            delete=tuple(deleted),
            when=next((s.when for s in first_said if s.when is not None), None),
            description=next((s.description for s in first_said if s.description), ""),
            on_change=tuple(dict.fromkeys(each for s in first_said for each in s.on_change)),
        )
        return replace(made, digest=digest(made))

    def _rules(self, layer: Layer) -> rules.Rules:
        if layer.rules is None:
            return rules.Rules()
        try:
            content = scan.read(layer.rules, follow=True)
        except (OSError, ValueError) as error:
            self.faults.append(f"{layer.rules.file}: {_reason(error)}")
            return rules.Rules()
        read, faults = rules.read(parse(content, str(layer.rules.file)))
        self.faults += map(str, faults)
        return read

    def _entries(self, said: Sequence[tuple[Layer, rules.Rules]]) -> dict[str, OverlayEntry]:
        """Every path by its name on the node, from the first layer that has it."""
        entries: dict[str, OverlayEntry] = {}
        budget = MAX_OVERLAY
        for layer, spoken in said:
            named = dict(self.named(layer))
            declared = {entry.path: entry for entry in spoken.entries}
            self.faults += [
                f"{layer.folder / scan.RULES}: declares {path}, which {named[path].file} makes"
                for path in declared
                if path in named and declared[path].kind != "dir"
            ]
            chosen = {path: found for path, found in named.items() if not _hidden(path, entries)}
            budget -= sum(
                found.stat.st_size for found in chosen.values() if stat.S_ISREG(found.stat.st_mode)
            )
            if budget < 0:
                self.faults.append(
                    f"{layer.folder}: overlay {self.name} has more than {MAX_OVERLAY >> 20} MiB; "
                    "overlays are held in memory: put large files into the image"
                )
                break
            made = {path: self._read(path, found, layer) for path, found in chosen.items()}
            made |= _linked(chosen, made)
            made |= {path: e for path, e in declared.items() if not _hidden(path, entries)}
            entries |= {path: entry for path, entry in made.items() if entry is not None}
        return entries

    def named(self, layer: Layer) -> Iterator[tuple[str, Found]]:
        """Each path with its name on the node: without ``.j2``, which two files may then share."""
        seen: dict[str, Path] = {}
        refused = ""
        for found in sorted(layer.found, key=lambda found: found.path):
            path = found.path
            if refused and path.startswith(refused):
                continue
            if stat.S_ISREG(found.stat.st_mode) and path.endswith(TEMPLATE_SUFFIX):
                path = path.removesuffix(TEMPLATE_SUFFIX)
            if not path or path.endswith("/"):
                self.faults.append(f"{found.file}: {TEMPLATE_SUFFIX} alone names no file")
            elif (fault := paths.fault(path)) is not None:
                self.faults.append(f"{found.file}: {fault}")
                refused = f"{path}/"
            elif path in seen:
                self.faults.append(f"{found.file}: {seen[path]} makes the same file /{path}")
            else:
                seen[path] = found.file
                yield path, found

    def _read(self, path: str, found: Found, layer: Layer) -> OverlayEntry | None:
        try:
            return _read_entry(path, found, layer.distribution)
        except (OSError, ValueError) as error:
            self.faults.append(f"{found.file}: {_reason(error)}")
            return None

    def _apply(
        self, layer: Layer, spoken: rules.Rules, entries: dict[str, OverlayEntry], *, whole: bool
    ) -> None:
        """What `spoken` says of `entries`, which are `whole` where none was left out as faulty."""
        for rule in spoken.paths:
            fitting = [path for path in entries if rule.matches(path)]
            for path in fitting:
                entries[path] = rule.attributes.applied(entries[path])
            # The distribution's may speak of what the site has replaced.
            if whole and not fitting and not layer.distribution:
                self.faults.append(str(rule.place))


def _reason(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "cannot be read: Permission denied; bootd's user needs to read it"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror}"
    return str(error)


def _hidden(path: str, entries: Mapping[str, OverlayEntry]) -> bool:
    """Whether a layer that wins has `path`, or a file or symlink where it needs a directory."""
    if path in entries:
        return True
    parent = path.rpartition("/")[0]
    while parent:
        known = entries.get(parent)
        if known is not None and known.kind != "dir":
            return True
        parent = parent.rpartition("/")[0]
    return False


def _linked(
    chosen: Mapping[str, Found], made: Mapping[str, OverlayEntry | None]
) -> dict[str, OverlayEntry]:
    """The plain files that are hard links of each other in one tree, named for the first."""
    groups: dict[tuple[int, int], list[OverlayEntry]] = {}
    for path, found in chosen.items():
        entry = made[path]
        if entry is not None and entry.kind == "file" and found.stat.st_nlink > 1:
            groups.setdefault((found.stat.st_dev, found.stat.st_ino), []).append(entry)
    return {
        entry.path: replace(entry, hardlink=group[0].path)
        for group in groups.values()
        for entry in group
        if len(group) > 1
    }


def _read_entry(path: str, found: Found, is_distribution: bool) -> OverlayEntry:
    mode = stat.S_IMODE(found.stat.st_mode)
    source = str(found.file)
    if stat.S_ISDIR(found.stat.st_mode):
        mode = SYSTEM_DIRECTORIES.get(path, 0o755 if is_distribution else mode)
        return OverlayEntry(path, "dir", mode, source=source)
    if stat.S_ISLNK(found.stat.st_mode):
        target = os.fsencode(found.file.readlink())
        return OverlayEntry(path, "symlink", 0o777, target, source=source)
    if not stat.S_ISREG(found.stat.st_mode):
        raise ValueError(f"is neither file, folder nor symlink; declare devices in {scan.RULES}")
    content = scan.read(found)
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


def digest(overlay: Overlay) -> str:
    """SHA-256 over everything that reaches a node, in hex."""
    made = hashlib.sha256(
        repr((overlay.name, overlay.when, overlay.delete, overlay.on_change)).encode()
    )
    for entry in overlay.entries:
        head = (
            *(entry.path, entry.kind, entry.mode, entry.uid, entry.gid, entry.when, entry.rdev),
            entry.hardlink,
        )
        made.update(f"{head!r}{len(entry.content)}\0".encode("utf-8", "surrogateescape"))
        made.update(entry.content)
    return made.hexdigest()


@dataclass(frozen=True, slots=True)
class Shadow:
    """A path of an overlay whose file `hides` another: paths on the server."""

    overlay: str
    path: str
    file: Path
    hides: Path


def shadows(dirs: Sequence[str]) -> list[Shadow]:
    """Which files of the site stand in front of which, for people: what no longer follows an
    upgrade of the distribution. Folders are not told; raises `ConfigError`."""
    faults: list[str] = []
    found: list[Shadow] = []
    for name, layers in _layers(dirs, faults).items():
        reading = _Reading(name, layers, faults)
        winners: dict[str, Found] = {}
        for layer in layers:
            for path, one in reading.named(layer):
                winner = winners.setdefault(path, one)
                if winner is not one and not stat.S_ISDIR(one.stat.st_mode):
                    found.append(Shadow(name, path, winner.file, one.file))
    if faults:
        raise ConfigError(faults)
    return found
