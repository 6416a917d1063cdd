"""``overlay.yaml``: owners, modes and conditions of an overlay's paths, and what is no file. Pure.

description: Secure shell
when: tags.ssh != "no"                   # the whole overlay
paths:                                   # * and ? within a name, ** across folders
  etc/ssh/*_key: {mode: 0600}
  srv/www: {owner: 33, group: www-data, when: tags.role == "web"}
directories: {var/lib/app: {mode: 0750}}
symlinks: {etc/mtab: /proc/self/mounts}
devices: {dev/null2: {type: char, major: 1, minor: 3, mode: 0666}}
delete: [etc/motd.d/vendor]
on_change: {etc/chrony/**: systemctl try-restart chrony}
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final

from bootd.config.faults import Fault, nearest, shown
from bootd.config.source import Document, Step, dotted
from bootd.model import MAX_ID, Account, Condition, OverlayEntry
from bootd.overlay import paths
from bootd.overlay.template import RenderError, compile_condition

_MODE: Final = re.compile(r"0?[0-7]{3,4}", re.ASCII)
_PLAIN: Final = re.compile(r"[A-Za-z0-9._@:+,/=-]+", re.ASCII)
_ACCOUNT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", re.ASCII)
"""Names of users and groups, as useradd(8) lets them be."""
MAX_COMMAND: Final = 1000
"""Characters of a command of ``on_change``."""
MAX_STARS: Final = 3
"""``**`` in one pattern: each one multiplies the ways to match."""
_ATTRIBUTES: Final = ("mode", "owner", "group", "when")
_DEVICES: Final = ("char", "block", "fifo")


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a rule says of a path; None is not said."""

    mode: int | None = None
    uid: int | Account | None = None
    gid: int | Account | None = None
    when: Condition | None = None

    def applied(self, entry: OverlayEntry) -> OverlayEntry:
        """`entry` with what is said; a symlink has no mode of its own."""
        return replace(
            entry,
            mode=entry.mode if self.mode is None or entry.kind == "symlink" else self.mode,
            uid=entry.uid if self.uid is None else self.uid,
            gid=entry.gid if self.gid is None else self.gid,
            when=entry.when if self.when is None else self.when,
        )


@dataclass(frozen=True, slots=True)
class PathRule:
    """One entry of ``paths:``; `place` is where it is written, for a pattern that fits nothing."""

    pattern: str
    matches: Callable[[str], object]
    attributes: Attributes
    place: Fault


@dataclass(slots=True)
class Rules:
    """One overlay.yaml, checked."""

    paths: list[PathRule] = field(default_factory=list)
    entries: list[OverlayEntry] = field(default_factory=list)
    """The directories, symlinks and devices it declares."""
    delete: list[str] = field(default_factory=list)
    on_change: list[tuple[str, str]] = field(default_factory=list)
    """Pattern and command."""
    when: Condition | None = None
    description: str = ""


def read(document: Document) -> tuple[Rules, list[Fault]]:
    """What `document` says, and everything that is wrong with it."""
    reader = _Reader(document)
    reader.read()
    return reader.rules, [*document.faults, *reader.faults]


@lru_cache(maxsize=1024)
def glob(pattern: str) -> Callable[[str], object]:
    """A matcher for paths: ``*``, ``?``, ``[…]`` within one name, ``**`` for any folders."""
    *folders, last = [
        None if part == "**" else re.compile(fnmatch.translate(part)) for part in pattern.split("/")
    ]

    def matches(names: Sequence[str], parts: Sequence[re.Pattern[str] | None]) -> bool:
        if not parts:
            return len(names) == 1 and (last is None or last.match(names[0]) is not None)
        if parts[0] is None:
            return any(matches(names[n:], parts[1:]) for n in range(len(names)))
        return (
            len(names) > 1
            and parts[0].match(names[0]) is not None
            and matches(names[1:], parts[1:])
        )

    if last is None:  # a/** is everything below a
        folders, last = [*folders, None], re.compile("")
    return lambda path: matches(path.split("/"), folders)


class _Reader:
    def __init__(self, document: Document) -> None:
        self._document = document
        self.rules = Rules()
        self.faults: list[Fault] = []

    def read(self) -> None:
        readers: dict[str, Callable[[Any], None]] = {
            "description": self._description,
            "when": self._when,
            "paths": self._paths,
            "directories": self._directories,
            "symlinks": self._symlinks,
            "devices": self._devices,
            "delete": self._delete,
            "on_change": self._on_change,
        }
        for key, value in self._map((), self._document.value, tuple(readers)):
            readers[key](value)

    def _fault(self, path: Sequence[Step], what: str, *, key: bool = False) -> None:
        origin = self._document.origin(path, key=key)
        self.faults.append(Fault(origin, dotted(path), what))

    def _map(
        self, path: Sequence[Step], value: Any, known: Sequence[str] | None = None
    ) -> Iterator[tuple[str, Any]]:
        """The items of a map that have a value; unknown keys are faults."""
        if value is None:
            return
        if not isinstance(value, Mapping):
            self._fault(path, f"{shown(value)} where a map is expected")
            return
        for key, item in value.items():
            if known is not None and key not in known:
                what = f"unknown key{nearest(key, known)} (known: {', '.join(known)})"
                self._fault((*path, key), what, key=True)
            else:
                yield key, item

    def _path(self, where: Sequence[Step], path: str, *, key: bool = True) -> bool:
        fault = paths.fault(path)
        if fault is not None:
            self._fault(where, fault, key=key)
        return fault is None

    def _description(self, value: Any) -> None:
        self.rules.description = str(value or "")

    def _when(self, value: Any) -> None:
        self.rules.when = self._condition(("when",), value)

    def _condition(self, where: Sequence[Step], value: Any) -> Condition | None:
        if value is None:
            return None
        origin = self._document.origin(where)
        condition = Condition(str(value), origin.file, origin.line)
        try:
            compile_condition(condition)
        except RenderError as error:
            self._fault(where, error.reason)
        return condition

    def _paths(self, value: Any) -> None:
        for pattern, rule in self._map(("paths",), value):
            where = ("paths", pattern)
            if not self._pattern(where, pattern):
                continue
            attributes = self._attributes(where, rule)
            place = Fault(
                self._document.origin(where, key=True),
                dotted(where),
                "fits no path of the overlay",
            )
            self.rules.paths.append(PathRule(pattern, glob(pattern), attributes, place))

    def _pattern(self, where: Sequence[Step], pattern: str) -> bool:
        plain = "/".join(part for part in pattern.split("/") if part != "**")
        if not self._path(where, plain or "x"):
            return False
        if pattern.split("/").count("**") > MAX_STARS:
            self._fault(where, f"has more than {MAX_STARS} ** in it", key=True)
            return False
        return True

    def _attributes(
        self, where: Sequence[Step], value: Any, more: Sequence[str] = ()
    ) -> Attributes:
        given = dict(self._map(where, value, (*_ATTRIBUTES, *more)))
        return Attributes(
            self._mode((*where, "mode"), given.get("mode")),
            self._id((*where, "owner"), given.get("owner")),
            self._id((*where, "group"), given.get("group")),
            self._condition((*where, "when"), given.get("when")),
        )

    def _mode(self, where: Sequence[Step], value: Any) -> int | None:
        if value is None:
            return None
        if not _MODE.fullmatch(str(value)):
            self._fault(where, f"{shown(value)} is not a mode: octal digits, as 0640 or 1777")
            return None
        return int(str(value), 8)

    def _id(self, where: Sequence[Step], value: Any) -> int | Account | None:
        if value is None or value == "root":
            return None if value is None else 0
        if isinstance(value, str) and _ACCOUNT.fullmatch(value):
            origin = self._document.origin(where)
            return Account(value, origin.file, origin.line)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_ID:
            self._fault(where, f"{shown(value)} is neither a number nor a name")
            return None
        return value

    def _directories(self, value: Any) -> None:
        for path, rule in self._map(("directories",), value):
            where = ("directories", path)
            if self._path(where, path):
                entry = OverlayEntry(path, "dir", 0o755, source=self._document.file)
                self.rules.entries.append(self._attributes(where, rule).applied(entry))

    def _symlinks(self, value: Any) -> None:
        for path, target in self._map(("symlinks",), value):
            where = ("symlinks", path)
            if not self._path(where, path):
                continue
            if not isinstance(target, str) or not target or "\0" in target:
                self._fault(where, f"{shown(target)} is no target of a symlink")
                continue
            file = self._document.file
            self.rules.entries.append(
                OverlayEntry(path, "symlink", 0o777, target.encode(), source=file)
            )

    def _devices(self, value: Any) -> None:
        for path, rule in self._map(("devices",), value):
            where = ("devices", path)
            if not self._path(where, path):
                continue
            attributes = self._attributes(where, rule, ("type", "major", "minor"))
            given = rule if isinstance(rule, Mapping) else {}
            kind = given.get("type")
            if kind not in _DEVICES:
                self._fault(where, f"type {shown(kind)} is not one of {', '.join(_DEVICES)}")
                continue
            numbers = (0, 0)
            if kind != "fifo":
                numbers = (self._number(where, given, "major"), self._number(where, given, "minor"))
            entry = OverlayEntry(path, kind, 0o600, source=self._document.file, rdev=numbers)
            self.rules.entries.append(attributes.applied(entry))

    def _number(self, where: Sequence[Step], given: Mapping[str, Any], key: str) -> int:
        value = given.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 20:
            self._fault((*where, key), f"{key} {shown(value)} is not a device number")
            return 0
        return value

    def _delete(self, value: Any) -> None:
        if value is not None and not isinstance(value, list):
            self._fault(("delete",), f"{shown(value)} where a list of paths is expected")
            return
        for number, path in enumerate(value or ()):
            where = ("delete", number)
            if not isinstance(path, str) or not _PLAIN.fullmatch(path):
                # The node hands them to tmpfiles.d, where blanks, quotes and wildcards mean more.
                what = f"{shown(path)} is not a plain path (letters, digits and ._@:+,/=-)"
                self._fault(where, what)
            elif self._path(where, path, key=False):
                self.rules.delete.append(path)

    def _on_change(self, value: Any) -> None:
        for pattern, commands in self._map(("on_change",), value):
            where = ("on_change", pattern)
            if not self._pattern(where, pattern):
                continue
            for command in commands if isinstance(commands, list) else [commands]:
                if not isinstance(command, str) or not command.strip():
                    self._fault(where, f"{shown(command)} where a command is expected")
                elif not command.isprintable() or len(command) > MAX_COMMAND:
                    what = f"a command is one line of at most {MAX_COMMAND} characters; put more "
                    self._fault(where, f"{what}into a script of the overlay")
                else:
                    self.rules.on_change.append((pattern, command.strip()))
