"""What a finished log event becomes: a journal entry, a JSON line, or a line for people.

Values have been escaped and capped before (`log.clean`). No output raises for what the system does,
and none waits: a full pipe, disk or journal loses the event and says so by False.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import stat
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"
MAX_LINE: Final = 600
"""Bytes of one line: what one packet may cost the log (SECURITY.md D11)."""
MAX_LONG: Final = 4000
"""The same for lines about files and faults of our own; below PIPE_BUF, so a write is atomic."""

LONG: Final = frozenset({"fault", "exception", "added", "removed", "changed", "reboot"})
"""Keys whose values nobody on the network chooses: they may be long."""
_JSON: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_FIRST: Final = ("node", "mac", "boot")
_PRIORITY: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_COLOURS: Final = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}


def _ordered(event: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The event's own keys: node, mac and boot first, what is None left out."""
    hidden = ("event", "level", "exception")
    first = [(key, event[key]) for key in _FIRST if event.get(key) is not None]
    rest = [
        (key, value)
        for key, value in event.items()
        if key not in hidden and key not in _FIRST and value is not None
    ]
    return first + rest


def human(event: Mapping[str, Any]) -> str:
    """``boot.up node=n001 seconds=21.3``: what people read, in the journal and on a terminal."""
    words = [str(event.get("event", ""))]
    for key, value in _ordered(event):
        text = str(value)
        words.append(f"{key}={json.dumps(text, ensure_ascii=False) if ' ' in text else text}")
    return " ".join(words)


def _cap(event: Mapping[str, Any]) -> int:
    return MAX_LINE if LONG.isdisjoint(event) else MAX_LONG


def _cut(data: bytes, limit: int) -> bytes:
    """At most `limit` bytes, never half a character."""
    return data if len(data) <= limit else data[:limit].decode(errors="ignore").encode()


class Journal:
    """The journal's native protocol: a datagram of ``FIELD=value`` lines (systemd's
    JOURNAL_NATIVE_PROTOCOL). `path` is the socket; an absent or full journal loses events."""

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        self._path = path
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_UNIX, kind)

    def __call__(self, event: Mapping[str, Any]) -> bool:
        """Send one event; False where the journal did not take it."""
        limit = _cap(event)
        priority = _PRIORITY.get(str(event.get("level")), 6)
        fields = [
            b"MESSAGE=" + _cut(human(event).encode(), limit),
            b"PRIORITY=%d" % priority,
            b"SYSLOG_IDENTIFIER=bootd",
            b"BOOTD_EVENT=" + str(event.get("event", "")).encode(),
        ]
        for key, value in _ordered(event):
            name = re.sub(r"[^A-Z0-9_]", "_", key.upper())[:48]
            fields.append(f"BOOTD_{name}={value}".encode())
        datagram = b"\n".join(fields) + b"\n"
        trace = event.get("exception")
        if trace:
            data = str(trace).encode()
            datagram += b"BOOTD_EXCEPTION\n" + len(data).to_bytes(8, "little") + data + b"\n"
        try:
            self._socket.sendto(datagram, self._path)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the socket; later events are lost."""
        self._socket.close()


class Lines:
    """Lines on a file descriptor that nobody may be reading: a full pipe or disk loses lines.

    `form` makes the line. The descriptor is shared with whoever started us, so it is asked with
    poll(2) whether it takes a line, not switched to non-blocking. A file always does.
    """

    def __init__(self, fd: int, form: Callable[[Mapping[str, Any]], bytes]) -> None:
        self._fd = fd
        self._form = form
        self._torn = False
        self._file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def __call__(self, event: Mapping[str, Any]) -> bool:
        """Write one line; False where nobody takes it now."""
        # A disk that was nearly full has the beginning of a line: it gets an end of its own, so
        # that what comes after it can be read.
        line = b"\n" * self._torn + self._form(event)
        try:
            if not (self._file or any(mask & select.POLLOUT for _, mask in self._poll.poll(0))):
                return False
            written = os.write(self._fd, line)
        except OSError:
            return False
        if written:
            self._torn = written < len(line)
        return not self._torn


def json_line(event: Mapping[str, Any]) -> bytes:
    """One JSON object and a line end; the longest values give way until it fits."""
    limit = MAX_LONG if "exception" in event else _cap(event)
    values = {"time": _now(), "level": event.get("level"), "event": event.get("event")}
    values.update(_ordered(event))
    if "exception" in event:
        values["exception"] = event["exception"]
    line = _JSON.encode(values).encode()
    while len(line) >= limit:
        texts = {key: text for key, text in values.items() if isinstance(text, str)}
        longest = max(texts, key=lambda key: len(texts[key]))
        keep = max(len(texts[longest]) * 3 // 4 - 1, 0)
        values[longest] = f"{texts[longest][:keep]}…"
        line = _JSON.encode(values).encode()
        if keep == 0:
            break
    return line + b"\n"


def console_line(event: Mapping[str, Any], *, colours: bool = True) -> bytes:
    """``17:20:03 info    boot.up node=n001``, in the level's colour."""
    level = str(event.get("level", "info"))
    text = _cut(human(event).encode(), _cap(event)).decode()
    clock = datetime.now().astimezone().strftime("%H:%M:%S")
    if colours:
        name, _, rest = text.partition(" ")
        text = f"\x1b[1m{name}\x1b[0m {rest}"
        level = f"\x1b[{_COLOURS.get(level, '0')}m{level:<8}\x1b[0m"
    trace = f"\n{event['exception']}" if event.get("exception") else ""
    return f"{clock} {level:<8} {text}{trace}\n".encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
