"""Twenty thousand mutated packets (six thousand in `make check`), the same on every run: nothing
breaks, nothing grows, and who is in order is still answered."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Network

import pytest
from hypothesis import settings

from bootd import metrics
from bootd.dhcp.policy import Ignore, Offer, decide
from bootd.dhcp.wire import WireError, decode, encode
from bootd.model import DhcpMode, Node, UnknownPolicy
from tests.dhcp_messages import DASHED, MAC, US, Captured, dhcp_captures, discover, ipxe, registry
from tests.test_dhcp_reservation import NODE
from tests.test_dhcp_server import bench

SEED = 20261122
CASES = 200 * settings().max_examples
SEEDS = dhcp_captures("firmware", "ipxe", "udhcpc", "os")


def mutated(count: int) -> Iterator[tuple[Captured, bytes]]:
    """Captured packets with bytes flipped, cut, doubled, inserted, lengths made wrong."""
    chance = random.Random(SEED)
    for _ in range(count):
        packet = chance.choice(SEEDS)
        data = bytearray(packet.data)
        for _ in range(chance.choice((1, 1, 2, 4, 16))):
            _mutate(data, chance)
        yield packet, bytes(data[:1500])


def _mutate(data: bytearray, chance: random.Random) -> None:
    if not data:
        data += b"\x01"
    at = chance.randrange(len(data))
    kind = chance.randrange(8)
    if kind == 0:
        data[at] = chance.randrange(256)
    elif kind == 1:
        data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        del data[at : at + chance.randrange(1, 16)]
    elif kind == 4:
        data[at:at] = chance.randbytes(chance.randrange(1, 16))
    elif kind == 5:
        data[at:at] = data[at : at + chance.randrange(1, 64)]
    elif kind == 6:
        data[at] ^= 1 << chance.randrange(8)
    elif len(data) > 241:
        data[chance.randrange(240, len(data))] = chance.randrange(256)


WORLDS = [registry(unknown=policy, relays=(IPv4Network("10.0.0.0/8"),)) for policy in UnknownPolicy]
WORLDS.append(registry(NODE, mode=DhcpMode.RESERVATION, relays=(IPv4Network("10.0.0.0/8"),)))


@pytest.mark.parametrize("world", WORLDS, ids=["ignore", "hold", "default", "reservation"])
def test_every_mutated_packet_is_answered_in_bounds_or_refused(world: object) -> None:
    outcomes: Counter[str] = Counter()
    for packet, data in mutated(CASES // len(WORLDS)):
        try:
            message = decode(data)
        except WireError as exc:
            outcomes[exc.reason] += 1
            continue
        found = decide(
            message,
            world,  # type: ignore[arg-type]
            US,
            port=packet.port,
            source=packet.source,
            size=len(data),
        )
        if isinstance(found, Ignore):
            outcomes[found.reason] += 1
            continue
        outcomes["answered"] += 1
        _check(found, data)

    assert outcomes["answered"] > CASES // 200
    assert outcomes["truncated-option"] > CASES // 200


def _check(offer: Offer, request: bytes) -> None:
    assert len(offer.data) <= min(2 * len(request), 1472)
    reply = decode(offer.data)
    assert encode(reply) == offer.data
    assert (reply.op, reply.xid) == (2, int.from_bytes(request[4:8], "big"))
    if offer.lease is None:
        assert reply.yiaddr == bytes(4)


async def test_after_all_of_them_the_shell_answers_and_has_not_grown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = b"\x02".ljust(16, b"\0")
    async with bench(Node("n001", mac=MAC)) as made:

        async def wave(packets: list[bytes]) -> None:
            for start in range(0, len(packets), 50):
                for data in packets[start : start + 50]:
                    made.send(data)
                await made.handled(b"")

        packets = [data for _, data in mutated(CASES)]
        half = len(packets) // 2
        before = _faults()
        await wave(packets[:half])
        blocks = _blocks()
        await wave(packets[half:])
        grown = _blocks() - blocks
        said = capsys.readouterr().out

        made.send(discover(xid=77))
        async with asyncio.timeout(10):
            while (reply := decode(await made.receive())).xid != 77:
                pass
        assert reply.file.decode() == f"{DASHED}/snponly.efi"
        assert decode(await made.ask(encode(ipxe(chaddr=other)))).chaddr == other

    assert _faults() == before, said[-2000:]
    assert grown < blocks // 10
    assert len(said.splitlines()) < CASES // 20
    assert all(character.isprintable() or character == "\n" for character in said)
    assert max(len(line) for line in said.splitlines()) < 600


def _blocks() -> int:
    gc.collect()
    return sys.getallocatedblocks()


def _faults() -> float:
    return (
        metrics.REGISTRY.get_sample_value("bootd_exceptions_total", {"where": "dhcp-packet"}) or 0.0
    )
