"""What is remembered of each sender between two packets: log throttle, rate limit, loop detection.

Pure: `now` is monotonic seconds. Bounded: a sender that was not heard for longest is forgotten
first, so that invented MAC addresses cost a fixed amount of memory.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from bootd.dhcp.answer import Offer
from bootd.model import Mac

MAX_SENDERS: Final = 16384
ANSWERS_PER_SECOND: Final = 5000
"""For one MAC. A machine that boots sends some ten packets a minute, but where someone pretends to
be it, its own packets are among those: a low limit would keep its answers away."""
LINES_PER_MINUTE: Final = 20
"""In the log, for one MAC."""
LOOP_OFFERS: Final = 3
LOOP_WINDOW: Final = 120.0
"""More than three boots into a first-stage loader within two minutes, and never a script: a loop
(EDK2 and PXE ROMs give up or start over after 20 to 60 seconds)."""


class Sender:
    """One MAC address: what it was answered last, what was said of it, and how often it asked.

    `answer` belongs to `request`, which came by `way` (the shell's, compared by identity).
    """

    __slots__ = (
        "answer",
        "at",
        "heard",
        "left",
        "lines",
        "looped",
        "minute",
        "request",
        "said",
        "stages",
        "way",
        "xid",
    )

    def __init__(self, now: float) -> None:
        self.heard = now
        self.way: object = None
        self.request = b""
        self.answer: Offer | None = None
        self.said: object = None
        self.minute = 0.0
        self.lines = 0
        self.at = 0.0
        self.left = float(ANSWERS_PER_SECOND)
        self.xid = -1
        self.stages: tuple[float, ...] = ()  # a deque of four takes 620 bytes for each stranger
        self.looped: float | None = None

    def allowed(self, now: float) -> bool:
        """Count one answer; False where there were too many lately. The allowance comes back bit by
        bit, so that the machine itself is heard as soon as whoever pretends to be it is quiet."""
        left = self.left + (now - self.at) * ANSWERS_PER_SECOND
        self.at = now
        if left < 1.0:
            self.left = left
            return False
        self.left = (left if left < ANSWERS_PER_SECOND else ANSWERS_PER_SECOND) - 1.0
        return True

    def news(self, what: object, now: float) -> bool:
        """True where `what` differs from what was said of this sender last, and is worth a line:
        whoever changes its mind all the time is not."""
        if self.said == what:
            return False
        if now - self.minute >= 60.0:
            self.minute, self.lines = now, 0
        self.said = what
        self.lines += 1
        return self.lines <= LINES_PER_MINUTE

    def first_stage(self, xid: int, now: float) -> bool:
        """A first-stage loader was offered in transaction `xid`; True where that makes it a loop,
        once in a while.

        Firmware repeats a DISCOVER with its transaction id, so a new one is a new attempt.
        """
        if xid == self.xid:
            return False
        self.xid = xid
        self.stages = (*self.stages[-LOOP_OFFERS:], now)
        if len(self.stages) <= LOOP_OFFERS or now - self.stages[0] > LOOP_WINDOW:
            return False
        if self.looped is not None and now - self.looped <= LOOP_WINDOW:
            return False
        self.looped = now
        return True


class Senders:
    """The senders heard last; to the second, as it is done for every packet."""

    def __init__(self, limit: int = MAX_SENDERS) -> None:
        self._limit = limit
        self._senders: OrderedDict[Mac, Sender] = OrderedDict()

    def __len__(self) -> int:
        return len(self._senders)

    def known(self, mac: Mac) -> Sender | None:
        """The sender with this address, if it was heard before."""
        return self._senders.get(mac)

    def of(self, mac: Mac, now: float) -> Sender:
        """The sender with this address, a new one if need be."""
        sender = self._senders.get(mac)
        if sender is None:
            sender = self._senders[mac] = Sender(now)
            if len(self._senders) > self._limit:
                self._senders.popitem(last=False)
        return sender

    def hear(self, mac: Mac, sender: Sender, now: float) -> None:
        """It is heard now, and so forgotten after those that are quiet."""
        if now - sender.heard >= 1.0:
            sender.heard = now
            self._senders.move_to_end(mac)
