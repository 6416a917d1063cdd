"""Machines that boot and that no node names: who waits to be claimed, and since when.

Pure and bounded: anyone on the wire can invent MAC addresses. Machines that came as far as the hold
script are kept apart from those that were only heard by DHCP, so a flood of invented ones cannot
push out a real machine.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bootd.model import Arch, ClientKind, Mac

MAX_HEARD: Final = 4096
MAX_HELD: Final = 4096
MAX_TEXT: Final = 64
"""Characters kept of anything a machine says about itself."""


@dataclass(slots=True)
class Waiting:
    """One machine. Seconds are monotonic; `number` tells the order of arrival."""

    mac: Mac
    number: int
    since: float
    seen: float
    count: int = 0
    kind: ClientKind | None = None
    arch: Arch | int | None = None
    vendor_class: str = ""
    uuid: str = ""
    relay: str = ""
    circuit: str = ""
    remote: str = ""
    serial: str = ""
    product: str = ""
    held: bool = False
    """True once it fetched the hold script."""


class Unknown:
    """The machines that wait. Shells report here; ``bootd unknown`` and ``bootd claim`` read."""

    def __init__(self, *, max_heard: int = MAX_HEARD, max_held: int = MAX_HELD) -> None:
        self._limits = {False: max_heard, True: max_held}
        self._waiting: dict[bool, OrderedDict[Mac, Waiting]] = {
            False: OrderedDict(),
            True: OrderedDict(),
        }
        self._arrived = 0

    def __len__(self) -> int:
        return sum(len(machines) for machines in self._waiting.values())

    def __contains__(self, mac: Mac) -> bool:
        return any(mac in machines for machines in self._waiting.values())

    def heard(self, mac: Mac, now: float) -> Waiting:
        """A boot packet came from `mac`; the shell fills in what the packet told."""
        return self._touch(mac, now, held=False)

    def held(self, mac: Mac, now: float, *, serial: str = "", product: str = "") -> Waiting:
        """The machine fetched the hold script, and may have said what it is."""
        machine = self._touch(mac, now, held=True)
        machine.serial = _text(serial) or machine.serial
        machine.product = _text(product) or machine.product
        return machine

    def forget(self, macs: Iterable[Mac]) -> None:
        """These are nodes now."""
        for mac in macs:
            for machines in self._waiting.values():
                machines.pop(mac, None)

    def in_order(self) -> list[Waiting]:
        """Every machine that waits, in order of arrival."""
        machines = [machine for kept in self._waiting.values() for machine in kept.values()]
        return sorted(machines, key=lambda machine: machine.number)

    def _touch(self, mac: Mac, now: float, *, held: bool) -> Waiting:
        machine = self._waiting[True].pop(mac, None) or self._waiting[False].pop(mac, None)
        if machine is None:
            self._arrived += 1
            machine = Waiting(mac, self._arrived, now, now)
        machine.seen = now
        machine.count += 1
        machine.held = machine.held or held
        kept = self._waiting[machine.held]
        kept[mac] = machine
        if len(kept) > self._limits[machine.held]:
            kept.popitem(last=False)
        return machine


def assign(
    waiting: Sequence[Mac], names: Sequence[str], taken: Collection[str]
) -> list[tuple[Mac, str]]:
    """Give the machines, in their order, the names that nobody has, in theirs: one each.

    `taken` are the nodes that have a MAC address already. Stops where either runs out.
    """
    free = dict.fromkeys(name for name in names if name not in taken)
    return list(zip(dict.fromkeys(waiting), free, strict=False))


def describe(machine: Waiting, now: float, offset: float) -> dict[str, Any]:
    """The machine as plain values for JSON; `offset` is wall-clock less monotonic seconds."""
    return {
        "mac": machine.mac,
        "vendor": machine.vendor_class,
        "firmware": machine.kind.value if machine.kind is not None else None,
        "arch": int(machine.arch) if machine.arch is not None else None,
        "uuid": machine.uuid or None,
        "serial": machine.serial or None,
        "product": machine.product or None,
        "relay": machine.relay or None,
        "circuit": machine.circuit or None,
        "remote": machine.remote or None,
        "since": round(machine.since + offset, 3),
        "age": round(now - machine.seen, 3),
        "count": machine.count,
        "held": machine.held,
    }


def _text(value: str) -> str:
    """What a machine says of itself, made fit for a terminal and a log."""
    cut = value[:MAX_TEXT]
    return cut if cut.isprintable() else "".join(c if c.isprintable() else "?" for c in cut)


def readable(value: bytes) -> str:
    """Bytes off the wire (option 82's circuit and remote id) as text, or as hex where they are no
    text, as many switches send numbers."""
    text = value.decode("ascii", "replace")
    if value and text.isprintable() and "\ufffd" not in text:
        return text[:MAX_TEXT]
    return value.hex(":")[:MAX_TEXT]
