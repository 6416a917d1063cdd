"""Which running nodes a reboot would change: what their boot gave them against what it would now.

In the background and a little at a time, never while a packet waits for it: most nodes cost a look
at what their archive is made from (`OverlayCache.digest`), and only what really may differ is
rendered. The result stands in each boot, for whoever asks for the status.
"""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from typing import Any, Final
from urllib.parse import urlsplit

import structlog

from bootd import metrics, scripts
from bootd.boots import given
from bootd.boots.timeline import Boot, Boots
from bootd.configs import GRUB, IPXE, PXELINUX
from bootd.methods import Machine
from bootd.model import Arch, BootTarget, Node, ServerAddress
from bootd.overlay.cache import OverlayCache
from bootd.overlay.manifest import differing
from bootd.overlay.render import Which
from bootd.overlay.template import RenderError
from bootd.registry import Current, Registry

log = structlog.get_logger()

PERIOD: Final = 1.0
"""Seconds between two looks for boots that have not been compared."""
SLICE: Final = 0.002
REST: Final = 0.02
"""Seconds of comparing, and of leaving the loop to others after them: a tenth of one core."""
_TOKEN: Final = "T" * 52
_BOOT: Final = "0123456789abcdef"
_KINDS: Final = {kind.name: kind for kind in (IPXE, GRUB, PXELINUX)}


class Drift:
    """Compares every running node's boot with what it would get now."""

    def __init__(self, *, current: Current, boots: Boots, overlays: OverlayCache) -> None:
        self._current = current
        self._boots = boots
        self._overlays = overlays

    def forget(self) -> None:
        """The registry has changed: what was found so far is about another one."""
        for boot in self._boots:
            self._boots.compare(boot)

    async def run(self) -> None:
        """Until cancelled."""
        self.forget()  # what a process before this one found
        while True:
            await asyncio.sleep(PERIOD)
            await self.look()

    async def look(self) -> None:
        """Compare the boots that have not been."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        waiting, self._boots.uncompared = self._boots.uncompared, set()
        for mac in waiting:
            registry, boot = self._current.registry, self._boots.of(mac)
            node = registry.by_mac.get(mac)
            if node is None or boot is None or boot.outcome != "up":
                continue  # a boot that comes up is named again
            try:
                stale = await self.differing(registry, node, boot)
            except Exception:
                # One node's own fault must not end the daemon, nor be tried each second.
                metrics.EXCEPTIONS.labels("drift").inc()
                log.exception("drift.failed", node=node.name)
                stale = ()
            if self._current.registry is registry:
                boot.stale = stale
            if loop.time() - began > SLICE:
                await asyncio.sleep(REST)
                began = loop.time()

    async def differing(self, registry: Registry, node: Node, boot: Boot) -> tuple[str, ...]:
        """Which of `given.PARTS` a reboot would change for a node that `boot` brought up."""
        if node.boot is BootTarget.LOCAL:
            return ()  # a reboot takes nothing from us
        return given.differing(boot.given, await self._now(registry, node, boot))

    async def explain(self, registry: Registry, node: Node, boot: Boot) -> list[dict[str, Any]]:
        """Each part that differs: what it was and is, and of overlays which files, where the
        archive that the node has was made by this process."""
        now = await self._now(registry, node, boot)
        found = []
        for part in await self.differing(registry, node, boot):
            before, after = boot.given.get(part, ""), now.get(part, "")
            old, new = self._overlays.files(before), self._overlays.files(after)
            files = differing(old, new) if old is not None and new is not None else None
            found.append({"what": part, "before": before, "now": after, "files": files})
        return found

    async def _now(self, registry: Registry, node: Node, boot: Boot) -> dict[str, str]:
        """What `node` would get, of the parts that its boot was given."""
        server = _server(boot.server)
        if server is None:
            return dict(boot.given)
        now: dict[str, str] = {}
        if "args" in boot.given:
            now |= _script(registry, node, boot)
        if "system" in boot.given:
            now["system"] = await self._digest(registry, node, "system", server)
        if "runtime" in boot.given:
            safe = registry.settings.http.over_tls(server)
            now["runtime"] = await self._digest(registry, node, "runtime", safe)
        return now

    async def _digest(
        self, registry: Registry, node: Node, which: Which, server: ServerAddress
    ) -> str:
        try:
            return await self._overlays.digest(registry, node, which, server)
        except RenderError as error:
            return f"does not render: {error}"


def _script(registry: Registry, node: Node, boot: Boot) -> dict[str, str]:
    """Files, arguments and script as a new boot by the same loader would have them."""
    kind = _KINDS.get(boot.given.get("loader", ""))
    server = _server(boot.given.get("server", ""))
    if kind is None or server is None:
        return dict(boot.given)  # nobody can tell
    said = boot.given.get("memory", "")
    machine = Machine(
        bios=boot.arch in (Arch.X86_BIOS, Arch.X86_BIOS_HTTP) if boot.arch is not None else None,
        memory=int(said) if said else None,
    )
    try:
        plan = scripts.plan(
            registry, node, boot.mac, server, token=_TOKEN, boot_id=_BOOT, machine=machine
        )
        script = given.of_script(kind.render(registry, plan), _TOKEN, _BOOT)
    except scripts.ScriptError as error:
        return {"args": f"cannot boot: {error}"}
    return given.of_plan(plan) | {"script": script}


def _server(base: str) -> ServerAddress | None:
    """A `ServerAddress` by its `base`; None where there is none."""
    if not base:
        return None
    parts = urlsplit(base)
    return ServerAddress(IPv4Address(parts.hostname or ""), parts.port or 0, parts.scheme)
