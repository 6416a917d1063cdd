"""Images by the tools that people have: tar, skopeo, umoci, a registry, mmdebstrap, nspawn."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.integration.daemon import NODES, Daemon, command, environment, free_ports
from tests.lab.packages import borrow

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
"""cap_net_raw=ep, as getcap shows it."""


class Site:
    """``bootd image`` on a state of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "bootd.yaml"
        self.config.write_text("state_dir: state\nrun_dir: run\n")
        (folder / "nodes.yaml").write_text(
            "nodes: {n001: {mac: 52:54:00:12:34:56, image: x, overlays: {system: [base]}}}\n"
        )
        self.images = folder / "state/images"

    def argv(self, *words: object) -> list[str]:
        start = [sys.executable, "-m", "bootd", "--config", str(self.config), "image"]
        return [*start, *map(str, words)]

    def run(self, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(*words),
            env=environment(),
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def list(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.run("list", "--json").stdout)
        return found

    def digests(self, name: str) -> dict[str, str]:
        """The SHA-256 of each artefact of the newest generation."""
        newest = [g for g in self.list() if g["name"] == name][-1]
        return {role: a["sha256"] for role, a in newest["artefacts"].items()}

    def unsquashed(self, name: str, into: Path) -> Path:
        newest = [g for g in self.list() if g["name"] == name][-1]
        path = newest["artefacts"]["squashfs"]["path"]
        run("unsquashfs", "-quiet", "-no-progress", "-d", into, path)
        return into


def run(*words: object, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small root that runs: busybox, with everything that an archive may have in it."""
    root = tmp_path / "root"
    for folder in ("bin", "sbin", "etc", "dev", "proc", "sys", "run", "tmp", "var/lib/data"):
        (root / folder).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in ("sh", "cat", "touch", "id", "false"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "sbin/init").symlink_to("/bin/busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nbin:x:77:77::/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nbin:x:77:\n")
    (root / "etc/os-release").write_text("ID=test\nVERSION_ID=1\n")
    (root / "etc/one").write_text("one")
    os.link(root / "etc/one", root / "etc/two")
    os.chown(root / "etc/one", 77, 77)
    os.setxattr(root / "bin/busybox", "security.capability", CAPABILITY)
    os.setxattr(root / "etc/one", "user.note", b"\x00\xff")
    os.mknod(root / "dev/null", 0o20666, os.makedev(1, 3))
    os.mkfifo(root / "var/lib/data/fifo")
    with (root / "var/lib/data/sparse").open("wb") as sparse:
        sparse.seek(5 << 20)
        sparse.write(b"end")
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, (1_700_000_000, 1_700_000_000), follow_symlinks=False)
    os.utime(root, (1_700_000_000, 1_700_000_000))
    return root


# ---- archives -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["", "-J"])
def test_a_tar_archive_is_the_folder_that_it_was_made_of(
    flag: str, root: Path, site: Site, tmp_path: Path
) -> None:
    archive = tmp_path / "root.tar"
    flags = [flag] if flag else []
    run(
        "tar", *flags, "--xattrs", "--xattrs-include=*", "--sparse", "-C", root, "-cf", archive, "."
    )

    site.run("import", "folder", root, "--no-activate")
    site.run("import", "x", archive)

    assert site.digests("x") == site.digests("folder")


def test_owners_attributes_capabilities_links_holes_and_devices_reach_the_squashfs(
    root: Path, site: Site, tmp_path: Path
) -> None:
    said = site.run("import", "x", root)

    found = site.unsquashed("x", tmp_path / "found")
    assert os.getxattr(found / "bin/busybox", "security.capability") == CAPABILITY
    assert os.getxattr(found / "etc/one", "user.note") == b"\x00\xff"
    assert (found / "etc/two").stat().st_ino == (found / "etc/one").stat().st_ino
    assert (found / "etc/one").stat().st_uid == 77
    assert (found / "dev/null").stat().st_rdev == os.makedev(1, 3)
    assert (found / "var/lib/data/fifo").is_fifo()
    assert (found / "var/lib/data/sparse").stat().st_blocks * 512 < 1 << 20
    assert "cannot carry the capabilities of /bin/busybox" in said.stderr
    assert "it has no kernel" in said.stderr


# ---- container images ---------------------------------------------------------------------------


@pytest.fixture
def layers(root: Path, tmp_path: Path) -> Path:
    """An OCI layout made by umoci: the root, and a layer that changes and removes something."""
    layout = tmp_path / "oci"
    bundle = tmp_path / "bundle"
    image = f"{layout}:one"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", image)
    run("umoci", "unpack", "--image", image, bundle)
    run("cp", "-a", f"{root}/.", bundle / "rootfs")
    run("umoci", "repack", "--image", image, bundle)
    shutil.rmtree(bundle)
    run("umoci", "unpack", "--image", image, bundle)
    (bundle / "rootfs/etc/two").unlink()
    shutil.rmtree(bundle / "rootfs/var/lib/data")
    (bundle / "rootfs/etc/three").write_text("three")
    run("umoci", "repack", "--image", image, bundle)
    return layout


@contextlib.contextmanager
def registry(folder: Path) -> Iterator[int]:
    """docker-registry on loopback; its port."""
    program, libraries = borrow("docker-registry", "docker-registry")
    (port,) = free_ports(1)
    config = folder / "registry.yml"
    config.write_text(
        f"""version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}/registry}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""
    )
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "serve", config], env={**os.environ, **libraries}, stdout=log, stderr=log
        )
        try:
            wait_for_port(port, process, folder / "registry.log")
            yield port
        finally:
            process.terminate()
            process.wait(20)


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)  # another program's socket: it sends no event


def test_a_container_image_is_the_same_from_wherever_it_comes(
    layers: Path, site: Site, tmp_path: Path
) -> None:
    site.run("import", "x", f"oci:{layers}:one")
    found = site.unsquashed("x", tmp_path / "found")
    assert (found / "etc/three").read_text() == "three"
    assert not (found / "etc/two").exists()
    assert not (found / "var/lib/data").exists()
    assert (found / "etc/one").stat().st_uid == 77
    assert os.getxattr(found / "bin/busybox", "security.capability") == CAPABILITY
    expected = site.digests("x")

    copy = ("skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false")
    run(*copy, f"oci:{layers}:one", f"docker-archive:{tmp_path}/d.tar:x:1")
    run(*copy, f"oci:{layers}:one", f"oci-archive:{tmp_path}/o.tar:x")
    with registry(tmp_path) as port:
        there = f"docker://127.0.0.1:{port}/cluster/x:1"
        run(*copy, f"oci:{layers}:one", there)
        sources: Sequence[Sequence[object]] = (
            (layers,),
            (f"docker-archive:{tmp_path}/d.tar",),
            (tmp_path / "d.tar",),
            (tmp_path / "o.tar",),
            (there, "--no-tls-verify"),
        )
        for source in sources:
            site.run("import", "x", *source)
            assert site.digests("x") == expected, source
        refused = site.run("import", "x", there, check=False)
        absent = site.run(
            "import", "x", f"docker://127.0.0.1:{port}/no:1", "--no-tls-verify", check=False
        )

    assert (refused.returncode, absent.returncode) == (1, 1)
    assert "skopeo fails with" in absent.stderr
    assert not list(site.images.glob("x/.tmp*"))


# ---- a suite, and work in it --------------------------------------------------------------------


def test_a_suite_is_made_changed_rolled_back_and_cleared(site: Site, tmp_path: Path) -> None:
    profile = tmp_path / "tiny.yaml"
    profile.write_text("variant: essential\npackages: []\n")

    said = site.run("import", "x", "bookworm", "--profile", profile)
    first = site.list()[0]
    assert (first["os"], first["source"]) == ("debian-12", "suite bookworm")
    assert "making bookworm" in said.stderr
    assert not {w for w in first["warnings"] if "machine-id" in w or "host keys" in w}

    script = "echo cluster > /etc/motd && dpkg --version > /etc/version && ls / > /dev/null"
    done = site.run("exec", "x", "--", "sh", "-c", script)
    second = site.list()[-1]
    assert second["active"]
    assert second["source"].startswith(f"x@{first['generation']}, exec sh -c")
    assert "imported x" in done.stdout

    # What fails, changes nothing, or is only a view, is no generation.
    failed = site.run("exec", "x", "--", "sh", "-c", "rm /etc/motd; exit 7", check=False)
    nothing = site.run("exec", "x", "--", "cat", "/etc/motd")
    view = site.run("exec", "x", "--node", "n001", "--", "cat", "/etc/hostname")
    assert (failed.returncode, "ended with 7" in failed.stderr) == (1, True)
    assert nothing.stdout.startswith("cluster\n")
    assert "nothing was changed" in nothing.stdout
    assert view.stdout.strip() == "n001"
    (tmp_path / "seen").write_text("bound")
    bound = site.run("exec", "x", "--bind", f"{tmp_path}:/mnt:ro", "--", "cat", "/mnt/seen")
    assert bound.stdout.startswith("bound")
    assert len(site.list()) == 2

    assert f"active: x {first['generation']}" in site.run("activate", "x", "--previous").stdout
    assert f"active: x {second['generation']}" in site.run("activate", "x", "--previous").stdout

    users = site.run("sync-users", "x")
    third = site.list()[-1]
    assert "users: " in users.stdout
    assert third["source"].endswith("sync-users")
    found = site.unsquashed("x", tmp_path / "found")
    server = dict(line.split(":")[0:3:2] for line in Path("/etc/passwd").read_text().splitlines())
    inside = dict(
        line.split(":")[0:3:2] for line in (found / "etc/passwd").read_text().splitlines()
    )
    assert {name: inside.get(name) for name in server} == server

    # Second was active before third, and stays; first goes.
    dry = site.run("gc", "--keep", "1", "--dry-run")
    assert f"would be removed: x {first['generation']}" in dry.stdout
    assert len(site.list()) == 3
    site.run("gc", "x", "--keep", "1")
    assert [g["generation"] for g in site.list()] == [second["generation"], third["generation"]]
    assert str(site.images) not in Path("/proc/mounts").read_text()


# ---- what interrupts ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_import_that_is_ended_changes_nothing_and_the_next_clears_it_away(
    number: signal.Signals, root: Path, site: Site
) -> None:
    site.run("import", "x", root)
    before = site.list()
    (root / "big").write_bytes(os.urandom(300 << 20))
    process = subprocess.Popen(
        site.argv("import", "x", root),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # A job in the background has SIGINT ignored, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size for p in site.images.glob("x/.tmp-2*/image.squashfs")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)  # a file of another process: it sends no event
    process.send_signal(number)
    process.wait(30)

    assert process.returncode != 0
    assert site.list() == before
    if number != signal.SIGKILL:
        assert not list(site.images.glob("x/.tmp*"))
    (root / "big").unlink()
    os.utime(root, (1_700_000_000, 1_700_000_000))
    site.run("import", "x", root)
    assert not list(site.images.glob("x/.tmp*"))
    assert site.digests("x") == {r: a["sha256"] for r, a in before[0]["artefacts"].items()}


# ---- with the daemon ----------------------------------------------------------------------------


def test_the_daemon_follows_what_is_active_and_keeps_what_is_used(
    root: Path, tmp_path: Path
) -> None:
    nodes = NODES.replace("profiles:\n  default:\n", "profiles:\n  default:\n    image: x\n")
    (tmp_path / "kernel").write_bytes(b"MZ" + bytes(600))
    with Daemon(tmp_path, nodes="nodes: {}\n") as daemon:

        def image(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
            return command(
                *("--config", str(daemon.config), "image", *map(str, words)), check=check
            )

        image("import", "x", root, "--kernel", tmp_path / "kernel")
        daemon.nodes_file.write_text(nodes)
        daemon.command("reload")
        first = json.loads(image("list", "--json").stdout)[0]["generation"]
        (root / "etc/one").write_text("changed")
        said = image("import", "x", root, "--kernel", tmp_path / "kernel")
        second = json.loads(image("list", "--json").stdout)[1]
        assert "the daemon has reloaded" in said.stdout
        digest = second["artefacts"]["squashfs"]["sha256"]
        assert daemon.get(f"/blob/sha256/{digest}")[0] == 200

        # Somebody points the link elsewhere behind the daemon's back: it still gives the second.
        assert image("activate", "x", "--previous").returncode == 0
        daemon.nodes_file.write_text(nodes + f"  n009: {{image: x@{second['generation']}}}\n")
        daemon.command("reload")
        refused = image("delete", "x", second["generation"], check=False)
        active = image("delete", "x", first, check=False)
        rows = {
            row["generation"]: row["nodes"] for row in json.loads(image("list", "--json").stdout)
        }

    assert refused.returncode == 2
    assert "node n009 names it" in refused.stderr
    assert (active.returncode, "is active" in active.stderr) == (2, True)
    assert rows[second["generation"]] == ["n009"]
