"""Transfers through a network in memory that drops, doubles, delays and reorders.

Time is virtual: a transfer of minutes takes milliseconds, and a seed gives the same run each time.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootd.tftp import wire
from bootd.tftp.frames import Frames
from bootd.tftp.terms import Limits, negotiate
from bootd.tftp.transfer import Outcome, Transfer


@dataclass(frozen=True)
class Weather:
    """Chances from 0 to 1, and seconds one way; what is delayed is overtaken."""

    loss: float = 0.0
    doubling: float = 0.0
    jitter: float = 0.0
    way: float = 0.0005


@dataclass
class Client:
    """A receiver after RFC 1350, 2347 and 7440; `nervous` repeats its ACK for every block that it
    drops, as EDK2 does; others do for the first after a gap, and for their last one."""

    blksize: int | None
    windowsize: int | None
    nervous: bool
    send: Callable[[bytes], None] = lambda _: None
    got: bytearray = field(default_factory=bytearray)
    block: int = 0
    in_window: int = 0
    complained: bool = False
    done: bool = False
    last: bytes = b""

    @property
    def options(self) -> tuple[tuple[bytes, bytes], ...]:
        asked = ((b"blksize", self.blksize), (b"windowsize", self.windowsize))
        return tuple((name, b"%d" % value) for name, value in asked if value is not None)

    def start(self) -> None:
        self._say(wire.request(b"x", self.options))

    def hear(self, packet: bytes) -> None:
        if packet[1] == wire.OACK:
            if self.block == 0:
                self._say(wire.ack(0))
            return
        number, content = int.from_bytes(packet[2:4]), packet[4:]
        if self.done or number != (self.block + 1) & 0xFFFF:
            self._unexpected(number)
            return
        self.complained = False
        self.block += 1
        self.in_window += 1
        self.got += content
        self.done = len(content) < (self.blksize or 512)
        if self.done or self.in_window == (self.windowsize or 1):
            self.in_window = 0
            self._say(wire.ack(self.block))

    def _unexpected(self, number: int) -> None:
        if self.nervous or not self.complained or number == self.block & 0xFFFF:
            self.complained = True
            self.in_window = 0
            self._say(wire.ack(self.block))

    def impatient(self) -> None:
        self.in_window = 0
        self.send(self.last)

    def _say(self, packet: bytes) -> None:
        self.last = packet
        self.send(packet)


class Network:
    """Events by time: packets on their way, the client's patience, the transfer's deadline."""

    PATIENCE = 1.0

    def __init__(self, content: bytes, client: Client, weather: Weather, seed: int) -> None:
        self.now = 0.0
        self.random = Random(seed)
        self.weather = weather
        self.client = client
        self.content = content
        self.transfer: Transfer | None = None
        self.acks = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._heard = 0.0
        client.send = lambda packet: self._carry(lambda: self._at_server(packet))

    def run(self) -> Transfer:
        self.client.start()
        self._at(self.PATIENCE, self._wait)
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()
            if self.now > 7200 or (self.transfer is not None and self.transfer.outcome is not None):
                break
        assert self.transfer is not None
        return self.transfer

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), event))

    def _carry(self, deliver: Callable[[], None]) -> None:
        for _ in range(2 if self.random.random() < self.weather.doubling else 1):
            if self.random.random() >= self.weather.loss:
                delay = self.weather.way + self.random.random() * self.weather.jitter
                self._at(self.now + delay, deliver)

    def _at_server(self, packet: bytes) -> None:
        if packet[1] == wire.RRQ:
            if self.transfer is None:
                terms = negotiate(self.client.options, len(self.content), Limits(1468))
                self.transfer = Transfer(Frames(self.content, terms.blksize), terms, self.now)
            else:
                self.transfer.repeated(self.now)
        elif self.transfer is not None:
            self.acks += 1
            self.transfer.receive(packet, self.now)
        self._flush()

    def _flush(self) -> None:
        assert self.transfer is not None
        for burst in self.transfer.take():
            for datagram in burst.datagrams():
                self._carry(partial(self._at_client, bytes(datagram)))
        if self.transfer.deadline is not None:
            self._at(self.transfer.deadline, self._tick)

    def _tick(self) -> None:
        assert self.transfer is not None
        deadline = self.transfer.deadline
        if deadline is not None and deadline <= self.now:
            self.transfer.tick(self.now)
            self._flush()

    def _at_client(self, packet: bytes) -> None:
        self._heard = self.now
        self.client.hear(packet)

    def _wait(self) -> None:
        if self.now - self._heard >= self.PATIENCE and not self.client.done:
            self._heard = self.now
            self.client.impatient()
        self._at(self.now + self.PATIENCE / 4, self._wait)


@settings(max_examples=150)
@given(
    size=st.integers(0, 20_000),
    blksize=st.sampled_from([None, 8, 512, 1468]),
    windowsize=st.sampled_from([None, 1, 2, 4, 16, 64]),
    nervous=st.booleans(),
    loss=st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.5]),
    doubling=st.sampled_from([0.0, 0.1, 1.0]),
    jitter=st.sampled_from([0.0, 0.001, 0.02, 0.5]),
    seed=st.integers(0, 2**32),
)
def test_every_transfer_ends_in_the_right_bytes_or_a_time_out(
    size: int,
    blksize: int | None,
    windowsize: int | None,
    nervous: bool,
    loss: float,
    doubling: float,
    jitter: float,
    seed: int,
) -> None:
    content = Random(seed).randbytes(min(size, 200 * (blksize or 512)))
    client = Client(blksize, windowsize, nervous)
    network = Network(content, client, Weather(loss, doubling, jitter), seed)

    transfer = network.run()

    assert transfer.outcome in (Outcome.OK, Outcome.TIMED_OUT)
    if transfer.outcome is Outcome.OK:
        assert client.got == content
    else:
        assert content.startswith(client.got)
        assert loss > 0 or jitter >= 0.5
    if transfer.outcome is Outcome.TIMED_OUT and not client.done:
        assert loss >= 0.2 or not transfer.verified


@pytest.mark.parametrize("loss", [0.01, 0.05])
@pytest.mark.parametrize("windowsize", [1, 4, 8, 16, 24, 32, 64])
@pytest.mark.parametrize("nervous", [False, True])
def test_loss_costs_less_than_the_file_again(loss: float, windowsize: int, nervous: bool) -> None:
    for seed in range(5):
        content = Random(seed).randbytes(600_000)
        client = Client(1468, windowsize, nervous)
        network = Network(content, client, Weather(loss), seed)
        transfer = network.run()
        assert client.got == content
        assert transfer.datagrams < 2 * transfer.frames.blocks


@pytest.mark.parametrize("windowsize", [1, 4, 16])
@pytest.mark.parametrize("nervous", [False, True])
def test_doubling_every_packet_does_not_double_the_data(windowsize: int, nervous: bool) -> None:
    """RFC 1123 4.2.3.1."""
    content = Random(0).randbytes(300_000)
    client = Client(1468, windowsize, nervous)
    transfer = Network(content, client, Weather(doubling=1.0), seed=1).run()
    assert client.got == content
    assert transfer.datagrams <= 1.10 * transfer.frames.blocks


@pytest.mark.parametrize("windowsize", [1, 4, 16])
def test_a_lost_packet_costs_round_trips_not_seconds(windowsize: int) -> None:
    content = Random(0).randbytes(1_000_000)
    took = []
    for loss in (0.0, 0.01):
        network = Network(content, Client(1468, windowsize, False), Weather(loss), seed=3)
        assert network.run().outcome is Outcome.OK
        took.append(network.now)
    lost_rounds = 2 * 0.01 * (1_000_000 / 1468)
    assert took[1] - took[0] < lost_rounds * 0.03


def test_a_perfect_network_carries_each_block_once() -> None:
    content = Random(0).randbytes(100_000)
    network = Network(content, Client(1468, 4, True), Weather(), seed=0)
    transfer = network.run()
    assert transfer.datagrams == transfer.frames.blocks + 1
    assert transfer.retransmits == 0
