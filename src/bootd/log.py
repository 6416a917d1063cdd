"""Logging: one event in, one line or one journal entry out; it never raises and never blocks.

Three forms. Under systemd an event goes to the journal's own socket, where its keys become fields
(``journalctl BOOTD_NODE=n001``); on a terminal it is a coloured line; otherwise a JSON line. Every
value passes through `clean` first: control characters are escaped (a MAC's owner must not write
lines into our log), lengths are capped, and tokens and keys are taken out.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final

import structlog

from bootd.model import LogSettings
from bootd.sinks import LONG, MAX_LONG, Journal, Lines, console_line, json_line
from bootd.text import escape

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
MAX_VALUE: Final = 256
"""Characters kept of one value."""

MAX_LIBRARY: Final = 20
"""Lines of libraries in `PERIOD` seconds."""
PERIOD: Final = 10.0

_SECRET: Final = frozenset(
    {"token", "key", "asset_key", "assetkey", "password", "secret", "authorization"}
)
_IN_TEXT: Final = re.compile(
    r"(?P<before>(?:/|^)b/|[?&;](?:asset(?:_?key|hex)?|token|key)=)[^/\s&;\"'?#]+", re.IGNORECASE
)

_NUMBERS: Final = (int, float)

Event = MutableMapping[str, Any]


def redact(text: str) -> str:
    """`text` without the tokens and keys that travel in our URLs (SECURITY.md A8)."""
    if "/" not in text and "=" not in text:
        return text  # nearly every value of nearly every line
    return _IN_TEXT.sub(r"\g<before>***", text)


def clean(_logger: object, _method: str, event: Event) -> Event:
    """structlog processor: escape, cap and redact every value."""
    for name, value in event.items():
        if value is None or isinstance(value, _NUMBERS):
            continue
        if name in _SECRET:
            event[name] = "***"
            continue
        text = redact(_text(value))
        if name == "exception":
            event[name] = "\n".join(escape(line) for line in text.splitlines())[-MAX_LONG:]
            continue
        limit = MAX_LONG if name in LONG else MAX_VALUE
        event[name] = escape(text if len(text) <= limit else f"{text[: limit - 1]}…")
    return event


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


Output = Callable[[Mapping[str, Any]], bool]
"""Where finished events go. Returns False where one was lost."""


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


def shown(level: str) -> bool:
    """Whether events of that level are written; where many are made that are not, ask first."""
    return LEVELS[level] >= _threshold.number


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
