"""What of a root is left out of its image: patterns of paths. Pure.

One pattern a line, ``#`` begins a comment. A pattern is a path from the root, with or without the
first slash; ``*``, ``?`` and ``[…]`` stand for characters of one component, ``**`` for any number
of components. What is below a path that fits is left out with it; a pattern that ends in ``/*``
leaves the folder and takes what is in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

ALWAYS: Final = ("proc/*", "sys/*", "run/*", "tmp/*", "lost+found", ".dockerenv")
"""What a root has only while it runs."""
FILES: Final = ("etc/bootd/excludes", "etc/warewulf/excludes")
"""Where an image itself says what is to be left out; the first that is there counts."""
MAX_FILE: Final = 1 << 20


class ExcludeError(ValueError):
    """A pattern that cannot be one; the message is a sentence."""


def parse(data: bytes, place: str) -> tuple[str, ...]:
    """The patterns of a file. Raises `ExcludeError` that names `place` and the line."""
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError:
        raise ExcludeError(f"{place}: is not UTF-8 text") from None
    found = []
    for number, line in enumerate(lines, 1):
        pattern = line.strip()
        if pattern and not pattern.startswith("#"):
            try:
                found.append(normal(pattern))
            except ExcludeError as error:
                raise ExcludeError(f"{place}:{number}: {error}") from None
    return tuple(found)


def normal(pattern: str) -> str:
    """`pattern` without slashes around it. Raises `ExcludeError`."""
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    if not parts:
        raise ExcludeError(f"{pattern!r} leaves out everything")
    if ".." in parts:
        raise ExcludeError(f"{pattern!r}: a path from the root has no ..")
    if any("\0" in part for part in parts):
        raise ExcludeError(f"{pattern!r} holds a NUL")
    return "/".join(parts)


class Excludes:
    """Whether a path is left out. The walk never goes below one that is, so a path is compared as
    a whole."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(dict.fromkeys(normal(pattern) for pattern in patterns))
        source = "|".join(_regex(pattern) for pattern in self.patterns)
        self._match = re.compile(source or r"(?!)", re.DOTALL).fullmatch

    def __call__(self, path: str) -> bool:
        """`path` is relative to the root, without ``.`` or ``..``."""
        return self._match(path) is not None


def _regex(pattern: str) -> str:
    parts = pattern.split("/")
    text = ""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            text += ".+" if last else "(?:[^/]+/)*"
        else:
            text += _component(part) + ("" if last else "/")
    return f"(?:{text})"


def _component(part: str) -> str:
    text, i = "", 0
    while i < len(part):
        char = part[i]
        i += 1
        if char == "*":
            # Once is enough; twice in a row would only cost time.
            text += "" if text.endswith("[^/]*") else "[^/]*"
        elif char == "?":
            text += "[^/]"
        elif char == "[" and (end := part.find("]", i + 1 + (part[i : i + 1] == "!"))) > 0:
            inside = part[i:end]
            no = inside.startswith("!")
            members = re.sub(r"([\\\[\]^&|~])", r"\\\1", inside[no:])
            try:
                re.compile(f"[{members}]")
            except re.error:
                raise ExcludeError(f"{part!r}: [{inside}] is no set of characters") from None
            text += f"(?!/)[{'^' if no else ''}{members}]"
            i = end + 1
        else:
            text += re.escape(char)
    return text
