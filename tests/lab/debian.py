"""The lab's Debian image: a whole distribution with systemd, made by ``bootd image import``.

Making it takes a minute or two, most of it for downloads. The demo keeps what was made under
``build/lab`` and finds it there the next time; a test can have it made anew.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.lab.packages import BUILD, locked
from tests.lab.run import LabError, program, run
from tests.lab.server import Server

NAME: Final = "debian"
SUITE: Final = "bookworm"
PROFILE: Final = Path(__file__).with_name("debian.yaml")
EXCLUDES: Final = (
    "usr/share/doc/*",
    "usr/share/man/*",
    "usr/share/locale/*",
    "var/cache/apt/*",
    "var/lib/apt/lists/*",
)
MEMORY: Final = {"initramfs": 1024, "squashfs": 512}
"""MiB of memory for a machine, by method: the image takes 300 MB as root in RAM, 80 as squashfs."""


def defaults(public_key: str) -> dict[str, Any]:
    """Profile ``default`` of nodes that boot this image; root logs in with `public_key`."""
    return {
        "image": NAME,
        # eth0 by its old name, whatever the machine's firmware makes of its slots.
        "kernel": {"args": ["console=ttyS0,115200", "net.ifnames=0"]},
        "overlays": {"system": ["base", "networkd", "ssh", "hosts", "agent"]},
        "resources": {"ssh": {"authorized_keys": [public_key], "key_types": ["ed25519"]}},
    }


def install(server: Server, *, folder: Path = BUILD, fresh: bool = False) -> bool:
    """Give `server` the image; True where it had to be made. `fresh`: in any case.

    What ``bootd image import`` says goes to this process's own output, with its progress bar on a
    terminal. `LabError` where it fails.
    """
    if platform.machine() != "x86_64":
        raise LabError(f"the Debian image is made on x86_64, not on {platform.machine()}")
    kept = folder / f"debian-{_key()}"
    images = server.state / "images"
    images.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not fresh and (kept / "active").exists():
            shutil.copytree(kept, images / NAME, symlinks=True)
            return False
        _import(server)
        _keep(images / NAME, kept)
    return True


def _key() -> str:
    """Another profile makes another image."""
    recipe = "\n".join((SUITE, PROFILE.read_text(), *EXCLUDES))
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def _keep(image: Path, kept: Path) -> None:
    for old in kept.parent.glob("debian-*"):
        shutil.rmtree(old, ignore_errors=True)
    temporary = kept.with_name(f"{kept.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(image, temporary, symlinks=True)
    temporary.rename(kept)


def _import(server: Server) -> None:
    program("mmdebstrap")
    excludes = [word for pattern in EXCLUDES for word in ("--exclude", pattern)]
    words = ["image", "import", NAME, SUITE, "--profile", str(PROFILE), *excludes]
    done = subprocess.run(server.argv(*words), env=server.environment(), check=False, timeout=1200)
    if done.returncode != 0:
        raise LabError(f"`bootd {' '.join(words)}` fails with status {done.returncode}")


def key_pair(folder: Path) -> tuple[Path, str]:
    """A new key for ssh: the private key's file, and the public key's line."""
    path = folder / "id_ed25519"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(path))
    return path, path.with_suffix(".pub").read_text().strip()


def ssh(
    server: Server, key: Path, node: str, address: str, command: str, *, within: float = 90
) -> str:
    """Run `command` as root on a node, and check that it shows the host key that bootd has for it.
    What it prints; `LabError` where it fails."""
    hosts = key.with_name(f"known_hosts-{node}")
    own = run(
        "ssh-keygen", "-y", "-f", str(server.state / "keys/ssh" / node / "ssh_host_ed25519_key")
    )
    hosts.write_text(f"{address} {own}")
    return run(
        "ip", "netns", "exec", server.namespace,
        "ssh", "-i", str(key), "-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={hosts}",
        "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=30", f"root@{address}", command,
        timeout=within,
    )  # fmt: skip


def machine_facts(text: str) -> Mapping[str, str]:
    """``NAME=value`` lines, as in /etc/bootd/node."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name: value.strip("'\"") for name, _, value in pairs}
