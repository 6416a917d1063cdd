"""Logging: one event in, one line or one journal entry out; it never raises and never blocks.

Three forms. Under systemd an event goes to the journal's own socket, where its keys become fields
(``journalctl BOOTD_NODE=n001``); on a terminal it is a coloured line; otherwise a JSON line. Every
value passes through `clean` first: control characters are escaped (a MAC's owner must not write
lines into our log), lengths are capped, and tokens and keys are taken out.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import socket
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from bootd.model import LogSettings
from bootd.text import escape

JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"
LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
MAX_VALUE: Final = 256
"""Characters kept of one value."""
MAX_LINE: Final = 600
"""Bytes of one line: what one packet may cost the log (SECURITY.md D11)."""
MAX_LONG: Final = 4000
"""The same for lines about files and faults of our own; below PIPE_BUF, so a write is atomic."""

MAX_LIBRARY: Final = 20
"""Lines of libraries in `PERIOD` seconds."""
PERIOD: Final = 10.0

_LONG: Final = frozenset({"fault", "exception", "added", "removed", "changed", "reboot"})
"""Keys whose values nobody on the network chooses: they may be long."""
_SECRET: Final = frozenset(
    {"token", "key", "asset_key", "assetkey", "password", "secret", "authorization"}
)
_IN_TEXT: Final = re.compile(
    r"(?P<before>/b/|[?&;](?:asset_?key|token|key)=)[^/\s&;\"'?#]+", re.IGNORECASE
)
_FIRST: Final = ("node", "mac", "boot")
_PRIORITY: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_COLOURS: Final = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}

Event = MutableMapping[str, Any]


def redact(text: str) -> str:
    """`text` without the tokens and keys that travel in our URLs (SECURITY.md A8)."""
    return _IN_TEXT.sub(r"\g<before>***", text)


def clean(_logger: object, _method: str, event: Event) -> Event:
    """structlog processor: escape, cap and redact every value."""
    for name, value in event.items():
        if value is None or isinstance(value, int | float):
            continue
        if name in _SECRET:
            event[name] = "***"
            continue
        text = redact(_text(value))
        if name == "exception":
            event[name] = "\n".join(escape(line) for line in text.splitlines())[-MAX_LONG:]
            continue
        limit = MAX_LONG if name in _LONG else MAX_VALUE
        event[name] = escape(text if len(text) <= limit else f"{text[: limit - 1]}…")
    return event


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


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
    return MAX_LONG if any(key in event for key in _LONG) else MAX_LINE


def _cut(data: bytes, limit: int) -> bytes:
    """At most `limit` bytes, never half a character."""
    return data if len(data) <= limit else data[:limit].decode(errors="ignore").encode()


Output = Callable[[Mapping[str, Any]], bool]
"""Where finished events go. Returns False where one was lost."""


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
    poll(2) whether it takes a line, not switched to non-blocking.
    """

    def __init__(self, fd: int, form: Callable[[Mapping[str, Any]], bytes]) -> None:
        self._fd = fd
        self._form = form
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def __call__(self, event: Mapping[str, Any]) -> bool:
        """Write one line; False where nobody takes it now."""
        line = self._form(event)
        try:
            if not any(mask & select.POLLOUT for _, mask in self._poll.poll(0)):
                return False
            return os.write(self._fd, line) == len(line)
        except OSError:
            return False


def json_line(event: Mapping[str, Any]) -> bytes:
    """One JSON object and a line end; the longest values give way until it fits."""
    limit = MAX_LONG if "exception" in event else _cap(event)
    values = {"time": _now(), "level": event.get("level"), "event": event.get("event")}
    values.update(_ordered(event))
    if "exception" in event:
        values["exception"] = event["exception"]
    line = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
    while len(line) >= limit:
        texts = {key: text for key, text in values.items() if isinstance(text, str)}
        longest = max(texts, key=lambda key: len(texts[key]))
        keep = max(len(texts[longest]) * 3 // 4 - 1, 0)
        values[longest] = f"{texts[longest][:keep]}…"
        line = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
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


class Sink:
    """The end of the pipeline: hands events to `output`, and counts what it lost.

    `lost` is told in the log as soon as a line gets through again.
    """

    def __init__(self, output: Output) -> None:
        self.output = output
        self.lost = 0

    def write(self, event: Mapping[str, Any]) -> None:
        """Write one finished event; on failure count it and go on (SECURITY.md C3)."""
        try:
            if self.lost and self.output(
                {"event": "log.lost", "level": "warning", "count": self.lost}
            ):
                self.lost = 0
            if not self.output(event):
                self.lost += 1
        except Exception:
            # A logger that raises takes the request with it. Nothing is left to tell it to.
            self.lost += 1

    def close(self) -> None:
        """Close what `choose_output` opened."""
        if isinstance(self.output, Journal):
            self.output.close()


class _Logger:
    """structlog's innermost logger: what the processors made goes to the sink."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def msg(self, **event: Any) -> None:
        self._sink.write(event)

    debug = info = warning = error = critical = msg


class Threshold:
    """The level that a reload may change, in one mutable cell that all loggers read."""

    def __init__(self, level: str) -> None:
        self.set(level)

    def set(self, level: str) -> None:
        """Take `level`, one of `LEVELS`."""
        self.number = LEVELS[level]


_threshold = Threshold("info")


def set_level(level: str) -> None:
    """Change the level of every logger, at once."""
    _threshold.set(level)


class BoundLogger(structlog.BoundLoggerBase):
    """The logger that ``structlog.get_logger()`` gives after `configure`."""

    def _log(self, level: str, event: str, values: dict[str, Any]) -> None:
        if LEVELS[level] < _threshold.number:
            return
        try:
            self._proxy_to_logger(level, event, level=level, **values)
        except Exception:
            # Logging never raises: a value whose str() fails must not end a boot.
            return

    def debug(self, event: str, **values: Any) -> None:
        """For whoever looks for a fault."""
        self._log("debug", event, values)

    def info(self, event: str, **values: Any) -> None:
        """One finished thing."""
        self._log("info", event, values)

    def warning(self, event: str, **values: Any) -> None:
        """Something that an operator should look at."""
        self._log("warning", event, values)

    warn = warning

    def error(self, event: str, **values: Any) -> None:
        """Something that did not work."""
        self._log("error", event, values)

    def critical(self, event: str, **values: Any) -> None:
        """The daemon ends."""
        self._log("critical", event, values)

    def exception(self, event: str, **values: Any) -> None:
        """An error with the traceback of the exception being handled."""
        values.setdefault("exc_info", True)
        self._log("error", event, values)


class _Library(logging.Handler):
    """What libraries log by ``logging``, as events of ours: at most `MAX_LIBRARY` in ten seconds,
    for what they say may depend on what the network sends."""

    def __init__(self) -> None:
        super().__init__()
        self._since = -PERIOD
        self._seen = 0

    def emit(self, record: logging.LogRecord) -> None:
        if self._too_many(time.monotonic()):
            return
        level = record.levelname.lower() if record.levelname.lower() in LEVELS else "info"
        log = structlog.get_logger()
        try:
            message = record.getMessage()
        except Exception:
            message = str(record.msg)
        values: dict[str, Any] = {"logger": record.name, "message": message}
        if record.exc_info:
            values["exc_info"] = record.exc_info
        getattr(log, level)("library.log", **values)

    def _too_many(self, now: float) -> bool:
        if now - self._since >= PERIOD:
            if self._seen > MAX_LIBRARY:
                suppressed = self._seen - MAX_LIBRARY
                structlog.get_logger().warning("library.suppressed", count=suppressed)
            self._since, self._seen = now, 0
        self._seen += 1
        return self._seen > MAX_LIBRARY


def under_journal(environ: Mapping[str, str]) -> bool:
    """True where our output is the journal: JOURNAL_STREAM names stdout or stderr."""
    stream = environ.get("JOURNAL_STREAM")
    for fd in (1, 2) if stream else ():
        try:
            status = os.fstat(fd)
        except OSError:
            continue
        if stream == f"{status.st_dev}:{status.st_ino}":
            return True
    return False


def choose_output(form: str, environ: Mapping[str, str]) -> Output:
    """The output for ``log.format``: ``auto``, ``journald``, ``console`` or ``json``."""
    terminal = os.isatty(1)
    if form == "journald" or (form == "auto" and under_journal(environ)):
        return Journal()
    if form == "console" or (form == "auto" and terminal):
        colours = terminal and "NO_COLOR" not in environ
        return Lines(1, lambda event: console_line(event, colours=colours))
    return Lines(1, json_line)


def configure(
    settings: LogSettings,
    environ: Mapping[str, str],
    *,
    output: Output | None = None,
    cache: bool = False,
) -> Sink:
    """Make this process log as `settings` say. Returns the sink, for its count of lost lines.

    `cache` keeps each module's logger once made: faster, but final for the process.
    """
    set_level(settings.level)
    sink = Sink(output or choose_output(settings.format, environ))
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            clean,
        ],
        wrapper_class=BoundLogger,
        logger_factory=lambda *_args: _Logger(sink),
        cache_logger_on_first_use=cache,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Library()]
    root.setLevel(logging.WARNING)
    logging.raiseExceptions = False
    sys.excepthook = _excepthook
    return sink


def _excepthook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    structlog.get_logger().critical("bootd.crashed", exc_info=(kind, error, trace))
