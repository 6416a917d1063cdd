"""A whole Debian boots: imported by ``bootd image import``, by both methods, and from a container
image; another generation is activated, booted and rolled back.

Two machines beside each other, one for each method. What a test expects is what root sees who logs
in by ssh with the key that bootd was told, from a host whose key bootd made.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import shutil
import signal
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.firmware.rack import failures
from tests.lab import debian
from tests.lab.lab import Lab
from tests.lab.machine import Firmware, Machine
from tests.lab.run import run

pytestmark = [
    pytest.mark.firmware,
    pytest.mark.timeout(900),
    pytest.mark.asyncio(loop_scope="module"),
]

MACS = {"n001": "52:54:00:77:02:01", "n002": "52:54:00:77:02:02"}
ADDRESSES = {"n001": "10.77.0.31", "n002": "10.77.0.32"}
UP = 300.0
"""Seconds from power-on to multi-user: 27 to 45 were seen for one machine on an idle computer."""


@dataclass
class Rack:
    """The lab, the key that root logs in with, and the machines by the name of their node."""

    lab: Lab
    key: Path
    machines: dict[str, Machine]

    async def ssh(self, node: str, command: str) -> str:
        """Run a command as root on a node; what it prints."""
        return await asyncio.to_thread(
            debian.ssh, self.lab.server, self.key, node, ADDRESSES[node], command
        )

    async def until_up(self, node: str, after: str = "") -> dict[str, Any]:
        """Wait for a boot of `node`, another than the one with id `after`, that reports up."""
        async with asyncio.timeout(UP):
            while True:
                answer = await self.lab.server.ask("timeline", node)
                boot: dict[str, Any] = answer["boots"][-1] if answer["boots"] else {}
                if boot and boot["boot"] != after and boot["outcome"] != "booting":
                    assert (boot["outcome"], boot["error"]) == ("up", "")
                    return boot
                await asyncio.sleep(1)

    async def facts(self, node: str) -> dict[str, str]:
        """What the node was told of itself at its boot, and what its image says."""
        return dict(
            debian.machine_facts(
                await self.ssh(node, "cat /etc/bootd/node /etc/from-a-container; true")
            )
        )

    async def generations(self) -> dict[str, bool]:
        """The image's generations, oldest first, and which is active."""
        rows = await self.lab.server.ask("image", "list")
        return {row["generation"]: row["active"] for row in rows if row["name"] == debian.NAME}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rack(request: pytest.FixtureRequest) -> AsyncIterator[Rack]:
    failed_before = request.session.testsfailed
    async with Lab(keep=failures(request)) as lab:
        key, public = debian.key_pair(lab.folder)
        lab.server.default = debian.defaults(public)
        overlay = lab.server.config.parent / "overlays" / "notice" / "rootfs" / "etc"
        overlay.mkdir(parents=True)
        (overlay / "notice.j2").write_text("for {{ node.name }}, while it runs\n")
        lab.server.configure(
            {
                "n001": {**node("n001"), "method": "initramfs"},
                # auto: 512 MiB are too few for a root of 300 in RAM.
                "n002": {**node("n002"), "resources": {"memory": 512}},
            }
        )
        await asyncio.to_thread(debian.install, lab.server, fresh=True)
        await lab.server.start()
        machines = {
            name: await lab.power_on(name, MACS[name], firmware, memory=debian.MEMORY[method])
            for name, firmware, method in (
                ("n001", Firmware.BIOS, "initramfs"),
                ("n002", Firmware.BIOS, "squashfs"),
            )
        }
        yield Rack(lab, key, machines)
        lab.failed = request.session.testsfailed > failed_before


def node(name: str) -> dict[str, Any]:
    """What both nodes have."""
    return {
        "mac": MACS[name],
        "ip": f"{ADDRESSES[name]}/24",
        "overlays": {"runtime": ["notice"]},
    }


async def test_a_debian_has_its_root_in_ram_by_method_initramfs(rack: Rack) -> None:
    boot = await rack.until_up("n001")

    assert stages(boot) == ["dhcp", "script", "kernel", "image", "overlay", "up"]
    await assert_whole(rack, "n001", "rootfs", "rdinit=/sbin/init")


async def test_a_debian_has_its_root_from_a_squashfs_where_auto_finds_too_little_memory(
    rack: Rack,
) -> None:
    boot = await rack.until_up("n002")

    assert stages(boot) == ["dhcp", "script", "kernel", "initramfs", "image", "up"]
    await rack.machines["n002"].wait_for(r"^bootd: fetching the root file system, \d", 1)
    await rack.machines["n002"].wait_for(r"^bootd: n002 has its root file system", 1)
    explained = (await rack.lab.server.ask("explain", "n002"))["script"]
    assert explained["method"] == "squashfs"
    assert "512 MiB of memory (resources.memory) are less than" in explained["reason"]
    await assert_whole(rack, "n002", "overlay", "boot=bootd")


FACTS = {
    "system": "systemctl is-system-running --wait || systemctl --failed",
    "hostname": "hostname",
    "hosts": "getent hosts n001 n002",
    "machine-id": "cat /etc/machine-id",
    "addresses": "ip -4 -br address show eth0",
    "runtime": "systemctl start bootd-agent.service; cat /etc/notice",
    "modes": "stat -c '%a %n' /etc/bootd/boot.env /etc/bootd/node.key",
    "arguments": "cat /proc/cmdline",
    "root": "findmnt -no FSTYPE /",
    "initrd": "ls /etc/initrd-release 2>&1",
}
"""What root is asked to look at, in one login: each costs seconds without KVM."""


async def assert_whole(rack: Rack, name: str, root: str, argument: str) -> None:
    """A node that is one: systemd is content, and everything of it came from bootd."""
    asked = "; ".join(f"echo '=={what}'; {command}" for what, command in FACTS.items()) + "; true"
    printed = (await rack.ssh(name, asked)).removeprefix("==").split("\n==")
    found = {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in printed}

    assert found["system"] == "running"
    assert found["hostname"] == name
    assert found["hosts"].split() == [
        *(ADDRESSES["n001"], "n001"),
        *(ADDRESSES["n002"], "n002"),
    ]
    assert len(found["machine-id"]) == 32
    assert found["addresses"].split()[1:] == ["UP", f"{ADDRESSES[name]}/24"]
    assert found["runtime"] == f"for {name}, while it runs"
    assert found["root"] == root
    assert argument in found["arguments"].split()
    # Nothing that opens this boot's secrets is where a user of the node could read it.
    assert "/b/" not in found["arguments"]
    assert found["modes"].splitlines() == ["600 /etc/bootd/boot.env", "600 /etc/bootd/node.key"]
    assert "No such file" in found["initrd"]  # systemd would take itself for an initramfs's


def stages(boot: dict[str, Any]) -> list[str]:
    """What a boot went through, each stage once."""
    return list(dict.fromkeys(step["stage"] for step in boot["steps"]))


async def test_a_generation_from_a_container_image_is_booted_and_rolled_back(rack: Rack) -> None:
    server = rack.lab.server
    booted = (await rack.until_up("n001"))["boot"]
    first = (await rack.facts("n001"))["GENERATION"]

    layout = await asyncio.to_thread(container_image, rack.lab.folder, server.state, first)
    await asyncio.to_thread(server.command, "image", "import", debian.NAME, str(layout))
    second = next(name for name, active in (await rack.generations()).items() if active)
    assert second != first
    await reload(rack)
    booted = await reboot(rack, "n001", booted)

    facts = await rack.facts("n001")
    assert (facts["GENERATION"], facts["layer"]) == (second, "second")

    await asyncio.to_thread(server.command, "image", "activate", debian.NAME, first)
    await reload(rack)
    await reboot(rack, "n001", booted)

    facts = await rack.facts("n001")
    assert (facts["GENERATION"], facts.get("layer")) == (first, None)


async def reload(rack: Rack) -> None:
    """As ``systemctl reload bootd``; the command line may have told the daemon already."""
    rack.lab.server.events.clear()
    rack.lab.server.signal(signal.SIGHUP)
    await rack.lab.server.wait_for("registry.loaded", 30)


async def reboot(rack: Rack, name: str, booted: str) -> str:
    """Let a node start again by itself; the id of its new boot."""
    await rack.ssh(name, "systemd-run --on-active=1 systemctl reboot --no-wall")
    boot = await rack.until_up(name, after=booted)
    return str(boot["boot"])


def container_image(folder: Path, state: Path, generation: str) -> Path:
    """An OCI layout of the same root, with one file more in a second layer. Blocks."""
    image = state / "images" / debian.NAME / generation
    root = folder / "root"
    run(
        "unsquashfs",
        "-quiet",
        "-no-progress",
        "-d",
        str(root),
        str(image / "image.squashfs"),
        timeout=120,
    )
    for kernel in (image / "kernels").iterdir():
        shutil.copy(kernel / "kernel", root / "boot" / f"vmlinuz-{kernel.name}")
        shutil.copy(kernel / "initramfs", root / "boot" / f"initrd.img-{kernel.name}")
    layout = folder / "layout"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    whole = folder / "layer.tar"
    run("tar", "--numeric-owner", "--xattrs", "-C", str(root), "-cf", str(whole), ".", timeout=120)
    shutil.rmtree(root)
    base = "sha256:" + hashlib.sha256(whole.read_bytes()).hexdigest()
    size = whole.stat().st_size
    whole.rename(blobs / base.removeprefix("sha256:"))

    def blob(data: bytes) -> tuple[str, int]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return f"sha256:{digest}", len(data)

    more = BytesIO()
    with tarfile.open(fileobj=more, mode="w") as tar:
        entry = tarfile.TarInfo("etc/from-a-container")
        content = b"layer=second\n"
        entry.size = len(content)
        tar.addfile(entry, BytesIO(content))
    plain = "sha256:" + hashlib.sha256(more.getvalue()).hexdigest()
    added, added_size = blob(gzip.compress(more.getvalue(), mtime=0))
    config, config_size = blob(
        json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": [base, plain]},
            }
        ).encode()
    )
    kind = "application/vnd.oci.image"
    manifest, manifest_size = blob(
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": f"{kind}.manifest.v1+json",
                "config": described(f"{kind}.config.v1+json", config, config_size),
                "layers": [
                    described(f"{kind}.layer.v1.tar", base, size),
                    described(f"{kind}.layer.v1.tar+gzip", added, added_size),
                ],
            }
        ).encode()
    )
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(
        json.dumps(
            {
                "schemaVersion": 2,
                "manifests": [described(f"{kind}.manifest.v1+json", manifest, manifest_size)],
            }
        )
    )
    return layout


def described(kind: str, digest: str, size: int) -> dict[str, Any]:
    """An OCI descriptor."""
    return {"mediaType": kind, "digest": digest, "size": size}
