"""What the firmware tests share: seconds to wait, and what a whole boot looks like."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

import pytest

from tests.lab.image import ROOT, DemoImage
from tests.lab.lab import Lab
from tests.lab.machine import Machine

# Seconds: each at least four times what was seen on an idle machine with two processors, because
# machines boot beside each other here and the computer may have other things to do.
FIRMWARE: Final = 60.0
"""From power-on to the first words of firmware."""
LOADER: Final = 90.0
"""From there to iPXE: EDK2 alone waits four seconds for offers."""
SCRIPT: Final = 90.0
"""From iPXE's first words to the script's."""
KERNEL: Final = 180.0
"""From the script to the words of the node's init."""


def failures(request: pytest.FixtureRequest) -> Path:
    """Where a module's logs, consoles and capture are kept when one of its tests fails."""
    return ROOT / "build" / "failures" / request.path.stem


def chaddr(mac: str) -> str:
    """A capture filter for DHCP packets about this hardware address, from and to it."""
    octets = mac.replace(":", "")
    return f"udp and (udp[36:4] = 0x{octets[:8]} and udp[40:2] = 0x{octets[8:]})"


async def until_up(machine: Machine, node: str) -> IPv4Address:
    """Wait until the node's init has read its overlay and reported up; the address it has."""
    words = await machine.wait_for(
        rf"^bootd-demo: (I am {node} \(image demo\), address [\d.]+(?=,)|failed: .*\n)", KERNEL
    )
    assert "failed" not in words, words
    end = await machine.wait_for(rf"^bootd-demo: ({node} is up|failed: .*\n)", KERNEL)
    assert "failed" not in end, end
    return IPv4Address(words.rpartition(" ")[2])


async def the_boot(lab: Lab, node: str) -> dict[str, Any]:
    """The one boot that ``bootd timeline --json`` has of a node."""
    answer = await lab.server.ask("timeline", node)
    assert answer["node"] == node
    (boot,) = answer["boots"]
    assert isinstance(boot, dict)
    return boot


def sent(boot: dict[str, Any], stage: str) -> int:
    """Bytes of the step of this stage that ended well: the last one."""
    steps = [step for step in boot["steps"] if step["stage"] == stage and step["outcome"] == "ok"]
    assert steps, f"no {stage} that ended well in {boot['steps']}"
    return int(steps[-1]["bytes"])


def assert_booted(boot: dict[str, Any], image: DemoImage) -> None:
    """A boot that came up: every stage in order, every byte of kernel and initramfs."""
    assert (boot["outcome"], boot["stage"], boot["error"]) == ("up", "up", "")
    wanted = ["dhcp", "script", "kernel", "initramfs", "overlay", "up"]
    seen = [step["stage"] for step in boot["steps"]]
    assert [stage for stage in dict.fromkeys(seen) if stage in wanted] == wanted
    assert sent(boot, "kernel") == image.kernel.stat().st_size
    assert sent(boot, "initramfs") == image.initramfs.stat().st_size
    assert sent(boot, "overlay") > 0
