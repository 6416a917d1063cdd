"""Rendering every node's templates after a reload, in the background, to find those that fail.

A reload itself tries for half a second, unlike nodes first (`config.load`): nobody waits longer.
What it did not come to is tried here, a little at a time. A fault that is found then is told in the
log, before the node asks; the registry, which serves already, stays.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Final

import structlog

from bootd import metrics
from bootd.overlay.render import MAX_FAULTS, Shared, check, checked
from bootd.registry import Current, Registry

log = structlog.get_logger()

PERIOD: Final = 1.0
"""Seconds between two looks whether the registry is another one."""
NODES: Final = 5
"""Nodes that are rendered at once: a few milliseconds, in which the loop shares the interpreter."""
REST: Final = 9.0
"""Times as long as that took, nothing is done: a tenth of one core."""


class Templates:
    """Tries the templates of each registry that comes into `current`."""

    def __init__(self, current: Current) -> None:
        self._current = current

    async def run(self) -> None:
        """Until cancelled."""
        done: Registry | None = None
        while True:
            await asyncio.sleep(PERIOD)
            registry = self._current.registry
            if registry is not done:
                try:
                    await self.check(registry)
                except Exception:
                    # A fault of ours: it must not end a daemon that serves.
                    metrics.EXCEPTIONS.labels("templates").inc()
                    log.exception("templates.failed")
                done = registry

    async def check(self, registry: Registry) -> None:
        """Try them all, unless another registry comes before that."""
        loop = asyncio.get_running_loop()
        shared: Shared = {}
        told: set[tuple[str, ...]] = set()
        nodes = iter(checked(registry))
        count = 0
        while some := list(islice(nodes, NODES)):
            began = loop.time()
            faults = await asyncio.to_thread(check, registry, nodes=some, shared=shared)
            for fault in faults:
                self._tell(fault, told)
            count += len(some)
            if self._current.registry is not registry or len(told) >= MAX_FAULTS:
                return
            await asyncio.sleep(REST * (loop.time() - began))
        metrics.TEMPLATE_FAULTS.set(len(told))
        log.info("templates.checked", nodes=count, faults=len(told), generation=registry.generation)

    def _tell(self, fault: str, told: set[tuple[str, ...]]) -> None:
        """One line for a fault, whoever of the nodes has it."""
        place, _, rest = fault.partition(": ")
        key = (place, rest.partition(": ")[2])
        if key not in told:
            told.add(key)
            log.error("templates.fault", fault=fault)
