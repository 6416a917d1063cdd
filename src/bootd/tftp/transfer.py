"""One TFTP read, as a state machine: no socket, no clock, no file, no logger.

``receive(datagram, now)`` and ``tick(now)`` go in, ``take()`` gives what to send, `deadline` says
when ``tick`` wants to be called, `outcome` is set once, and then it is over. Seconds are monotonic.

The rules, and who needs them:

- Until the client has acknowledged anything, its address is a claim: at most `MAX_UNVERIFIED`
  datagrams, whatever it asked for and however often, none larger than a plain 512-byte block.
- An ACK of a block that was acknowledged before is never answered (RFC 1123 4.2.3.1, the
  Sorcerer's Apprentice); the timer alone sends again. It is measured per transfer, because a fixed
  one costs a rack seconds for each lost packet.
- An ACK inside the window says that the next block was lost (RFC 7440), or that one came twice: go
  back if nothing better follows at once, and once only. EDK2 repeats that ACK for every block that
  it drops; going back for each would make a storm.
- Block numbers are 16 bits and roll over to 0; a window is at most 64, so they are never ambiguous.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from bootd.tftp import wire
from bootd.tftp.frames import Burst, Frames
from bootd.tftp.terms import MAX_TIMEOUT, Terms
from bootd.tftp.wire import ErrorCode, PeerError, WireError

MAX_UNVERIFIED: Final = 4
"""Datagrams sent to a client that never acknowledged one; 2,200 bytes in all, as none is larger
than a block of 512 with its header."""
UNVERIFIED_LIFE: Final = 30.0
"""Seconds that such a transfer lives. Until then a repeated request starts no other one."""
STALLED: Final = 30.0
"""Seconds without progress after which a transfer is given up."""
MIN_TIMEOUT: Final = 0.010

_REPEAT_AFTER: Final = 0.5
"""A repeated request within these seconds of our answer crossed it on the wire."""
_NEAR: Final = 0.001
"""Seconds: a way there and back so short changes none of the waits, whose floors are above it."""
_UNKNOWN_WAY: Final = 0.02
"""Seconds there and back that are assumed until one could be measured."""
_LARGE: Final = 16
_MOST_PARTS: Final = 16
_POOR, _FAIR, _GOOD = 0.6, 0.75, 0.85
"""More blocks at once than `_LARGE` are halved at each loss, fewer where less than `_POOR` of what
is sent is of use, down to `_MOST_PARTS` a window; they are doubled again past `_GOOD`. At 5 % loss
a block of 16 at once is sent 1.5 times on average, one of 64 four times."""
_COMPLAINT: Final = 0.001
"""Seconds, at least: an ACK repeated sooner after its window is the network's duplicate, and a gap
is believed when nothing better follows in this time."""


class Outcome(StrEnum):
    """How a transfer ended."""

    OK = "ok"
    PROBE = (
        "probe"  # asked for the size only and said so: EDK2 and PXE ROMs do, before the real read
    )
    ABORTED = "aborted"  # the client sent an ERROR
    TIMED_OUT = "timed-out"
    UNCONFIRMED = "unconfirmed"  # all was sent, and the client was gone before its last ACK came
    UNREACHABLE = "unreachable"  # the client's port is closed
    EVICTED = "evicted"  # another client needed the place of one that never answered
    SUPERSEDED = "superseded"  # the same client and port began another read
    STOPPED = "stopped"  # the server ends


class Transfer:
    """One read of `frames` on `terms`, begun at `now`."""

    __slots__ = (
        "_asked",
        "_awaited",
        "_backoff",
        "_base",
        "_base_before",
        "_began",
        "_calm",
        "_clean",
        "_doubted",
        "_doubting",
        "_highest",
        "_out",
        "_part",
        "_parted",
        "_peak",
        "_progress",
        "_sent_at",
        "_sent_before",
        "_smoothed",
        "_unverified_left",
        "_use",
        "_variation",
        "_wait",
        "_window_at",
        "_windowsize",
        "datagrams",
        "deadline",
        "error",
        "frames",
        "ignored",
        "outcome",
        "retransmits",
        "terms",
        "verified",
    )

    def __init__(self, frames: Frames, terms: Terms, now: float) -> None:
        self.frames = frames
        self.terms = terms
        self.outcome: Outcome | None = None
        self.error: PeerError | None = None
        self.deadline: float | None = None
        self.verified = False
        """True once the client has acknowledged something, so that its address is its own."""
        self.datagrams = 0
        self.retransmits = 0
        self.ignored = 0
        self._began = self._progress = now
        self._base = 0  # blocks acknowledged
        self._highest = 0  # the last block that is out
        self._peak = 0  # the last block that was ever sent
        self._awaited = b""  # the ACK of all that is out
        self._part = terms.windowsize  # blocks sent at once
        self._use = 1.0  # the share of it that the client could use, lately
        self._sent_before = self._base_before = 0  # when that was last looked at
        self._parted = False  # the window's rest waits for the deadline
        self._window_at = now
        self._doubted = -1  # the base at which the client complained; it does so once for each
        self._doubting = False  # the deadline is the complaint's, not the timer's
        self._clean = True  # nothing in the window was sent before: its ACK measures the way
        self._asked = False  # the timer has run out once, and the last block was sent again
        self._backoff = 1
        self._smoothed = self._variation = 0.0
        self._calm = False  # the way is so short and steady that measuring changes nothing
        self._wait = terms.timeout
        self._windowsize = terms.windowsize
        self._unverified_left = MAX_UNVERIFIED
        self._out: tuple[Burst, ...] = ()
        self._send_first(now)

    @property
    def acknowledged(self) -> int:
        """Bytes of the file that the client has for certain."""
        return min(self._base * self.frames.blksize, len(self.frames.data))

    @property
    def stalled_since(self) -> float:
        """When the client last got further."""
        return self._progress

    def take(self) -> tuple[Burst, ...]:
        """What to send now; call it after `receive`, `tick` and the others."""
        out, self._out = self._out, ()
        return out

    def receive(self, datagram: bytes, now: float) -> None:
        """A datagram from the client's address and port."""
        if datagram == self._awaited:  # nearly all of them, so that it comes first
            if self._clean and not (self._calm and now - self._sent_at < _NEAR):
                self._measure(now)
            self._arrived(now)
            return
        if self.outcome is not None:
            return
        try:
            reply = wire.parse_reply(datagram)
        except WireError:
            self.ignored += 1
            return
        if isinstance(reply, PeerError):
            self._errored(reply)
        elif self.verified:
            self._acknowledge((reply - self._base) & 0xFFFF, now)
        elif reply == (0 if self.terms.options else 1):
            self._verify(reply, now)
        else:
            self.ignored += 1

    def tick(self, now: float) -> None:
        """The deadline has passed, or may have."""
        if self.outcome is not None or self.deadline is None or now < self.deadline:
            return
        if not self.verified:
            self._tick_unverified(now)
        elif now >= self._progress + STALLED:
            self._end(Outcome.TIMED_OUT)
        elif self._doubting:
            self._send_window(now)
        elif self._parted:
            self._send_part(now)
        elif not self._asked and self._highest - self._base > 1:
            self._ask(now)
        else:
            self._backoff *= 2
            self._send_window(now)

    def repeated(self, now: float) -> None:
        """The same request came again: the client did not get our answer, or not in time."""
        if not self.verified and now - self._sent_at >= _REPEAT_AFTER:
            self._send_first(now)

    def unreachable(self) -> None:
        """The client's host said that nobody listens there."""
        whole = self.verified and self._highest == self.frames.blocks
        self.abort(Outcome.UNCONFIRMED if whole else Outcome.UNREACHABLE)

    def abort(self, outcome: Outcome) -> None:
        """The server ends it. A client in the middle of the file is told, others are not."""
        if self.outcome is not None:
            return
        if self.verified and outcome is Outcome.STOPPED:
            self._out += (_single(wire.error(ErrorCode.UNDEFINED, "server is stopping")),)
        self._end(outcome)

    # ---- before the first acknowledgement --------------------------------------------------------

    def _send_first(self, now: float) -> None:
        if self._unverified_left > 0:
            self._unverified_left -= 1
            self._clean = self.datagrams == 0
            if self.terms.options:
                self._out += (_single(wire.oack(self.terms.options)),)
                self.datagrams += 1
            else:
                self._highest = 0
                self._send_blocks(1)
                self._awaited = b""  # its ACK does more than the others'
            self._sent_at = self._window_at = now
        end = self._began + UNVERIFIED_LIFE
        wait = self._wait * 2 ** (MAX_UNVERIFIED - 1 - self._unverified_left)
        self.deadline = min(now + wait, end) if self._unverified_left else end

    def _tick_unverified(self, now: float) -> None:
        if now >= self._began + UNVERIFIED_LIFE:
            self._end(Outcome.TIMED_OUT)
        else:
            self._send_first(now)

    def _verify(self, blocks: int, now: float) -> None:
        self.verified = True
        if blocks:
            self._acknowledge(blocks, now)
        else:
            if self._clean:
                self._measure(now)
            self._progress = now
            self._send_window(now)

    # ---- the window ------------------------------------------------------------------------------

    def _acknowledge(self, ahead: int, now: float) -> None:
        """An ACK `ahead` blocks past what is acknowledged, modulo 65,536."""
        outstanding = self._highest - self._base
        if 1 <= ahead <= outstanding:
            if self._clean and self._sent_at == self._window_at:
                self._measure(now)
            if ahead == outstanding:
                self._arrived(now)
                return
            self._base += ahead
            self._progress = now
            self._backoff = 1
            self._asked = False
            self._doubt(now + max(self._smoothed / 4, _COMPLAINT))
        elif ahead == 0 and self._complains(now):
            when = now + max(self._smoothed / 2, _COMPLAINT)
            self._doubt(when if self.deadline is None else min(when, self.deadline))
        else:
            self.ignored += 1

    def _arrived(self, now: float) -> None:
        """All that is out has arrived."""
        self._base = self._highest
        self._progress = now
        self._backoff = 1
        self._asked = False
        if self._base == self.frames.blocks:
            self._end(Outcome.OK)
        else:
            self._send_window(now)

    def _complains(self, now: float) -> bool:
        """True where a repeated ACK may say that the window's first block was lost: it took a way
        there and back, and there is a window to complain about. A second time of the same block
        only while the window's rest can still be saved."""
        if self._windowsize == 1 or (self._doubted == self._base and not self._parted):
            return False
        way = self._smoothed / (1 if self._doubted == self._base else 2)
        return now - self._window_at >= max(way, _COMPLAINT)

    def _doubt(self, when: float) -> None:
        """Go back to the first block that is not acknowledged, unless progress comes first."""
        self._doubted = self._base
        self._doubting = True
        self.deadline = when

    def _send_window(self, now: float) -> None:
        """From the first block that is not acknowledged."""
        self._clean = self._base >= self._peak
        if not self._clean or self._part < self._windowsize:
            self._adapt()
        self._doubting = False
        self._highest = self._base
        self._window_at = now
        self._send_part(now)

    def _adapt(self) -> None:
        """Fit what is sent at once to how much of it was of use."""
        sent, arrived = self.datagrams - self._sent_before, self._base - self._base_before
        self._sent_before, self._base_before = self.datagrams, self._base
        self._use += (arrived / sent - self._use) / 4
        poor = self._use < _POOR and self._backoff == 1  # silence says nothing of what is too much
        if not self._clean and (self._part > _LARGE or poor):
            self._part = max(self._part // 2, self._windowsize // _MOST_PARTS, 1)
            self._use = _FAIR
        elif self._clean and self._use > _GOOD:
            self._part = min(self._part * 2, self._windowsize)
            self._use = _FAIR

    def _send_part(self, now: float) -> None:
        """What follows in the window, as much as goes at once."""
        left = min(self._base + self._windowsize, self.frames.blocks) - self._highest
        self._parted = left > self._part
        self._send_blocks(self._part if self._parted else left)
        self._sent_at = now
        if self._parted:
            way = self._smoothed + self._variation or _UNKNOWN_WAY
            self.deadline = now + max(way, _COMPLAINT)
            return
        wait = self._wait
        if self._backoff > 1:
            wait = min(wait * self._backoff, MAX_TIMEOUT, self._progress + STALLED - now)
        self.deadline = now + wait

    def _ask(self, now: float) -> None:
        """Send the window's last block alone: whether its ACK or a block was lost, the client
        answers with where it is, for one datagram instead of the whole window."""
        self._out += self.frames.window(self._highest, 1).bursts
        self.datagrams += 1
        self.retransmits += 1
        self._asked = True
        self._clean = False
        self._sent_at = self._window_at = now
        self.deadline = min(now + self._wait, self._progress + STALLED)

    def _send_blocks(self, count: int) -> None:
        first = self._highest + 1
        self._highest = last = self._highest + count
        window = self.frames.window(first, count)
        self._out += window.bursts
        self._awaited = window.ack
        self.datagrams += count
        if self._peak >= first:
            self.retransmits += min(last, self._peak) - first + 1
        if last > self._peak:
            self._peak = last

    def _measure(self, now: float) -> None:
        """Smooth the time from window to ACK as RFC 6298 does. Not of a repeated window, whose ACK
        may be the first one's (Karn)."""
        sample = now - self._sent_at
        if self._smoothed == 0.0:
            self._smoothed, self._variation = sample, sample / 2
        else:
            error = sample - self._smoothed
            self._smoothed += error / 8
            self._variation += (abs(error) - self._variation) / 4
        margin = max(4 * self._variation, MIN_TIMEOUT)
        self._wait = min(self._smoothed + margin, MAX_TIMEOUT)
        self._calm = margin == MIN_TIMEOUT and self._smoothed < _NEAR

    # ---- the end ---------------------------------------------------------------------------------

    def _errored(self, error: PeerError) -> None:
        self.error = error
        # EDK2 asks for the size and answers the OACK with 8, PXE ROMs and iPXE with 0.
        probe = self._base == 0 and self.terms.sized and error.code in (0, ErrorCode.OPTION_REFUSED)
        self._end(Outcome.PROBE if probe else Outcome.ABORTED)

    def _end(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.deadline = None
        self._awaited = b""


def _single(datagram: bytes) -> Burst:
    return Burst(datagram, len(datagram))
