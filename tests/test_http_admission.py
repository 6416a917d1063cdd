from __future__ import annotations

import heapq
import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from bootd.http.admission import (
    FAIR_RATE,
    FIRST_LIMIT,
    LONGEST,
    MAX_LIMIT,
    MIN_LIMIT,
    SHORTEST,
    Admission,
    Ticket,
    Wait,
)


def admission(limit: int | None = 2) -> Admission:
    return Admission(random.Random(1).random, limit)


def enter(gate: Admission, who: str, rack: str = "", now: float = 0) -> Ticket:
    ticket = gate.ask(who, rack, patient=True, now=now)
    assert isinstance(ticket, Ticket)
    return ticket


def refused(gate: Admission, who: str, rack: str = "", now: float = 0) -> Wait:
    wait = gate.ask(who, rack, patient=True, now=now)
    assert isinstance(wait, Wait)
    return wait


def leave(gate: Admission, ticket: Ticket | Wait, now: float) -> None:
    assert isinstance(ticket, Ticket)
    gate.leave(ticket, now)


def test_up_to_the_limit_everyone_enters() -> None:
    gate = admission(2)
    enter(gate, "a")
    enter(gate, "b")

    wait = refused(gate, "c")

    assert SHORTEST <= wait.seconds <= LONGEST


def test_firmware_that_cannot_wait_is_always_admitted() -> None:
    gate = admission(1)
    enter(gate, "a")

    assert isinstance(gate.ask("b", "", patient=False, now=0), Ticket)
    assert gate.active == 2


def test_a_place_that_is_given_back_is_given_on() -> None:
    gate = admission(1)
    ticket = enter(gate, "a")
    refused(gate, "b")
    gate.leave(ticket, 1)
    gate.leave(ticket, 1)

    enter(gate, "b", now=2)
    assert gate.active == 1


def test_the_first_to_come_is_the_first_to_enter() -> None:
    gate = admission(1)
    ticket = enter(gate, "a")
    first = refused(gate, "b")
    gate.leave(ticket, first.seconds - 1)

    refused(gate, "c", now=first.seconds - 1)  # b is due in a second: its place is kept
    enter(gate, "b", now=first.seconds)


def test_who_asks_again_much_later_keeps_no_place_empty() -> None:
    gate = admission(1)
    ticket = enter(gate, "a")
    for number in range(30):
        refused(gate, f"early{number}")
    gate.leave(ticket, 0.1)

    entered = [gate.ask(f"late{n}", "", patient=True, now=0.1) for n in range(5)]

    assert sum(isinstance(got, Ticket) for got in entered) <= 1
    assert gate.active <= 1


def test_who_never_comes_back_is_forgotten() -> None:
    gate = admission(1)
    ticket = enter(gate, "a")
    refused(gate, "b")
    gate.leave(ticket, 100)

    enter(gate, "c", now=100)
    assert gate.waiting == 0


def test_racks_take_turns() -> None:
    """Eight machines of one rack came first, one of another rack came last."""
    gate = admission(2)
    tickets = [enter(gate, f"big{n}", "r1") for n in range(2)]
    waits = {f"big{n}": refused(gate, f"big{n}", "r1", now=0.1 * n) for n in range(2, 8)}
    refused(gate, "small", "r2", now=1)
    gate.leave(tickets[0], 2)

    assert waits
    enter(gate, "small", "r2", now=2)


def test_a_boot_waits_for_its_second_file_by_its_own_age() -> None:
    gate = admission(1)
    ticket = enter(gate, "old", now=0)
    refused(gate, "young", now=5)
    gate.leave(ticket, 6)

    got = gate.ask("old", "", patient=True, now=6, since=0)

    assert isinstance(got, Ticket)


def test_ten_thousand_who_wait_are_let_in_first_come_first_served() -> None:
    gate, tickets = admission(10), []
    for number in range(10):
        tickets.append(enter(gate, f"a{number}"))
    for number in range(10_000):
        refused(gate, f"m{number}", f"r{number % 100}", now=number / 1000)
    for ticket in tickets:
        gate.leave(ticket, 11)

    entered = [
        number
        for number in range(10_000)
        if isinstance(gate.ask(f"m{number}", f"r{number % 100}", patient=True, now=60), Ticket)
    ]

    assert len(entered) == 10
    assert max(entered) < 200


def test_the_limit_follows_the_measured_throughput() -> None:
    gate = admission(None)
    assert gate.limit == FIRST_LIMIT
    gate.measured(100 * FAIR_RATE)
    assert gate.limit == 100
    gate.measured(1.0)
    assert gate.limit == 98
    gate.measured(1e15)
    assert gate.limit == MAX_LIMIT
    for _ in range(3000):
        gate.measured(1.0)
    assert gate.limit == MIN_LIMIT


def test_the_limit_rises_where_the_machines_links_are_slow_and_not_where_ours_is() -> None:
    for own, each, low, high in ((125e6, 125e6, 16, 20), (1.25e9, 6e6, 150, 300)):
        gate, tickets = admission(None), list[Ticket | Wait]()
        for second in range(120):
            while gate.active < gate.limit:
                tickets.append(gate.ask("", "", patient=False, now=second))
            while gate.active > gate.limit:
                leave(gate, tickets.pop(), second)
            refused(gate, "waits", now=second)
            gate.measured(min(own, gate.active * each))
        assert low <= gate.limit <= high


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans(), st.floats(0, 5)), max_size=200))
def test_patient_clients_never_exceed_the_limit(steps: list[tuple[int, bool, float]]) -> None:
    gate, now = admission(3), 0.0
    held: list[Ticket] = []
    for who, leave, seconds in steps:
        now += seconds
        if leave and held:
            gate.leave(held.pop(), now)
            continue
        got = gate.ask(str(who), str(who % 3), patient=True, now=now)
        if isinstance(got, Ticket):
            held.append(got)
        assert gate.active == len(held) <= 3
        assert gate.waiting == sum(map(len, gate._queues.values())) == len(gate._dues)


def test_a_storm_of_patient_clients_ends_and_leaves_no_place_idle_for_long() -> None:
    """300 machines, 20 places, transfers of 4 s: 15 rounds, a minute at best."""
    gate, rng = admission(20), random.Random(2)
    events: list[tuple[float, int, str, Ticket | None]] = []
    order = iter(range(1_000_000))
    finished: Counter[str] = Counter()
    for number in range(300):
        heapq.heappush(events, (rng.random(), next(order), f"m{number}", None))
    now = 0.0
    while events:
        now, _, who, ticket = heapq.heappop(events)
        if ticket is not None:
            gate.leave(ticket, now)
            finished[who] += 1
            continue
        got = gate.ask(who, f"r{int(who[1:]) % 10}", patient=True, now=now)
        again = now + (4 if isinstance(got, Ticket) else got.seconds)
        kept = got if isinstance(got, Ticket) else None
        heapq.heappush(events, (again, next(order), who, kept))

    assert len(finished) == 300
    assert now < 60 * 1.5
