"""Which large transfers may begin now, and when the others should ask again.

Pure: time comes in, decisions go out. A thousand nodes that fetch at once all finish late; a few at
a time finish one after the other, and the last of them no later. iPXE and curl wait for as long as
``Retry-After`` says and ask again, so they can be told to; firmware cannot, and is always admitted.

Who waits is remembered by address. A free place goes to the one that is next: racks take turns, and
within a rack the first to have come is first. Who is next but will only ask again later does not
keep a place empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

LARGE: Final = 4 * 1024 * 1024
"""Bytes from which a transfer is counted."""
FIRST_LIMIT: Final = 64
"""Transfers at once before any throughput was measured."""
MIN_LIMIT, MAX_LIMIT = 16, 1024
FAIR_RATE: Final = 8e6
"""Bytes per second that each transfer should have, at least, where the limit is found by itself."""
SHORTEST, LONGEST = 1, 30
"""Seconds of ``Retry-After``."""
SOON: Final = 1.5
"""Seconds within which someone who waits must be due to have a place kept."""
_FORGET: Final = 10.0
_DECAY: Final = 0.98  # of the measured peak, per second: a link that became slower is noticed


@dataclass(slots=True)
class Ticket:
    """A transfer that was admitted; give it back with `Admission.leave`."""

    rack: str
    counted: bool
    begun: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again in that many whole seconds."""

    seconds: int


@dataclass(slots=True)
class _Waiting:
    rack: str
    since: float
    due: float


class Admission:
    """`limit` is ``http.max_image_transfers``, None to find it; `jitter` gives 0.0 to 1.0."""

    def __init__(self, jitter: Callable[[], float], limit: int | None = None) -> None:
        self._jitter = jitter
        self._set = limit
        self._peak = 0.0
        self._racks: Counter[str] = Counter()
        self._waiting: dict[str, _Waiting] = {}
        self._mean = 5.0  # seconds that a transfer takes, smoothed
        self.active = 0

    @property
    def limit(self) -> int:
        """How many may be under way."""
        if self._set is not None:
            return self._set
        if not self._peak:
            return FIRST_LIMIT
        return max(MIN_LIMIT, min(MAX_LIMIT, round(self._peak / FAIR_RATE)))

    @property
    def waiting(self) -> int:
        """How many were told to ask again and are expected to."""
        return len(self._waiting)

    def configure(self, limit: int | None) -> None:
        """Take ``http.max_image_transfers`` of a new registry."""
        self._set = limit

    def measured(self, rate: float) -> None:
        """All transfers together moved `rate` bytes in the last second."""
        self._peak = max(rate, self._peak * _DECAY) if rate else self._peak

    def ask(self, who: str, rack: str, *, patient: bool, now: float) -> Ticket | Wait:
        """May `who` (an address), of that rack, begin? `patient`: it understands to wait."""
        if not patient:
            return self._admit(rack, now)
        self._forget(now)
        own = self._waiting.get(who) or _Waiting(rack, now, now)
        ahead = self._ahead(own)
        free = self.limit - self.active
        if sum(other.due <= now + SOON for other in ahead) < free:
            self._waiting.pop(who, None)
            return self._admit(rack, now)
        seconds = self._seconds(len(ahead) - free)
        own.due = now + seconds
        self._waiting[who] = own
        return Wait(seconds)

    def leave(self, ticket: Ticket, now: float) -> None:
        """A transfer is over, in whatever way. A second time does nothing."""
        if not ticket.counted:
            return
        ticket.counted = False
        self.active -= 1
        self._racks[ticket.rack] -= 1
        if not self._racks[ticket.rack]:
            del self._racks[ticket.rack]
        self._mean += (now - ticket.begun - self._mean) / 8

    def _admit(self, rack: str, now: float) -> Ticket:
        self.active += 1
        self._racks[rack] += 1
        return Ticket(rack, True, now)

    def _ahead(self, own: _Waiting) -> list[_Waiting]:
        """Those whose turn is before `own`'s: fewer of their rack are served or before them."""
        turns: dict[str, int] = dict(self._racks)
        ordered = sorted(self._waiting.values(), key=lambda entry: entry.since)
        places: list[tuple[int, float, _Waiting]] = []
        mine = None
        for entry in ordered:
            turn = turns.get(entry.rack, 0)
            turns[entry.rack] = turn + 1
            places.append((turn, entry.since, entry))
            if entry is own:
                mine = (turn, entry.since)
        mine = mine or (turns.get(own.rack, 0), own.since)
        return [entry for turn, since, entry in places if (turn, since) < mine]

    def _seconds(self, position: int) -> int:
        """When a place may be free for the one in that position, and then some, so that those who
        were told at once do not come back at once."""
        wait = self._mean * (max(position, 0) + 1) / max(self.limit, 1)
        spread = wait * (0.75 + 0.5 * self._jitter()) + 2 * self._jitter()
        return max(SHORTEST, min(LONGEST, round(spread)))

    def _forget(self, now: float) -> None:
        gone = [who for who, entry in self._waiting.items() if now > entry.due + _FORGET]
        for who in gone:
            del self._waiting[who]
