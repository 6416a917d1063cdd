from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootd import files
from bootd.files import (
    LoaderFiles,
    NotFound,
    Refused,
    missing,
    open_beneath,
    search_path,
    walk,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "tftp"
    folder.mkdir()
    return folder


@pytest.fixture
def store(root: Path) -> Iterator[LoaderFiles]:
    made = LoaderFiles([root])
    yield made
    made.close()


def replace(path: Path, content: bytes) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(content)
    fresh.rename(path)


def test_the_sites_own_folder_comes_before_the_packages() -> None:
    first, *rest = search_path("/var/lib/bootd")
    assert first == Path("/var/lib/bootd/tftp")
    assert Path("/usr/lib/ipxe") in rest


async def test_the_first_folder_that_has_the_name_wins(tmp_path: Path) -> None:
    for folder, content in (("a", b"site"), ("b", b"package")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "snponly.efi").write_bytes(content)
    (tmp_path / "b" / "ipxe.efi").write_bytes(b"other")
    store = LoaderFiles([tmp_path / "a", tmp_path / "b", tmp_path / "missing"])

    assert (await store.get("snponly.efi")).data == b"site"
    assert (await store.get("ipxe.efi")).data == b"other"
    assert (await store.get("undionly.kpxe", "ipxe.efi")).data == b"other"
    store.close()


async def test_one_version_is_one_object_and_a_new_version_is_another(
    root: Path, store: LoaderFiles
) -> None:
    (root / "x").write_bytes(b"one")
    first = await store.get("x")
    assert await store.get("x") is first

    replace(root / "x", b"two!")
    second = await store.get("x")

    assert (first.data, second.data) == (b"one", b"two!")
    assert first.etag != second.etag
    assert second.mtime == pytest.approx((root / "x").stat().st_mtime, abs=0.001)


async def test_requests_that_meet_read_the_disk_once(root: Path, store: LoaderFiles) -> None:
    (root / "x").write_bytes(b"one")
    got = await asyncio.gather(*(store.get("x") for _ in range(50)))
    assert all(file is got[0] for file in got)


async def test_a_waiter_that_leaves_does_not_disturb_the_others(
    root: Path, store: LoaderFiles
) -> None:
    (root / "x").write_bytes(b"one")
    async with asyncio.TaskGroup() as group:
        leaving = group.create_task(store.get("x"))
        staying = group.create_task(store.get("x"))
        await asyncio.sleep(0)
        leaving.cancel()
    assert staying.result().data == b"one"


async def test_what_is_in_memory_is_seen_without_the_disk(root: Path, store: LoaderFiles) -> None:
    (root / "x").write_bytes(b"one")
    assert store.peek("x") is None
    loaded = await store.get("x")
    assert store.peek("nothing", "x") is loaded


async def test_a_file_that_did_not_change_is_served_without_a_worker_thread(root: Path) -> None:
    (root / "empty").mkdir()
    (root / "x").write_bytes(b"one")
    store = LoaderFiles([root / "empty", root])
    loaded = await store.get("nothing", "x")
    store.close()
    assert await store.get("nothing", "x") is loaded


async def test_what_changed_is_seen_however_it_was_looked_for(tmp_path: Path) -> None:
    """In place, by a rename, by another file that now goes before it, or behind a link."""
    own, packaged = tmp_path / "own", tmp_path / "packaged"
    for folder in (own, packaged):
        folder.mkdir()
    (packaged / "x").write_bytes(b"one")
    store = LoaderFiles([own, packaged])
    assert (await store.get("x")).data == b"one"
    assert (await store.get("x")).data == b"one"
    (packaged / "x").write_bytes(b"in place")
    assert (await store.get("x")).data == b"in place"
    (packaged / "new").write_bytes(b"renamed")
    (packaged / "new").replace(packaged / "x")
    assert (await store.get("x")).data == b"renamed"
    (own / "y").write_bytes(b"through a link")
    (own / "x").symlink_to("y")
    assert (await store.get("x")).data == b"through a link"
    (own / "x").unlink()
    assert (await store.get("x")).data == b"renamed"
    store.close()


async def test_a_kernel_that_cannot_tell_from_memory_is_asked_in_a_thread(
    root: Path, store: LoaderFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> os.stat_result:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(files, "_cached_status", unknown)
    (root / "x").write_bytes(b"one")
    loaded = await store.get("x")
    assert await store.get("x") is loaded


@pytest.mark.parametrize("name", ["nothing", "folder/nothing", "file/below", "n" * 300])
async def test_a_missing_file_is_not_found(root: Path, store: LoaderFiles, name: str) -> None:
    (root / "folder").mkdir()
    (root / "file").write_bytes(b"")
    with pytest.raises(NotFound):
        await store.get(name)


async def test_links_beneath_the_folder_are_followed(root: Path, store: LoaderFiles) -> None:
    (root / "real").mkdir()
    (root / "real" / "x.efi").write_bytes(b"loader")
    (root / "x.efi").symlink_to("real/x.efi")
    (root / "other").symlink_to("real")
    assert (await store.get("x.efi")).data == b"loader"
    assert (await store.get("other/x.efi")).data == b"loader"


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Debian's package ipxe: ipxe.efi is in /boot, and /usr/lib/ipxe has a link to it."""
    package, boot = tmp_path / "usr", tmp_path / "boot"
    package.mkdir()
    boot.mkdir()
    (boot / "ipxe.efi").write_bytes(b"in boot")
    (boot / "initrd.img").write_bytes(b"secret")
    (package / "ipxe.efi").symlink_to(boot / "ipxe.efi")
    (package / "snponly.efi").write_bytes(b"snponly")
    monkeypatch.setattr(files, "_DEBIAN", (str(package),))
    monkeypatch.setattr(files, "_BOOT", str(boot))
    return package


async def test_what_debian_keeps_in_boot_is_found_there_and_nothing_else(
    root: Path, debian: Path
) -> None:
    store = LoaderFiles([root, debian])

    first = await store.get("ipxe.efi", "snponly.efi")
    assert first.data == b"in boot"
    assert await store.get("ipxe.efi", "snponly.efi") is first
    assert missing([root, debian], "ipxe") == ""
    with pytest.raises(NotFound):
        await store.get("initrd.img")

    (root / "ipxe.efi").write_bytes(b"the site's own")
    assert (await store.get("ipxe.efi", "snponly.efi")).data == b"the site's own"
    store.close()


@pytest.mark.parametrize(
    "name", ["absolute", "climbing", "folder/secret", "loop", "../secret", "proc/self/environ"]
)
async def test_nothing_outside_the_folder_is_reached(
    root: Path, store: LoaderFiles, name: str
) -> None:
    (root.parent / "secret").write_bytes(b"secret")
    (root / "absolute").symlink_to(root.parent / "secret")
    (root / "climbing").symlink_to("../secret")
    (root / "folder").symlink_to("..")
    (root / "loop").symlink_to("loop")
    (root / "proc").symlink_to("/proc")
    with pytest.raises(Refused) as refusal:
        await store.get(name)
    assert refusal.value.reason == "outside"


async def test_only_regular_files_are_served_and_a_fifo_does_not_wait(
    root: Path, store: LoaderFiles
) -> None:
    os.mkfifo(root / "fifo", 0o644)
    (root / "folder").mkdir()
    (root / "null").symlink_to("/dev/null")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.fspath(root / "socket"))
    listening.close()
    for name in ("fifo", "folder", "socket"):
        with pytest.raises(Refused) as refusal:
            await store.get(name)
        assert refusal.value.reason == "not-a-file"


async def test_a_file_that_others_may_not_read_is_refused(root: Path, store: LoaderFiles) -> None:
    (root / "key").write_bytes(b"secret")
    (root / "key").chmod(0o640)
    with pytest.raises(Refused) as refusal:
        await store.get("key")
    assert refusal.value.reason == "not-readable"


async def test_a_file_is_refused_as_soon_as_others_may_not_read_it(
    root: Path, store: LoaderFiles
) -> None:
    (root / "x").write_bytes(b"public")
    await store.get("x")
    (root / "x").chmod(0o600)
    with pytest.raises(Refused):
        await store.get("x")


async def test_the_size_limit_holds_at_and_past_it(root: Path) -> None:
    store = LoaderFiles([root], max_file=100)
    (root / "fits").write_bytes(b"x" * 100)
    (root / "more").write_bytes(b"x" * 101)
    assert len((await store.get("fits")).data) == 100
    with pytest.raises(Refused) as refusal:
        await store.get("more")
    assert refusal.value.reason == "too-large"
    store.close()


async def test_memory_is_bounded_and_the_oldest_goes_first(root: Path) -> None:
    store = LoaderFiles([root], kept=250)
    for name in ("a", "b", "c", "large"):
        (root / name).write_bytes(b"x" * (300 if name == "large" else 100))
    for name in ("a", "b", "a", "c"):
        await store.get(name)
    large = await store.get("large")
    gc.collect()

    assert [name for name in "abc" if store.peek(name)] == ["a", "c"]
    again = await store.get("large")
    assert again is large, "in use, so shared, though too large to keep"
    del large, again
    async with asyncio.timeout(10):  # the loop and the worker let go of what they finished
        while store.peek("large") is not None:
            gc.collect()
            await asyncio.sleep(0.001)
    store.close()


async def test_a_file_written_during_the_read_is_read_again(
    root: Path, store: LoaderFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "x").write_bytes(b"old content")
    real, calls = files._read, 0

    def read(descriptor: int, size: int) -> bytes:
        nonlocal calls
        calls += 1
        data = real(descriptor, size)
        if calls == 1:
            (root / "x").write_bytes(b"new")
        return data

    monkeypatch.setattr(files, "_read", read)
    assert (await store.get("x")).data == b"new"
    assert calls == 2


async def test_a_file_that_never_rests_is_refused(
    root: Path, store: LoaderFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "x").write_bytes(b"0")
    real, calls = files._read, 0

    def read(descriptor: int, size: int) -> bytes:
        nonlocal calls
        calls += 1
        (root / "x").write_bytes(b"1" * (calls + 1))
        return real(descriptor, size)

    monkeypatch.setattr(files, "_read", read)
    with pytest.raises(Refused) as refusal:
        await store.get("x")
    assert refusal.value.reason == "changing"


def test_without_descriptors_it_is_busy_not_missing(root: Path) -> None:
    (root / "x").write_bytes(b"loader")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    for limit in (lowest, lowest + 1):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            with pytest.raises(Refused) as refusal:
                open_beneath(os.fspath(root), "x")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert refusal.value.reason == "busy"
        assert refusal.value.transient


def test_the_read_goes_on_after_a_short_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "x").write_bytes(b"abcdefgh")
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: real(fd, min(size, 3), offset))
    descriptor = open_beneath(os.fspath(root), "x")
    assert files._read(descriptor, 8) == b"abcdefgh"
    os.close(descriptor)


def test_without_openat2_the_walk_finds_files_and_follows_no_link(root: Path) -> None:
    (root / "real").mkdir()
    (root / "real" / "x").write_bytes(b"loader")
    (root / "link").symlink_to("real")
    (root / "file").symlink_to("real/x")
    folder = os.open(root, os.O_PATH)
    try:
        descriptor = walk(folder, "real/x")
        assert os.read(descriptor, 100) == b"loader"
        os.close(descriptor)
        for name in ("link/x", "file", "../tftp/real/x", ".."):
            with pytest.raises(OSError):  # noqa: PT011 - ELOOP, ENOTDIR or EXDEV: all refuse
                walk(folder, name)
    finally:
        os.close(folder)


def test_the_walk_takes_over_where_openat2_is_forbidden(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "x").write_bytes(b"loader")
    monkeypatch.setattr(files, "_SYS_OPENAT2", 0x7FFF)
    descriptor = open_beneath(os.fspath(root), "x")
    assert os.read(descriptor, 100) == b"loader"
    os.close(descriptor)


# ---- what a node's loader needs ------------------------------------------------------------------


def test_shim_needs_a_second_stage_of_its_own_architecture(root: Path) -> None:
    assert "there is no shimx64.efi: apt install shim-signed" in missing([root], "shim")
    (root / "shimx64.efi.signed").touch()
    (root / "grubnetaa64.efi.signed").touch()
    assert "there is no grubx64.efi" in missing([root], "shim")
    (root / "grubnetx64.efi.signed").touch()
    assert missing([root], "shim") == ""


def test_a_loader_is_enough_where_one_kind_of_machine_finds_its_own(root: Path) -> None:
    assert "apt install ipxe" in missing([root], "auto")
    (root / "ipxe.efi").touch()
    assert missing([root], "auto") == missing([root], "snponly") == ""


def test_a_file_of_the_sites_own_is_named_with_its_folder(root: Path) -> None:
    assert missing([root], "efi/own.efi") == f"there is no efi/own.efi: put it into {root}"
    (root / "efi").mkdir()
    (root / "efi" / "own.efi").touch()
    assert missing([root], "efi/own.efi") == ""


def test_a_file_that_would_be_refused_is_not_called_there(root: Path) -> None:
    (root / "own.efi").symlink_to("/usr/lib/own.efi")
    assert missing([root], "own.efi") == (
        f"{root}/own.efi is not served: "
        "it is a link that leaves its folder; put the file itself there"
    )
    (root / "own.efi").unlink()
    (root / "own.efi").touch(0o600)
    assert missing([root], "own.efi") == (
        f"{root}/own.efi is not served: it is not readable for everyone (chmod o+r)"
    )
    (root / "own.efi").chmod(0o644)
    assert missing([root], "own.efi") == ""
