"""Which large transfers may begin now, and when the others should ask again.

Pure: time comes in, decisions go out. A thousand nodes that fetch at once all finish late; a few at
a time finish one after the other, and the last of them no later. iPXE and curl wait for as long as
``Retry-After`` says and ask again, so they can be told to; firmware cannot, and is always admitted.

Who waits is remembered by address. A free place goes to the one that is next: racks take turns, and
within a rack the boot that began first is first. Who is next but will only ask again later does not
keep a place empty.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
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
_STEP: Final = 1.25
_WORTH: Final = 1.1
_SETTLED: Final = 2  # seconds from a step to its verdict
_REST: Final = 10  # seconds from a step that was not worth it to the next

_Place = tuple[float, str]
"""A time and who has it."""


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
    """`limit` is ``http.max_image_transfers``, None to find it; `jitter` gives 0.0 to 1.0.

    Ten thousand may wait, and each asks again and again: no question looks at all of them.
    """

    def __init__(self, jitter: Callable[[], float], limit: int | None = None) -> None:
        self._jitter = jitter
        self._set = limit
        self._peak = 0.0
        self._tried = 0.0  # a limit above what throughput asks for, found to be worth it
        self._phase = 0
        self._before = 0.0
        self._racks: Counter[str] = Counter()
        self._waiting: dict[str, _Waiting] = {}
        self._queues: dict[str, list[_Place]] = {}  # of each rack, the first to have come first
        self._dues: list[_Place] = []  # of all, the next to ask again first
        self._mean = 5.0  # seconds that a transfer takes, smoothed
        self.active = 0

    @property
    def limit(self) -> int:
        """How many may be under way."""
        if self._set is not None:
            return self._set
        if not self._peak:
            return FIRST_LIMIT
        return max(MIN_LIMIT, min(MAX_LIMIT, round(max(self._peak / FAIR_RATE, self._tried))))

    @property
    def waiting(self) -> int:
        """How many were told to ask again and are expected to."""
        return len(self._waiting)

    def configure(self, limit: int | None) -> None:
        """Take ``http.max_image_transfers`` of a new registry."""
        self._set = limit

    def measured(self, rate: float) -> None:
        """All transfers together moved `rate` bytes in the last second; called each second."""
        self._peak = max(rate, self._peak * _DECAY) if rate else self._peak
        if not self._waiting:
            self._tried *= _DECAY
            self._phase = 0
        elif self._set is None:
            self._try(rate)

    def _try(self, rate: float) -> None:
        """Machines wait: see whether a quarter more at once move more in all. They do where their
        own links are what is slow."""
        if self._phase == 0:
            self._before, self._tried = rate, self.limit * _STEP
        elif self._phase == _SETTLED:
            worth = rate > self._before * _WORTH
            self._phase = -1 if worth else -_REST
            self._tried /= 1 if worth else _STEP
        self._phase += 1

    def ask(
        self, who: str, rack: str, *, patient: bool, now: float, since: float | None = None
    ) -> Ticket | Wait:
        """May `who` (an address), of that rack, begin? `patient`: it understands to wait. `since`
        is when it came, where that is earlier: a boot waits for its second file by its own age."""
        if not patient:
            return self._admit(rack, now)
        self._forget(now)
        came = min(now, since) if since is not None else now
        had = self._drop(who)
        own = _Waiting(rack, min(came, had.since) if had is not None else came, now)
        free = self.limit - self.active
        if free > 0 and not self._kept_for_others(who, own, free, now):
            return self._admit(rack, now)
        seconds = self._seconds(self._ahead(who, own) - free)
        own.due = now + seconds
        self._keep(who, own)
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

    # ---- who waits -------------------------------------------------------------------------------

    def _keep(self, who: str, entry: _Waiting) -> None:
        self._waiting[who] = entry
        insort(self._queues.setdefault(entry.rack, []), (entry.since, who))
        insort(self._dues, (entry.due, who))

    def _drop(self, who: str) -> _Waiting | None:
        entry = self._waiting.pop(who, None)
        if entry is None:
            return None
        queue = self._queues[entry.rack]
        del queue[bisect_left(queue, (entry.since, who))]
        if not queue:
            del self._queues[entry.rack]
        del self._dues[bisect_left(self._dues, (entry.due, who))]
        return entry

    def _forget(self, now: float) -> None:
        while self._dues and self._dues[0][0] + _FORGET < now:
            self._drop(self._dues[0][1])

    def _turn(self, who: str, entry: _Waiting) -> tuple[int, float]:
        """What decides who is next: fewer of its rack served or before it, then who came first."""
        before = bisect_left(self._queues.get(entry.rack, []), (entry.since, who))
        return self._racks[entry.rack] + before, entry.since

    def _kept_for_others(self, who: str, own: _Waiting, free: int, now: float) -> bool:
        """Whether those who are next, and about to ask again, take all that is free."""
        mine = self._turn(who, own)
        for _, other in self._dues[
            : bisect_right(self._dues, now + min(SOON, self._mean / 4), key=itemgetter(0))
        ]:
            free -= self._turn(other, self._waiting[other]) < mine
            if free <= 0:
                return True
        return False

    def _ahead(self, who: str, own: _Waiting) -> int:
        """About how many of all who wait are next before `own`."""
        turn, _ = self._turn(who, own)
        return sum(
            min(len(queue), max(turn - self._racks[rack], 0))
            for rack, queue in self._queues.items()
        )

    def _seconds(self, position: int) -> int:
        """When a place may be free for the one in that position, and then some, so that those who
        were told at once do not come back at once."""
        wait = self._mean * (max(position, 0) + 1) / max(self.limit, 1)
        spread = wait * (0.75 + 0.5 * self._jitter()) + 2 * self._jitter()
        return max(SHORTEST, min(LONGEST, round(spread)))
