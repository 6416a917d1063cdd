from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd.loaders import (
    Autoexec,
    BootFile,
    GrubConfig,
    ImageFile,
    Loader,
    PxelinuxConfig,
    Refused,
    Static,
    Target,
    boot_file,
    boot_path,
    candidates,
    clean,
    firmware_path,
    ipxe_files,
    ipxe_name,
    loader_for,
    route,
)
from bootd.model import Arch, parse_mac

MAC = parse_mac("52:54:00:12:34:56")


@pytest.mark.parametrize(
    ("arch", "choice", "path"),
    [
        (0, "auto", "52-54-00-12-34-56/undionly.kpxe"),
        (0, "ipxe", "52-54-00-12-34-56/ipxe.pxe"),
        (0, "shim", "52-54-00-12-34-56/undionly.kpxe"),
        (0, "grub", "52-54-00-12-34-56/grub/i386-pc/core.0"),
        (6, "auto", "52-54-00-12-34-56/snponly-i386.efi"),
        (7, "auto", "52-54-00-12-34-56/snponly.efi"),
        (7, "snponly", "52-54-00-12-34-56/snponly.efi"),
        (7, "ipxe", "52-54-00-12-34-56/ipxe.efi"),
        (7, "shim", "52-54-00-12-34-56/shimx64.efi"),
        (7, "grub", "52-54-00-12-34-56/grubnetx64.efi"),
        (9, "auto", "52-54-00-12-34-56/snponly.efi"),
        (10, "auto", "52-54-00-12-34-56/snponly-arm32.efi"),
        (11, "auto", "52-54-00-12-34-56/snponly-arm64.efi"),
        (11, "ipxe", "52-54-00-12-34-56/ipxe-arm64.efi"),
        (11, "shim", "52-54-00-12-34-56/shimaa64.efi"),
        (15, "auto", "52-54-00-12-34-56/snponly-i386.efi"),
        (16, "auto", "52-54-00-12-34-56/snponly.efi"),
        (17, "auto", "52-54-00-12-34-56/snponly.efi"),
        (19, "auto", "52-54-00-12-34-56/snponly-arm64.efi"),
        (20, "auto", "52-54-00-12-34-56/undionly.kpxe"),
        (22, "auto", "52-54-00-12-34-56/snponly-arm64.efi"),
        (27, "auto", "52-54-00-12-34-56/snponly-riscv64.efi"),
        (39, "auto", "52-54-00-12-34-56/snponly-loong64.efi"),
        (7, "site/special.efi", "52-54-00-12-34-56/site/special.efi"),
        (2, "elilo.efi", "52-54-00-12-34-56/elilo.efi"),
    ],
)
def test_each_architecture_and_choice_gets_its_own_path(arch: int, choice: str, path: str) -> None:
    assert boot_path(MAC, arch, choice) == path


@pytest.mark.parametrize("arch", [1, 2, 3, 4, 5, 8, 13, 14, 31, 33, 36, 41, 99, 65535, -1])
def test_an_architecture_that_we_have_no_loader_for_gets_no_path(arch: int) -> None:
    assert loader_for(arch) == ()
    assert boot_path(MAC, arch) is None


def test_every_path_fits_the_dhcp_header_and_leads_back_to_its_loader() -> None:
    for arch in Arch:
        for choice in ("auto", "ipxe", "snponly", "shim", "grub"):
            path = boot_path(MAC, arch, choice)
            if path is not None:
                assert len(path) <= 127
                assert route(path) == Loader(loader_for(arch, choice)[0], MAC)


def test_a_missing_loader_is_replaced_by_one_for_the_same_machine_only() -> None:
    assert candidates("snponly.efi") == loader_for(7)
    assert "ipxe.efi" in candidates("snponly.efi")
    assert "ipxe.efi" not in candidates("snponly-arm64.efi")
    assert "arm64-efi/snponly.efi" in candidates("snponly-arm64.efi")
    assert candidates("undionly.kpxe") == ("undionly.kpxe", "ipxe.pxe")


def test_shims_second_stage_may_be_debians_signed_file() -> None:
    assert candidates("grubx64.efi")[-1] == "grubnetx64.efi.signed"
    assert candidates("mmx64.efi") == ("mmx64.efi", "mmx64.efi.signed")


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("52-54-00-12-34-56/snponly.efi", Loader("snponly.efi", MAC)),
        ("/52:54:00:12:34:56/snponly.efi", Loader("snponly.efi", MAC)),
        ("//52-54-00-12-34-56//./grubx64.efi", Loader("grubx64.efi", MAC)),
        ("52-54-00-12-34-56/revocations.efi", Loader("revocations.efi", MAC)),
        ("52-54-00-12-34-56/grub/fonts/u.pf2", Loader("grub/fonts/u.pf2", MAC)),
        ("52-54-00-12-34-56/autoexec.ipxe", Autoexec(MAC)),
        ("autoexec.ipxe", Autoexec()),
        ("/autoexec.ipxe", Autoexec()),
        ("pxelinux.cfg/01-52-54-00-12-34-56", PxelinuxConfig(MAC)),
        ("52-54-00-12-34-56/pxelinux.cfg/01-52-54-00-12-34-56", PxelinuxConfig(MAC)),
        ("52-54-00-12-34-56/pxelinux.cfg/default", PxelinuxConfig(MAC)),
        ("pxelinux.cfg/default", Static("pxelinux.cfg/default")),
        ("pxelinux.cfg/0A00000B", Static("pxelinux.cfg/0A00000B")),
        ("grub/grub.cfg-01-52-54-00-12-34-56", GrubConfig(MAC)),
        ("grub/grub.cfg", GrubConfig()),
        ("grub/52-54-00-12-34-56", GrubConfig(MAC)),
        ("grub/grub.cfg-0A00000B", GrubConfig()),
        ("grub2/grub.cfg", GrubConfig()),
        ("boot/grub/grub.cfg", GrubConfig()),
        ("boot/grub2/grub.cfg-01-52-54-00-12-34-56", GrubConfig(MAC)),
        ("EFI/debian/grub.cfg", GrubConfig()),
        ("/efi/rocky/grub.cfg", GrubConfig()),
        ("efiboot/grub.cfg", GrubConfig()),
        ("efiboot/shim.efi", Loader("shim.efi")),
        ("grub/x86_64-efi/grub.cfg", Static("grub/x86_64-efi/grub.cfg")),
        ("grub/x86_64-efi/command.lst", Static("grub/x86_64-efi/command.lst")),
        ("52-54-00-12-34-56/fbx64.efi", Loader("fbx64.efi", MAC)),
        ("52-54-00-12-34-56/grub.cfg", GrubConfig(MAC)),
        ("52-54-00-12-34-56/grub/grub.cfg-01-52-54-00-12-34-56", GrubConfig(MAC)),
        ("grub/grub.cfg-0A00", Static("grub/grub.cfg-0A00")),
        ("snponly.efi", Loader("snponly.efi")),
        ("grubx64.efi", Loader("grubx64.efi")),
        ("5a990000/start4.elf", Static("5a990000/start4.elf")),
        ("52-54-00-12-34-56", Static("52-54-00-12-34-56")),
        ("...", Static("...")),
    ],
)
def test_paths_lead_to_their_targets(path: str, target: object) -> None:
    assert route(path) == target


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../etc/passwd", "dot-dot"),
        ("a/../../etc/passwd", "dot-dot"),
        ("52-54-00-12-34-56/../x", "dot-dot"),
        ("a\0b", "control-character"),
        ("a\nb", "control-character"),
        ("a\x7fb", "control-character"),
        ("a\u202eb", "control-character"),
        ("\ud800", "control-character"),
        ("a\\b", "backslash"),
        ("", "empty"),
        ("/.//", "empty"),
        ("x" * 256, "too-long"),
        ("zz-54-00-12-34-56/snponly.efi", "not-a-mac"),
        ("ff-ff-ff-ff-ff-ff/snponly.efi", "not-a-mac"),
        ("00-00-00-00-00-00/autoexec.ipxe", "not-a-mac"),
        ("pxelinux.cfg/01-zz", "not-a-mac"),
        ("grub/grub.cfg-01-", "not-a-mac"),
    ],
)
def test_what_is_no_path_of_ours_is_refused_with_its_reason(path: str, reason: str) -> None:
    assert route(path) == Refused(reason)


def test_the_longest_path_is_still_a_path() -> None:
    assert route("x" * 255) == Static("x" * 255)


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"\\EFI\\boot\\x.efi", "/EFI/boot/x.efi"),
        (b"snponly.efi\xff", "snponly.efi"),
        (b"a\xffb", "a\ufffdb"),
        (b"..\\..\\etc\\passwd", "../../etc/passwd"),
    ],
)
def test_firmware_spellings_become_paths(raw: bytes, path: str) -> None:
    assert firmware_path(raw) == path


@given(st.binary(max_size=300))
def test_any_bytes_lead_to_a_target_and_no_path_climbs(raw: bytes) -> None:
    target = route(firmware_path(raw))
    cleaned = clean(firmware_path(raw))
    if isinstance(target, Static):
        assert cleaned == target.path
    if isinstance(cleaned, str):
        assert ".." not in cleaned.split("/")
        assert not cleaned.startswith("/")
    else:
        assert target == cleaned


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("b/TOKEN/kernel", BootFile("TOKEN", "kernel")),
        ("//b/TOKEN/./system", BootFile("TOKEN", "system")),
        ("52-54-00-12-34-56//b/TOKEN/kernel", BootFile("TOKEN", "kernel")),
        ("kernel/52-54-00-12-34-56", ImageFile("kernel", MAC)),
        ("/52-54-00-12-34-56/initramfs/52:54:00:12:34:56", ImageFile("initramfs", MAC)),
        ("kernel/zz", None),
        ("system/52-54-00-12-34-56", None),
        ("b/TOKEN", None),
        ("b/TOKEN/kernel/x", None),
        ("x/b/TOKEN/kernel", None),
        ("b/../TOKEN/kernel", None),
        ("", None),
    ],
)
def test_loaders_without_http_name_the_parts_of_a_boot_as_http_does(
    path: str, found: BootFile | ImageFile | None
) -> None:
    assert boot_file(path) == found


@given(st.text(max_size=300))
def test_any_text_is_a_part_of_a_boot_or_none(path: str) -> None:
    assert isinstance(boot_file(path), BootFile | ImageFile | None)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        # A Raspberry Pi's boot ROM asks in a folder called by the board's serial number, then
        # without one; U-Boot's pxe command for its MAC address, its IP address digit by digit, and
        # `default` by architecture and board.
        ("12345678/start4.elf", Static("12345678/start4.elf")),
        ("f0e1d2c3/config.txt", Static("f0e1d2c3/config.txt")),
        ("start4.elf", Static("start4.elf")),
        ("dc-a6-32-01-02-03/start4.elf", Loader("start4.elf", parse_mac("dc:a6:32:01:02:03"))),
        ("pxelinux.cfg/01-dc-a6-32-01-02-03", PxelinuxConfig(parse_mac("dc:a6:32:01:02:03"))),
        ("pxelinux.cfg/0A4D0079", Static("pxelinux.cfg/0A4D0079")),
        ("pxelinux.cfg/default-arm-bcm283x-rpi", Static("pxelinux.cfg/default-arm-bcm283x-rpi")),
    ],
)
def test_raspberry_pi_and_u_boot_find_what_a_site_has_put_there(path: str, target: Target) -> None:
    assert route(path) == target


def test_packages_builds_of_ipxe_are_called_as_each_machine_asks() -> None:
    assert ipxe_name("snponly.efi", Arch.EFI_X64) == "snponly.efi"
    assert ipxe_name("ipxe-amd64.efi", Arch.EFI_X64) == "ipxe.efi"
    assert ipxe_name("snponly-x86_64.efi", Arch.EFI_X64) == "snponly.efi"
    assert ipxe_name("snponly.efi", Arch.EFI_ARM64) == "snponly-arm64.efi"
    assert ipxe_name("ipxe-riscv64.efi", Arch.EFI_RISCV64) == "ipxe-riscv64.efi"
    for own in ("ipxe-rack7.efi", "ipxe.efi.new", "undionly.kpxe", "my.efi"):
        assert ipxe_name(own, Arch.EFI_X64) == own


def test_each_build_of_ipxe_for_servers_is_what_machines_are_first_told() -> None:
    first = [loader_for(arch, build)[0] for arch in (7, 11) for build in ("snponly", "ipxe")]

    assert [names[0] for names in ipxe_files()] == first
