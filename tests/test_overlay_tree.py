"""Overlay trees: what is read, what shadows what, and what is refused."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bootd.model import ConfigError, Node, Overlay, OverlayEntry, Settings
from bootd.overlay import scan, tree
from bootd.overlay.cpio import archive
from bootd.overlay.render import EXAMPLE_SERVER, render
from bootd.overlay.tree import OverlayTrees
from bootd.registry import Registry

Write = Callable[..., Path]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "overlays"
    folder.mkdir()
    return folder


@pytest.fixture
def write(site: Path) -> Write:
    def write(path: str, content: bytes = b"x", mode: int = 0o644) -> Path:
        """Write ``NAME/PATH`` below ``NAME/rootfs``."""
        name, _, rest = path.partition("/")
        file = site / name / "rootfs" / rest
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(mode)
        return file

    return write


def load(site: Path) -> dict[str, Overlay]:
    return dict(OverlayTrees().load([str(site)]))


def entries(overlay: Overlay) -> dict[str, OverlayEntry]:
    return {entry.path: entry for entry in overlay.entries}


def faults(site: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(site)
    return str(caught.value)


def test_the_distribution_has_base_without_any_folder_of_the_site(tmp_path: Path) -> None:
    overlays = OverlayTrees().load([str(tmp_path / "absent")])

    assert {"etc/hostname", "etc/hosts", "etc/issue"} <= set(entries(overlays["base"]))


def test_files_keep_mode_and_content_and_belong_to_root(site: Path, write: Write) -> None:
    write("own/usr/local/bin/tool", b"#!/bin/sh\n", 0o750)

    entry = entries(load(site)["own"])["usr/local/bin/tool"]

    assert (entry.kind, entry.mode, entry.content) == ("file", 0o750, b"#!/bin/sh\n")
    assert (entry.uid, entry.gid) == (0, 0)


def test_a_template_stands_without_its_suffix(site: Path, write: Write) -> None:
    write("own/etc/motd.j2", b"{{ node.name }}")

    entry = entries(load(site)["own"])["etc/motd"]

    assert entry.kind == "template"
    assert entry.source.endswith("own/rootfs/etc/motd.j2")


def test_a_file_of_the_site_shadows_only_its_own_path(site: Path, write: Write) -> None:
    file = write("base/etc/issue", b"ours\n")

    base = entries(load(site)["base"])

    assert (base["etc/issue"].kind, base["etc/issue"].content) == ("file", b"ours\n")
    assert base["etc/issue"].source == str(file)
    assert base["etc/hostname"].source.startswith(str(tree.distribution()))


def test_the_first_folder_of_the_site_wins(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name / "own/rootfs").mkdir(parents=True)
        (tmp_path / name / "own/rootfs/a").write_text(name)
    (tmp_path / "second/own/rootfs/b").write_text("second")

    overlays = OverlayTrees().load([str(tmp_path / "first"), str(tmp_path / "second")])

    assert {e.path: e.content for e in overlays["own"].entries} == {"a": b"first", "b": b"second"}


def test_a_file_of_the_site_shadows_a_whole_folder_of_the_distribution(
    site: Path, write: Write
) -> None:
    write("base/etc/bootd", b"a file now")

    base = entries(load(site)["base"])

    assert base["etc/bootd"].kind == "file"
    assert not [path for path in base if path.startswith("etc/bootd/")]


def test_symlinks_are_kept_and_never_followed(site: Path, write: Write) -> None:
    write("own/etc/real")
    (site / "own/rootfs/etc/link").symlink_to("/etc/shadow")
    (site / "own/rootfs/loop").symlink_to(".")

    own = entries(load(site)["own"])

    assert (own["etc/link"].kind, own["etc/link"].content) == ("symlink", b"/etc/shadow")
    assert own["loop"].kind == "symlink"


def test_folders_that_every_image_has_keep_their_usual_modes(site: Path, write: Write) -> None:
    for folder in ("root/.ssh", "tmp", "opt/site"):
        file = write(f"own/{folder}/x")
        file.parent.chmod(0o775)

    own = entries(load(site)["own"])

    modes = {path: own[path].mode for path in ("root", "root/.ssh", "tmp", "opt", "opt/site")}
    assert modes == {
        "root": 0o700,
        "root/.ssh": 0o700,
        "tmp": 0o1777,
        "opt": 0o755,
        "opt/site": 0o775,
    }


def test_special_files_are_refused_without_opening_them(site: Path, write: Write) -> None:
    write("own/a")
    os.mkfifo(site / "own/rootfs/pipe")

    assert "pipe: is neither file, folder nor symlink" in faults(site)


def test_two_files_that_make_one_path_are_refused(site: Path, write: Write) -> None:
    write("own/etc/motd")
    write("own/etc/motd.j2")

    assert "makes the same file /etc/motd" in faults(site)


def test_a_template_that_is_not_utf8_is_refused_with_the_byte(site: Path, write: Write) -> None:
    write("own/etc/motd.j2", b"abc\xff")

    assert "motd.j2: is a template, but not UTF-8 at byte 3" in faults(site)


def test_a_bare_suffix_names_no_file(site: Path, write: Write) -> None:
    write("own/etc/.j2")

    assert ".j2 alone names no file" in faults(site)


def test_all_faults_are_told_at_once(site: Path, write: Write) -> None:
    write("one/a.j2", b"\xff")
    write("two/b.j2", b"\xff")
    (site / "bad name/rootfs").mkdir(parents=True)
    (site / "bad name/rootfs/x").touch()
    (site / "empty").mkdir()

    lines = faults(site).splitlines()

    assert len(lines) == 4
    assert any("overlay 'bad name' is not a name" in line for line in lines)
    assert any("empty/rootfs: No such file or directory" in line for line in lines)


def test_hidden_folders_and_files_beside_overlays_are_ignored(site: Path, write: Write) -> None:
    write(".git/config")
    (site / "README").touch()
    write("own/etc/.gitkeep")

    overlays = load(site)

    assert "README" not in overlays
    assert ".git" not in overlays
    assert set(entries(overlays["own"])) == {"etc"}


def test_an_unreadable_file_is_a_fault_that_says_what_to_do(
    site: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("own/secret")

    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)  # root can read everything

    assert f"{file}: cannot be read: Permission denied; bootd's user" in faults(site)


def test_an_overlay_is_taken_up_to_its_limit_and_no_further(
    site: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "MAX_OVERLAY", 1 << 20)
    write("own/a", b"x" * (1 << 20))
    assert len(load(site)["own"].entries) == 1

    write("own/b", b"x")
    assert "has more than 1 MiB" in faults(site)


def test_depth_and_number_of_paths_are_bounded(
    site: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "MAX_ENTRIES", 100)
    write("deep/" + "d/" * 64 + "x")
    for number in range(100):
        write(f"many/{number}")
    assert len(entries(load(site)["deep"])) == 65
    assert len(entries(load(site)["many"])) == 100

    write("deep/" + "d/" * 65 + "x")
    write("many/100")

    lines = faults(site).splitlines()
    assert "d/d/d is more than 64 folders deep" in lines[0]
    assert "many: has more than 100 files" in lines[1]


def test_an_overlay_yaml_that_is_no_file_is_a_fault(site: Path, write: Write) -> None:
    write("own/a")
    os.mkfifo(site / "own/overlay.yaml")

    assert "own: overlay.yaml is not a file" in faults(site)


def test_an_overlays_folder_that_is_a_file_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "overlays").touch()

    assert "overlays: overlays: Not a directory" in faults(tmp_path / "overlays")


def test_a_file_that_is_swapped_while_it_is_read_is_a_fault_and_nobody_waits(
    site: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    swaps: dict[str, Callable[[Path], object]] = {
        "fifo": os.mkfifo,
        "link": lambda path: path.symlink_to("/etc/passwd"),
        "longer": lambda path: path.write_bytes(b"longer"),
    }
    for name in swaps:
        write(f"own/{name}")
    opened = os.open

    def swap(path: Path, flags: int) -> int:
        change = swaps.get(Path(path).name)
        if change is not None:
            Path(path).unlink()
            change(Path(path))
        return opened(path, flags)

    monkeypatch.setattr(os, "open", swap)

    lines = faults(site).splitlines()

    assert "fifo: is no longer a regular file" in lines[0]
    assert "link: cannot be read: Too many levels of symbolic links" in lines[1]
    assert "longer: changed while it was read" in lines[2]


def test_a_name_with_control_characters_is_refused(site: Path, write: Write) -> None:
    write("own/a\nb")

    assert "unprintable" in faults(site)


def test_what_did_not_change_is_the_same_object_after_a_second_load(
    site: Path, write: Write
) -> None:
    write("one/a")
    write("two/b")
    trees = OverlayTrees()
    first = trees.load([str(site)])
    while trees.load([str(site)])["one"] is not first["one"]:  # until the clock of files ticked
        first = trees.load([str(site)])

    write("two/b", b"new")
    second = trees.load([str(site)])

    assert second["one"] is first["one"]
    assert second["base"] is first["base"]
    assert entries(second["two"])["b"].content == b"new"


def test_edits_of_the_same_length_are_never_missed(site: Path, write: Write) -> None:
    """Two writes within one tick of the file system's clock leave the same times."""
    trees = OverlayTrees()
    for number in range(200):
        content = b"%03d" % number
        write("own/a", content)
        assert entries(trees.load([str(site)])["own"])["a"].content == content


def test_the_digest_follows_content_and_mode(site: Path, write: Write) -> None:
    file = write("own/a", b"1")
    before = load(site)["own"].digest

    file.chmod(0o600)
    after = load(site)["own"].digest
    write("own/a", b"2", 0o600)

    assert len({before, after, load(site)["own"].digest}) == 3


def test_hard_links_of_a_tree_are_one_file_in_the_archive(tmp_path: Path) -> None:
    rootfs = tmp_path / "site/own/rootfs/etc"
    rootfs.mkdir(parents=True)
    (rootfs / "b").write_text("shared content")
    for name in ("a", "c"):
        (rootfs / name).hardlink_to(rootfs / "b")
    outside = tmp_path / "outside"
    outside.write_text("linked to from elsewhere only")
    (rootfs / "alone").hardlink_to(outside)

    node = Node("n001", overlays_system=("own",))

    def archived() -> bytes:
        overlays = OverlayTrees().load([str(tmp_path / "site")])
        registry = Registry(Settings(), {"n001": node}, {}, overlays, {})
        return archive(render(registry, node, "system", EXAMPLE_SERVER))

    assert archived().count(b"shared content") == 1
    target = tmp_path / "unpacked"
    target.mkdir()
    subprocess.run(["cpio", "-id", "--quiet"], input=archived(), cwd=target, check=True)
    assert {(target / "etc" / name).stat().st_nlink for name in "abc"} == {3}
    assert (target / "etc/alone").stat().st_nlink == 1

    # One of them with a mode of its own is a file of its own, and so are all.
    (tmp_path / "site/own/overlay.yaml").write_text("paths: {etc/c: {mode: 0600}}\n")
    assert archived().count(b"shared content") == 3
