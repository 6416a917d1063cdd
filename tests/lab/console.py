"""What a machine says on its serial port, made readable and searchable.

Firmware speaks with cursor codes: escape sequences are taken out, and a cursor that is put
somewhere else begins a new line. Stages are matched in order: each `Console.wait_for` searches
behind the match before it.
"""

from __future__ import annotations

import asyncio
import codecs
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.lab.run import LabError

_MOVE = re.compile(r"\x1b\[\d*(?:;\d*)?[Hf]|\x1b\[2J|\r")
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[()][0-9A-Za-z]|\x1b[=>78cDEHM]")
_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[()])?\Z|\r\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ufffd]")
SHOWN: Final = 20
"""Lines of the console that an error message repeats."""


@dataclass(frozen=True, slots=True)
class Line:
    """One whole line, and the seconds after power-on when it was begun."""

    at: float
    text: str


class Console:
    """The text of one machine's serial port since power-on."""

    def __init__(self, name: str, listen: Callable[[Line], None] | None = None) -> None:
        self.name = name
        self.lines: list[Line] = []
        self._listen = listen
        self._began = time.monotonic()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""  # the head of an escape sequence that is not all there yet
        self._text = ""  # whole lines
        self._line = ""  # the line that is being written, begun at _line_at
        self._line_at = 0.0
        self._cursor = 0
        self._over = ""
        self._changed = asyncio.Event()

    @property
    def seconds(self) -> float:
        """Seconds since power-on."""
        return time.monotonic() - self._began

    @property
    def text(self) -> str:
        """Everything said so far, the line being written too."""
        return self._text + self._line

    def feed(self, data: bytes) -> None:
        """Bytes from the serial port, cut anywhere."""
        text = self._pending + self._decoder.decode(data)
        unfinished = _UNFINISHED.search(text)
        cut = unfinished.start() if unfinished else len(text)
        self._pending = text[cut:]
        self._add(text[:cut])

    def close(self, why: str = "the machine went off") -> None:
        """Nothing more will come, or it is no use to wait for it: `why`."""
        self._over = self._over or why
        self._add("\n")

    def _add(self, text: str) -> None:
        plain = _ESCAPE.sub("", _MOVE.sub("\n", text.replace("\r\n", "\n")))
        *ends, rest = plain.split("\n")
        for end in ends:
            self._write(end)
            self._end_line()
        self._write(rest)
        self._changed.set()

    def _write(self, text: str) -> None:
        if not self._line:
            self._line_at = self.seconds
        for run in re.split("(\b)", text):
            self._line = self._line[:-1] if run == "\b" else self._line + _CONTROL.sub("", run)

    def _end_line(self) -> None:
        words, self._line = self._line.rstrip(), ""
        if not words:
            return
        self._text += words + "\n"
        line = Line(self._line_at, words)
        self.lines.append(line)
        if self._listen is not None:
            self._listen(line)

    async def wait_for(self, pattern: str, within: float, what: str = "") -> re.Match[str]:
        """Wait until `pattern` (multi-line) stands behind the last match; `LabError` after
        `within` seconds or when the machine goes off, with the console's last lines. `what` says
        in words what is waited for."""
        expression = re.compile(pattern, re.MULTILINE)
        try:
            async with asyncio.timeout(within):
                while (match := expression.search(self.text, self._cursor)) is None:
                    if self._over:
                        raise self._missed(what or repr(pattern), self._over)
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise self._missed(what or repr(pattern), f"{within:.0f} s passed") from None
        self._cursor = match.end()
        return match

    def _missed(self, what: str, why: str) -> LabError:
        tail = [f"  {line.at:6.1f}  {line.text}" for line in self.lines[-SHOWN:]]
        return LabError(
            f"{self.name}: {why} before its console showed {what}",
            "\n".join([*tail, f"          {self._line}"]),
        )

    def at(self, pattern: str) -> float | None:
        """Seconds after power-on of the first whole line that `pattern` is found in."""
        found = (line.at for line in self.lines if re.search(pattern, line.text))
        return next(found, None)
