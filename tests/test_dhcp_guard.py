"""What is remembered of each sender, and what waits to be claimed: bounded, and right."""

from __future__ import annotations

import itertools

import pytest

from bootd.boots.unknown import MAX_TEXT, Unknown, assign, describe, readable
from bootd.dhcp.guard import (
    ANSWERS_PER_SECOND,
    LINES_PER_MINUTE,
    LOOP_OFFERS,
    LOOP_WINDOW,
    Sender,
    Senders,
)
from bootd.model import ClientKind, Mac
from bootd.throttle import Throttle


def mac(number: int) -> Mac:
    return Mac((b"\x02\0\0" + number.to_bytes(3, "big")).hex(":"))


# ---- senders -------------------------------------------------------------------------------------


def test_a_sender_is_answered_so_often_in_a_second_and_again_soon_after() -> None:
    sender = Sender(0.0)
    answers = [sender.allowed(10.0) for _ in range(ANSWERS_PER_SECOND + 1)]

    assert answers == [True] * ANSWERS_PER_SECOND + [False]
    assert not sender.allowed(10.0 + 0.5 / ANSWERS_PER_SECOND)
    assert sender.allowed(10.0 + 2 / ANSWERS_PER_SECOND)
    assert sum(sender.allowed(99.0) for _ in range(2 * ANSWERS_PER_SECOND)) == ANSWERS_PER_SECOND


def test_the_same_thing_is_said_once() -> None:
    sender = Sender(0.0)

    assert [sender.news("a", 0.0), sender.news("a", 1.0), sender.news("b", 2.0)] == [
        True,
        False,
        True,
    ]


def test_who_changes_its_mind_all_the_time_is_not_worth_a_line() -> None:
    sender = Sender(0.0)
    said = [sender.news(number, 60.0) for number in range(LINES_PER_MINUTE + 5)]

    assert said == [True] * LINES_PER_MINUTE + [False] * 5
    assert sender.news("later", 120.0)


def test_a_loop_is_more_than_three_attempts_within_two_minutes() -> None:
    sender = Sender(0.0)
    found = [sender.first_stage(number, number * 10.0) for number in range(LOOP_OFFERS + 1)]

    assert found == [False] * LOOP_OFFERS + [True]


def test_a_loop_is_told_once_and_again_if_it_goes_on() -> None:
    sender = Sender(0.0)
    found = [sender.first_stage(number, number * 20.0) for number in range(30)]

    told = [number * 20.0 for number, loop in enumerate(found) if loop]
    assert told[0] == LOOP_OFFERS * 20.0
    assert all(later - earlier > LOOP_WINDOW for earlier, later in itertools.pairwise(told))


def test_slow_attempts_are_no_loop() -> None:
    sender = Sender(0.0)

    assert not any(sender.first_stage(number, number * (LOOP_WINDOW / 2)) for number in range(20))


def test_one_attempt_repeated_is_no_loop() -> None:
    sender = Sender(0.0)

    assert not any(sender.first_stage(7, number) for number in range(20))


def test_the_sender_heard_longest_ago_is_forgotten_first() -> None:
    senders = Senders(limit=2)
    first = senders.of(mac(1), 0.0)
    senders.of(mac(2), 0.0)
    senders.hear(mac(1), first, 5.0)
    senders.of(mac(3), 5.0)

    assert len(senders) == 2
    assert senders.known(mac(1)) is first
    assert senders.known(mac(2)) is None


def test_lines_come_in_a_burst_then_at_a_rate() -> None:
    lines = Throttle(rate=2.0, burst=3)
    taken = [lines.take(100.0) for _ in range(5)]

    assert taken == [True, True, True, False, False]
    assert lines.take(100.5)
    assert not lines.take(100.5)
    assert lines.take_held_back() == 3
    assert lines.take_held_back() == 0


# ---- machines that wait --------------------------------------------------------------------------


def test_machines_wait_in_order_of_arrival() -> None:
    unknown = Unknown()
    for number in (3, 1, 2):
        unknown.heard(mac(number), float(number))
    unknown.heard(mac(3), 9.0)

    assert [machine.mac for machine in unknown.in_order()] == [mac(3), mac(1), mac(2)]
    assert [machine.count for machine in unknown.in_order()] == [2, 1, 1]
    assert mac(1) in unknown
    assert mac(9) not in unknown


def test_the_list_is_bounded_and_the_one_heard_longest_ago_goes() -> None:
    unknown = Unknown(max_heard=2)
    for number in (1, 2):
        unknown.heard(mac(number), 0.0)
    unknown.heard(mac(1), 1.0)
    unknown.heard(mac(3), 2.0)

    assert {machine.mac for machine in unknown.in_order()} == {mac(1), mac(3)}


def test_a_flood_of_invented_machines_does_not_push_out_a_real_one() -> None:
    unknown = Unknown(max_heard=10)
    unknown.heard(mac(1), 0.0)
    unknown.held(mac(1), 1.0, serial="ABC", product="PowerEdge")
    for number in range(2, 1000):
        unknown.heard(mac(number), 2.0)

    assert mac(1) in unknown
    assert len(unknown) == 11
    (first, *_) = unknown.in_order()
    assert (first.mac, first.serial, first.product, first.held) == (
        mac(1),
        "ABC",
        "PowerEdge",
        True,
    )


def test_a_machine_heard_again_after_the_script_stays_where_it_is() -> None:
    unknown = Unknown(max_heard=1)
    unknown.held(mac(1), 0.0, serial="S")
    unknown.heard(mac(1), 1.0)
    unknown.heard(mac(2), 2.0)

    assert {machine.mac for machine in unknown.in_order()} == {mac(1), mac(2)}


def test_who_is_a_node_now_waits_no_more() -> None:
    unknown = Unknown()
    unknown.heard(mac(1), 0.0)
    unknown.held(mac(2), 0.0)
    unknown.forget([mac(1), mac(2), mac(3)])

    assert len(unknown) == 0


def test_a_thousand_machines_claimed_by_a_set_are_a_thousand_nodes() -> None:
    waiting = [mac(number) for number in range(1000)]
    names = [f"n{number:04}" for number in range(1, 1101)]
    taken = {f"n{number:04}" for number in range(1, 51)}
    pairs = assign(waiting, names, taken)

    assert len(pairs) == len({name for _, name in pairs}) == len({m for m, _ in pairs}) == 1000
    assert pairs[0] == (mac(0), "n0051")
    assert pairs[-1] == (mac(999), "n1050")


@pytest.mark.parametrize(
    ("waiting", "names", "taken", "count"),
    [(0, 5, (), 0), (5, 0, (), 0), (5, 3, (), 3), (3, 5, (), 3), (3, 2, ("a0", "a1"), 0)],
)
def test_claims_stop_where_machines_or_names_run_out(
    waiting: int, names: int, taken: tuple[str, ...], count: int
) -> None:
    machines = [mac(number) for number in range(waiting)]

    assert len(assign(machines, [f"a{number}" for number in range(names)], taken)) == count


def test_a_name_or_a_machine_given_twice_counts_once() -> None:
    assert assign([mac(1), mac(1), mac(2)], ["a", "a", "b"], ()) == [(mac(1), "a"), (mac(2), "b")]


def test_a_machine_is_described_in_plain_values() -> None:
    unknown = Unknown()
    machine = unknown.heard(mac(1), 5.0)
    machine.kind, machine.arch, machine.vendor_class = ClientKind.PXE, 7, "PXEClient"
    described = describe(machine, 8.0, 1000.0)

    assert described["mac"] == mac(1)
    assert (described["firmware"], described["arch"]) == ("pxe", 7)
    assert (described["since"], described["age"], described["count"]) == (1005.0, 3.0, 1)
    assert (described["serial"], described["held"]) == (None, False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"", ""),
        (b"ge-0/0/3.0", "ge-0/0/3.0"),
        (b"\x00\x04\x00\x01\x00\x03", "00:04:00:01:00:03"),
        (b"caf\xc3\xa9", "63:61:66:c3:a9"),
        (b"a\x1b[2J", "61:1b:5b:32:4a"),
        (b"x" * 200, "x" * MAX_TEXT),
    ],
)
def test_what_a_switch_says_is_made_readable(value: bytes, text: str) -> None:
    assert readable(value) == text


def test_what_a_machine_says_of_itself_cannot_write_to_a_terminal() -> None:
    machine = Unknown().held(mac(1), 0.0, serial="A\x1b[2J\n" + "B" * 200)

    assert machine.serial.isprintable()
    assert len(machine.serial) == MAX_TEXT
