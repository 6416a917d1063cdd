"""``/events``: boots as they move, as server-sent events (WHATWG HTML, section 9.2).

One look at the boots each second serves everybody who listens; nobody listening costs nothing. A
listener that does not keep up loses events, not the others' time: each event holds the whole line.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any, Final

from bootd.boots.timeline import Boot, Boots
from bootd.http.answer import Refusal
from bootd.model import Mac
from bootd.status import boot_row

MAX_LISTENERS: Final = 64
QUEUED: Final = 64
"""Rounds of events kept for a listener that is behind."""
QUIET: Final = 15.0
"""Seconds after which a silent stream says that it is alive, so that proxies keep it."""

_State = tuple[str, float, int, int, str]


class Events:
    """The stream's source. `tick` is called about once a second, in the loop."""

    def __init__(self, boots: Boots) -> None:
        self._boots = boots
        self._listeners: set[asyncio.Queue[bytes | None]] = set()
        self._told: dict[Mac, _State] = {}

    def tick(self, now: float) -> None:
        """Tell what changed since the last tick."""
        changed = self._changed(now) if self._listeners else ()
        if changed:
            data = b"".join(changed)
            for queue in self._listeners:
                if not queue.full():
                    queue.put_nowait(data)

    def listen(self, now: float) -> AsyncGenerator[bytes, None]:
        """A new listener's stream: every boot as it is, then what changes. Raises `Refusal`."""
        if len(self._listeners) >= MAX_LISTENERS:
            raise Refusal(503, "busy", f"{MAX_LISTENERS} clients listen already")
        return self._stream(now)

    def close(self) -> None:
        """End all streams."""
        for queue in self._listeners:
            while queue.full():
                queue.get_nowait()
            queue.put_nowait(None)

    async def _stream(self, now: float) -> AsyncGenerator[bytes, None]:
        # Nothing of this runs before the first chunk is asked for (which HEAD never does).
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUED)
        boots = list(self._boots)
        if not self._listeners:
            self._told = {boot.mac: _state(boot) for boot in boots}
        self._listeners.add(queue)
        try:
            first = [_event(boot, now, self._boots.offset) for boot in boots]
            yield b"".join(first) or b": nothing has booted yet\n\n"
            while True:
                try:
                    data = await asyncio.wait_for(queue.get(), QUIET)
                except TimeoutError:
                    data = b": alive\n\n"
                if data is None:
                    return
                yield data
        finally:
            self._listeners.discard(queue)

    def _changed(self, now: float) -> list[bytes]:
        events = []
        seen = set()
        for boot in self._boots:
            seen.add(boot.mac)
            state = _state(boot)
            if self._told.get(boot.mac) != state:
                self._told[boot.mac] = state
                events.append(_event(boot, now, self._boots.offset))
        for mac in self._told.keys() - seen:
            del self._told[mac]
        return events


def _state(boot: Boot) -> _State:
    sent = boot.steps[-1].sent if boot.steps else 0
    return boot.id, boot.seen, len(boot.steps), sent, boot.outcome


def _event(boot: Boot, now: float, offset: float) -> bytes:
    row: dict[str, Any] = {"node": boot.node, "mac": boot.mac, **boot_row(boot, now, offset)}
    return f"event: boot\ndata: {json.dumps(row, separators=(',', ':'))}\n\n".encode()
