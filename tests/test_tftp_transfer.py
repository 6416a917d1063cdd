from __future__ import annotations

import pytest

from bootd.tftp import wire
from bootd.tftp.frames import Frames
from bootd.tftp.terms import Limits, Terms, negotiate
from bootd.tftp.transfer import MAX_UNVERIFIED, STALLED, UNVERIFIED_LIFE, Outcome, Transfer
from bootd.tftp.wire import ack

ETHERNET = Limits(blksize=1468)
EDK2 = ((b"tsize", b"0"), (b"blksize", b"1468"), (b"windowsize", b"4"))


def start(
    content: bytes, options: tuple[tuple[bytes, bytes], ...] = (), now: float = 0.0
) -> Transfer:
    terms = negotiate(options, len(content), ETHERNET)
    return Transfer(Frames(content, terms.blksize), terms, now)


def verified(content: bytes, windowsize: int = 1) -> Transfer:
    """A transfer of 8-byte blocks whose OACK was acknowledged after 1 ms; the window is out."""
    transfer = start(content, ((b"blksize", b"8"), (b"windowsize", b"%d" % windowsize)))
    transfer.take()
    transfer.receive(ack(0), now=0.001)
    return transfer


def sent(transfer: Transfer) -> list[bytes]:
    return [bytes(d) for burst in transfer.take() for d in burst.datagrams()]


def blocks(transfer: Transfer) -> list[int]:
    """The numbers of the DATA packets to send now."""
    packets = sent(transfer)
    assert all(packet[:2] == b"\0\3" for packet in packets)
    return [int.from_bytes(packet[2:4]) for packet in packets]


# ---- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        (EDK2, [(b"tsize", 5000), (b"blksize", 1468), (b"windowsize", 4)]),
        ([(b"blksize", b"1432"), (b"tsize", b"0")], [(b"blksize", 1432), (b"tsize", 5000)]),
        ([(b"BlkSize", b"1024")], [(b"BlkSize", 1024)]),
        ([(b"blksize", b"65464")], [(b"blksize", 1468)]),
        ([(b"blksize", b"8")], [(b"blksize", 8)]),
        ([(b"blksize", b"7")], []),
        ([(b"blksize", b"65465")], []),
        ([(b"blksize", b"0")], []),
        ([(b"blksize", b"-1")], []),
        ([(b"blksize", b"abc")], []),
        ([(b"windowsize", b"65535")], [(b"windowsize", 64)]),
        ([(b"windowsize", b"0")], []),
        ([(b"windowsize", b"65536")], []),
        ([(b"timeout", b"1")], [(b"timeout", 1)]),
        ([(b"timeout", b"255")], [(b"timeout", 255)]),
        ([(b"timeout", b"0")], []),
        ([(b"timeout", b"256")], []),
        ([(b"tsize", b"99")], [(b"tsize", 5000)]),
        ([(b"utimeout", b"1000"), (b"multicast", b""), (b"rollover", b"0")], []),
    ],
)
def test_options_are_granted_in_order_never_more_than_asked_and_nonsense_is_ignored(
    asked: list[tuple[bytes, bytes]], granted: list[tuple[bytes, int]]
) -> None:
    assert list(negotiate(asked, 5000, ETHERNET).options) == granted


def test_the_operators_window_limit_holds() -> None:
    assert negotiate([(b"windowsize", b"32")], 1, Limits(1468, windowsize=16)).windowsize == 16
    assert negotiate([(b"windowsize", b"99")], 1, Limits(1468, windowsize=999)).windowsize == 64


# ---- a read, packet by packet --------------------------------------------------------------------


def test_a_plain_read_goes_block_by_block_to_the_short_one() -> None:
    transfer = start(b"x" * 600)
    assert sent(transfer) == [b"\0\3\0\1" + b"x" * 512]
    transfer.receive(ack(1), now=0.1)
    assert sent(transfer) == [b"\0\3\0\2" + b"x" * 88]
    transfer.receive(ack(2), now=0.2)
    assert transfer.outcome is Outcome.OK
    assert transfer.deadline is None
    assert transfer.acknowledged == 600
    assert sent(transfer) == []


def test_a_file_of_whole_blocks_ends_with_an_empty_one() -> None:
    transfer = start(b"x" * 512)
    sent(transfer)
    transfer.receive(ack(1), now=0.1)
    assert sent(transfer) == [b"\0\3\0\2"]
    assert transfer.outcome is None
    transfer.receive(ack(2), now=0.2)
    assert transfer.outcome is Outcome.OK


def test_an_empty_file_is_one_empty_block() -> None:
    transfer = start(b"", ((b"tsize", b"0"),))
    assert sent(transfer) == [b"\0\6tsize\x000\0"]
    transfer.receive(ack(0), now=0.1)
    assert sent(transfer) == [b"\0\3\0\1"]


def test_edk2_probes_the_size_then_reads_in_windows() -> None:
    transfer = start(b"x" * 10_000, EDK2)
    assert sent(transfer) == [b"\0\6tsize\x0010000\0blksize\x001468\0windowsize\x004\0"]
    transfer.receive(b"\0\5\0\x08User aborted the transfer\0", now=0.1)
    assert transfer.outcome is Outcome.PROBE
    assert sent(transfer) == []

    transfer = start(b"x" * 10_000, EDK2[1:])
    assert sent(transfer) == [b"\0\6blksize\x001468\0windowsize\x004\0"]
    transfer.receive(ack(0), now=0.1)
    assert blocks(transfer) == [1, 2, 3, 4]
    transfer.receive(ack(4), now=0.2)
    assert blocks(transfer) == [5, 6, 7]
    transfer.receive(ack(7), now=0.3)
    assert transfer.outcome is Outcome.OK


def test_a_size_probe_that_ends_with_error_0_is_a_probe_too() -> None:
    transfer = start(b"x", ((b"tsize", b"0"),))
    transfer.receive(b"\0\5\0\0TFTP Aborted\0", now=0.1)
    assert transfer.outcome is Outcome.PROBE


def test_a_client_that_gives_up_in_the_middle_aborts() -> None:
    transfer = verified(b"x" * 100)
    transfer.receive(ack(1), now=0.1)
    transfer.take()
    transfer.receive(b"\0\5\0\x03disk full\0", now=0.2)
    assert transfer.outcome is Outcome.ABORTED
    assert transfer.error == wire.PeerError(3, "disk full")
    assert sent(transfer) == []


@pytest.mark.parametrize("datagram", [b"", b"\0\4", b"\0\3\0\1x", b"\0\1x\0octet\0", b"\0\6a\0b\0"])
def test_packets_that_make_no_sense_change_nothing(datagram: bytes) -> None:
    transfer = verified(b"x" * 100)
    transfer.take()
    transfer.receive(datagram, now=0.1)
    assert sent(transfer) == []
    assert transfer.outcome is None
    assert transfer.ignored == 1


def test_nothing_happens_after_the_end() -> None:
    transfer = start(b"x")
    transfer.take()
    transfer.receive(ack(1), now=0.1)
    transfer.receive(ack(1), now=0.2)
    transfer.tick(now=99)
    transfer.abort(Outcome.STOPPED)
    transfer.repeated(now=99)
    assert transfer.outcome is Outcome.OK
    assert sent(transfer) == []


def test_block_numbers_roll_over_to_zero_and_the_read_goes_on() -> None:
    count = 65_540
    transfer = verified(b"x" * (8 * count), windowsize=64)
    acknowledged = 0
    while transfer.outcome is None:
        got = blocks(transfer)
        assert got == [(acknowledged + n) & 0xFFFF for n in range(1, len(got) + 1)]
        acknowledged += len(got)
        transfer.receive(ack(acknowledged), now=0.01)
    assert transfer.outcome is Outcome.OK
    assert acknowledged == count + 1


# ---- duplicates and losses -----------------------------------------------------------------------


def test_duplicate_ack_is_not_answered() -> None:
    """The Sorcerer's Apprentice: one duplicate must not double the rest."""
    transfer = start(b"x" * 2000)
    transfer.take()
    transfer.receive(ack(1), now=0.1)
    transfer.take()
    transfer.receive(ack(1), now=0.2)

    assert transfer.take() == ()


@pytest.mark.parametrize("number", [0, 3, 9, 65535])
def test_acks_of_what_was_never_sent_or_long_ago_are_not_answered(number: int) -> None:
    transfer = verified(b"x" * 100)
    transfer.receive(ack(1), now=0.1)
    transfer.take()
    transfer.receive(ack(number), now=0.2)
    assert transfer.take() == ()
    assert transfer.outcome is None


def expire(transfer: Transfer) -> float:
    """Let the deadline pass; returns when that was."""
    assert transfer.deadline is not None
    now = transfer.deadline
    transfer.tick(now)
    return now


def test_an_ack_inside_the_window_goes_back_to_what_was_lost() -> None:
    transfer = verified(b"x" * 1000, windowsize=8)
    assert blocks(transfer) == [1, 2, 3, 4, 5, 6, 7, 8]
    transfer.receive(ack(3), now=0.0100)
    assert blocks(transfer) == [], "the rest may still be on its way"
    assert expire(transfer) < 0.0130, "but no longer than a fraction of the way"
    assert blocks(transfer) == [4, 5, 6, 7, 8, 9, 10, 11]
    assert transfer.retransmits == 5


def test_an_ack_inside_the_window_that_progress_follows_sends_nothing_again() -> None:
    """The network doubled a block; the client acknowledged what it had."""
    transfer = verified(b"x" * 1000, windowsize=8)
    transfer.take()
    transfer.receive(ack(3), now=0.0100)
    transfer.receive(ack(8), now=0.0105)
    assert blocks(transfer) == [9, 10, 11, 12, 13, 14, 15, 16]
    assert transfer.retransmits == 0


def test_edk2s_repeated_acks_go_back_once() -> None:
    """EDK2 acknowledges Expected-1 for every block that it drops (Mtftp4Rrq.c)."""
    transfer = verified(b"x" * 1000, windowsize=8)
    transfer.take()
    for step in range(5):
        transfer.receive(ack(3), now=0.010 + step * 0.0001)
    assert blocks(transfer) == []
    now = expire(transfer)
    assert blocks(transfer) == [4, 5, 6, 7, 8, 9, 10, 11]
    for step in range(5):
        transfer.receive(ack(3), now=now + step * 0.0001)
        transfer.tick(now + step * 0.0001)
    assert blocks(transfer) == []


def test_a_lost_first_block_is_sent_again_at_the_complaint_and_once() -> None:
    transfer = verified(b"x" * 1000, windowsize=4)
    transfer.take()
    transfer.receive(ack(4), now=0.002)
    assert blocks(transfer) == [5, 6, 7, 8]
    before = transfer.deadline
    transfer.receive(ack(4), now=0.0021)
    assert transfer.deadline == before, "too soon: the network doubled the ACK"
    transfer.receive(ack(4), now=0.0035)
    now = expire(transfer)
    assert now < 0.006, "the timer would have waited to 0.012"
    assert blocks(transfer) == [5, 6, 7, 8]
    before = transfer.deadline
    transfer.receive(ack(4), now=now + 0.002)
    assert transfer.deadline == before


def test_the_timer_asks_with_the_last_block_then_sends_the_window_and_waits_longer() -> None:
    transfer = verified(b"x" * 1000, windowsize=2)
    transfer.take()
    waits, now, again = [], 0.001, []
    for _ in range(6):
        assert transfer.deadline is not None
        transfer.tick(transfer.deadline - 0.001)
        assert transfer.take() == (), "not before its time"
        waits.append(transfer.deadline - now)
        now = transfer.deadline
        transfer.tick(now)
        again.append(blocks(transfer))
    assert again == [[2], [1, 2], [1, 2], [1, 2], [1, 2], [1, 2]]
    assert waits == pytest.approx([0.011, 0.011, 0.022, 0.044, 0.088, 0.176])
    assert transfer.retransmits == 11

    transfer.receive(ack(2), now=now + 0.1)
    transfer.take()
    assert transfer.deadline == pytest.approx(now + 0.1 + 0.011), "progress resets the wait"


def test_a_lost_ack_costs_one_datagram_not_the_window() -> None:
    transfer = verified(b"x" * 1000, windowsize=8)
    transfer.take()
    now = expire(transfer)
    assert blocks(transfer) == [8]
    transfer.receive(ack(8), now=now + 0.001)
    assert blocks(transfer) == [9, 10, 11, 12, 13, 14, 15, 16]


def test_in_lock_step_the_timer_sends_the_block_again() -> None:
    transfer = verified(b"x" * 1000)
    transfer.take()
    expire(transfer)
    assert blocks(transfer) == [1]


def test_the_wait_follows_the_measured_way() -> None:
    transfer = verified(b"x" * 1000)
    now = 0.001
    for block in range(1, 60):
        transfer.receive(ack(block), now=(now := now + 0.2))
        transfer.take()
    assert transfer.deadline is not None
    assert now + 0.2 < transfer.deadline < now + 0.3


def test_an_ack_after_a_repetition_measures_nothing() -> None:
    """Karn: it may be the first one's, and then the way is longer than it looks."""
    transfer = verified(b"x" * 1000)
    transfer.take()
    transfer.tick(0.02)
    transfer.take()
    transfer.receive(ack(1), now=0.0201)
    assert transfer.deadline == pytest.approx(0.0311), "still a way of 1 ms and 10 ms of margin"
    transfer.receive(ack(2), now=0.5201)
    assert transfer.deadline is not None
    assert transfer.deadline > 0.5201 + 0.25


def test_a_client_that_falls_silent_is_given_up_within_a_minute() -> None:
    transfer = verified(b"x" * 1000, windowsize=4)
    packets, now = len(blocks(transfer)), 0.0
    while transfer.outcome is None:
        assert transfer.deadline is not None
        now = transfer.deadline
        transfer.tick(now)
        packets += len(blocks(transfer))
    assert transfer.outcome is Outcome.TIMED_OUT
    assert now <= 0.001 + STALLED
    assert packets <= 4 * 15


def test_a_slow_client_that_goes_on_is_never_given_up() -> None:
    transfer = verified(b"x" * 80)
    now = 0.0
    for block in range(1, 12):
        transfer.take()
        while transfer.deadline is not None and transfer.deadline < now + 20:
            transfer.tick(transfer.deadline)
            transfer.take()
        transfer.receive(ack(block), now=(now := now + 20))
    assert transfer.outcome is Outcome.OK


@pytest.mark.parametrize("windowsize", [1, 16])
def test_a_storm_of_acks_is_hardly_answered(windowsize: int) -> None:
    transfer = verified(b"x" * 10_000, windowsize)
    transfer.receive(ack(windowsize), now=0.002)
    packets, now = len(blocks(transfer)), 0.002
    for number in range(10_000):
        now += 0.00001
        transfer.receive(ack(number % 3 * windowsize // 2 % (windowsize + 1)), now)
        transfer.tick(now)
        packets += len(blocks(transfer))
    assert packets < 200


# ---- before the first acknowledgement ------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        (),
        EDK2,
        ((b"blksize", b"65464"), (b"windowsize", b"64"), (b"tsize", b"0"), (b"timeout", b"1")),
        ((b"timeout", b"255"),),
        ((b"blksize", b"1"),),
    ],
)
def test_a_source_that_never_answers_gets_four_small_datagrams(
    options: tuple[tuple[bytes, bytes], ...],
) -> None:
    transfer = start(b"x" * 100_000, options)
    packets, now = sent(transfer), 0.0
    while transfer.outcome is None:
        assert transfer.deadline is not None
        now = transfer.deadline
        transfer.tick(now)
        transfer.repeated(now)
        packets += sent(transfer)
    assert transfer.outcome is Outcome.TIMED_OUT
    assert len(packets) == MAX_UNVERIFIED == 4
    assert sum(map(len, packets)) <= 2200
    assert now == UNVERIFIED_LIFE < 60


def test_repeated_requests_share_the_four_datagrams() -> None:
    transfer = start(b"x" * 1000)
    packets = sent(transfer)
    for step in range(1, 20):
        transfer.repeated(now=step * 0.25)
        transfer.tick(now=step * 0.25)
        packets += sent(transfer)
    assert len(packets) == MAX_UNVERIFIED


def test_a_repeated_request_is_answered_again_but_not_one_that_crossed_our_answer() -> None:
    transfer = start(b"x" * 1000)
    first = sent(transfer)
    transfer.repeated(now=0.1)
    assert sent(transfer) == []
    transfer.repeated(now=0.6)
    assert sent(transfer) == first


def test_a_repeated_request_in_the_middle_changes_nothing() -> None:
    transfer = verified(b"x" * 1000)
    transfer.take()
    transfer.repeated(now=5)
    assert sent(transfer) == []


def test_an_ack_of_the_wrong_block_does_not_begin_the_transfer() -> None:
    transfer = start(b"x" * 1000, EDK2)
    transfer.take()
    transfer.receive(ack(1), now=0.1)
    assert not transfer.verified
    assert sent(transfer) == []
    plain = start(b"x" * 1000)
    plain.take()
    plain.receive(ack(0), now=0.1)
    assert not plain.verified
    assert sent(plain) == []


# ---- ended by the server -------------------------------------------------------------------------


def test_a_closed_port_ends_it_and_after_the_last_block_it_is_only_unconfirmed() -> None:
    transfer = verified(b"x" * 1000)
    transfer.unreachable()
    assert transfer.outcome is Outcome.UNREACHABLE
    last = verified(b"x")
    last.unreachable()
    assert last.outcome is Outcome.UNCONFIRMED


def test_a_client_in_the_middle_is_told_that_the_server_stops() -> None:
    transfer = verified(b"x" * 1000)
    transfer.take()
    transfer.abort(Outcome.STOPPED)
    assert sent(transfer) == [b"\0\5\0\0server is stopping\0"]
    silent = start(b"x" * 1000)
    silent.take()
    silent.abort(Outcome.STOPPED)
    assert sent(silent) == []


def test_the_bytes_of_a_file_are_what_its_blocks_hold() -> None:
    content = bytes(range(256)) * 20
    transfer = Transfer(Frames(content, 512), Terms(), 0.0)
    got, block = b"", 0
    while transfer.outcome is None:
        (packet,) = sent(transfer)
        got += packet[4:]
        block += 1
        transfer.receive(ack(block), now=block * 0.001)
    assert got == content


# ---- bad weather ---------------------------------------------------------------------------------


def test_after_a_loss_a_large_window_goes_in_parts_a_round_trip_apart() -> None:
    transfer = verified(b"x" * 4000, windowsize=64)
    assert blocks(transfer) == list(range(1, 65))

    transfer.receive(ack(10), now=0.002)
    went, times = [], []
    while transfer.deadline is not None and transfer.deadline < 0.009:
        now = transfer.deadline
        transfer.tick(now)
        times.append(now)
        went.append(blocks(transfer))

    assert went == [list(range(11, 43)), list(range(43, 75))], "one window, for one ACK"
    assert times[1] - times[0] == pytest.approx(0.0015, abs=0.0005), "a way there and back"


def test_a_complaint_saves_the_rest_of_a_parted_window() -> None:
    transfer = verified(b"x" * 4000, windowsize=64)
    transfer.take()
    transfer.receive(ack(10), now=0.002)
    transfer.tick(0.003)
    assert blocks(transfer) == list(range(11, 43))

    transfer.receive(ack(20), now=0.004)
    transfer.tick(0.005)

    assert blocks(transfer) == list(range(21, 37)), "half as much at once, from where it stopped"


def test_in_good_weather_the_window_is_whole_again() -> None:
    transfer = verified(b"x" * 8000, windowsize=64)
    transfer.take()
    transfer.receive(ack(10), now=0.002)
    now, most = 0.002, 0
    while transfer.outcome is None:
        assert transfer.deadline is not None
        now = transfer.deadline
        transfer.tick(now)
        while transfer.deadline is not None and transfer.deadline < now + 0.009:
            now = transfer.deadline
            transfer.tick(now)
        out = blocks(transfer)
        while out and transfer.outcome is None:
            transfer.receive(ack(out[-1]), now=now)
            out = blocks(transfer)
            most = max(most, len(out))
    assert most == 64


def test_silence_is_no_reason_for_a_smaller_window() -> None:
    transfer = verified(b"x" * 1000, windowsize=16)
    transfer.take()
    for _ in range(6):
        assert transfer.deadline is not None
        transfer.tick(transfer.deadline)
        again = blocks(transfer)
    assert again == list(range(1, 17))
