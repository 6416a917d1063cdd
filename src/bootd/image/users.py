"""Users and groups of an image: their numbers, and the server's put there by `bootd image
sync-users`. Pure.

A file system that nodes share with the server knows owners by number. So whoever exists on both
gets the server's number in the image, whoever exists on the server alone is added, and whoever is
in the image alone stays, unless the number is somebody else's then.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from bootd.model import MAX_ID

_MAX_LINES: Final = 1_000_000
MAX_FILE: Final = 64 << 20
"""Bytes that are read of a passwd or group."""
_NAME: Final = re.compile(r"[!-~]{1,32}")
"""Names that are remembered: a bound on what an image can make a manifest hold."""
MAX_NAMED: Final = 4096
"""Users, and groups, whose numbers are remembered of an image."""


class UsersError(ValueError):
    """The two cannot be brought together; the message is a sentence."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of passwd or group: `number` is the uid or gid, `fields` all of it."""

    name: str
    number: int
    fields: tuple[str, ...]

    def __str__(self) -> str:
        return ":".join((*self.fields[:2], str(self.number), *self.fields[3:]))


@dataclass(frozen=True, slots=True)
class Table:
    """What a file becomes: its text, and from which number to which the image's files go."""

    text: str
    moved: dict[int, int]
    added: tuple[str, ...]


def parse(text: str, place: str, fields: int) -> list[Line]:
    """The lines of passwd (7 `fields`) or group (4). Raises `UsersError`."""
    found = []
    for number, line in enumerate(text.splitlines()[:_MAX_LINES], 1):
        if not line.strip() or line.startswith(("#", "+", "-")):
            continue
        parts = tuple(line.split(":"))
        if len(parts) != fields or not parts[0] or not _is_number(parts[2]):
            raise UsersError(f"{place}:{number}: is no line of {fields} fields: {line[:80]!r}")
        found.append(Line(parts[0], int(parts[2]), parts))
    return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_ID


def numbers(text: str) -> dict[str, int]:
    """The uid or gid of each name of a passwd or group, the `MAX_NAMED` lowest of them.

    As libc reads it: the first line of a name counts, and what is no line is left out.
    """
    found: dict[str, int] = {}
    for line in text.splitlines()[:_MAX_LINES]:
        parts = line.split(":")
        if len(parts) >= 4 and _NAME.fullmatch(parts[0]) and _is_number(parts[2]):
            found.setdefault(parts[0], int(parts[2]))
    return dict(sorted(found.items(), key=lambda item: item[1])[:MAX_NAMED])


def merge(server: list[Line], image: list[Line], what: str) -> Table:
    """The image's file with the server's numbers; `what` is ``user`` or ``group``.

    Lines of the image keep their place and all but their number; lines that only the server has
    follow. Raises `UsersError` where a number of the server's belongs to somebody in the image whom
    the server does not know.
    """
    ours = {line.name: line for line in server}
    theirs = {line.name for line in image}
    numbers = {line.number: line.name for line in reversed(server)}
    moved: dict[int, int] = {}
    made: list[Line] = []
    clashes = []
    for line in image:
        known = ours.get(line.name)
        if known is None:
            if line.number in numbers:
                clashes.append(
                    f"{what} {line.name} of the image has number {line.number}, which is "
                    f"{numbers[line.number]} on the server"
                )
            made.append(line)
            continue
        if known.number != line.number:
            moved[line.number] = known.number
        made.append(Line(line.name, known.number, line.fields))
    if clashes:
        raise UsersError(
            "\n".join(clashes[:20])
            + f"\nGive such a {what} another number in the image, or add it "
            "on the server, then try again"
        )
    added = [
        Line(line.name, line.number, (line.name, "x", *line.fields[2:]))
        for line in server
        if line.name not in theirs
    ]
    text = "".join(f"{line}\n" for line in (*made, *added))
    return Table(text, moved, tuple(line.name for line in added))


def with_groups(users: Table, groups: Table) -> str:
    """The text of passwd with its primary groups renumbered as the groups were. Lines that came
    from the server have the server's numbers already."""
    lines = []
    added = set(users.added)
    for line in users.text.splitlines():
        parts = line.split(":")
        if parts[0] not in added and _is_number(parts[3]):
            parts[3] = str(groups.moved.get(int(parts[3]), int(parts[3])))
        lines.append(":".join(parts))
    return "".join(f"{line}\n" for line in lines)
