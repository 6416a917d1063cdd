"""``make demo``: boots one diskless machine from power-on to a running node, and shows it live.

Exit status: 0 the node came up, 1 something went wrong (one sentence says what), 130 interrupted.
Everything runs in network namespaces and a temporary folder, and is removed at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bootd.model import DhcpMode
from bootd.sinks import human
from tests.lab import debian, image
from tests.lab.console import Line
from tests.lab.dhcp import Site
from tests.lab.lab import CAPTURE, Lab
from tests.lab.machine import Firmware
from tests.lab.netns import require_root
from tests.lab.run import LabError
from tests.lab.server import Event

NODE: Final = "n001"
MAC: Final = "52:54:00:12:34:56"
WAIT: Final = 300.0
"""Seconds from power-on until the demo gives up; a boot takes 6 to 25 on an idle machine."""
FAILURES: Final = image.ROOT / "build" / "failures" / "demo"
STEPS: Final = 5
SHOWN: Final = (
    "hostname",
    "free -m",
    "findmnt -no SOURCE,FSTYPE,SIZE,USED /",
    "systemd-analyze | head -n 1",
)
"""What the demo lets root run on a Debian node."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is shown: the machine's firmware, bootd's ``dhcp.mode`` (proxy or reservation), a folder
    to keep the logs in, and the image (`demo` or `debian`) with the node's `method`."""

    firmware: Firmware
    mode: DhcpMode
    keep: Path | None
    image: str = "demo"
    method: str = "auto"

    @property
    def alone(self) -> bool:
        """True where bootd is the network's only DHCP server."""
        return self.mode is DhcpMode.RESERVATION


class Screen:
    """What the demo prints: steps, and during the boot one line for each thing that happens."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._colours = {"node": "36", "bootd": "33", "step": "1", "good": "32"} if terminal else {}
        self._step = 0
        self._began: float | None = None
        self._live_shown = True

    def _paint(self, text: str, role: str) -> str:
        colour = self._colours.get(role)
        return f"\x1b[{colour}m{text}\x1b[0m" if colour else text

    def step(self, text: str) -> None:
        """The next step begins."""
        self._step += 1
        print(self._paint(f"\n[{self._step}/{STEPS}] {text}", "step"), flush=True)

    def say(self, text: str, role: str = "") -> None:
        """One line."""
        print(self._paint(text, role), flush=True)

    def power_on(self) -> None:
        """From now on lines carry the seconds since power-on."""
        self._began = time.monotonic()

    def end(self) -> None:
        """The boot is over: what is said while everything is ended is of no interest."""
        self._live_shown = False

    def node(self, _name: str, line: Line) -> None:
        """A line of the machine's console."""
        self._live("node", line.text)

    def bootd(self, event: Event) -> None:
        """A line of bootd's log."""
        shown = {key: value for key, value in event.keys.items() if key not in ("time", "level")}
        self._live("bootd", human(shown))

    def _live(self, who: str, text: str) -> None:
        if not self._live_shown:
            return
        clock = f"{time.monotonic() - self._began:6.1f} s" if self._began is not None else " " * 8
        print(f"{clock}  {self._paint(f'{who:>5} |', who)} {text}", flush=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def stages(boot: Mapping[str, Any], power_on: float) -> str:
    """The timeline that bootd kept of a boot, with seconds after power-on (wall-clock time).

    `boot` is one boot of ``bootd timeline --json``.
    """
    rows = [["stage", "begins", "takes", "bytes", "what"]]
    for step in boot["steps"]:
        rows.append(
            [
                step["stage"],
                f"{step['at'] - power_on:.2f} s",
                f"{step['seconds']:.2f} s",
                f"{step['bytes']:,}" if step["bytes"] else "",
                step["detail"][:48],
            ]
        )
    return table(rows)


async def demo(plan: Plan) -> None:
    """Boot one node; returns when it is up. `LabError` where it does not come."""
    screen = Screen()
    demo_image = None if plan.image == debian.NAME else await _small_image(screen)
    screen.step(
        "Make a network in namespaces, without any DHCP server"
        if plan.alone
        else "Make a network in namespaces, with a DHCP server that knows nothing of booting"
    )
    lab = Lab(
        site=Site.NOBODY if plan.alone else Site.DNSMASQ,
        keep=plan.keep or FAILURES,
        keep_always=plan.keep is not None,
        hear=screen.node,
        listen=screen.bootd,
    )
    async with lab:
        network = lab.network
        others = "router" if plan.alone else "dnsmasq and router"
        screen.say(f"{network.addresses}: {others} {network.router.ip}, bootd {network.server_ip}")
        if demo_image is None:
            await _boot_debian(lab, screen, plan)
        else:
            await _boot(lab, screen, plan, demo_image)
        screen.step("Clean up")
    screen.say(f"{NODE} booted; machine, network, servers and temporary files are gone.", "good")
    if plan.keep is not None:
        screen.say(f"Logs, console and packet capture are in {plan.keep}.")


async def _small_image(screen: Screen) -> image.DemoImage:
    screen.step("Build a small image: Debian's kernel, busybox, and an init of one page")
    demo_image = await asyncio.to_thread(image.build)
    screen.say(
        f"kernel {demo_image.version}, {_megabytes(demo_image.kernel)};"
        f" initramfs {_megabytes(demo_image.initramfs)}"
    )
    return demo_image


async def _boot_debian(lab: Lab, screen: Screen, plan: Plan) -> None:
    """A whole Debian, and a login by ssh."""
    key, public = debian.key_pair(lab.folder)
    address = lab.network.reserved
    memory = debian.MEMORY["squashfs" if plan.method == "squashfs" else "initramfs"]
    node = {"mac": MAC, "ip": str(address), "method": plan.method, "resources": {"memory": memory}}
    lab.server.default = debian.defaults(public)
    settings = {"dhcp": {"mode": plan.mode.value}} if plan.alone else {}
    lab.server.configure({NODE: node}, **settings)
    screen.step(f"Import Debian: bootd image import {debian.NAME} {debian.SUITE} --profile FILE")
    screen.say("This takes a minute or two the first time; it is kept under build/lab.")
    made = await asyncio.to_thread(debian.install, lab.server)
    if not made:
        screen.say("An earlier run's image was there.")
    screen.step("Start bootd" if plan.alone else "Start bootd beside it")
    screen.say(f"nodes.yaml:\n{_indented(lab.server.nodes_file)}")
    await lab.server.start()
    explained = (await lab.server.ask("explain", NODE))["script"]
    screen.say(f"method {explained['method']}: {explained['reason']}")
    screen.step(
        f"Power on a machine without a disk ({plan.firmware.value}), {memory} MiB of memory"
    )
    screen.power_on()
    power_on = time.time()  # noqa: TID251 -- as in `_boot`
    await lab.power_on("machine", MAC, plan.firmware, memory=memory)
    boot = await _until_over(lab)
    screen.end()
    screen.say(f"\n{NODE} is up. What bootd saw of this boot, in seconds after power-on:\n", "good")
    screen.say(stages(boot, power_on))
    for command in SHOWN:
        printed = await asyncio.to_thread(
            debian.ssh, lab.server, key, NODE, str(address.ip), command
        )
        screen.say(f"\n$ ssh root@{NODE} {command}", "node")
        screen.say(printed.rstrip())


async def _until_over(lab: Lab) -> dict[str, Any]:
    """The node's boot, when it is up. `LabError` where it fails or takes too long."""
    try:
        async with asyncio.timeout(WAIT):
            while True:
                boots = (await lab.server.ask("timeline", NODE))["boots"]
                if boots and boots[-1]["outcome"] != "booting":
                    break
                await asyncio.sleep(1)
    except TimeoutError:
        raise LabError(f"{NODE} is not up after {WAIT:.0f} s") from None
    boot: dict[str, Any] = boots[-1]
    if boot["outcome"] != "up":
        raise LabError(f"to bootd {NODE} is {boot['outcome']}: {boot['error']}")
    return boot


async def _boot(lab: Lab, screen: Screen, plan: Plan, demo_image: image.DemoImage) -> None:
    if plan.alone:
        screen.step("Start bootd, which gives nodes their addresses too (dhcp.mode: reservation)")
        lab.server.configure(
            {NODE: {"mac": MAC, "ip": str(lab.network.reserved)}}, dhcp={"mode": plan.mode.value}
        )
    else:
        screen.step("Start bootd beside it")
        lab.server.configure({NODE: {"mac": MAC}})
    screen.say(f"nodes.yaml:\n{_indented(lab.server.nodes_file)}")
    await asyncio.to_thread(lab.server.import_image, demo_image)
    await lab.server.start()
    screen.step(f"Power on a machine without a disk ({plan.firmware.value}), MAC address {MAC}")
    screen.power_on()
    power_on = time.time()  # noqa: TID251 -- bootd's timeline, which it is set against, is in it
    machine = await lab.power_on("machine", MAC, plan.firmware)
    end = await machine.wait_for(
        rf"^bootd-demo: ({NODE} is up|failed: ).*\n", within=WAIT, what=f"that {NODE} is up"
    )
    if "failed" in end:
        raise LabError(f"the node's init gave up: {end.strip()}")
    answer = await lab.server.ask("timeline", NODE)
    boot = answer["boots"][-1]
    if boot["outcome"] != "up":
        raise LabError(f"the node says it is up, but to bootd it is {boot['outcome']}")
    screen.end()
    screen.say(f"\n{NODE} is up. What bootd saw of this boot, in seconds after power-on:\n", "good")
    screen.say(stages(boot, power_on))


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"


def _indented(path: Path) -> str:
    return "\n".join(f"    {line}" for line in path.read_text().splitlines())


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make demo", description="Boot one diskless machine with bootd, and show it live."
    )
    parser.add_argument(
        "--firmware",
        type=Firmware,
        choices=[Firmware.BIOS, Firmware.UEFI],
        default=Firmware.BIOS,
        metavar="bios|uefi",
        help="what the machine runs at power-on (default: bios, whose network card has iPXE)",
    )
    parser.add_argument(
        "--mode",
        type=DhcpMode,
        choices=[DhcpMode.PROXY, DhcpMode.RESERVATION],
        default=DhcpMode.PROXY,
        metavar="proxy|reservation",
        help="beside a DHCP server (default), or bootd alone, which gives the address too",
    )
    parser.add_argument(
        "--image",
        choices=["demo", debian.NAME],
        default="demo",
        help="what it boots: one page of init (default), or a whole Debian with systemd and ssh",
    )
    parser.add_argument(
        "--method",
        choices=["auto", "initramfs", "squashfs"],
        default="auto",
        help="how a Debian's root comes to the machine (default: auto)",
    )
    parser.add_argument(
        "--keep-log",
        type=Path,
        metavar="DIR",
        help="keep logs, console and packet capture in DIR (replaced), also when all goes well",
    )
    arguments = parser.parse_args(argv)
    kept = arguments.keep_log
    if kept is not None and kept.exists() and not (kept / CAPTURE).exists():
        parser.error(f"{kept} is there and is no earlier demo's; name a new folder")
    return arguments


def _plan(arguments: argparse.Namespace) -> Plan:
    return Plan(
        arguments.firmware,
        arguments.mode,
        arguments.keep_log,
        arguments.image,
        arguments.method,
    )


async def _interruptible(plan: Plan) -> None:
    """The first Ctrl-C or SIGTERM ends the demo in order; more of them do not disturb that."""
    task = asyncio.current_task()
    assert task is not None
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            print("\ninterrupted: cleaning up", file=sys.stderr, flush=True)
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt)
    await demo(plan)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; the exit status."""
    arguments = _arguments(argv)
    kept = arguments.keep_log or FAILURES
    try:
        require_root()
        shutil.rmtree(kept, ignore_errors=True)  # an earlier run's
        asyncio.run(_interruptible(_plan(arguments)))
    except asyncio.CancelledError:
        return 130
    except LabError as error:
        if error.detail:
            print(f"\n{error.detail}", file=sys.stderr)
        print(f"\ndemo: {error.sentence}", file=sys.stderr)
    except Exception as error:
        print(f"\ndemo: a fault of the demo itself: {error!r}", file=sys.stderr)
    else:
        return 0
    if kept.exists() and os.geteuid() == 0:
        print(f"demo: logs, console and packet capture are in {kept}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
