"""Archives' names, patterns, versions, headers: the pure parts of an import."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bootd.image.compress import Gzip, Output, compressor
from bootd.image.disk import ImageInputError
from bootd.image.excludes import ALWAYS, ExcludeError, Excludes, parse
from bootd.image.initramfs import features
from bootd.image.newc import MAX_SIZE, Inode, newc, newc_end, tar
from bootd.image.streams import Stream
from bootd.image.versions import best_first, is_debug

# ---- versions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "newest_first",
    [
        ["6.10.0", "6.9.12", "6.9.2"],
        ["6.1.0-31-amd64", "6.1.0-9-amd64"],
        ["6.1.0-31-amd64", "6.1.0-31-cloud-amd64", "6.1.0-30-amd64"],
        ["5.14.0-427.13.1.el9_4.x86_64", "5.14.0-427.el9.x86_64", "5.14.0-362.el9.x86_64"],
        ["6.9.0", "6.9.0-rc10", "6.9.0-rc3"],
        ["6.8.9-300.fc41.x86_64", "6.8.9-300.fc40.x86_64"],
        ["6.12.48+deb13-amd64", "6.12.38+deb13-amd64"],
        ["6.6.54-1-lts", "6.6.9-1-lts"],
        ["5.14.21-150500.55.19-default", "5.14.21-150500.53-default"],
        ["6.1.0-1", "6.9.0+debug", "0-rescue-0123456789abcdef0123456789abcdef"],
        ["5.14.0-1.el9.x86_64", "5.14.0-9.el9.x86_64+debug"],
    ],
)
def test_kernels_are_ordered_as_people_mean_it(newest_first: list[str]) -> None:
    assert best_first(list(reversed(newest_first))) == newest_first


@pytest.mark.parametrize(
    ("version", "debug"),
    [
        ("6.1.0-31-amd64", False),
        ("5.14.0-427.el9.x86_64+debug", True),
        ("6.1.0-31-amd64-dbg", True),
        ("0-rescue-0123", True),
        ("6.4.0-kdump", True),
        ("6.4.0-debugger", False),
    ],
)
def test_kernels_for_debugging_are_told(version: str, debug: bool) -> None:
    assert is_debug(version) is debug


@given(st.lists(st.text(max_size=12), max_size=6))
def test_any_versions_have_an_order_that_does_not_depend_on_where_they_stood(
    versions: list[str],
) -> None:
    assert best_first(versions) == best_first(list(reversed(versions)))


# ---- excludes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "fits", "not_these"),
    [
        ("/boot", ["boot"], ["a/boot", "boot2", "boot/x"]),
        ("var/cache/*", ["var/cache/apt", "var/cache/.x"], ["var/cache", "var/cache/a/b"]),
        ("usr/share/**/*.gz", ["usr/share/a.gz", "usr/share/a/b.gz"], ["usr/a.gz"]),
        ("**/__pycache__", ["__pycache__", "a/b/__pycache__"], ["a__pycache__"]),
        ("home/**", ["home/a", "home/a/b"], ["home"]),
        ("a?c", ["abc"], ["a/c", "ac"]),
        ("log.[0-9]", ["log.1"], ["log.a", "log./"]),
        ("log.[!0-9]", ["log.a"], ["log.1", "log./"]),
        ("a[", ["a["], ["a"]),
        ("a.b", ["a.b"], ["axb"]),
        ("x\ny", ["x\ny"], ["x"]),
    ],
)
def test_a_pattern_leaves_out_what_it_says(
    pattern: str, fits: list[str], not_these: list[str]
) -> None:
    excluded = Excludes([pattern])

    assert [path for path in fits if not excluded(path)] == []
    assert [path for path in not_these if excluded(path)] == []


def test_without_patterns_nothing_is_left_out() -> None:
    assert not Excludes([])("etc")


def test_what_runs_is_always_left_out_but_not_its_folders() -> None:
    excluded = Excludes(ALWAYS)

    assert excluded("proc/1")
    assert not excluded("proc")
    assert not excluded("var/tmp/x")


def test_a_file_of_patterns_has_comments_and_names_its_faults() -> None:
    assert parse(b"# no\n\n /boot/ \nvar/cache/*\n", "f") == ("boot", "var/cache/*")
    with pytest.raises(ExcludeError, match=r"f:2: '\.\./x'"):
        parse(b"a\n../x\n", "f")
    with pytest.raises(ExcludeError, match="f:1: '/' leaves out everything"):
        parse(b"/\n", "f")
    with pytest.raises(ExcludeError, match="not UTF-8"):
        parse(b"\xff", "f")


@given(st.text("ab*?[]!-/.\\^&|~(){}+$\n", max_size=16), st.text("ab/.\n", max_size=8))
def test_any_text_is_a_pattern_or_the_one_error(pattern: str, path: str) -> None:
    with contextlib.suppress(ExcludeError):
        Excludes([pattern])(path)


# ---- compressed streams -------------------------------------------------------------------------

DATA = os.urandom(5000) * 40


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zst": zst,
    "gz twice": lambda data: gzip.compress(data[:999]) + gzip.compress(data[999:]),
    "xz twice": lambda data: lzma.compress(data[:999]) + lzma.compress(data[999:]),
    "zst twice": lambda data: zstandard.compress(data[:999]) + zstandard.compress(data[999:]),
}


def stream(tmp_path: Path, data: bytes) -> Stream:
    path = tmp_path / "file"
    path.write_bytes(data)
    return Stream(path.open("rb"), "file")


def read(source: Stream, step: int = 7000) -> bytes:
    found = b""
    while data := source.read(step):
        found += data
    return found


@pytest.mark.filterwarnings("ignore:unclosed")
@pytest.mark.parametrize("form", FORMS)
def test_every_compression_is_read(form: str, tmp_path: Path) -> None:
    assert read(stream(tmp_path, FORMS[form](DATA))) == DATA


@pytest.mark.filterwarnings("ignore:unclosed")
@pytest.mark.parametrize("form", ["gz", "bz2", "xz", "zst"])
def test_a_damaged_stream_is_refused_by_name(form: str, tmp_path: Path) -> None:
    data = FORMS[form](DATA)
    data = data[:2000] + bytes(16) + data[2016:]
    with pytest.raises(ImageInputError, match="file: is damaged"):
        read(stream(tmp_path, data))


@pytest.mark.filterwarnings("ignore:unclosed")
@pytest.mark.parametrize("form", ["gz", "bz2", "xz"])
def test_a_stream_that_is_cut_is_refused(form: str, tmp_path: Path) -> None:
    with pytest.raises(ImageInputError, match="file: is damaged"):
        read(stream(tmp_path, FORMS[form](DATA)[:-400]))


@pytest.mark.filterwarnings("ignore:unclosed")
def test_a_stream_that_asks_for_gigabytes_of_memory_is_refused(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=30, compression_level=1)
    made = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = made.compress(DATA) + made.flush()
    with pytest.raises(ImageInputError, match="file: is damaged"):
        read(stream(tmp_path, data))


# ---- compressors --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_what_is_compressed_does_not_depend_on_the_threads(kind: str, tmp_path: Path) -> None:
    data = b"".join(b"line %d\n" % n for n in range(400_000))
    digests = set()
    for threads in (1, 3):
        output = Output(tmp_path / f"{kind}{threads}")
        made = compressor(kind, output, 3, threads)
        for start in range(0, len(data), 70_001):
            made.write(data[start : start + 70_001])
        made.close()
        digests.add(output.finish("x").sha256)

    program = ["gzip", "-dc"] if kind == "gzip" else ["zstd", "-dc"]
    with (tmp_path / f"{kind}3").open("rb") as source:
        found = subprocess.run(program, stdin=source, capture_output=True, check=True)
    assert found.stdout == data
    assert len(digests) == 1


def test_nothing_compresses_to_an_empty_gzip_file(tmp_path: Path) -> None:
    output = Output(tmp_path / "a")
    Gzip(output, 1).close()
    made = output.finish("a")

    assert gzip.decompress((tmp_path / "a").read_bytes()) == b""
    assert made.size == (tmp_path / "a").stat().st_size


# ---- archives -----------------------------------------------------------------------------------


def test_cpio_reads_our_archive(tmp_path: Path) -> None:
    mode = stat.S_IFREG | 0o640
    archive = b"".join(
        (
            newc(Inode("etc", stat.S_IFDIR | 0o755, nlink=2, ino=1)),
            newc(Inode("etc/a", mode, mtime=99, size=5, ino=2, nlink=2)),
            b"hello\0\0\0",
            newc(Inode("etc/b", mode, mtime=99, size=5, ino=2, nlink=2, link="etc/a")),
            newc(Inode("etc/l", stat.S_IFLNK | 0o777, target="a", ino=3)),
            newc_end(),
        )
    )

    done = subprocess.run(
        ["cpio", "-idm", "--quiet"], input=archive, cwd=tmp_path, capture_output=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "etc/b").read_bytes() == b"hello"
    assert (tmp_path / "etc/a").stat().st_ino == (tmp_path / "etc/b").stat().st_ino
    assert (tmp_path / "etc/l").readlink() == Path("a")


def test_a_file_of_four_gigabytes_is_no_newc_entry() -> None:
    newc(Inode("a", stat.S_IFREG, size=MAX_SIZE))
    with pytest.raises(ValueError, match="4 GiB or more"):
        newc(Inode("a", stat.S_IFREG, size=MAX_SIZE + 1))


@given(
    name=st.text(
        st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=80
    ),
    uid=st.integers(0, 0xFFFF_FFFE),
    mtime=st.integers(0, 1 << 40),
    value=st.binary(max_size=40),
)
def test_tarfile_reads_our_tar(name: str, uid: int, mtime: int, value: bytes) -> None:
    import tarfile

    path = f"folder/{'d' * 60}/{name}"
    data = tar(
        Inode(
            path,
            stat.S_IFREG | 0o4755,
            uid=uid,
            gid=uid,
            mtime=mtime,
            size=3,
            xattrs=(("user.x", value),),
        )
    )
    archive = data + b"abc".ljust(512, b"\0") + bytes(1024)

    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        (member,) = opened.getmembers()
        assert member.name.rstrip("/") == path.rstrip("/")
        assert (member.uid, member.gid, member.mtime, member.mode) == (uid, uid, mtime, 0o4755)
        found = member.pax_headers["SCHILY.xattr.user.x"]
        assert found.encode("utf-8", "surrogateescape") == value
        assert opened.extractfile(member).read() == b"abc"  # type: ignore[union-attr]


# ---- what an initramfs can do -------------------------------------------------------------------


def initramfs(*names: str) -> bytes:
    return b"".join(newc(Inode(name, stat.S_IFREG | 0o755)) for name in names) + newc_end()


@pytest.mark.parametrize(
    ("data", "can"),
    [
        (initramfs("bin/live-boot"), ("live-boot",)),
        (gzip.compress(initramfs("./usr/bin/live-boot"), mtime=0), ("live-boot",)),
        (
            initramfs("kernel/x86/microcode")
            + bytes(700)
            + zstandard.compress(initramfs("sbin/livenetroot")),
            ("livenet",),
        ),
        (initramfs("bin/sh"), ()),
        (b"", ()),
        (b"\x02\x21\x4c\x18lz4", ()),
        (gzip.compress(initramfs("bin/live-boot"), mtime=0)[:40], ()),
    ],
)
def test_an_initramfs_says_what_it_can_do(
    data: bytes, can: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "i").write_bytes(data)
    with (tmp_path / "i").open("rb") as file:
        assert features(file) == can


@given(st.binary(max_size=300), st.integers(0, 200))
def test_any_bytes_are_an_initramfs_that_can_something_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "initramfs"
    good = initramfs("bin/live-boot", "bin/sh")
    for content in (data, good[:at] + data + good[at + len(data) :]):
        path.write_bytes(content)
        with path.open("rb") as file:
            features(file)
