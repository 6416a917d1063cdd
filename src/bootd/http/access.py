"""The access log: one line for each request of a boot, the others for whoever debugs.

No path and no query goes into it: both may hold a token. Refusals come from anyone, so their lines
are rationed; the metrics count all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import structlog

from bootd import metrics
from bootd.http.answer import Answer, Asked
from bootd.http.routes import Bad, BootPart, File, Fixed, Public, Route
from bootd.log import shown

log = structlog.get_logger()

RATION: Final = 20
"""Lines about refusals in one `PERIOD` of seconds."""
PERIOD: Final = 10.0


@dataclass(slots=True)
class Sent:
    """What left of an answer: its status, body bytes, and ``ok`` or why not all of them did."""

    status: int
    bytes: int
    outcome: str


class AccessLog:
    """Writes the lines and counts the metrics."""

    def __init__(self) -> None:
        self._since = 0.0
        self._lines = 0

    def done(self, asking: Route, asked: Asked, answer: Answer, sent: Sent, now: float) -> None:
        """A request is over, at `now` (monotonic seconds)."""
        name = _name(asking)
        metrics.HTTP_REQUESTS.inc(name, str(sent.status))
        if sent.outcome != "ok":
            metrics.HTTP_ABORTED.labels(name).inc()
        if answer.reason:
            metrics.HTTP_REFUSED.labels(answer.reason).inc()
            if sent.status == 503:
                metrics.HTTP_UNAVAILABLE.labels(answer.reason).inc()
        quiet = answer.quiet or (not answer.reason and (answer.mac is None or sent.status == 304))
        if quiet and not shown("debug"):
            return  # most of what running nodes ask
        if answer.reason and not quiet and not self._may_write(now):
            return
        tell = log.debug if quiet else log.info
        tell(
            "http.refused" if answer.reason else "http.request",
            node=answer.node,
            mac=answer.mac,
            boot=answer.boot,
            route=name,
            peer=str(asked.peer),
            tls=asked.server.scheme == "https" or None,
            status=sent.status,
            bytes=sent.bytes,
            seconds=round(now - asked.now, 3),
            outcome=answer.reason or sent.outcome,
        )

    def _may_write(self, now: float) -> bool:
        if now - self._since >= PERIOD:
            if self._lines > RATION:
                log.info("http.refused-more", count=self._lines - RATION)
            self._since, self._lines = now, 0
        self._lines += 1
        return self._lines <= RATION


def _name(asking: Route) -> str:
    """The route as log and metrics call it: a word of ours, never off the wire."""
    match asking:
        case BootPart(_, part):
            return part
        case Public(role, _):
            return role
        case Fixed(name):
            return name
        case File(target):
            return type(target).__name__.lower()
        case Bad():
            return "none"
        case _:
            return type(asking).__name__.lower()
