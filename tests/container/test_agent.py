"""A node with a real systemd: what its overlays delete is gone before it runs, and the agent's
service and timer keep it up to date."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from bootd.boots.nodekeys import derive
from bootd.model import Mac
from tests.container.nspawn import ROOT, Container, root_folder

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]

NAMESPACE: Final = f"bootd-agent-{os.getpid()}"
MAC: Final = Mac("52:54:00:77:06:01")
VENDOR: Final = """\
[Unit]
Description=What the image's vendor wants
[Service]
Type=oneshot
ExecStart=/bin/touch /run/%n-ran
"""
OVERLAY_YAML: Final = """\
delete:
  - etc/vendor.conf
  - opt/vendor
  - etc/systemd/system/vendor-whole.service
  - etc/systemd/system/multi-user.target.wants/vendor-wanted.service
"""


def run(*argv: str | Path, **more: object) -> str:
    done = subprocess.run(
        [str(word) for word in argv], capture_output=True, text=True, timeout=120, check=False,
        **more,  # type: ignore[call-overload]
    )  # fmt: skip
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return str(done.stdout)


@dataclass
class Site:
    """A boot server on the loopback of a network namespace, and a node in a container there."""

    folder: Path
    node: Container
    daemon: subprocess.Popen[bytes]

    def edit(self, path: str, text: str) -> None:
        write(self.folder / "etc/overlays" / path, text)

    def reload(self) -> None:
        """SIGHUP, and wait for the next generation."""
        before = self.generation()
        self.daemon.send_signal(signal.SIGHUP)
        self.node.wait_for("a reload", lambda: self.generation() > before)

    def generation(self) -> int:
        return int(self.status()["server"]["generation"])

    def status(self) -> Any:
        return json.loads(bootd(self.folder, "status", "--json"))


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def bootd(folder: Path, *words: str) -> str:
    return run(*command(folder), *words, cwd=ROOT, env=environment())


def command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "bootd", "--config", str(folder / "etc/bootd.yaml")]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src")}


def configure(folder: Path) -> None:
    settings = {
        "interfaces": ["lo"], "state_dir": str(folder / "state"), "run_dir": str(folder / "run"),
        "nodes": ["nodes.yaml"], "overlays": ["overlays"], "log": {"format": "json"},
    }  # fmt: skip
    node = {
        "mac": MAC,
        "overlays": {"system": ["agent", "site"], "runtime": ["live"]},
        "tags": {"agent_interval": "10"},
    }
    write(folder / "etc/bootd.yaml", json.dumps(settings))
    write(folder / "etc/nodes.yaml", json.dumps({"nodes": {"n001": node}}))
    write(folder / "etc/overlays/site/overlay.yaml", OVERLAY_YAML)
    write(folder / "etc/overlays/live/rootfs/etc/live.j2", "{{ node.name }} 1\n")
    hook = "on_change: {etc/live: systemctl --no-block try-restart dummy.service}\n"
    write(folder / "etc/overlays/live/overlay.yaml", hook)
    (folder / "state").mkdir()
    (folder / "run").mkdir()


def image(folder: Path) -> Path:
    """A root folder as the kernel leaves it: the image, and the node's system overlay over it."""
    root = folder / "root"
    run("cp", "-al", root_folder(), root)
    units = root / "etc/systemd/system"
    for name in ("whole", "wanted", "kept"):
        write(units / f"vendor-{name}.service", VENDOR)
        wanted = units / f"multi-user.target.wants/vendor-{name}.service"
        wanted.symlink_to(f"../vendor-{name}.service")
    write(root / "etc/vendor.conf", "x")
    write(root / "opt/vendor/lib/x", "x")
    write(root / "opt/other", "x")
    archive = folder / "system.cpio"
    bootd(folder, "overlay", "render", "system", "n001", "--server", "127.0.0.1",
          "--archive", str(archive))  # fmt: skip
    with archive.open("rb") as data:
        subprocess.run(["cpio", "-idu", "--quiet"], cwd=root, stdin=data, check=True, timeout=60)
    (secret,) = (folder / "state/keys/nodes").iterdir()
    url = f"http://127.0.0.1:9873/runtime/{MAC}"
    write(root / "etc/bootd/boot.env", f"BOOTD_BOOT=0123456789abcdef\nBOOTD_RUNTIME={url}\n")
    write(root / "etc/bootd/node.key", derive(secret.read_bytes(), "n001", MAC) + "\n")
    return root


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("agent")
    place = root_folder().parent / f"agent-{os.getpid()}"  # hard links: on the same disk
    configure(folder)
    run("ip", "netns", "add", NAMESPACE)
    daemon = None
    try:
        run("ip", "-n", NAMESPACE, "link", "set", "lo", "up")
        with (folder / "log").open("wb") as log:
            daemon = subprocess.Popen(
                ["ip", "netns", "exec", NAMESPACE, *command(folder), "serve"],
                cwd=ROOT, env=environment(), stdout=log, stderr=log,
            )  # fmt: skip
        until_ready(folder)
        place.mkdir()
        for name in ("etc", "state", "run"):
            (place / name).symlink_to(folder / name)
        with Container(namespace=NAMESPACE, root=image(place)) as node:
            yield Site(folder, node, daemon)
    finally:
        if daemon is not None:
            daemon.terminate()
            daemon.wait(20)
        shutil.rmtree(place, ignore_errors=True)
        run("ip", "netns", "delete", NAMESPACE)


def until_ready(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while '"bootd.ready"' not in (folder / "log").read_text():
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.05)  # another process's log


def test_what_the_overlays_delete_is_gone_and_its_units_never_ran(site: Site) -> None:
    node = site.node
    assert node.run("ls", "/etc/vendor.conf", "/opt/vendor", check=False).returncode == 2
    assert node.run("ls", "/opt/other").stdout.strip() == "/opt/other"

    # The one that nobody deleted has run, so the others would have.
    assert node.run("ls", "/run/vendor-kept.service-ran").returncode == 0
    for name in ("whole", "wanted"):
        assert node.run("ls", f"/run/vendor-{name}.service-ran", check=False).returncode == 2
    assert node.property("LoadState", "vendor-wanted") == "loaded"  # only nothing calls for it

    node.run("systemctl", "daemon-reload")
    assert node.property("LoadState", "vendor-whole") == "not-found"
    node.run("systemctl", "start", "vendor-wanted")


def test_the_first_fetch_is_made_at_the_boot_and_reported(site: Site) -> None:
    assert site.node.read("/etc/live") == "n001 1\n"
    (row,) = site.status()["nodes"]
    assert row["refresh"]["result"] in ("ok", "unchanged")
    assert row["boot"] == "0123456789abcdef"
    assert site.node.property("Result", "bootd-agent") == "success"


def test_starting_the_service_fetches_now(site: Site) -> None:
    site.edit("live/rootfs/etc/live.j2", "{{ node.name }} 2\n")
    site.reload()

    site.node.run("systemctl", "start", "bootd-agent")

    assert site.node.read("/etc/live") == "n001 2\n"


def test_the_timer_fetches_by_itself(site: Site) -> None:
    site.edit("live/rootfs/etc/live.j2", "{{ node.name }} 3\n")
    site.reload()

    site.node.wait_for(
        "the timer's fetch", lambda: site.node.read("/etc/live") == "n001 3\n", timeout=60
    )
    journal = site.node.journal("-u", "bootd-agent")
    assert any("1 paths changed, 2 in all" in line for line in journal), journal
    timer = site.node.property("TimersMonotonic", "bootd-agent.timer")
    assert "OnUnitInactiveUSec=10s" in timer


def test_systemd_complains_of_nothing_in_the_units(site: Site) -> None:
    units = ["bootd-agent.service", "bootd-agent.timer"]
    done = site.node.run(
        "systemd-analyze", "verify", *(f"/etc/systemd/system/{unit}" for unit in units)
    )

    assert done.stderr.strip() == ""
