"""One transfer under way: its state machine, its channel, its timer."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from math import inf
from typing import Final, Protocol

from bootd.boots.timeline import Stage, Step
from bootd.model import Mac
from bootd.tftp import wire
from bootd.tftp.admission import Peer
from bootd.tftp.sockets import Channel
from bootd.tftp.timers import Timers
from bootd.tftp.transfer import Outcome, Transfer
from bootd.tftp.wire import ErrorCode, ReadRequest

FIRST_PORT: Final = 1024
"""Lower source ports belong to servers, and two servers that answer each other never end."""

_STRANGERS: Final = 8
"""Wrong senders that are told so, for each transfer."""
_NOT_OURS: Final = wire.error(ErrorCode.UNKNOWN_TID, "unknown transfer")


class Keeper(Protocol):
    """Who keeps the sessions, and is told what becomes of them."""

    def verified(self, session: Session) -> None:
        """The client has acknowledged something; once."""

    def ended(self, session: Session) -> None:
        """It is over; once."""

    def failed(self, session: Session) -> None:
        """An exception is being handled; the session goes on, if it can."""


class Session:
    """From an admitted request to its end: first it waits for the file (`transfer` is None), then
    it sends. `now` reads the monotonic clock, finer than the loop's own."""

    def __init__(
        self,
        request: ReadRequest,
        peer: Peer,
        local: IPv4Address,
        interface: int,
        *,
        keeper: Keeper,
        timers: Timers,
        now: Callable[[], float],
    ) -> None:
        self.request = request
        self.peer = peer
        self.local = local
        self.interface = interface
        self.began = now()
        self.name = ""
        self.stage: Stage | None = None
        """What is read is of a boot; None where it is no step of one."""
        self.mac: Mac | None = None
        self.step: Step | None = None
        self.transfer: Transfer | None = None
        self.due = 0
        self.closed = False
        self.shared = False
        """True where the listening port hears the client (``single_port``)."""
        self._keeper = keeper
        self._now = now
        self._told_verified = False
        self._channel: Channel | None = None
        self._timers = timers
        self._rings_at = inf
        self._strangers = 0

    @property
    def verified(self) -> bool:
        """True once the client has acknowledged something."""
        return self.transfer is not None and self.transfer.verified

    @property
    def stalled_since(self) -> float:
        """When it last got further, in monotonic seconds."""
        return self.transfer.stalled_since if self.transfer is not None else self.began

    def begin(self, transfer: Transfer, channel: Channel) -> None:
        """The file is there: send."""
        self.transfer = transfer
        self._channel = channel
        self._flush(transfer, channel)

    def receive(self, datagram: bytes) -> None:
        """A datagram from the client."""
        transfer, channel = self.transfer, self._channel
        if transfer is None or channel is None or self.closed:
            return
        try:
            transfer.receive(datagram, self._now())
            self._flush(transfer, channel)
        except Exception:
            self._keeper.failed(self)

    def repeated(self) -> None:
        """The same request came again."""
        if self.transfer is not None and self._channel is not None:
            self.transfer.repeated(self._now())
            self._flush(self.transfer, self._channel)

    def unreachable(self) -> None:
        """The client's host says that nobody listens there."""
        if self.transfer is not None:
            self.transfer.unreachable()
            self.end()

    def stranger(self, datagram: bytes, source: Peer) -> bytes | None:
        """A datagram from someone else, and what to answer: RFC 1350 4, and the transfer goes on.
        An ERROR is never answered."""
        if self._strangers >= _STRANGERS or source[1] < FIRST_PORT:
            return None
        if datagram[:2] not in (b"\0\3", b"\0\4"):
            return None
        self._strangers += 1
        return _NOT_OURS

    def abort(self, outcome: Outcome) -> None:
        """The server ends it."""
        if self.transfer is not None and self._channel is not None:
            self.transfer.abort(outcome)
            self._flush(self.transfer, self._channel)
        self.end()

    def end(self) -> None:
        """Close what is open, and tell; once."""
        if self.closed:
            return
        self.closed = True
        self._timers.cancel(self)
        if self._channel is not None:
            self._channel.close()
        self._keeper.ended(self)

    def _flush(self, transfer: Transfer, channel: Channel) -> None:
        for burst in transfer.take():
            channel.send(burst)
        if transfer.verified and not self._told_verified:
            self._told_verified = True
            self._keeper.verified(self)
        deadline = transfer.deadline
        if deadline is None:
            self.end()
        elif deadline < self._rings_at:  # one that moved back is looked at when it would have rung
            self._rings_at = deadline
            self._timers.set(self, deadline)

    def ring(self) -> None:
        """The deadline has passed, or one that was then moved back."""
        self._rings_at = inf
        try:
            self._expire()
        except Exception:
            self._keeper.failed(self)

    def _expire(self) -> None:
        transfer, channel = self.transfer, self._channel
        if transfer is None or channel is None or self.closed:
            return
        now = self._now()
        if transfer.deadline is not None and transfer.deadline <= now:
            # While the loop was busy elsewhere, or the machine stopped, the answer has come.
            channel.drain()
            if self.closed:
                return
            transfer.tick(now)
        if self.step is not None and self.step.sent != transfer.acknowledged:
            self.step.sent, self.step.moved = transfer.acknowledged, now
        self._flush(transfer, channel)
