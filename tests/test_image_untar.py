"""Archives unpacked: everything kept, nothing trusted, nothing outside."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd.image.disk import ImageInputError
from bootd.image.sources.limits import Limits
from bootd.image.sources.untar import unpack

Member = tuple[str, dict[str, object], bytes]
OWNER = {"uid": os.getuid(), "gid": os.getgid()}


def file(name: str, data: bytes = b"x", **more: object) -> Member:
    return name, {"type": tarfile.REGTYPE, **more}, data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Member:
    return name, {"type": kind, "linkname": target}, b""


def folder(name: str, mode: int = 0o755) -> Member:
    return name, {"type": tarfile.DIRTYPE, "mode": mode}, b""


def device(name: str, kind: bytes = tarfile.CHRTYPE) -> Member:
    return name, {"type": kind, "devmajor": 1, "devminor": 3}, b""


def hard(name: str, target: str) -> Member:
    return link(name, target, tarfile.LNKTYPE)


def tar(*members: Member) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, values, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in {"mode": 0o644, "mtime": 1000, **OWNER, **values}.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return made.getvalue()


Unpack = Callable[..., Path]


@pytest.fixture
def unpacked(tmp_path: Path) -> Unpack:
    root = tmp_path / "outside/root"
    root.mkdir(parents=True)

    def unpacked(*members: Member, layer: bool = False, size: int = 1 << 20) -> Path:
        unpack(io.BytesIO(tar(*members)), root, Limits(size), name="a.tar", layer=layer)
        return root

    return unpacked


def outside(tmp_path: Path) -> list[str]:
    """Everything that is not below the root."""
    return sorted(
        str(path.relative_to(tmp_path))
        for path in tmp_path.rglob("*")
        if "root" not in path.relative_to(tmp_path).parts
    )


HOSTILE: list[tuple[str, tuple[Member, ...], str]] = [
    ("dots", (file("../evil"),), r"'\.\.' in a name"),
    ("dots in the middle", (file("a/../../evil"),), r"'\.\.' in a name"),
    ("an absolute name", (file("/evil"),), "an absolute name"),
    ("a symlink on the way", (link("a", ".."), file("a/evil")), "leads out"),
    ("an absolute symlink on the way", (link("a", "/tmp"), file("a/evil")), "is a symlink"),
    ("a symlink inside on the way", (folder("b"), link("a", "b"), file("a/x")), "is a symlink"),
    ("a folder over a symlink", (link("a", "/tmp"), folder("a")), "a folder where a symlink"),
    ("a symlink that climbs out", (link("a/b", "../../etc"),), "leads out of the image"),
    ("an absolute hard link", (hard("a", "/etc/passwd"),), "an absolute name"),
    ("a hard link with dots", (hard("a", "../x"),), r"'\.\.' in a name"),
    ("a hard link to nothing", (hard("a", "b"),), "a hard link to nothing"),
    ("a hard link below nothing", (hard("a", "b/c"),), "a hard link to nothing"),
    ("a hard link to a symlink", (link("b", "/etc"), hard("a", "b")), "a hard link to a symlink"),
    ("a hard link through a symlink", (link("b", "/etc"), hard("a", "b/passwd")), "is a symlink"),
    ("a hard link to the root", (hard("a", "."),), "a hard link to the root"),
    ("a device outside of /dev", (device("etc/null"),), "a device node outside of /dev"),
    ("a device that is /dev", (device("dev"),), "a device node outside of /dev"),
    ("a disk outside of /dev", (device("x", tarfile.BLKTYPE),), "outside of /dev"),
    ("a file that is the root", (file("."),), "the root of an image is a folder"),
    ("a file below a file", (file("a"), file("a/b")), "is a file and no folder"),
    ("a long name", (file("a" * 256),), "too long"),
    ("a deep one", (file("/".join("a" * 300)),), "folders in folders"),
    ("too much", (file("a", bytes(600_000)), file("b", bytes(600_000))), "more than is allowed"),
    ("nobody's number", (file("a", uid=-1 & 0xFFFFFFFF),), "nobody's number"),
]


@pytest.mark.parametrize(
    ("members", "says"), [case[1:] for case in HOSTILE], ids=[c[0] for c in HOSTILE]
)
def test_a_hostile_archive_is_refused_and_touches_nothing_outside(
    members: tuple[Member, ...], says: str, unpacked: Unpack, tmp_path: Path
) -> None:
    with pytest.raises(ImageInputError, match=says) as caught:
        unpacked(*members)

    assert str(caught.value).startswith("a.tar: ")
    assert outside(tmp_path) == ["outside"]


def test_an_archive_does_not_fill_the_disk(tmp_path: Path) -> None:
    with pytest.raises(ImageInputError, match=r"'a': does not fit: .* must stay so"):
        unpack(io.BytesIO(tar(file("a"))), tmp_path, Limits(1 << 20, spare=1 << 60), name="a.tar")
    assert list(tmp_path.iterdir()) == []


def test_what_an_archive_says_of_a_file_is_kept(unpacked: Unpack) -> None:
    root = unpacked(
        folder("etc", 0o750),
        file("etc/a", b"one", mode=0o4755),
        hard("etc/b", "etc/a"),
        link("etc/c", "/usr/bin/a"),
        link("etc/d", "../etc/a"),
        ("fifo", {"type": tarfile.FIFOTYPE}, b""),
    )

    a = (root / "etc/a").stat()
    assert (root / "etc/a").read_bytes() == b"one"
    assert (stat.S_IMODE(a.st_mode), a.st_mtime, a.st_nlink) == (0o4755, 1000, 2)
    assert (root / "etc/b").stat().st_ino == a.st_ino
    assert (root / "etc/c").readlink() == Path("/usr/bin/a")
    assert (root / "etc/d").readlink() == Path("../etc/a")
    assert stat.S_ISFIFO((root / "fifo").lstat().st_mode)
    etc = (root / "etc").stat()
    assert (stat.S_IMODE(etc.st_mode), etc.st_mtime) == (0o750, 1000)


def test_a_later_member_replaces_an_earlier_one(unpacked: Unpack) -> None:
    root = unpacked(file("a", b"1"), hard("b", "a"), file("a", b"2"), folder("c"), link("c", "a"))

    assert ((root / "a").read_bytes(), (root / "b").read_bytes()) == (b"2", b"1")
    assert (root / "c").is_symlink()


def test_a_file_that_is_cut_is_refused(tmp_path: Path) -> None:
    data = tar(file("a", b"x" * 5000))
    with pytest.raises(ImageInputError, match=r"the archive ends|is damaged"):
        unpack(io.BytesIO(data[:3000]), tmp_path, Limits(1 << 20), name="a.tar")


def test_a_damaged_header_is_not_the_end_of_the_archive(tmp_path: Path) -> None:
    data = bytearray(tar(file("a"), file("b")))
    data[1024 + 10] ^= 0xFF
    with pytest.raises(ImageInputError, match="is damaged"):
        unpack(io.BytesIO(bytes(data)), tmp_path, Limits(1 << 20), name="a.tar")


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a")
    info.type = tarfile.XHDTYPE
    info.size = 1 << 40
    data = info.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(ImageInputError, match="no archive needs that"):
        unpack(io.BytesIO(data), tmp_path, Limits(1 << 50), name="a.tar")


def test_the_map_of_a_sparse_file_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "a",
        "GNU.sparse.realsize": "1",
    }
    info.size = 64 << 20
    entries = b"30000000\n" + b"%015d\n" % 0 * (4 << 20)
    data = info.tobuf(tarfile.PAX_FORMAT) + entries

    with pytest.raises(ImageInputError, match="no archive needs that"):
        unpack(io.BytesIO(data), tmp_path, Limits(1 << 40), name="a.tar")


def test_holes_stay_holes(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "in").mkdir()
    with (tmp_path / "in/sparse").open("wb") as sparse:
        sparse.seek(8 << 20)
        sparse.write(b"end")
    made = tmp_path / "a.tar"
    subprocess.run(["tar", "-C", tmp_path / "in", "--sparse", "-cf", made, "sparse"], check=True)
    root = tmp_path / "root"
    root.mkdir()

    with made.open("rb") as source:
        unpack(source, root, Limits(1 << 30), name="a.tar")

    found = (root / "sparse").stat()
    assert found.st_size == (8 << 20) + 3
    assert found.st_blocks * 512 < 1 << 20
    assert (root / "sparse").read_bytes()[-3:] == b"end"


# ---- layers -------------------------------------------------------------------------------------


def test_a_whiteout_removes_what_a_lower_layer_brought(unpacked: Unpack) -> None:
    unpacked(folder("a"), file("a/x"), file("a/y"), file("b"), layer=True)
    root = unpacked(file("a/.wh.x", b""), file(".wh.b", b""), file("c"), layer=True)

    assert sorted(p.name for p in root.rglob("*")) == ["a", "c", "y"]


def test_an_opaque_whiteout_leaves_what_its_own_layer_brings(unpacked: Unpack) -> None:
    unpacked(folder("a"), file("a/x"), folder("a/d"), file("a/d/old"), layer=True)
    root = unpacked(
        folder("a"),
        file("a/new"),
        file("a/d/new"),
        file("a/.wh..wh..opq", b""),
        layer=True,
    )

    assert sorted(str(p.relative_to(root)) for p in root.rglob("*")) == [
        "a",
        "a/d",
        "a/d/new",
        "a/new",
    ]


def test_whole_folders_of_lower_layers_go_from_between_those_of_the_new_one(
    unpacked: Unpack,
) -> None:
    old = [folder("a"), folder("a/d")]
    for name in ("a/d/x", "a/d/y", "a/e", "a/f"):
        old += [folder(name), file(f"{name}/old")]
    unpacked(*old, layer=True)

    root = unpacked(
        folder("a/d"), file("a/d/new"), file("a/.wh..wh..opq", b""), file("a/z"), layer=True
    )

    assert sorted(str(p.relative_to(root)) for p in root.rglob("*")) == [
        "a",
        "a/d",
        "a/d/new",
        "a/z",
    ]


@pytest.mark.parametrize("name", [".wh.", ".wh...", ".wh..", "a/.wh..wh.x", "../.wh.x"])
def test_a_whiteout_of_something_else_is_refused(
    name: str, unpacked: Unpack, tmp_path: Path
) -> None:
    (tmp_path / "outside/x").touch()

    with pytest.raises(ImageInputError):
        unpacked(folder("a"), file(name, b""), layer=True)

    assert (tmp_path / "outside/x").exists()


def test_a_layer_goes_through_symlinks_as_in_its_root(unpacked: Unpack, tmp_path: Path) -> None:
    unpacked(folder("usr"), folder("usr/lib"), link("lib", "usr/lib"), layer=True)
    root = unpacked(
        file("lib/a"),
        link("out", "/outside"),
        file("out/b"),
        link("up", "/.."),
        file("up/c"),
        layer=True,
    )

    assert (root / "usr/lib/a").is_file()
    assert (root / "outside/b").is_file()
    assert (root / "c").is_file()
    assert outside(tmp_path) == ["outside"]


def test_symlinks_in_a_circle_end(unpacked: Unpack) -> None:
    with pytest.raises(ImageInputError, match="more than 40 symlinks"):
        unpacked(link("a", "/b"), link("b", "/a"), file("a/x"), layer=True)


# ---- anything -----------------------------------------------------------------------------------

NAMES = st.sampled_from(
    ["a", "b", "a/b", "a/b/c", ".", "..", "/a", "a/..", "dev", "dev/x", ".wh.a", "a/.wh..wh..opq"]
)
MEMBERS = st.one_of(
    NAMES.map(file),
    NAMES.map(folder),
    st.builds(link, NAMES, st.sampled_from(["a", "/", "..", "../..", "/..", "b", "a/b", "/tmp"])),
    st.builds(hard, NAMES, NAMES),
    NAMES.map(lambda name: (name, {"type": tarfile.FIFOTYPE}, b"")),
)


@given(members=st.lists(MEMBERS, max_size=8), layer=st.booleans())
def test_no_archive_writes_outside(
    tmp_path_factory: pytest.TempPathFactory, members: list[Member], layer: bool
) -> None:
    top = tmp_path_factory.mktemp("any")
    root = top / "up/root"
    root.mkdir(parents=True)
    (top / "up/a").write_text("mine")
    before = (top / "up/a").stat()
    with contextlib.suppress(ImageInputError):
        unpack(io.BytesIO(tar(*members)), root, Limits(1 << 20), name="a.tar", layer=layer)
    after = (top / "up/a").stat()

    assert sorted(path.name for path in top.iterdir()) == ["up"]
    assert sorted(path.name for path in (top / "up").iterdir()) == ["a", "root"]
    assert (after.st_ino, after.st_nlink, after.st_mtime, after.st_mode) == (
        before.st_ino,
        1,
        before.st_mtime,
        before.st_mode,
    )


@given(data=st.binary(max_size=1500), at=st.integers(0, 1023))
def test_any_bytes_are_an_archive_or_the_one_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int
) -> None:
    root = tmp_path_factory.mktemp("any")
    good = tar(file("a"), file("b"))
    for archive in (data, good[:at] + data + good[at + len(data) :]):
        with contextlib.suppress(ImageInputError):
            unpack(io.BytesIO(archive), root, Limits(1 << 20), name="a.tar")
