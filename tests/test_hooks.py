"""What fetches a squashfs in the initramfs: the archive that brings it, and its shell, run here by
the shells that initramfs have."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from bootd import hooks
from bootd.model import Artefact
from bootd.overlay import cpio

HOOKS = Path(hooks.__file__).parent / "data" / "hooks"
SHELLS = ("busybox sh", "bash")
ROOT = b"hsqs" + bytes(range(256)) * 64
DIGEST = hashlib.sha256(ROOT).hexdigest()


def unpack(data: bytes, folder: Path) -> list[str]:
    """Unpack an archive as the kernel would; the paths in it."""
    listing = subprocess.run(["cpio", "-it"], input=data, capture_output=True, check=True)
    subprocess.run(["cpio", "-idmu", "--quiet"], input=data, cwd=folder, check=True)
    return listing.stdout.decode().splitlines()


def test_the_second_initrd_brings_the_hooks_and_the_overlay_as_a_file(tmp_path: Path) -> None:
    own = cpio.archive(
        [cpio.Entry("etc/bootd/boot.env", 0o100600, b"BOOTD_BOOT=1\n")], trailer=False
    )
    system = own + cpio.archive([cpio.Entry("etc/hostname", 0o100644, b"n001")])

    pieces = hooks.wrap(own, Artefact("/x", 123, "ab" * 32), (system[:100], system[100:]))

    paths = unpack(b"".join(pieces), tmp_path)
    assert {"etc/bootd/boot.env", "bootd/root.sh", "scripts/bootd"} <= set(paths)
    assert "usr/lib/dracut/hooks/cmdline/28-bootd.sh" in paths
    assert "etc/hostname" not in paths  # the initramfs stays as it was
    assert (tmp_path / hooks.SYSTEM).read_bytes() == system
    assert (tmp_path / hooks.SYSTEM).stat().st_mode & 0o777 == 0o600
    about = (tmp_path / "bootd/squashfs.env").read_text()
    assert about == f"BOOTD_SIZE=123\nBOOTD_SHA256={'ab' * 32}\n"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("script", sorted(path.name for path in HOOKS.iterdir()))
def test_every_shell_reads_every_hook(shell: str, script: str) -> None:
    subprocess.run([*shell.split(), "-n", str(HOOKS / script)], check=True)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("there", [True, False])
def test_curl_knows_the_server_by_the_authority_that_came_with_the_boot(
    shell: str, there: bool, tmp_path: Path
) -> None:
    curl, authority = tmp_path / "curl", tmp_path / "ca.pem"
    curl.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\necho words >&2\n')
    curl.chmod(0o755)
    authority.write_text("PEM\n" if there else "")
    script = (
        f". {HOOKS / 'root.sh'}; bootd_get https://s/b/T/squashfs {tmp_path}/to {tmp_path}/told"
    )
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "BOOTD_AUTHORITY": str(authority)}

    done = subprocess.run(
        [*shell.split(), "-c", script], capture_output=True, text=True, check=True, env=environment
    )

    said = done.stdout.splitlines()
    trusted = ["--cacert", str(authority)] if there else []
    assert said[-3 - len(trusted) :] == [
        "--output", f"{tmp_path}/to", *trusted, "https://s/b/T/squashfs",
    ]  # fmt: skip
    assert (tmp_path / "told").read_text() == "words\n"


class Initramfs:
    """A folder and a shell that stand for a machine before its root: time goes ten times as fast,
    and the server is the shell function `get`, which writes to ``$2`` and says its trouble to
    ``$3``. Its status is what a download's would be."""

    def __init__(self, folder: Path, shell: str) -> None:
        self.folder = folder
        self.shell = shell.split()
        self.console = folder / "console"
        self.file = folder / "root.squashfs"
        (folder / "served").write_bytes(ROOT)

    def run(self, program: str, get: str = "") -> str:
        """Run `program`; what the console shows."""
        script = f"""
            BOOTD_PLACE={self.folder} BOOTD_CONSOLE={self.console}
            BOOTD_NODE=n001 BOOTD_URL=http://10.0.0.1:9873/b/TOKEN
            BOOTD_SIZE={len(ROOT)} BOOTD_SHA256={DIGEST}
            . {HOOKS / "root.sh"}
            bootd_pause() {{ sleep 0.1; }}
            bootd_countdown() {{ bootd_say "$2 in $1 s"; }}
            bootd_die() {{ bootd_say "$1 ends it: $2"; exit 1; }}
            bootd_get() {{ {get or ":"}
            }}
            cd {self.folder}
            {program}
        """
        done = subprocess.run(
            [*self.shell, "-c", script],
            capture_output=True, text=True, timeout=60, env=os.environ, check=False,
        )  # fmt: skip
        assert done.stderr == ""
        return self.console.read_text() if self.console.exists() else ""


@pytest.fixture(params=SHELLS)
def initramfs(request: pytest.FixtureRequest, tmp_path: Path) -> Initramfs:
    return Initramfs(tmp_path, request.param)


def test_a_whole_squashfs_is_taken(initramfs: Initramfs) -> None:
    console = initramfs.run(f"bootd_squashfs {initramfs.file}", get="cp served $2")

    assert initramfs.file.read_bytes() == ROOT
    assert "fetching the root file system, 0.0 MB, from http://10.0.0.1:9873" in console
    assert "TOKEN" not in console


def test_a_download_that_was_cut_goes_on_where_it_ended(initramfs: Initramfs) -> None:
    get = """
        have=$(bootd_size "$2")
        tail -c +$((have + 1)) served | head -c 9000 >> "$2"
        echo asked-from $have >> asked
    """

    console = initramfs.run(f"bootd_squashfs {initramfs.file}", get=get)

    assert initramfs.file.read_bytes() == ROOT
    asked = (initramfs.folder / "asked").read_text().splitlines()
    assert asked == ["asked-from 0", "asked-from 9000"]
    assert "did not come whole: it was cut short" in console
    assert "trying again in" in console


def test_a_damaged_squashfs_is_refused_and_fetched_again_five_times(initramfs: Initramfs) -> None:
    get = "echo x >> tries; tr 'h' 'H' < served > $2"

    console = initramfs.run(f"bootd_squashfs {initramfs.file}", get=get)

    assert (initramfs.folder / "tries").read_text().count("x") == 5
    assert "squashfs-digest ends it: the root file system is damaged: its SHA-256 is" in console
    assert f"not {DIGEST} (5 tries)" in console


def test_what_the_download_says_is_on_the_console(initramfs: Initramfs) -> None:
    console = initramfs.run(
        f"bootd_squashfs {initramfs.file}", get="echo 'cannot connect to 10.0.0.1' > $3; return 1"
    )

    assert "squashfs-fetch ends it" in console
    assert "did not come whole: cannot connect to 10.0.0.1 (5 tries)" in console


def test_a_busy_server_is_asked_until_it_has_time(initramfs: Initramfs) -> None:
    get = """
        echo x >> tries
        if [ $(wc -l < tries) -lt 9 ]; then
            echo 'server returned error: HTTP/1.1 503 Service Unavailable' > $3
            return 1
        fi
        cp served $2
    """

    console = initramfs.run(f"bootd_squashfs {initramfs.file}", get=get)

    assert initramfs.file.read_bytes() == ROOT
    assert console.count("the server has many transfers under way") == 8


def test_too_little_memory_is_said_before_anything_is_fetched(initramfs: Initramfs) -> None:
    console = initramfs.run("BOOTD_SIZE=99999999999999; bootd_memory; bootd_squashfs x")

    assert "squashfs-memory ends it: the root file system takes" in console
    assert "fetching" not in console


def test_the_overlay_deletes_and_adds_and_may_put_back(initramfs: Initramfs) -> None:
    root = initramfs.folder / "newroot"
    (root / "etc").mkdir(parents=True)
    for name in ("gone", "back", "stays"):
        (root / "etc" / name).write_text("of the image\n")
    overlay = cpio.archive(
        [
            cpio.Entry("etc/bootd/delete.d/system", 0o100644, b"etc/gone\netc/back\n"),
            cpio.Entry("etc/back", 0o100600, b"of the overlay\n"),
        ]
    )
    (initramfs.folder / "system.cpio").write_bytes(overlay)

    console = initramfs.run(f"cd {root} && bootd_overlay {initramfs.folder}/system.cpio")

    assert console == ""
    assert sorted(path.name for path in (root / "etc").iterdir()) == ["back", "bootd", "stays"]
    assert (root / "etc" / "back").read_text() == "of the overlay\n"
    assert (root / "etc" / "back").stat().st_mode & 0o777 == 0o600
