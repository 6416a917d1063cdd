"""Images on disk: whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bootd.image import disk
from bootd.image.disk import ImageError
from bootd.image.store import ImageStore, NoSuchImage
from bootd.model import ConfigError, Image

KERNEL = b"MZ" + b"k" * 3_000_000
INITRAMFS = b"070701" + b"i" * 1_500_000


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "state")


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinuz"
    path.write_bytes(KERNEL)
    return path


@pytest.fixture
def initramfs(tmp_path: Path) -> Path:
    path = tmp_path / "initrd.img"
    path.write_bytes(INITRAMFS)
    return path


@pytest.fixture
def imported(store: ImageStore, kernel: Path, initramfs: Path) -> Image:
    """An image ``debian`` with one generation, active."""
    return store.import_files("debian", kernel, initramfs, now=datetime(2026, 11, 22, tzinfo=UTC))


def names(store: ImageStore) -> list[str]:
    return sorted(path.name for path in (store.root / "debian").iterdir())


def test_an_import_is_active_with_sizes_and_digests(store: ImageStore, imported: Image) -> None:
    active = store.active()["debian"]

    assert active == imported
    assert active.generation.startswith("20261122-000000-")
    for role, content in (("kernel", KERNEL), ("initramfs", INITRAMFS)):
        artefact = active.artefacts[role]
        assert Path(artefact.path).read_bytes() == content
        assert artefact.size == len(content)
        assert artefact.sha256 == hashlib.sha256(content).hexdigest()
    assert store.verify("debian", active.generation) == []


def test_an_import_tells_its_progress_to_the_last_byte(
    store: ImageStore, kernel: Path, initramfs: Path
) -> None:
    seen: list[tuple[str, int, int]] = []

    store.import_files("debian", kernel, initramfs, lambda *step: seen.append(step))

    assert ("kernel", len(KERNEL), len(KERNEL)) in seen
    assert seen[-1] == ("initramfs", len(INITRAMFS), len(INITRAMFS))


def test_an_import_without_activation_leaves_the_active_generation(
    store: ImageStore, imported: Image, kernel: Path, initramfs: Path
) -> None:
    new = store.import_files("debian", kernel, initramfs, activate=False)

    assert store.active()["debian"] == imported
    assert store.activate("debian") == new
    assert store.active()["debian"] == new


def test_a_new_generation_sorts_last_even_within_a_second_or_by_a_clock_set_back(
    store: ImageStore, imported: Image, kernel: Path, initramfs: Path
) -> None:
    made = [imported.generation]
    for now in (datetime(2026, 11, 22, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)):
        made.append(store.import_files("debian", kernel, initramfs, now=now).generation)

    assert [g.generation for g in store.generations("debian")] == made


def test_activation_goes_back_to_an_older_generation(
    store: ImageStore, imported: Image, kernel: Path, initramfs: Path
) -> None:
    store.import_files("debian", kernel, initramfs)

    store.activate("debian", imported.generation)

    assert store.active()["debian"] == imported
    assert [g.active for g in store.generations("debian")] == [True, False]


def test_the_active_generation_cannot_be_deleted_and_others_can(
    store: ImageStore, imported: Image, kernel: Path, initramfs: Path
) -> None:
    old = imported.generation
    with pytest.raises(ImageError, match="is active: nodes boot it"):
        store.delete("debian", old)
    new = store.import_files("debian", kernel, initramfs).generation

    store.delete("debian", old)

    assert [g.generation for g in store.generations("debian")] == [new]
    assert old not in names(store)


def test_everyone_may_read_what_an_import_made_under_a_strict_umask(
    store: ImageStore, kernel: Path, initramfs: Path
) -> None:
    before = os.umask(0o077)
    try:
        store.import_files("debian", kernel, initramfs)
    finally:
        os.umask(before)

    for path in [store.root, *store.root.rglob("*")]:
        if not path.is_symlink() and not path.name.endswith("lock"):
            assert path.stat().st_mode & (0o055 if path.is_dir() else 0o044), path


KILLED = """
import os, signal, sys
from bootd.image.store import ImageStore
where, state, kernel, initramfs = sys.argv[1:]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def progress(role, done, total):
    if (role, done == total) == (where, True):
        die()
from bootd.image import disk, store
if where == "rename":
    store.Path.rename = die
if where == "link":
    disk.Path.replace = die
ImageStore(state).import_files("debian", kernel, initramfs, progress)
"""


@pytest.mark.parametrize("where", ["kernel", "initramfs", "rename", "link"])
def test_an_import_that_is_killed_leaves_no_half_generation(
    where: str, store: ImageStore, imported: Image, kernel: Path, initramfs: Path
) -> None:
    state = str(store.root.parent)
    command = [sys.executable, "-c", KILLED, where, state, str(kernel), str(initramfs)]
    killed = subprocess.run(command, env={"PYTHONPATH": ":".join(sys.path)}, check=False)
    assert killed.returncode == -9
    assert store.active()["debian"] == imported
    assert all(not generation.fault for generation in store.generations("debian"))

    new = store.import_files("debian", kernel, initramfs)

    assert store.active()["debian"] == new
    assert not [name for name in names(store) if name.startswith(".tmp")]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_leaves_everything_as_it_was(
    code: int,
    store: ImageStore,
    imported: Image,
    kernel: Path,
    initramfs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = names(store)

    def refuse(_fd: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(ImageError, match=f"image debian: {os.strerror(code)}"):
        store.import_files("debian", kernel, initramfs)

    assert names(store) == before
    assert store.active()["debian"] == imported


def test_an_import_that_cannot_fit_is_refused_before_it_begins(
    store: ImageStore, kernel: Path, initramfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=4_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)

    with pytest.raises(ImageError, match="4 MiB are needed and 3 MiB are free"):
        store.import_files("debian", kernel, initramfs)

    assert store.active() == {}


def test_two_imports_of_one_image_at_once_are_one_and_a_sentence(
    store: ImageStore, imported: Image, kernel: Path, initramfs: Path
) -> None:
    with (store.root / "debian/.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for change in (
            lambda: store.import_files("debian", kernel, initramfs),
            lambda: store.activate("debian"),
            lambda: store.delete("debian", imported.generation),
        ):
            with pytest.raises(ImageError, match="another command is changing it"):
                change()

    store.import_files("debian", kernel, initramfs)


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "a b", "x" * 65, "a\n"])
def test_names_that_are_no_path_component_are_refused(
    name: str, store: ImageStore, imported: Image, kernel: Path, initramfs: Path
) -> None:
    with pytest.raises(ImageError, match="is not a name"):
        store.import_files(name, kernel, initramfs)
    with pytest.raises(ImageError, match="is not a name"):
        store.activate("debian", name)


@pytest.mark.parametrize("generation", ["active", "20200101-000000-abcd"])
def test_a_generation_that_does_not_exist_is_refused(
    generation: str, store: ImageStore, imported: Image
) -> None:
    for change in (store.activate, store.delete):
        with pytest.raises(NoSuchImage, match="has no generation"):
            change("debian", generation)


def test_an_image_that_does_not_exist_names_those_that_do(
    store: ImageStore, imported: Image
) -> None:
    with pytest.raises(NoSuchImage, match="no image 'rocky'; images: debian"):
        store.activate("rocky")


@pytest.mark.parametrize("role", ["kernel", "initramfs"])
def test_sources_that_are_no_readable_files_are_refused(
    role: str, store: ImageStore, kernel: Path, initramfs: Path, tmp_path: Path
) -> None:
    pipe, empty = tmp_path / "pipe", tmp_path / "empty"
    os.mkfifo(pipe)
    empty.touch()
    for path, says in (
        (tmp_path / "absent", "cannot be read: No such file"),
        (pipe, "is not a regular file"),
        (tmp_path, "is not a regular file|Is a directory"),
        (empty, "is empty"),
    ):
        files = {"kernel": kernel, "initramfs": initramfs, role: path}
        with pytest.raises(ImageError, match=says):
            store.import_files("debian", files["kernel"], files["initramfs"])
    assert store.active() == {}


def test_kernel_and_initramfs_the_wrong_way_round_are_refused(
    store: ImageStore, kernel: Path, initramfs: Path
) -> None:
    with pytest.raises(ImageError, match=f"{kernel}: given as initramfs.*swapped"):
        store.import_files("debian", initramfs, kernel)


def test_a_source_that_changes_while_it_is_copied_is_refused(
    store: ImageStore, kernel: Path, initramfs: Path
) -> None:
    def grow(role: str, done: int, total: int) -> None:
        if role == "kernel" and done < total:
            with kernel.open("ab") as file:
                file.write(b"more")

    with pytest.raises(ImageError, match="changed while it was copied"):
        store.import_files("debian", kernel, initramfs, grow)

    assert store.active() == {}


def claim(**changes: object) -> dict[str, object]:
    """A manifest that names one artefact."""
    return {"artefacts": {"kernel": {"file": "k", "size": 1, "sha256": "0" * 64, **changes}}}


def damage(manifest: Path, **changes: object) -> None:
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))


def test_a_damaged_active_generation_is_a_fault_with_path_and_remedy(
    store: ImageStore, imported: Image
) -> None:
    path = Path(imported.artefacts["kernel"].path)
    path.write_bytes(KERNEL[:-1])

    with pytest.raises(ConfigError) as caught:
        store.active()

    assert f"{path}: has 3000001 bytes, its manifest says 3000002" in str(caught.value)
    assert "bootd image activate debian" in str(caught.value)
    assert "3000001 bytes" in store.generations("debian")[0].fault


def test_a_changed_byte_is_found_by_verify(store: ImageStore, imported: Image) -> None:
    path = Path(imported.artefacts["initramfs"].path)
    path.write_bytes(b"\0" + INITRAMFS[1:])

    (fault,) = store.verify("debian", imported.generation)

    assert fault.startswith(f"{path}: initramfs has the SHA-256")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "other"}, "is of other/"),
        ({"artefacts": {}}, "names no artefacts"),
        (
            {"artefacts": {"kernel": {"file": "../../x", "size": 1, "sha256": "0" * 64}}},
            "not a name",
        ),
        ({"artefacts": {"kernel": {"file": "k", "size": 1, "sha256": "../x"}}}, "64 hex digits"),
        ({"artefacts": {"kernel": {"file": "k", "size": 1, "sha256": "0" * 64}}}, "No such file"),
        ({"artefacts": {"kernel": {"file": "dir", "size": 1, "sha256": "0" * 64}}}, "regular file"),
    ],
)
def test_a_manifest_is_believed_only_where_it_can_be_true(
    changes: dict[str, object], says: str, store: ImageStore, imported: Image
) -> None:
    folder = store.root / "debian" / imported.generation
    (folder / "dir").mkdir()
    damage(folder / "manifest.json", **changes)

    with pytest.raises(ConfigError, match=says):
        store.active()


@pytest.mark.parametrize("target", ["..", "../../../../etc", "absent", "/etc"])
def test_an_active_link_that_leads_away_is_a_fault(
    target: str, store: ImageStore, imported: Image
) -> None:
    link = store.root / "debian/active"
    link.unlink()
    link.symlink_to(target)

    with pytest.raises(ConfigError, match="bootd image activate debian"):
        store.active()


@pytest.fixture
def manifest_is_a_fifo(store: ImageStore, imported: Image) -> Iterator[None]:
    manifest = store.root / "debian" / imported.generation / "manifest.json"
    manifest.unlink()
    os.mkfifo(manifest)
    yield
    manifest.unlink()


@pytest.mark.usefixtures("manifest_is_a_fifo")
def test_a_manifest_that_is_a_fifo_is_a_fault_and_nobody_waits(store: ImageStore) -> None:
    with pytest.raises(ConfigError, match="is not a regular file"):
        store.active()


def test_activating_finds_the_newest_generation_that_is_whole(
    store: ImageStore, imported: Image, kernel: Path, initramfs: Path
) -> None:
    newest = store.import_files("debian", kernel, initramfs)
    Path(newest.artefacts["kernel"].path).unlink()

    assert store.activate("debian") == imported

    Path(imported.artefacts["kernel"].path).unlink()
    with pytest.raises(NoSuchImage, match="has no generation that can be booted"):
        store.activate("debian")


def test_an_images_folder_that_is_a_file_is_told(store: ImageStore) -> None:
    store.root.parent.mkdir()
    store.root.touch()

    with pytest.raises(ConfigError, match="images: Not a directory"):
        store.active()


def test_a_folder_that_may_not_be_written_says_who_may(
    store: ImageStore, kernel: Path, initramfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/var/lib/bootd/images")

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write everywhere

    with pytest.raises(ImageError, match="images: Permission denied; run it as root"):
        store.import_files("debian", kernel, initramfs)


def test_a_manifest_that_is_gone_is_a_fault(store: ImageStore, imported: Image) -> None:
    (store.root / "debian" / imported.generation / "manifest.json").unlink()

    with pytest.raises(ConfigError, match=r"manifest\.json: cannot be read: No such file"):
        store.active()


def test_a_compressed_kernel_is_refused_with_what_to_do(
    store: ImageStore, kernel: Path, initramfs: Path
) -> None:
    kernel.write_bytes(b"\x1f\x8b" + KERNEL)

    with pytest.raises(ImageError, match=r"compressed kernel \(Image.gz\) must be unpacked"):
        store.import_files("debian", kernel, initramfs)


def test_no_images_at_all_are_no_fault(store: ImageStore) -> None:
    assert store.active() == {}
    assert store.images() == {}


def test_leftovers_and_strangers_are_not_generations(store: ImageStore, imported: Image) -> None:
    (store.root / "debian/.tmp-20200101-000000-abcd").mkdir()
    (store.root / "debian/README").touch()
    (store.root / "README").touch()

    assert [g.generation for g in store.generations("debian")] == [imported.generation]
    assert list(store.images()) == ["debian"]


def test_removing_leftovers_touches_nothing_else(store: ImageStore, imported: Image) -> None:
    folder = store.root / "debian"
    (folder / ".tmp-x").mkdir()
    (folder / ".tmp-x/kernel").touch()
    (folder / ".tmp-active").symlink_to("/etc")

    disk.remove_leftovers(folder)

    assert names(store) == sorted([".build-lock", ".lock", imported.generation, "active"])
    assert Path("/etc/passwd").exists()
