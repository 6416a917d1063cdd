from __future__ import annotations

from itertools import count

from bootd.boots.timeline import KEPT_BOOTS, MAX_STEPS, Boots, Stage
from bootd.cli.status import row
from bootd.model import Arch, ClientKind, Mac
from bootd.status import boot_row

MAC = Mac("52:54:00:12:34:56")


def boots(**options: int) -> Boots:
    numbers = count(1)
    return Boots(new_id=lambda: f"{next(numbers):08x}", **options)


def test_a_repeated_discover_goes_on_with_the_same_boot() -> None:
    log = boots()
    first = log.discover(MAC, "n001", ClientKind.PXE, Arch.EFI_X64, 10.0)
    again = log.discover(MAC, "n001", ClientKind.PXE, Arch.EFI_X64, 14.0)

    assert again is first
    assert first.window == 614.0


def test_ipxe_after_its_loader_is_the_same_boot() -> None:
    log = boots()
    first = log.discover(MAC, "n001", ClientKind.PXE, Arch.X86_BIOS, 10.0)
    log.note(MAC, Stage.LOADER, 12.0, detail="undionly.kpxe")

    assert log.discover(MAC, "n001", ClientKind.IPXE, Arch.X86_BIOS, 13.0) is first


def test_a_loader_that_ran_into_nothing_is_a_boot_that_failed() -> None:
    log = boots()
    log.discover(MAC, "n001", ClientKind.PXE, Arch.EFI_X64, 10.0)
    log.note(MAC, Stage.LOADER, 14.0, detail="tftp snponly.efi")

    second = log.discover(MAC, "n001", ClientKind.HTTP, Arch.EFI_X64_HTTP, 70.0)

    first = log.history(MAC)[0]
    assert (first.outcome, second.outcome) == ("failed", "")
    assert "Secure Boot" in first.error
    assert "loader: shim" in first.error


def test_a_machine_that_begins_anew_later_or_after_its_script_has_not_failed_by_its_loader() -> (
    None
):
    for stage, later in ((Stage.LOADER, 300.0), (Stage.SCRIPT, 70.0)):
        log = boots()
        log.discover(MAC, "n001", ClientKind.PXE, Arch.EFI_X64, 10.0)
        log.note(MAC, Stage.LOADER, 14.0)
        log.note(MAC, stage, 15.0)

        log.discover(MAC, "n001", ClientKind.PXE, Arch.EFI_X64, later)

        assert log.history(MAC)[0].error == ""


def test_firmware_that_asks_again_after_its_loader_has_restarted() -> None:
    log = boots()
    first = log.discover(MAC, "n001", ClientKind.PXE, Arch.X86_BIOS, 10.0)
    log.note(MAC, Stage.LOADER, 12.0)

    second = log.discover(MAC, "n001", ClientKind.PXE, Arch.X86_BIOS, 13.0)

    assert second.id != first.id
    assert log.history(MAC) == (first, second)


def test_ipxe_that_asks_again_after_the_script_has_restarted() -> None:
    log = boots()
    first = log.discover(MAC, "n001", ClientKind.IPXE, Arch.X86_BIOS, 10.0)
    log.note(MAC, Stage.SCRIPT, 12.0)

    assert log.discover(MAC, "n001", ClientKind.IPXE, Arch.X86_BIOS, 60.0) is not first


def test_a_boot_that_is_up_is_over_and_its_window_closed() -> None:
    log = boots()
    boot = log.discover(MAC, "n001", ClientKind.IPXE, None, 10.0)
    log.up(boot, 31.0)

    described = log.describe(boot, 100.0)
    assert (described["outcome"], described["stage"], described["seconds"]) == ("up", "up", 21.0)
    assert boot.window == 31.0
    assert log.discover(MAC, "n001", ClientKind.IPXE, None, 32.0) is not boot


def test_a_failed_boot_that_retries_is_booting_again() -> None:
    log = boots()
    boot = log.discover(MAC, "n001", ClientKind.IPXE, None, 10.0)
    log.fail(boot, 12.0, "kernel: 2d0c6139")
    assert log.describe(boot, 13.0)["outcome"] == "failed"

    log.retrying(boot)

    assert log.describe(boot, 13.0)["outcome"] == "booting"
    assert boot.error == "kernel: 2d0c6139"


def test_unknown_machines_are_bounded_and_known_ones_are_not_pushed_out() -> None:
    log = boots(max_unknown=10)
    log.discover(MAC, "n001", ClientKind.PXE, None, 1.0)
    for number in range(100):
        log.discover(Mac(f"52:54:00:00:00:{number:02x}"), None, ClientKind.PXE, None, 2.0)

    assert sum(boot.node is None for boot in log) == 10
    assert log.of(MAC) is not None


def test_steps_and_earlier_boots_are_bounded() -> None:
    log = boots()
    boot = log.discover(MAC, "n001", ClientKind.PXE, None, 0.0)
    for number in range(3 * MAX_STEPS):
        log.note(MAC, Stage.SCRIPT, 1.0, detail=str(number))
    for _ in range(10):
        log.up(log.discover(MAC, "n001", ClientKind.PXE, None, 2.0), 3.0)

    assert len(boot.steps) <= MAX_STEPS + 1
    assert len(log.history(MAC)) == KEPT_BOOTS + 1


def test_a_transfer_under_way_tells_its_bytes() -> None:
    log = boots(offset=1000)
    boot = log.discover(MAC, "n001", ClientKind.IPXE, None, 0.0)
    step = log.begin(MAC, Stage.KERNEL, 1.0, detail="kernel", size=100)
    assert step is not None
    step.sent = 40

    [described] = log.describe(boot, 3.0)["steps"]
    assert described == {
        "stage": "kernel",
        "at": 1001.0,
        "after": 1.0,
        "seconds": 2.0,
        "detail": "kernel",
        "bytes": 40,
        "size": 100,
        "outcome": "running",
    }
    log.finish(step, 4.0, "aborted")
    assert log.describe(boot, 9.0)["steps"][0]["outcome"] == "aborted"


def test_what_has_no_boot_is_not_kept() -> None:
    log = boots()

    assert log.begin(MAC, Stage.KERNEL, 1.0) is None
    assert log.note(MAC, Stage.LOADER, 1.0) is None
    log.finish(None, 2.0)
    assert list(log) == []


def test_a_machine_named_by_a_reload_keeps_its_boot() -> None:
    log = boots()
    boot = log.discover(MAC, None, ClientKind.PXE, None, 0.0)
    log.rename(lambda mac: "n007" if mac == MAC else None)

    assert log.of(MAC) is boot
    assert boot.node == "n007"


def test_a_token_from_before_a_restart_brings_its_boot_back() -> None:
    log = boots()
    boot = log.adopt(MAC, "feedface", "n001", window=600.0, now=5.0)

    assert log.adopt(MAC, "feedface", "n001", window=600.0, now=6.0) is boot
    assert log.of(MAC) is boot


def test_a_machine_sent_to_its_own_disk_is_not_booting_for_ever() -> None:
    log = boots()
    for detail in ("local", "grub local", "pxelinux local"):
        boot = log.discover(MAC, "n001", ClientKind.PXE, Arch.EFI_X64, 10.0)
        log.note(MAC, Stage.SCRIPT, 12.0, detail=detail)

        shown = boot_row(boot, 500.0, 0.0)

        assert (shown["outcome"], shown["seconds"]) == ("local", 2.0)
        assert log.describe(boot, 500.0)["outcome"] == "local"
        assert row(shown | {"node": "n001"})[1] == "local disk"
