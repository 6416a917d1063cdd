"""YAML 1.2 text -> plain values that know their line and column. Pure.

PyYAML's own loaders read YAML 1.1, where an unquoted ``52:54:00:12:34:56`` is the integer
41135085296, ``no`` is False and ``0644`` is 420. Here only what JSON would take for one is a
number, a bool or null (YAML 1.2.2, 10.2, without floats, so that version ``6.10`` stays what was
typed); everything else is a string. Aliases, anchors and tags are refused: nothing here needs them,
and they are how a small file becomes a large one.

The parser is pulled event by event from Python, so that a thread that loads 10,000 nodes gives the
event loop its turn (one call that composed the whole file would hold the interpreter for a second).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from yaml import (
    AliasEvent,
    MappingEndEvent,
    MappingStartEvent,
    MarkedYAMLError,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from yaml.cyaml import CParser  # type: ignore[attr-defined] # its stubs forgot to export it
from yaml.reader import ReaderError

from bootd.config.faults import MAX_FAULTS, Fault, shown
from bootd.model import Origin

MAX_BYTES: Final = 4 * 1024 * 1024
"""The longest file that is read."""
MAX_DEPTH: Final = 32
"""How deep maps and lists may stand inside each other."""

MAX_VALUES: Final = 500_000
"""How many values one file may hold: some ten thousand nodes with ten each."""

Position = tuple[int, int]
"""Line and column, both from 1."""
Step = str | int
"""A key of a map or an index of a list."""

_WORDS: Final[dict[str, bool | None]] = {
    "true": True,
    "false": False,
    "null": None,
    "Null": None,
    "NULL": None,
    "~": None,
    "": None,
}
_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,17}", re.ASCII)
_STARTS_INTEGER: Final = frozenset("-0123456789")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class YamlMap(dict[str, Any]):
    """A map; `marks` has the positions of each key and of its value."""

    __slots__ = ("at", "marks")

    def __init__(self, at: Position) -> None:
        super().__init__()
        self.at = at
        self.marks: dict[str, tuple[Position, Position]] = {}


class YamlList(list[Any]):
    """A list; `marks` has the position of each item."""

    __slots__ = ("at", "marks")

    def __init__(self, at: Position) -> None:
        super().__init__()
        self.at = at
        self.marks: list[Position] = []


@dataclass(slots=True)
class Document:
    """One file, read: `value` is None where it is empty or could not be read at all.

    `faults` may stand beside a value: a key that is written twice does not hide later errors.
    """

    file: str
    value: Any = None
    faults: list[Fault] = field(default_factory=list)

    def position(self, path: Sequence[Step], *, key: bool = False) -> Position:
        """Where the value at `path` is written, or its key; the nearest parent where there is no
        such value."""
        at: Position = getattr(self.value, "at", (1, 1))
        value = self.value
        for number, step in enumerate(path):
            last = number == len(path) - 1
            if isinstance(value, YamlMap) and isinstance(step, str) and step in value:
                at = value.marks[step][0 if key and last else 1]
            elif isinstance(value, YamlList) and isinstance(step, int) and step < len(value):
                at = value.marks[step]
            else:
                break
            value = value[step]
        return at

    def origin(self, path: Sequence[Step], *, key: bool = False) -> Origin:
        """`position` together with the file."""
        return Origin(self.file, *self.position(path, key=key))


def dotted(path: Sequence[Step]) -> str:
    """``nodes.n001.kernel.args[0]``; keys are quoted only where they would break the line."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (shown(step) if _CONTROL.search(step) else step)
    return text


def plain(value: Any) -> Any:
    """The value without positions: ordinary dicts and lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def parse(data: str | bytes, file: str) -> Document:
    """Read one YAML document; whatever is wrong becomes a fault with its position.

    `file` is the name used in messages.
    """
    document = Document(file)
    try:
        raw = data.encode() if isinstance(data, str) else data
        if len(raw) > MAX_BYTES:
            raise _Stop((1, 1), f"the file is {len(raw)} bytes long; at most {MAX_BYTES} are read")
        text = raw.decode()
        document.value = _Reader(document, text).read()
    except _Stop as stop:
        document.faults.append(Fault(Origin(file, *stop.at), dotted(stop.path), stop.what))
    except UnicodeError as error:
        document.faults.append(Fault(Origin(file, *_bad_utf8(data, error)), "", "not UTF-8 text"))
    except ReaderError as error:
        at = _after(raw[: error.position].decode(errors="replace"))
        what = f"the character U+{_code_point(error.character):04X} is not allowed in YAML"
        document.faults.append(Fault(Origin(file, *at), "", what))
    except MarkedYAMLError as error:
        document.faults.append(_syntax(file, error, text))
    return document


class _Stop(Exception):
    """Nothing after this can be read."""

    def __init__(self, at: Position, what: str, path: Sequence[Step] = ()) -> None:
        super().__init__(what)
        self.at, self.what, self.path = at, what, tuple(path)


def _after(text: str) -> Position:
    """The position just behind `text`."""
    return text.count("\n") + 1, len(text) - (text.rfind("\n") + 1) + 1


def _bad_utf8(data: str | bytes, error: UnicodeError) -> Position:
    start = error.start if isinstance(error, UnicodeDecodeError | UnicodeEncodeError) else 0
    if isinstance(data, str):
        return _after(data[:start])
    return _after(data[:start].decode(errors="replace"))


def _code_point(character: Any) -> int:
    return character if isinstance(character, int) else ord(character)


def _syntax(file: str, error: MarkedYAMLError, text: str) -> Fault:
    mark = error.problem_mark or error.context_mark
    at = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    if mark is not None and "\t" in text:
        lines = text.split("\n")
        if mark.line < len(lines) and lines[mark.line][mark.column : mark.column + 1] == "\t":
            return Fault(Origin(file, *at), "", "a tab where YAML takes only spaces")
    what = f"not valid YAML: {error.problem}"
    if error.context:
        begun = error.context_mark
        where = f", begun in line {begun.line + 1}" if begun and begun.line + 1 != at[0] else ""
        what += f" ({error.context}{where})"
    return Fault(Origin(file, *at), "", what)


class _Reader:
    """Turns parser events into values. Recursion is bounded by `MAX_DEPTH`."""

    def __init__(self, document: Document, text: str) -> None:
        self._document = document
        self._next = CParser(text).get_event
        self._path: list[Step] = []
        self._left = MAX_VALUES

    def read(self) -> Any:
        """The one document of the stream, or None where it is empty."""
        self._next()  # StreamStart
        if isinstance(self._next(), StreamEndEvent):
            return None
        value = self._node(self._next(), 0)
        self._next()  # DocumentEnd
        event = self._next()
        if not isinstance(event, StreamEndEvent):
            raise _Stop(_at(event), "a second document begins here; one file holds one document")
        return value

    def _node(self, event: Any, depth: int) -> Any:
        kind = type(event)
        self._left -= 1
        if self._left < 0:
            raise _Stop(_at(event), f"the file holds more than {MAX_VALUES} values")
        if kind is ScalarEvent:
            return self._scalar(event)
        if kind is AliasEvent:
            self._fault(
                _at(event),
                f"aliases (*{event.anchor}) are not read: use a profile, or quote it if it is text",
            )
            return None
        if event.tag is not None or event.anchor is not None:
            self._refuse_properties(event)
        if depth >= MAX_DEPTH:
            what = f"maps and lists stand more than {MAX_DEPTH} deep in each other"
            raise _Stop(_at(event), what, self._path[:4])
        if kind is MappingStartEvent:
            return self._map(event, depth + 1)
        assert kind is SequenceStartEvent
        return self._list(event, depth + 1)

    def _map(self, start: Any, depth: int) -> YamlMap:
        found = YamlMap(_at(start))
        marks, path = found.marks, self._path
        while type(event := self._next()) is not MappingEndEvent:
            at = _at(event)
            key = self._key(event)
            path.append(key)
            event = self._next()
            value_at = _at(event)
            value = self._node(event, depth)
            if key in found:
                first = marks[key][0]
                self._fault(at, f"{shown(key)} is written twice (first in line {first[0]})")
            else:
                found[key] = value
                marks[key] = (at, value_at)
            path.pop()
        return found

    def _list(self, start: Any, depth: int) -> YamlList:
        found = YamlList(_at(start))
        self._path.append(0)
        while type(event := self._next()) is not SequenceEndEvent:
            found.marks.append(_at(event))
            self._path[-1] = len(found)
            found.append(self._node(event, depth))
        self._path.pop()
        return found

    def _key(self, event: Any) -> str:
        """A key is text, whatever it looks like: ``1: x`` and ``no: x`` have keys 1 and no."""
        if type(event) is not ScalarEvent:
            raise _Stop(_at(event), "a key must be plain text", self._path)
        if event.tag is not None or event.anchor is not None:
            self._refuse_properties(event)
        key: str = event.value
        if _CONTROL.search(key):
            self._fault(_at(event), f"the key {shown(key)} has control characters")
        return key

    def _scalar(self, event: Any) -> Any:
        if event.tag is not None or event.anchor is not None:
            self._refuse_properties(event)
        text: str = event.value
        if not event.implicit[0]:  # quoted, or a block: always text
            return text
        if text[:1] in _STARTS_INTEGER and _INTEGER.fullmatch(text):
            return int(text)
        return _WORDS.get(text, text)

    def _refuse_properties(self, event: Any) -> None:
        if event.tag is not None:
            self._fault(_at(event), f"tags ({shown(event.tag)}) are not read")
        if event.anchor is not None:
            self._fault(
                _at(event),
                f"anchors (&{event.anchor}) are not read: use a profile, or quote it if it is text",
            )

    def _fault(self, at: Position, what: str) -> None:
        origin = Origin(self._document.file, *at)
        self._document.faults.append(Fault(origin, dotted(self._path), what))
        if len(self._document.faults) > MAX_FAULTS:
            raise _Stop(at, "and so on: the rest of the file is not read")


def _at(event: Any) -> Position:
    mark = event.start_mark
    return mark.line + 1, mark.column + 1
