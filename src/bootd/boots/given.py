"""What a boot gives a machine, in a form that can be compared with what it would get later. Pure.

Digests, and the kernel's arguments as they are; nothing of it is secret, and all of it is strings,
so that it can be kept with the boot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from bootd.boots.timeline import Boot
from bootd.model import BootPlan, Method

FILES: Final = ("kernel", "initramfs", "image", "squashfs")
PARTS: Final = (*FILES, "args", "script", "system", "runtime")
"""What can differ, in the order in which it is told."""


def record(
    boot: Boot, plan: BootPlan, loader: str, text: str, token: str, memory: int | None
) -> None:
    """`boot` is given this script, for this `loader` and a machine of `memory` MiB."""
    boot.image = plan.image
    boot.server, boot.stale = plan.server.base, None
    boot.given = of_plan(plan) | {
        "loader": loader,
        "server": plan.server.base,
        "memory": str(memory or ""),
        "script": of_script(text, token, boot.id),
    }


def of_plan(plan: BootPlan) -> dict[str, str]:
    """The files that a plan boots, and its arguments."""
    used = {"kernel", *(initrd.name for initrd in plan.initrds)}
    if plan.method is Method.SQUASHFS:
        used.add("squashfs")
    files = plan.image.artefacts
    found = {role: files[role].sha256 for role in FILES if role in used and role in files}
    return found | {"args": " ".join(plan.args)}


def of_script(text: str, token: str, boot_id: str) -> str:
    """The digest of a script without what is another in each boot."""
    same = text.replace(token, "TOKEN").replace(boot_id, "BOOT")
    return hashlib.sha256(same.encode()).hexdigest()


def differing(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """Which of `PARTS` are in both and not the same.

    Where files or arguments differ, a script that differs as well is no news: it names them.
    """
    found = [part for part in PARTS if part in before and before[part] != now.get(part)]
    found += [part for part in FILES if part in now and part not in before and "kernel" in before]
    ordered = [part for part in PARTS if part in found]
    others = set(FILES) | {"args"}
    return tuple(part for part in ordered if part != "script" or others.isdisjoint(ordered))
