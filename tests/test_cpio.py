"""newc archives, read back by GNU cpio."""

from __future__ import annotations

import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootd.overlay.cpio import MAX_NAME, MAX_SIZE, CpioError, Entry, archive, segments


def file(path: str, content: bytes = b"", mode: int = 0o644, **more: object) -> Entry:
    return Entry(path, stat.S_IFREG | mode, content, **more)  # type: ignore[arg-type]


def symlink(path: str, target: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def listing(data: bytes) -> list[list[str]]:
    """``cpio -itv --numeric-uid-gid``: one list of columns per entry."""
    result = subprocess.run(
        ["cpio", "-itv", "--quiet", "--numeric-uid-gid"],
        input=data,
        capture_output=True,
        check=True,
        env={"TZ": "UTC", "LC_ALL": "C"},
    )
    assert result.stderr == b""
    return [line.split() for line in result.stdout.decode().splitlines()]


def extract(data: bytes, to: Path) -> None:
    subprocess.run(["cpio", "-idm", "--quiet"], input=data, cwd=to, check=True)


def test_cpio_lists_what_was_written_sorted_with_parents() -> None:
    data = archive(
        [
            file("etc/shadow", b"secret", 0o600, uid=7, gid=42),
            symlink("etc/mtab", "/proc/mounts"),
            file("a-b", b"1"),
            file("a/b", b"22"),
        ]
    )

    rows = listing(data)

    assert [row[-1] for row in rows] == ["a", "a-b", "a/b", "etc", "/proc/mounts", "etc/shadow"]
    assert rows[0][:4] == ["drwxr-xr-x", "2", "0", "0"]
    assert rows[5][:5] == ["-rw-------", "1", "7", "42", "6"]
    assert rows[4][-3:] == ["etc/mtab", "->", "/proc/mounts"]


def test_cpio_extracts_content_modes_and_times(tmp_path: Path) -> None:
    data = archive(
        [
            file("bin/run", b"#!/bin/sh\n", 0o755, mtime=1_000_000_000),
            Entry("srv", stat.S_IFDIR | 0o1777),
            symlink("srv/link", "../bin/run"),
        ]
    )

    extract(data, tmp_path)

    run = tmp_path / "bin/run"
    assert run.read_bytes() == b"#!/bin/sh\n"
    assert stat.S_IMODE(run.stat().st_mode) == 0o755
    assert run.stat().st_mtime == 1_000_000_000
    assert stat.S_IMODE((tmp_path / "srv").stat().st_mode) == 0o1777
    assert (tmp_path / "srv/link").readlink() == Path("../bin/run")


def test_hard_links_share_one_inode_after_extraction(tmp_path: Path) -> None:
    data = archive([file(f"links/{name}", b"same", hardlink="g") for name in "cab"])

    extract(data, tmp_path)

    inodes = {(tmp_path / "links" / name).stat().st_ino for name in "abc"}
    assert len(inodes) == 1
    assert (tmp_path / "links/a").read_bytes() == b"same"
    assert data.count(b"same") == 1


def test_device_nodes_and_fifos_are_listed_with_their_numbers() -> None:
    data = archive(
        [
            Entry("dev/console", stat.S_IFCHR | 0o600, rdev=(5, 1)),
            Entry("dev/sda", stat.S_IFBLK | 0o660, rdev=(8, 0)),
            Entry("run/pipe", stat.S_IFIFO | 0o644),
        ]
    )

    rows = {row[-1]: row for row in listing(data)}

    assert rows["dev/console"][0] == "crw-------"
    assert rows["dev/console"][4:6] == ["5,", "1"]
    assert rows["dev/sda"][4:6] == ["8,", "0"]
    assert rows["run/pipe"][0].startswith("p")


def test_the_order_of_entries_does_not_change_a_byte() -> None:
    entries = [file("b/c", b"x"), file("a", b"yy"), symlink("b/d", "c")]

    assert archive(entries) == archive(reversed(entries))


def test_an_archive_is_padded_to_512_and_ends_with_one_trailer() -> None:
    data = archive([file("a", b"x" * 1000)])

    assert len(data) % 512 == 0
    assert data.count(b"TRAILER!!!") == 1


def test_a_part_without_trailer_joins_with_a_whole_archive() -> None:
    data = archive([file("etc/boot.env", b"abc")], trailer=False) + archive([file("etc/node")])

    assert [row[-1] for row in listing(data)] == ["etc", "etc/boot.env", "etc", "etc/node"]


def test_an_empty_archive_is_a_trailer() -> None:
    assert listing(archive([])) == []
    assert archive([], trailer=False) == b""


def test_segments_share_the_content_of_their_entries() -> None:
    content = b"x" * 10_001

    assert any(piece is content for piece in segments([file("a", content), file("b", b"y")]))


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../b", "a/..", "a//b", "a/", "./a", "a\0b", "TRAILER!!!"],
)
def test_names_that_could_leave_or_end_the_archive_are_refused(path: str) -> None:
    with pytest.raises(CpioError):
        file(path)


def test_a_name_that_no_file_system_has_is_refused() -> None:
    assert archive([file("a\udcff")]).count(b"a\xff\0") == 1  # as a listing gave it

    with pytest.raises(CpioError, match="does not encode"):
        file("a\ud800")


def test_names_are_taken_up_to_path_max_and_no_further() -> None:
    longest = "/".join(["x" * 255] * 16)
    assert len(longest) == MAX_NAME
    assert len(listing(archive([file(longest)]))) == 16

    with pytest.raises(CpioError, match="longer than"):
        file("/".join(["x" * 127] * 32) + "y")
    with pytest.raises(CpioError, match="component"):
        file("x" * 256)


class Huge(bytes):
    """Bytes that claim to be larger than memory."""

    def __len__(self) -> int:
        return MAX_SIZE + 1


def test_a_file_of_4_gib_is_refused_with_a_sentence() -> None:
    with pytest.raises(CpioError, match="at most 4294967295 bytes"):
        file("big", Huge())


@pytest.mark.parametrize(
    "fields",
    [
        {"uid": -1},
        {"gid": 1 << 32},
        {"mtime": -1},
        {"rdev": (1 << 32, 0)},
        {"mode": stat.S_IFSOCK | 0o600},
        {"mode": 0o644},
        {"mode": stat.S_IFLNK | 0o777},
        {"mode": stat.S_IFLNK | 0o777, "content": b"a\0b"},
        {"mode": stat.S_IFLNK | 0o777, "content": b"x" * 4096},
        {"mode": stat.S_IFDIR | 0o755, "content": b"x"},
        {"mode": stat.S_IFDIR | 0o755, "hardlink": "g"},
    ],
)
def test_fields_that_newc_cannot_hold_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(CpioError):
        Entry(**{"path": "p", "mode": stat.S_IFREG, **fields})  # type: ignore[arg-type]


def test_one_path_twice_is_refused() -> None:
    with pytest.raises(CpioError, match="twice"):
        archive([file("a"), file("a")])


@pytest.mark.parametrize("parent", [file("a"), symlink("a", "b")])
def test_nothing_may_stand_below_a_file_or_symlink(parent: Entry) -> None:
    with pytest.raises(CpioError, match="not a directory"):
        archive([file("a/b/c"), parent])


def test_hard_links_that_differ_are_refused() -> None:
    with pytest.raises(CpioError, match="differ"):
        archive([file("a", b"1", hardlink="g"), file("b", b"2", hardlink="g")])


NAMES = st.text(min_size=1, max_size=12).filter(
    lambda text: "/" not in text and "\0" not in text and text not in (".", "..")
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@given(st.text(st.characters(), max_size=40))
def test_any_text_is_a_path_or_a_cpio_error(text: str) -> None:
    try:
        data = archive([file(text, b"x")])
    except CpioError:
        return
    assert data.startswith(b"070701")
    assert not text.startswith("/")
    assert ".." not in text.split("/")


@settings(deadline=None, max_examples=25)
@given(st.dictionaries(PATHS, st.binary(max_size=40), max_size=6))
def test_every_set_of_files_comes_back_from_cpio(files: dict[str, bytes]) -> None:
    try:
        data = archive([file(path, content) for path, content in files.items()])
    except CpioError:
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        extract(data, root)
        found = {
            str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file()
        }
    assert found == files
