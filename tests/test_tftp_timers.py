from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd.tftp.timers import PERIOD, Timers


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bell:
    def __init__(self, clock: Clock) -> None:
        self.due = 0
        self.clock = clock
        self.rung: list[float] = []

    def ring(self) -> None:
        self.rung.append(self.clock.now)


@pytest.fixture
async def clock() -> Clock:
    return Clock()


async def test_a_deadline_rings_once_and_not_before_its_time(clock: Clock) -> None:
    timers, bell = Timers(clock), Bell(clock)
    timers.set(bell, 1000.010)
    while clock.now < 1000.030:
        timers.turn()
        clock.now += PERIOD / 4
    (rung,) = bell.rung
    assert 1000.010 <= rung <= 1000.010 + 2 * PERIOD


async def test_the_last_set_time_counts_and_a_cancelled_one_never(clock: Clock) -> None:
    timers, moved, gone = Timers(clock), Bell(clock), Bell(clock)
    timers.set(moved, 1000.010)
    timers.set(moved, 1000.005)
    timers.set(gone, 1000.005)
    timers.cancel(gone)
    clock.now = 1000.009
    timers.turn()
    clock.now = 1001.0
    timers.turn()
    assert moved.rung == [1000.009]
    assert gone.rung == []


async def test_who_rings_may_set_itself_and_cancel_others(clock: Clock) -> None:
    timers, other = Timers(clock), Bell(clock)

    class Again(Bell):
        def ring(self) -> None:
            super().ring()
            timers.cancel(other)
            timers.set(self, self.clock.now)

    again = Again(clock)
    timers.set(again, 1000.001)
    timers.set(other, 1000.001)
    for _ in range(3):
        clock.now += 2 * PERIOD
        timers.turn()
    assert len(again.rung) == 3
    assert other.rung == []


async def test_a_time_that_is_past_rings_at_the_next_look(clock: Clock) -> None:
    timers, bell = Timers(clock), Bell(clock)
    timers.set(bell, 1.0)
    clock.now += 2 * PERIOD
    timers.turn()
    assert len(bell.rung) == 1


async def test_after_the_process_stood_still_everyone_due_rings(clock: Clock) -> None:
    timers, bells = Timers(clock), [Bell(clock) for _ in range(10)]
    for number, bell in enumerate(bells):
        timers.set(bell, 1000.0 + number)
    clock.now = 1005.5
    timers.turn()
    assert [len(bell.rung) for bell in bells] == [1] * 6 + [0] * 4


async def test_an_idle_clock_costs_nothing_and_starts_again(clock: Clock) -> None:
    timers, bell = Timers(clock), Bell(clock)
    timers.set(bell, 1000.001)
    clock.now = 1000.1
    timers.turn()
    assert timers._handle is None
    clock.now = 5000.0
    timers.set(bell, 5000.001)
    clock.now = 5000.01
    timers.turn()
    assert len(bell.rung) == 2


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-5, 50), st.booleans()), max_size=40))
async def test_nobody_is_forgotten_or_rung_too_early(
    steps: list[tuple[int, int, bool]],
) -> None:
    clock = Clock()
    timers, bells = Timers(clock), [Bell(clock) for _ in range(6)]
    wanted: dict[int, float] = {}
    for which, offset, advance in steps:
        wanted[which] = when = clock.now + offset * PERIOD / 3
        bells[which].rung.clear()
        timers.set(bells[which], when)
        if advance:
            clock.now += PERIOD
            timers.turn()
    clock.now += 60 * PERIOD
    timers.turn()
    for which, when in wanted.items():
        (rung,) = bells[which].rung
        assert rung >= when
