"""Diskless machines: QEMU with the firmware of real ones, each on a tap in the lab's bridge.

Always under TCG with one processor: it works where there is no KVM, and the same everywhere. What
each firmware needs to PXE boot at all is said beside its arguments.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

from tests.lab.arm64 import arm64
from tests.lab.console import Console, Line
from tests.lab.netns import Network
from tests.lab.run import LabError, Program

OVMF: Final = Path("/usr/share/OVMF")
ROMS: Final = Path("/usr/lib/ipxe/qemu")


class Firmware(StrEnum):
    """What the machine runs at power-on."""

    BIOS = "bios"  # SeaBIOS, the network card's ROM is iPXE
    UEFI = "uefi"  # EDK2's own PXE client
    UEFI_HTTP = "uefi-http"  # EDK2's HTTP boot
    UEFI_ROM = "uefi-rom"  # UEFI, the network card's ROM is iPXE
    ARM64 = "arm64"  # EDK2's PXE client on an arm64 machine
    SECURE = "secure"  # EDK2's PXE client, Secure Boot with Microsoft's keys
    SECURE_HTTP = "secure-http"  # EDK2's HTTP boot, Secure Boot with Microsoft's keys


def _need(path: Path, package: str) -> Path:
    if not path.exists():
        raise LabError(f"{path} is missing; install it with: apt-get install {package}")
    return path


def _bios(mac: str) -> list[str]:
    # graphics=off puts SeaBIOS and the ROM on the serial port. The ROM is found by -L: only a ROM
    # that QEMU picks itself gets its PCI ids patched, so romfile= would make iPXE find no card.
    _need(ROMS / "pxe-virtio.rom", "ipxe-qemu")
    return [
        "-machine", "pc,graphics=off", "-vga", "none", "-L", str(ROMS),
        "-device", f"virtio-net-pci,netdev=lan,mac={mac},bootindex=1",
    ]  # fmt: skip


def _flash(code: str, variables: Path) -> list[str]:
    return [
        "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={_need(OVMF / code, 'ovmf')}",
        "-drive", f"if=pflash,unit=1,format=raw,file={variables}",
    ]  # fmt: skip


def _uefi(firmware: Firmware, mac: str, folder: Path) -> list[str]:
    # OVMF keeps boot options in its variables: each machine has a copy. EDK2 2024 and later has no
    # network without a random number source, hence virtio-rng and a processor with rdrand.
    secure = firmware in (Firmware.SECURE, Firmware.SECURE_HTTP)
    template = "OVMF_VARS_4M.ms.fd" if secure else "OVMF_VARS_4M.fd"
    variables = folder / "OVMF_VARS.fd"
    shutil.copyfile(_need(OVMF / template, "ovmf"), variables)
    rom = "" if firmware is Firmware.UEFI_ROM else ",romfile="
    arguments = [
        "-machine", "q35,smm=on" if secure else "q35", "-vga", "none", "-L", str(ROMS),
        *_flash("OVMF_CODE_4M.secboot.fd" if secure else "OVMF_CODE_4M.fd", variables),
        "-device", f"virtio-net-pci,netdev=lan,mac={mac},bootindex=1{rom}",
        "-device", "virtio-rng-pci",
    ]  # fmt: skip
    if secure:
        arguments += ["-global", "driver=cfi.pflash01,property=secure,value=on",
                      "-global", "ICH9-LPC.disable_s3=1"]  # fmt: skip
    if firmware in (Firmware.UEFI_HTTP, Firmware.SECURE_HTTP):
        for name in ("IPv4PXESupport", "IPv6PXESupport", "IPv6Support"):
            arguments += ["-fw_cfg", f"name=opt/org.tianocore/{name},string=n"]
    return arguments


def _arm64(mac: str) -> list[str]:
    # Firmware by -bios: its variables are forgotten at power-off, which a diskless machine bears.
    return [
        "-machine", "virt", "-bios", str(arm64().firmware),
        "-device", f"virtio-net-pci,netdev=lan,mac={mac},bootindex=1,romfile=",
        "-device", "virtio-rng-pci",
    ]  # fmt: skip


class Machine:
    """One machine. Powered on, it boots from the network and has nothing else to boot from."""

    def __init__(
        self,
        name: str,
        mac: str,
        firmware: Firmware,
        *,
        network: Network,
        folder: Path,
        memory: int = 512,
        smbios: Sequence[str] = (),
        listen: Callable[[Line], None] | None = None,
    ) -> None:
        """`memory` in MiB; `smbios` are values of QEMU's ``-smbios``: what the firmware tells of
        the machine; `listen` is called with each line of the console."""
        self.name = name
        self.mac = mac
        self.firmware = firmware
        self.console = Console(name, listen)
        self._listen = listen
        self._network = network
        self._folder = folder
        self._memory = memory
        self._smbios = [word for value in smbios for word in ("-smbios", value)]
        self._tap: str | None = None
        self._program: Program | None = None

    def _arguments(self, tap: str) -> list[str]:
        qemu, processor = "qemu-system-x86_64", "qemu64,+rdrand"
        if self.firmware is Firmware.BIOS:
            hardware = _bios(self.mac)
        elif self.firmware is Firmware.ARM64:
            qemu, processor = str(arm64().qemu), "cortex-a57"
            hardware = _arm64(self.mac)
        else:
            hardware = _uefi(self.firmware, self.mac, self._folder)
        return [
            qemu, "-name", self.name, "-nodefaults", "-no-user-config",
            "-accel", "tcg,thread=multi", "-cpu", processor, "-smp", "1",
            "-m", str(self._memory), "-display", "none", "-monitor", "none",
            "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
            "-netdev", f"tap,id=lan,ifname={tap},script=no,downscript=no",
            *self._smbios, *hardware,
        ]  # fmt: skip

    async def power_on(self) -> None:
        """Start it; a second time after `power_off` is a cold boot with an empty console."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._tap is None:
            self._tap = self._network.tap()
        self.console = console = Console(self.name, self._listen)
        self._program = await Program.start(
            f"machine {self.name} (qemu)",
            self._arguments(self._tap),
            namespace=self._network.lan,
            log=self._folder / "qemu.log",
            output=self._hear,
            ended=console.close,
        )

    def _hear(self, data: bytes) -> None:
        with (self._folder / "console.raw").open("ab") as raw:
            raw.write(data)
        self.console.feed(data)

    @property
    def is_on(self) -> bool:
        """True while the machine runs."""
        return self._program is not None and self._program.alive

    def type(self, text: str) -> None:
        """Type on its serial console."""
        if self._program is not None:
            self._program.write(text.encode())

    async def wait_for(self, pattern: str, within: float, what: str = "") -> str:
        """Wait for `pattern` on the console, behind the last one found; the text that matched.

        Text arrives in pieces: a pattern that reads a value goes on to what stands behind it.
        `LabError` after `within` seconds, or when the machine goes off, with the last lines and
        with `what` was waited for, in words.
        """
        return (await self.console.wait_for(pattern, within, what)).group()

    async def wait_off(self) -> int:
        """Wait until it goes off by itself; QEMU's exit status."""
        if self._program is None:
            return 0
        return await self._program.wait()

    async def power_off(self) -> None:
        """Pull the plug."""
        if self._program is not None:
            await self._program.stop()
            (self._folder / "console.txt").write_text(
                "".join(f"{line.at:7.2f}  {line.text}\n" for line in self.console.lines)
            )
            self._program = None
