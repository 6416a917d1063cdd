"""Claims: an unknown machine's MAC address becomes a node's, and survives in ``claims.yaml``.

A claim is written, then the files are read again: what a claim means is decided in one place, where
nodes.yaml is read. Claims are made one after the other, so that two never get the same node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import structlog

from bootd.boots.unknown import Unknown, assign
from bootd.config import claims
from bootd.config.faults import nearest
from bootd.model import ConfigError, Mac, parse_mac
from bootd.registry import Current, Registry
from bootd.reload import Outcome
from bootd.text import unfold

log = structlog.get_logger()


class ClaimRefused(Exception):
    """The claim cannot be; the message is a sentence for who typed it."""


class Claiming:
    """Makes claims. `reload` reads the files again and waits."""

    def __init__(
        self, *, current: Current, unknown: Unknown, reload: Callable[[], Awaitable[Outcome]]
    ) -> None:
        self._current = current
        self._unknown = unknown
        self._reload = reload
        self._lock = asyncio.Lock()

    async def claim(self, mac: str | None, nodes: str) -> tuple[list[tuple[Mac, str]], Outcome]:
        """Give `mac` to the node `nodes`; without `mac`, give the machines that wait, in order of
        arrival, to the nodes of a set that have no MAC address.

        Returns who got what, and the reload's outcome. Raises `ClaimRefused`, and then nothing has
        changed.
        """
        async with self._lock:
            registry = self._current.registry
            names = _names(registry, nodes)
            if mac is None:
                waiting = [machine.mac for machine in self._unknown.in_order()]
                pairs = _next(registry, waiting, names)
            else:
                pairs = [_one(registry, mac, names)]
            try:
                await asyncio.to_thread(_write, registry.settings.state_dir, pairs)
            except ConfigError as error:
                raise ClaimRefused("\n".join(error.faults)) from error
            except OSError as error:
                where = error.filename or registry.settings.state_dir
                raise ClaimRefused(f"{where}: {error.strerror}; nothing was claimed") from error
            for address, name in pairs:
                log.info("claim.made", node=name, mac=address)
            return pairs, await self._reload()


def _names(registry: Registry, nodes: str) -> list[str]:
    try:
        names = unfold(nodes)
    except ValueError as error:
        raise ClaimRefused(str(error)) from error
    for name in names:
        if name not in registry.nodes:
            if len(names) == 1 and _is_mac(name):
                raise ClaimRefused(f"{name}: which node is it? bootd claim {name} NODE")
            hint = nearest(name, registry.nodes)
            raise ClaimRefused(f"{name}: no node is called that{hint}")
    return names


def _is_mac(text: str) -> bool:
    try:
        parse_mac(text)
    except ValueError:
        return False
    return True


def _one(registry: Registry, mac: str, names: Sequence[str]) -> tuple[Mac, str]:
    try:
        address = parse_mac(mac)
    except ValueError as error:
        raise ClaimRefused(str(error)) from error
    if len(names) != 1:
        raise ClaimRefused(f"one MAC address is for one node, not for {len(names)}")
    node = registry.nodes[names[0]]
    if node.mac is not None:
        raise ClaimRefused(f"{node.name} has MAC address {node.mac} already ({_where(registry)})")
    other = registry.by_mac.get(address)
    if other is not None:
        raise ClaimRefused(f"{address} is {other.name}'s already")
    return address, node.name


def _where(registry: Registry) -> str:
    return f"in the files, or claimed: see {registry.settings.state_dir}/{claims.FILE}"


def _next(
    registry: Registry, waiting: Sequence[Mac], names: Sequence[str]
) -> list[tuple[Mac, str]]:
    taken = {node.name for node in registry.nodes.values() if node.mac is not None}
    strangers = [mac for mac in waiting if mac not in registry.by_mac]
    pairs = assign(strangers, names, taken)
    if not pairs:
        free = sum(name not in taken for name in names)
        raise ClaimRefused(
            f"nothing to claim: {len(strangers)} machines wait, and {free} of the {len(names)} "
            f"nodes have no MAC address"
        )
    return pairs


def _write(state_dir: str, pairs: Sequence[tuple[Mac, str]]) -> None:
    """In a worker thread: add to the file. Raises `ConfigError` or `OSError`."""
    at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    given = {mac for mac, _ in pairs}
    # A claim that no longer counts (its node has another MAC now) must not come back one day.
    kept = {name: claim for name, claim in claims.load(state_dir).items() if claim.mac not in given}
    claims.save(state_dir, kept | {name: claims.Claim(mac, at) for mac, name in pairs})
