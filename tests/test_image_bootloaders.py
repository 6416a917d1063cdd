from __future__ import annotations

from pathlib import Path

import pytest

from bootd.image.bootloaders import copy_loaders, find_loaders


def put(root: Path, *paths: str) -> None:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)


@pytest.mark.parametrize(
    "paths",
    [
        (
            "usr/lib/shim/shimx64.efi.signed",
            "usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed",
            "usr/lib/shim/mmx64.efi.signed",
        ),
        (
            "boot/efi/EFI/rocky/shimx64.efi",
            "boot/efi/EFI/rocky/grubx64.efi",
            "boot/efi/EFI/rocky/mmx64.efi",
        ),
        (
            "usr/share/efi/x86_64/shim.efi",
            "usr/share/efi/x86_64/grub.efi",
            "usr/share/efi/x86_64/MokManager.efi",
        ),
    ],
)
def test_shim_and_grub_are_found_where_distributions_put_them(
    tmp_path: Path, paths: tuple[str, ...]
) -> None:
    put(tmp_path, *paths)

    roles = ("shimx64", "grubx64", "mmx64")
    assert dict(find_loaders(tmp_path)) == dict(zip(roles, paths, strict=True))


def test_a_chain_without_its_second_half_is_none(tmp_path: Path) -> None:
    put(tmp_path, "usr/lib/shim/shimx64.efi.signed", "usr/lib/shim/shimaa64.efi.signed")
    put(tmp_path, "usr/lib/grub/arm64-efi-signed/grubnetaa64.efi.signed")

    assert set(find_loaders(tmp_path)) == {"shimaa64", "grubaa64"}


def test_a_link_out_of_the_root_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("secret")
    root = tmp_path / "root"
    put(root, "usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed", "usr/lib/shim/x")
    (root / "usr/lib/shim/shimx64.efi.signed").symlink_to(outside)

    assert find_loaders(root) == {}


def test_they_are_copied_into_the_generation_with_their_digests(tmp_path: Path) -> None:
    root, folder = tmp_path / "root", tmp_path / "generation"
    put(root, "usr/lib/shim/shimx64.efi.signed")
    put(root, "usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed")
    folder.mkdir()

    made = copy_loaders(root, folder, lambda *_: None)

    assert {role: file.file for role, file in made.items()} == {
        "shimx64": "efi/shimx64.efi",
        "grubx64": "efi/grubx64.efi",
    }
    copied = folder / "efi" / "shimx64.efi"
    assert copied.read_text() == "usr/lib/shim/shimx64.efi.signed"
    assert copied.stat().st_mode & 0o777 == 0o644
    assert made["shimx64"].size == copied.stat().st_size
    assert copy_loaders(folder, tmp_path, lambda *_: None) == {}
