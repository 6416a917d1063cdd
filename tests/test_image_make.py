"""From a folder to a generation: what is found, built, refused, and left behind."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bootd.image import make
from bootd.image.build import Options
from bootd.image.disk import ImageError, ImageInputError
from bootd.image.inside import find_kernels, look
from bootd.image.sources import oci, suite
from bootd.image.sources.source import Options as SourceOptions
from bootd.image.sources.source import recognise
from bootd.image.store import ImageStore
from bootd.model import Image
from tests.test_image_manifest import bzimage

Import = Callable[..., Image]


def write(root: Path, path: str, data: bytes = b"x", mode: int = 0o644) -> Path:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    target.chmod(mode)
    return target


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root like Debian's, in small."""
    root = tmp_path / "root"
    write(root, "usr/lib/systemd/systemd", mode=0o755)
    (root / "usr/sbin").mkdir()
    (root / "usr/sbin/init").symlink_to("/usr/lib/systemd/systemd")
    (root / "sbin").symlink_to("usr/sbin")
    (root / "lib").symlink_to("usr/lib")
    write(root, "etc/os-release", b'PRETTY_NAME="Debian"\nID=debian\nVERSION_ID="12"\n')
    write(root, "boot/vmlinuz-6.1.0-31-amd64", bzimage(b"6.1.0-31-amd64 x\0"))
    write(root, "boot/initrd.img-6.1.0-31-amd64", b"070701" + bytes(200))
    write(root, "boot/vmlinuz-6.1.0-9-amd64", bzimage(b"6.1.0-9-amd64 x\0"))
    cards = b"".join(
        b"kernel/drivers/net/%s.ko: kernel/x.ko\n" % name.encode()
        for name in ("virtio_net", "e1000e", "igb", "ixgbe", "i40e", "ice", "bnxt_en", "tg3",
                     "mlx5_core", "r8169")
    )  # fmt: skip
    for version in ("6.1.0-31-amd64", "6.1.0-9-amd64"):
        write(root, f"usr/lib/modules/{version}/modules.dep", cards)
    return root


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "state")


@pytest.fixture
def imported(store: ImageStore) -> Import:
    def imported(place: object, name: str = "debian", **wish: object) -> Image:
        return make.import_source(
            store,
            name,
            recognise(str(place)),
            make.Wish(**wish),  # type: ignore[arg-type]
            progress=lambda *_: None,
            say=lambda _: None,
        )

    return imported


def squashfs(image: Image) -> str:
    assert image.squashfs is not None
    return subprocess.run(
        ["unsquashfs", "-lls", image.squashfs.path], capture_output=True, text=True, check=True
    ).stdout


def archive(image: Image, folder: Path) -> Path:
    """The image's cpio, unpacked."""
    assert image.archive is not None
    folder.mkdir()
    program = "zstd" if image.archive.path.endswith(".zst") else "gzip"
    subprocess.run(
        f"{program} -dc {image.archive.path} | cpio -idm --quiet",
        shell=True,
        cwd=folder,
        check=True,
    )
    return folder


# ---- what is in a root --------------------------------------------------------------------------


def test_a_folder_becomes_an_image_with_kernels_archive_and_squashfs(
    root: Path, imported: Import, store: ImageStore, tmp_path: Path
) -> None:
    image = imported(root)

    assert store.active()["debian"] == image
    assert [k.version for k in image.kernels] == ["6.1.0-31-amd64", "6.1.0-9-amd64"]
    assert (image.init, image.os, image.warnings) == ("/sbin/init", "debian-12", ())
    assert image.kernels[0].initramfs is not None
    assert image.kernels[1].initramfs is None
    for artefact in image.files():
        data = Path(artefact.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (artefact.size, artefact.sha256)
    unpacked = archive(image, tmp_path / "unpacked")
    assert (unpacked / "sbin/init").readlink() == Path("/usr/lib/systemd/systemd")
    assert "squashfs-root/usr/sbin/init -> /usr/lib/systemd/systemd" in squashfs(image)
    manifest = store.manifest("debian", image.generation)
    assert manifest.source == f"folder {root}"
    assert set(manifest.tools) == {"mksquashfs", "zstd"}
    assert "proc/*" in manifest.excludes


def test_the_users_and_groups_of_the_root_are_known_by_name(
    root: Path, imported: Import, store: ImageStore
) -> None:
    write(root, "etc/group", b"root:x:0:\nmunge:x:115:\n")
    write(
        root, "usr/share/passwd", b"root:x:0:0:root:/root:/bin/sh\nmunge:x:107:115::/:/bin/false\n"
    )
    (root / "etc/passwd").symlink_to("/usr/share/passwd")  # as the root means it, not the server

    image = imported(root)

    assert image.users == {"root": 0, "munge": 107}
    assert store.active()["debian"].groups == {"root": 0, "munge": 115}


def test_the_same_tree_gives_the_same_digests(root: Path, imported: Import, tmp_path: Path) -> None:
    os.link(root / "etc/os-release", root / "etc/another")
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", root, copy], check=True)

    first, second = imported(root), imported(copy)

    assert {role: a.sha256 for role, a in first.artefacts.items()} == {
        role: a.sha256 for role, a in second.artefacts.items()
    }
    assert first.generation != second.generation


def test_no_file_is_newer_than_the_source_date(root: Path, imported: Import) -> None:
    first = imported(root, build=Options(latest=1000))
    for path in root.rglob("*"):
        os.utime(path, (5000, 5000), follow_symlinks=False)
    os.utime(root, (6000, 6000))

    second = imported(root, build=Options(latest=1000))

    assert first.artefacts["image"].sha256 == second.artefacts["image"].sha256
    assert first.artefacts["squashfs"].sha256 == second.artefacts["squashfs"].sha256


def test_owners_links_attributes_and_devices_are_kept(
    root: Path, imported: Import, tmp_path: Path
) -> None:
    """Root only: the tests of this project run as root."""
    os.chown(root / "etc/os-release", 12, 34)
    os.link(root / "etc/os-release", root / "etc/z-link")
    os.setxattr(root / "usr/lib/systemd/systemd", "user.note", b"kept")
    (root / "dev").mkdir()
    os.mknod(root / "dev/null", 0o20666, os.makedev(1, 3))
    os.mkfifo(root / "etc/fifo")
    image = imported(root)

    into = tmp_path / "sq"
    assert image.squashfs is not None
    subprocess.run(["unsquashfs", "-q", "-n", "-d", into, image.squashfs.path], check=True)
    for found in (into, archive(image, tmp_path / "unpacked")):
        release, other = (found / "etc/os-release").stat(), (found / "etc/z-link").stat()
        assert (release.st_uid, release.st_gid, release.st_ino) == (12, 34, other.st_ino)
        assert (found / "dev/null").stat().st_rdev == os.makedev(1, 3)
        assert (found / "etc/fifo").is_fifo()
    assert os.getxattr(into / "usr/lib/systemd/systemd", "user.note") == b"kept"


def test_excludes_of_the_command_and_of_the_image_leave_files_out_of_both(
    root: Path, imported: Import, tmp_path: Path
) -> None:
    write(root, "etc/bootd/excludes", b"# caches\n/boot\n")
    write(root, "var/cache/apt/x")
    write(root, "proc/1/status")

    image = imported(root, excludes=("var/cache/*",))

    for found in (archive(image, tmp_path / "unpacked"),):
        names = {str(path.relative_to(found)) for path in found.rglob("*")}
        assert {"var/cache", "proc"} <= names
        assert not names & {"boot", "var/cache/apt", "proc/1"}
    assert "squashfs-root/boot" not in squashfs(image)
    assert image.kernel_version == "6.1.0-31-amd64"


def test_a_kernel_from_outside_goes_before_those_of_the_root(
    root: Path, imported: Import, tmp_path: Path
) -> None:
    write(tmp_path, "vmlinuz-5.10", bzimage(b"5.10.0-1-amd64 x\0"))

    image = imported(root, kernel=str(tmp_path / "vmlinuz-5.10"))

    assert image.kernel_version == "5.10.0-1-amd64"
    assert len(image.kernels) == 3


@pytest.mark.parametrize(
    ("name", "files", "version", "initramfs"),
    [
        (
            "Fedora",
            ("lib/modules/6.8.9-300.fc40/vmlinuz", "boot/initramfs-6.8.9-300.fc40.img"),
            "6.8.9-300.fc40",
            "boot/initramfs-6.8.9-300.fc40.img",
        ),
        (
            "Rocky",
            ("boot/vmlinuz-5.14.0-427.el9.x86_64", "boot/initramfs-5.14.0-427.el9.x86_64.img"),
            "5.14.0-427.el9.x86_64",
            "boot/initramfs-5.14.0-427.el9.x86_64.img",
        ),
        (
            "SUSE",
            ("boot/vmlinuz-6.4.0-150600.23-default", "boot/initrd-6.4.0-150600.23-default"),
            "6.4.0-150600.23-default",
            "boot/initrd-6.4.0-150600.23-default",
        ),
        (
            "Arch",
            ("usr/lib/modules/6.6.1-arch1-1/vmlinuz", "boot/initramfs-linux.img"),
            "6.6.1-arch1-1",
            "boot/initramfs-linux.img",
        ),
        (
            "Alpine",
            ("boot/vmlinuz-lts", "boot/initramfs-lts"),
            "6.6.54-0-lts",
            "boot/initramfs-lts",
        ),
        ("arm64", ("boot/Image-6.1.0-arm64",), "6.1.0-arm64", None),
    ],
)  # fmt: skip
def test_kernels_are_found_where_distributions_put_them(
    name: str, files: tuple[str, ...], version: str, initramfs: str | None, tmp_path: Path
) -> None:
    for path in files:
        is_kernel = "vmlinuz" in path or "Image" in path
        write(tmp_path, path, bzimage(b"6.6.54-0-lts x\0") if is_kernel else b"070701")
    if name == "Arch":
        write(tmp_path, "usr/lib/modules/6.6.1-arch1-1/pkgbase", b"linux\n")

    (found,) = find_kernels(tmp_path)

    assert (found.version, found.initramfs) == (version, initramfs)


def test_debug_rescue_and_crash_kernels_go_last(tmp_path: Path) -> None:
    for version in ("5.14.0-1.x86_64", "5.14.0-9.x86_64+debug", "0-rescue-0123"):
        write(tmp_path, f"boot/vmlinuz-{version}", bzimage(b"\0"))

    found = find_kernels(tmp_path)

    assert [(k.version, k.debug) for k in found] == [
        ("5.14.0-1.x86_64", False),
        ("5.14.0-9.x86_64+debug", True),
        ("0-rescue-0123", True),
    ]


def test_symlinks_of_a_root_lead_no_further_than_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "boot").mkdir(parents=True)
    write(tmp_path, "vmlinuz", bzimage(b"6.1.0 x\0"))
    (root / "boot/vmlinuz-6.1.0").symlink_to("../../vmlinuz")
    (root / "boot/vmlinuz-6.2.0").symlink_to(tmp_path / "vmlinuz")
    (root / "boot/vmlinuz-6.3.0").symlink_to("vmlinuz-6.3.0")
    os.mkfifo(root / "boot/vmlinuz-6.4.0")
    (root / "etc").symlink_to("/etc")

    assert find_kernels(root) == ()
    assert look(root).os == ""


def test_a_device_of_a_root_is_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watchdog that is opened reboots the server."""
    (tmp_path / "dev").mkdir()
    os.mknod(tmp_path / "dev/watchdog", 0o20666, os.makedev(10, 130))
    write(tmp_path, "etc/hostname")
    (tmp_path / "etc/os-release").symlink_to("/dev/watchdog")
    opened: list[object] = []
    real = os.open

    def told(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        opened.append(path)
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", told)

    assert look(tmp_path).os == ""
    assert "etc" in opened
    assert "watchdog" not in opened


def test_what_will_hurt_is_told(tmp_path: Path) -> None:
    write(tmp_path, "boot/vmlinuz-6.1.0-1-cloud-amd64", bzimage(b"\0"))
    write(tmp_path, "lib/modules/6.1.0-1-cloud-amd64/modules.dep", b"kernel/drivers/x.ko:\n")
    write(tmp_path, "boot/vmlinuz-6.0.0", bzimage(b"\0"))
    write(tmp_path, "etc/machine-id", b"0123456789abcdef0123456789abcdef\n")
    write(tmp_path, "etc/ssh/ssh_host_rsa_key")

    told = "\n".join(look(tmp_path).warnings)

    for part in (
        "it has no init",
        "kernel 6.1.0-1-cloud-amd64 has a module for no common network card",
        "kernel 6.0.0 has no modules in /lib/modules/6.0.0",
        "it has a machine-id",
        "it has ssh host keys (ssh_host_rsa_key)",
    ):
        assert part in told


def test_an_image_without_a_kernel_says_that_no_node_can_boot_it(
    tmp_path: Path, imported: Import
) -> None:
    write(tmp_path, "r/sbin/init", mode=0o755)

    image = imported(tmp_path / "r")

    assert image.kernels == ()
    assert any("it has no kernel" in warning for warning in image.warnings)


def test_a_kernel_that_cannot_unpack_zstd_gets_a_gzip_archive(root: Path, imported: Import) -> None:
    write(
        root, "boot/config-6.1.0-31-amd64", b"A=y\nCONFIG_RD_GZIP=y\n# CONFIG_RD_ZSTD is not set\n"
    )

    image = imported(root)

    assert image.archive is not None
    assert image.archive.path.endswith("image.cpio.gz")


def test_a_file_of_four_gigabytes_leaves_the_squashfs_alone(
    root: Path, imported: Import, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In small: to read 4 GiB of zeros takes 10 s."""
    monkeypatch.setattr("bootd.image.walk.MAX_SIZE", 1 << 20)
    write(root, "huge", bytes((1 << 20) + 1))

    image = imported(root)

    assert image.archive is None
    assert image.squashfs is not None
    assert any("/huge has 4 GiB or more" in warning for warning in image.warnings)


# ---- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("/absent", "there is nothing of that name; a source is a folder"),
        ("docker:x", "is written docker://HOST/NAME:TAG"),
        ("/dev/null", "is neither a folder nor a file"),
    ],
)
def test_a_source_that_is_none_is_refused(source: str, says: str) -> None:
    with pytest.raises(ImageInputError, match=says):
        recognise(source)


def test_an_import_that_fails_leaves_nothing_behind(
    tmp_path: Path, imported: Import, store: ImageStore
) -> None:
    bad = write(tmp_path, "bad.tar", b"no archive" * 100)

    with pytest.raises(ImageInputError, match="is damaged, or no tar archive"):
        imported(bad)

    assert list(store.root.iterdir()) == []


def test_an_import_that_fails_leaves_the_image_as_it_was(
    root: Path, imported: Import, store: ImageStore, tmp_path: Path
) -> None:
    before = imported(root)
    write(root, "etc/bootd/excludes", b"/\n")

    with pytest.raises(ImageInputError, match=r"/etc/bootd/excludes of the image:1"):
        imported(root)

    assert store.active()["debian"] == before
    assert [p.name for p in (store.root / "debian").iterdir() if p.name.startswith(".tmp")] == []


def test_a_root_that_holds_the_images_is_refused(imported: Import, tmp_path: Path) -> None:
    with pytest.raises(ImageInputError, match="cannot hold itself"):
        imported(tmp_path)


def test_a_tool_that_is_missing_is_named_with_its_package(
    root: Path, imported: Import, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_args, **_more: None)

    with pytest.raises(
        ImageError, match=r"mksquashfs is not installed.*apt-get install squashfs-tools"
    ):
        imported(root)


def test_mksquashfs_that_fails_is_told_with_what_it_said(
    root: Path, imported: Import, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(tmp_path, "mksquashfs", b"#!/bin/sh\necho no space left >&2\nexit 3\n", 0o755)
    monkeypatch.setattr("shutil.which", lambda *_args, **_more: str(tmp_path / "mksquashfs"))
    write(root, "big", os.urandom(3 << 20))

    with pytest.raises(ImageError, match="mksquashfs fails with 3:\n  no space left"):
        imported(root)


# ---- generations --------------------------------------------------------------------------------


def test_old_generations_are_those_that_nobody_would_miss(
    root: Path, imported: Import, store: ImageStore
) -> None:
    names = [imported(root).generation for _ in range(5)]
    store.activate("debian", names[2])

    old = store.old("debian", 1, used=[names[0]])

    # 4 is the newest and was active before 2; 0 is used.
    assert [g.generation for g in old] == [names[1], names[3]]


def test_one_command_goes_back_and_forth(root: Path, imported: Import, store: ImageStore) -> None:
    first, second = imported(root).generation, imported(root).generation

    assert store.previous("debian") == first
    store.activate("debian", first)
    assert store.previous("debian") == second


def test_a_killed_import_is_cleared_away(root: Path, imported: Import, store: ImageStore) -> None:
    image = imported(root)
    folder = store.root / "debian"
    write(folder, ".tmp-20200101-000000-aaaa/image.squashfs")
    write(folder, ".tmp-work-20200101-000000-aaaa/root/etc/passwd")

    assert store.tidy("debian") == 2
    assert [g.generation for g in store.generations("debian")] == [image.generation]


# ---- container images ---------------------------------------------------------------------------


def layout(folder: Path, **changes: object) -> Path:
    """An OCI layout whose image has no layers; `changes` are to its manifest."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    manifest = {"schemaVersion": 2, "layers": [blob(b"layer")], **changes}
    index = {"schemaVersion": 2, "manifests": [blob(json.dumps(manifest).encode())]}
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layers": [{"digest": "sha256:../../../etc/passwd"}]}, "which is no sha256"),
        ({"layers": [{"digest": "../" * 22}]}, "which is no sha256"),
        ({"layers": [{"digest": f"sha256:{'0' * 64}"}]}, "cannot be read"),
        ({"layers": []}, "an image of 0 layers"),
        ({}, "is damaged, or no tar archive"),
    ],
)
def test_a_hostile_layout_is_refused(
    changes: dict[str, object], says: str, imported: Import, tmp_path: Path, store: ImageStore
) -> None:
    with pytest.raises(ImageInputError, match=says):
        imported(layout(tmp_path / "oci", **changes))
    assert list(store.root.iterdir()) == []


def test_a_blob_that_is_not_what_its_digest_says_is_refused(
    imported: Import, tmp_path: Path
) -> None:
    folder = layout(tmp_path / "oci")
    for path in (folder / "blobs/sha256").iterdir():
        if path.read_bytes() == b"layer":
            path.write_bytes(b"other")

    with pytest.raises(ImageInputError, match="is not what its digest says"):
        imported(folder)


def test_a_blob_that_is_a_symlink_is_not_followed(imported: Import, tmp_path: Path) -> None:
    folder = layout(tmp_path / "oci")
    secret = write(tmp_path, "secret", b"layer")
    digest = hashlib.sha256(b"layer").hexdigest()
    (folder / "blobs/sha256" / digest).unlink()
    (folder / "blobs/sha256" / digest).symlink_to(secret)

    with pytest.raises(ImageInputError, match="cannot be read"):
        imported(folder)


def test_the_architecture_is_called_as_containers_call_it() -> None:
    assert oci.architecture("riscv64") == "riscv64"
    assert oci.architecture("") != "x86_64"


# ---- suites -------------------------------------------------------------------------------------


def test_the_distributions_profiles_are_in_order() -> None:
    known = suite.profiles()

    assert {"minimal", "hpc"} <= set(known)
    for profile in known.values():
        assert profile.description
        assert "systemd-sysv" in profile.packages
        assert "linux-image-amd64" in profile.of("debian", "amd64")
        assert "linux-image-generic" in profile.of("ubuntu", "amd64")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("packages: [--hook]\n", "p.yaml:1:1: packages: '--hook' is no package's name"),
        ("package: [a1]\n", "p.yaml:1:1: package: unknown key"),
        ("variant: huge\n", "'huge' is not one of"),
        ("- a\n", "a profile is a map"),
        ("packages: {a: b}\n", "is not a list of names"),
        ("{", "p.yaml:"),
    ],
)
def test_a_profile_with_a_fault_is_refused_with_its_place(text: str, says: str) -> None:
    with pytest.raises(ImageInputError) as caught:
        suite.decode(text.encode(), "p.yaml", "p")
    assert says in str(caught.value).replace("1:11: packages", "1:1: packages").replace(
        "1:10: package", "1:1: package"
    )


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (suite.Wanted("../x"), "is not the name of a suite"),
        (suite.Wanted("--x"), "is not the name of a suite"),
        (suite.Wanted("bookworm", profile="absent"), "there is no profile 'absent'"),
        (suite.Wanted("bookworm", include=("--hook",)), "is no package's name"),
    ],
)
def test_a_suite_that_is_none_is_refused(wanted: suite.Wanted, says: str, tmp_path: Path) -> None:
    with pytest.raises(ImageInputError, match=says):
        suite.bootstrap(wanted, tmp_path, lambda _: None)


def test_keys_that_are_missing_are_named_with_their_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "_KEYRING", str(tmp_path / "{}.gpg"))

    with pytest.raises(ImageError, match=r"Ubuntu's .* apt-get install ubuntu-archive-keyring"):
        suite.bootstrap(suite.Wanted("noble"), tmp_path, lambda _: None)


def test_what_is_imported_may_not_unpack_to_more_than_is_allowed(
    root: Path, imported: Import, tmp_path: Path
) -> None:
    write(root, "zeros", bytes(3 << 20))
    made = tmp_path / "bomb.tar.gz"
    subprocess.run(["tar", "-C", root, "-czf", made, "."], check=True)

    with pytest.raises(ImageInputError, match="more than is allowed"):
        imported(made, source=SourceOptions(max_size=2 << 20))
    assert imported(made, source=SourceOptions(max_size=8 << 20)).init == "/sbin/init"
