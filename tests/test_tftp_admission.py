from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd.tftp.admission import STUCK, Full, Places


@dataclass(eq=False)
class Fake:
    name: str
    verified: bool = False
    stalled_since: float = 0.0


def filled(*places: tuple[str, Fake]) -> Places[Fake]:
    made: Places[Fake] = Places()
    for port, (client, place) in enumerate(places, 2000):
        made.add((client, port), place)
        if place.verified:
            made.verified((client, port))
    return made


def test_there_is_room_below_the_limits() -> None:
    places = filled(("10.0.0.1", Fake("a")), ("10.0.0.2", Fake("b")))
    assert places.room("10.0.0.3", 0.0, limit=3, per_client=1) is None


def test_the_oldest_that_never_answered_makes_room() -> None:
    sure, old, young = Fake("sure", verified=True), Fake("old"), Fake("young")
    places = filled(("10.0.0.1", sure), ("10.0.0.2", old), ("10.0.0.3", young))
    assert places.room("10.0.0.4", 0.0, limit=3, per_client=8) is old


def test_those_who_answered_are_never_put_out_for_others() -> None:
    places = filled(*((f"10.0.0.{n}", Fake("", verified=True)) for n in range(3)))
    with pytest.raises(Full) as full:
        places.room("10.0.0.9", 1000.0, limit=3, per_client=8)
    assert full.value.reason == "busy"


def test_a_client_past_its_share_replaces_its_own_unanswered_one() -> None:
    sure, old, young = Fake("sure", verified=True), Fake("old"), Fake("young")
    places = filled(("10.0.0.1", sure), ("10.0.0.1", old), ("10.0.0.1", young))
    assert places.room("10.0.0.1", 0.0, limit=100, per_client=3) is old
    assert places.room("10.0.0.2", 0.0, limit=100, per_client=3) is None


def test_a_client_past_its_share_waits_unless_one_of_its_own_is_stuck() -> None:
    stuck, going = Fake("stuck", True, stalled_since=10.0), Fake("going", True, stalled_since=12.0)
    places = filled(("10.0.0.1", going), ("10.0.0.1", stuck))
    with pytest.raises(Full) as full:
        places.room("10.0.0.1", 10.0 + STUCK - 0.1, limit=100, per_client=2)
    assert full.value.reason == "per-client"
    assert places.room("10.0.0.1", 10.0 + STUCK, limit=100, per_client=2) is stuck


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(2000, 2005), st.booleans()), max_size=60))
def test_the_limits_hold_whatever_comes(requests: list[tuple[int, int, bool]]) -> None:
    places: Places[Fake] = Places()
    peers: dict[int, tuple[str, int]] = {}
    for number, port, answers in requests:
        peer = (f"10.0.0.{number}", port)
        if places.get(peer) is not None:
            places.remove(peer)
        try:
            victim = places.room(peer[0], 0.0, limit=8, per_client=3)
        except Full:
            continue
        if victim is not None:
            assert not victim.verified
            places.remove(peers[id(victim)])
        place = Fake("", verified=answers)
        peers[id(place)] = peer
        places.add(peer, place)
        if answers:
            places.verified(peer)
        assert len(places) == len(list(places)) <= 8
        assert sum(peers[id(p)][0] == peer[0] for p in places) <= 3
    for place in places:
        places.remove(peers[id(place)])
    assert len(places) == 0
    assert not places._unverified
    assert not places._of_client
