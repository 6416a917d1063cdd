"""The agent overlay's script, as a node would run it, against the server's own HTTP service."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest

from bootd.boots.nodekeys import derive
from bootd.boots.timeline import Refresh
from bootd.model import HttpSettings, Overlay, OverlayEntry
from bootd.overlay import tree
from tests.http_site import MAC, NODE_SECRET, Service, serving
from tests.test_http_tls import make_certificate

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

SCRIPT: Final = tree.distribution() / "agent/rootfs/usr/sbin/bootd-agent"
FETCHERS: Final = ("curl", "wget", "nc")
KINDS: Final = {
    "dash-curl": ("dash", "curl"),
    "dash-wget": ("dash", "wget"),
    "busybox": ("busybox", ""),
}
"""A shell, and what it has to ask the server with; busybox is everything, with its own nc."""


@dataclass
class Site:
    """A node's root folder, what it refreshes from, and the programs that it has."""

    service: Service
    root: Path
    programs: Path
    shell: tuple[str, ...]
    overlays: int = 0

    def overlay(self, *entries: OverlayEntry, **more: Any) -> None:
        """The node's whole runtime overlay, from now on."""
        self.overlays += 1
        made = Overlay("keys", entries, f"agent-{self.overlays}", **more)
        registry = self.service.registry
        self.service.current.swap(replace(registry, overlays={**registry.overlays, "keys": made}))

    async def run(self, **environ: str) -> tuple[int, str]:
        """One run of the agent: exit status, and what it said."""
        process = await asyncio.create_subprocess_exec(
            *self.shell,
            str(SCRIPT),
            env={
                "PATH": str(self.programs),
                "BOOTD_ROOT": str(self.root),
                "BOOTD_TRIES": "1",
                **environ,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode is not None
        return process.returncode, said.decode()

    async def refreshed(self) -> str:
        """One run that ends well."""
        status, said = await self.run()
        assert status == 0, said
        return said

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file that the node's image has."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def has(self, path: str) -> bool:
        return os.path.lexists(self.root / path)

    @property
    def told(self) -> Refresh:
        """What the server knows of the last refresh."""
        boot = self.service.boots.of(MAC)
        assert boot is not None
        assert boot.refresh is not None
        return boot.refresh


def programs(folder: Path, shell: str, fetcher: str) -> tuple[str, ...]:
    """A PATH with those programs alone that the script may use; the command of its shell."""
    folder.mkdir()
    busybox = shutil.which("busybox")
    assert busybox is not None
    if shell == "busybox":
        for applet in subprocess.run(
            [busybox, "--list"], capture_output=True, text=True, check=True
        ).stdout.split():
            if applet not in ("wget", "curl"):
                (folder / applet).symlink_to(busybox)
        return (busybox, "sh")
    for path in ("/usr/bin", "/usr/sbin"):
        for program in Path(path).iterdir():
            if program.name not in FETCHERS and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    found = shutil.which(fetcher)
    assert found is not None, f"{fetcher} is not installed"
    (folder / fetcher).symlink_to(found)
    return (str(folder / shell),)


@pytest.fixture(params=KINDS)
async def site(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    shell = programs(tmp_path / "bin", *KINDS[request.param])
    async with serving(tmp_path / "server") as service:
        made = Site(service, tmp_path / "root", tmp_path / "bin", shell)
        made.write(
            "etc/bootd/boot.env",
            f"BOOTD_BOOT=0123456789abcdef\nBOOTD_RUNTIME={service.base}/runtime/{MAC}\n",
        )
        made.write("etc/bootd/node.key", derive(NODE_SECRET, "n001", MAC) + "\n", 0o600)
        yield made


def file(path: str, text: str, mode: int = 0o644, **more: Any) -> OverlayEntry:
    return OverlayEntry(path, "file", mode, text.encode(), source=path, **more)


async def test_files_come_with_owner_and_mode_and_nothing_else_is_touched(site: Site) -> None:
    site.write("etc/passwd", "the image's\n")
    (site.root / "etc").chmod(0o711)
    site.overlay(
        file("etc/motd", "hello\n"),
        file("etc/app/secret with blank", "s3cret", 0o640, uid=33, gid=7),
        OverlayEntry("etc/app", "dir", 0o750, gid=7),
        OverlayEntry("etc/link", "symlink", 0o777, b"motd"),
        OverlayEntry("dev/null2", "char", 0o666, rdev=(1, 3)),
    )

    said = await site.refreshed()

    assert "4 paths changed, 4 in all" in said
    assert site.read("etc/link") == "hello\n"
    secret = (site.root / "etc/app/secret with blank").stat()
    assert (secret.st_mode & 0o7777, secret.st_uid, secret.st_gid) == (0o640, 33, 7)
    folder = (site.root / "etc/app").stat()
    assert (folder.st_mode & 0o7777, folder.st_uid, folder.st_gid) == (0o750, 0, 7)
    assert (site.root / "dev/null2").stat().st_rdev == os.makedev(1, 3)
    assert (site.root / "etc").stat().st_mode & 0o7777 == 0o711
    assert site.read("etc/passwd") == "the image's\n"
    assert (site.told.result, site.told.changed, site.told.error) == ("ok", 4, "")
    assert sorted(path.name for path in (site.root / "run/bootd-agent").iterdir()) == [
        "etag", "files", "folders", "on_change",
    ]  # fmt: skip


async def test_what_is_the_same_is_not_fetched_and_a_change_writes_one_file(site: Site) -> None:
    site.overlay(file("etc/a", "1"), file("etc/b", "1"))
    await site.refreshed()
    before = (site.root / "etc/a").stat().st_ino

    assert await site.refreshed() == ""
    assert site.told.result == "unchanged"
    site.overlay(file("etc/a", "1"), file("etc/b", "2"))
    assert "1 paths changed, 2 in all" in await site.refreshed()

    assert (site.root / "etc/a").stat().st_ino == before
    assert site.read("etc/b") == "2"
    assert (await site.refreshed(), site.told.result) == ("", "unchanged")


async def test_what_left_the_overlay_is_removed_or_is_what_it_was_before(site: Site) -> None:
    site.write("etc/hosts", "the image's\n", 0o640)
    site.write("etc/same", "same\n")
    site.overlay(
        file("etc/hosts", "the server's\n"), file("etc/same", "same\n"),
        file("srv/new/x", "x"), file("etc/stays", "y"),
    )  # fmt: skip
    await site.refreshed()
    site.write("srv/mine", "not the agent's")

    site.overlay(file("etc/stays", "y"))
    assert "2 paths changed, 1 in all" in await site.refreshed()

    assert site.read("etc/hosts") == "the image's\n"
    assert (site.root / "etc/hosts").stat().st_mode & 0o777 == 0o640
    assert site.read("etc/same") == "same\n"
    assert not site.has("srv/new")
    assert site.read("srv/mine") == "not the agent's"
    assert site.read("etc/stays") == "y"


async def test_paths_to_delete_are_deleted(site: Site) -> None:
    site.write("etc/motd.d/vendor", "advert")
    site.write("etc/motd.d/mine", "mine")
    site.write("opt/vendor/x", "x")
    site.overlay(file("etc/a", "1"), delete=("etc/motd.d/vendor", "opt/vendor", "etc/nothing"))

    await site.refreshed()

    assert not site.has("etc/motd.d/vendor")
    assert site.read("etc/motd.d/mine") == "mine"
    assert not site.has("opt/vendor")


async def test_commands_run_once_when_one_of_their_paths_changed(site: Site) -> None:
    log = site.root / "log"
    hooks = (
        ("etc/app/*", f"echo app >> {log}"),
        ("etc/other", f"echo other >> {log}"),
        ("etc/app/b", f"echo b >> {log}; echo app >> /dev/null"),
    )
    files = [file("etc/app/a", "1"), file("etc/app/b", "1"), file("etc/other", "1")]
    site.overlay(*files, on_change=hooks)
    await site.refreshed()
    assert log.read_text() == "app\nother\nb\n"
    log.write_text("")

    site.overlay(file("etc/app/a", "2"), *files[1:], on_change=hooks)
    await site.refreshed()
    assert log.read_text() == "app\n"
    log.write_text("")

    site.overlay(file("etc/app/a", "2"), on_change=hooks)  # two paths leave
    await site.refreshed()
    assert log.read_text() == "app\nother\nb\n"


async def test_a_command_that_fails_is_told_and_the_others_run(site: Site) -> None:
    hooks = (("etc/a", "echo broken; exit 3"), ("etc/a", f"touch {site.root}/ran"))
    site.overlay(file("etc/a", "1"), on_change=hooks)

    said = await site.refreshed()

    assert "this command failed: echo broken; exit 3" in said
    assert site.has("ran")
    assert (site.told.result, site.told.hooks) == ("ok", 1)
    assert site.told.error == "failed: echo broken  exit 3"
    assert (await site.refreshed(), site.told.result) == ("", "unchanged")  # not again


async def test_what_is_in_the_way_changes_nothing_at_all(site: Site) -> None:
    site.write("etc/a/x", "a folder")
    site.overlay(file("etc/a", "1"), file("etc/0", "1"))

    status, said = await site.run()

    assert status == 1
    assert "/etc/a is a folder here and a file in the overlay: nothing was changed" in said
    assert not site.has("etc/0")
    assert site.told.result == "failed"
    assert "/etc/a is a folder here" in site.told.error


async def test_symlinks_are_exchanged_and_never_followed(site: Site) -> None:
    site.write("srv/victim", "untouched")
    (site.root / "etc/link").symlink_to("../srv/victim")
    (site.root / "etc/folder").symlink_to("../srv")
    site.overlay(file("etc/link", "new"), OverlayEntry("etc/folder", "symlink", 0o777, b"/opt"))

    await site.refreshed()

    assert (site.root / "etc/link").is_symlink() is False
    assert site.read("etc/link") == "new"
    assert site.read("srv/victim") == "untouched"
    assert (site.root / "etc/folder").readlink() == Path("/opt")
    assert [path.name for path in (site.root / "srv").iterdir()] == ["victim"]


async def test_another_key_gets_a_sentence_and_nothing_changes(site: Site) -> None:
    site.write("etc/bootd/node.key", derive(NODE_SECRET, "n002", MAC), 0o600)
    site.overlay(file("etc/a", "1"))

    status, said = await site.run()

    assert status == 1
    assert "the server says 403: this is not the key of that node; a new boot brings one" in said
    assert not site.has("etc/a")


@pytest.mark.parametrize("fetcher", ["curl", "wget"])
async def test_over_tls_it_trusts_the_authority_that_came_with_the_boot_and_no_other(
    tmp_path: Path, fetcher: str
) -> None:
    tls, other = (make_certificate(tmp_path / name, name) for name in ("ours", "theirs"))
    shell = programs(tmp_path / "bin", "dash", fetcher)
    async with serving(tmp_path / "server", http=HttpSettings(port=0, tls=tls)) as service:
        site = Site(service, tmp_path / "root", tmp_path / "bin", shell)
        url = f"https://127.0.0.1:{service.server.tls_port}/runtime/{MAC}"
        site.write("etc/bootd/boot.env", f"BOOTD_BOOT=0\nBOOTD_RUNTIME={url}\n")
        site.write("etc/bootd/node.key", derive(NODE_SECRET, "n001", MAC), 0o600)
        site.write("etc/bootd/ca.pem", Path(other.certificate).read_text())
        site.overlay(file("etc/a", "1"))

        status, said = await site.run()
        assert status == 1
        assert "certificate" in said
        assert not site.has("etc/a")

        site.write("etc/bootd/ca.pem", Path(tls.certificate).read_text())
        assert "1 paths changed" in await site.refreshed()
        assert (await site.refreshed(), site.told.result) == ("", "unchanged")


async def test_without_a_boot_s_files_it_says_so(site: Site) -> None:
    (site.root / "etc/bootd/node.key").unlink()

    status, said = await site.run()

    assert status == 1
    assert "node.key: this node has no overlay of this boot" in said


async def test_a_server_that_is_away_is_a_sentence(site: Site) -> None:
    site.write("etc/bootd/boot.env", "BOOTD_BOOT=0\nBOOTD_RUNTIME=http://127.0.0.1:1/runtime/x\n")

    status, said = await site.run()

    assert status == 1
    assert "no answer from http://127.0.0.1:1" in said


@pytest.mark.parametrize("cut", [0, 100, 1000])
async def test_an_archive_that_is_not_whole_changes_nothing(site: Site, cut: int) -> None:
    """A server that breaks off in the middle, with the right Content-Length and ETag."""
    site.overlay(file("etc/a", "1" * 3000))

    async def breaking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        digest = "ab" * 32
        head = f'HTTP/1.1 200 OK\r\nContent-Length: 4096\r\nETag: "{digest}"\r\n\r\n'
        writer.write(head.encode() + b"0" * cut)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(breaking, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        site.write(
            "etc/bootd/boot.env",
            f"BOOTD_BOOT=0\nBOOTD_RUNTIME=http://127.0.0.1:{port}/runtime/x\n",
        )
        status, said = await site.run()

    assert status == 1
    assert "the archive did not come whole" in said
    assert not site.has("etc/a")
    assert not site.has("run/bootd-agent/etag")


async def test_a_run_that_was_killed_half_way_is_finished_by_the_next(site: Site) -> None:
    site.overlay(file("etc/a", "1"), file("etc/gone", "1"))
    await site.refreshed()
    # As a run leaves it that was killed between its first change and its last: it has no digest,
    # its lock is nobody's, and its list has the old files and the new.
    (site.root / "run/bootd-agent/etag").unlink()
    site.write("run/bootd-agent/lock/pid", "4194999\n")
    site.write("run/bootd-agent/work/body", "half")

    site.overlay(file("etc/a", "2"))
    await site.refreshed()

    assert site.read("etc/a") == "2"
    assert not site.has("etc/gone")


async def test_a_second_run_beside_the_first_does_nothing(site: Site) -> None:
    site.overlay(file("etc/a", "1"))
    site.write("run/bootd-agent/lock/pid", f"{os.getpid()}\n")

    said = await site.refreshed()

    assert f"another run is under way (process {os.getpid()})" in said
    assert not site.has("etc/a")


@pytest.mark.parametrize("site", ["dash-curl", "dash-wget"], indirect=True)
async def test_the_key_is_on_no_command_line(site: Site) -> None:
    """Every program that the script starts is watched through a wrapper that notes how."""
    site.overlay(file("etc/a", "1"))
    notes = site.root / "notes"
    for name in FETCHERS:
        program = site.programs / name
        if program.is_symlink():
            real = program.readlink()
            program.unlink()
            program.write_text(
                f'#!/bin/bash\necho "$0 $*" >> {notes}\nexec -a {name} {real} "$@"\n'
            )
            program.chmod(0o755)

    await site.refreshed()

    assert site.read("etc/a") == "1"
    assert "bin/" in notes.read_text()
    assert derive(NODE_SECRET, "n001", MAC) not in notes.read_text()


def test_shellcheck_finds_nothing() -> None:
    checked = subprocess.run(
        ["shellcheck", "-s", "sh", str(SCRIPT)], capture_output=True, text=True, check=False
    )

    assert checked.returncode == 0, checked.stdout
