"""Boots that survive a restart: lines of JSON, the file, and what a new process makes of it."""

from __future__ import annotations

import stat
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd import history
from bootd.boots import record
from bootd.boots.record import CUT_OFF, RecordError, dump, parse
from bootd.boots.timeline import Boot, Boots, Refresh, Stage, Step
from bootd.history import COARSE, History
from bootd.model import Arch, Artefact, ClientKind, Image, Mac

MAC, OTHER = Mac("52:54:00:12:34:56"), Mac("52:54:00:12:34:57")
NAMES = {Mac(f"52:54:00:00:00:{number:02x}"): f"n{number}" for number in range(40)}
NAMES |= {MAC: "n001", OTHER: "n002"}
IMAGE = Image("debian", "7", {"kernel": Artefact("/images/debian/7/kernel", 9, "aa")})
BEFORE, AFTER = 1_800_000_000.0, 1_800_000_500.0  # the clocks' difference in either process


def full(**changes: Any) -> Boot:
    """A boot that has something in every field."""
    boot = Boot(
        id="0123456789abcdef",
        mac=MAC,
        node="n001",
        started=10.0,
        seen=31.5,
        kind=ClientKind.PXE,
        arch=Arch.EFI_X64,
        address=IPv4Address("10.0.0.11"),
        steps=[
            Step(Stage.KERNEL, 12.0, "debian 7", 900, 900, 14.0, "ok"),
            Step(Stage.FAIL, 30.0, "overlay: ‮\n", ended=30.0, outcome="failed"),
        ],
        outcome="failed",
        error="overlay: 2d0c",
        ended=30.0,
        window=610.0,
        image=IMAGE,
        server="http://10.0.0.1:9873",
        given={"kernel": "aa", "args": "quiet"},
        refresh=Refresh(25.0, "failed", "bb", 3, 1, "no route"),
        stale=("kernel",),
    )
    return replace(boot, **changes)


def boots(offset: float = BEFORE) -> Boots:
    numbers = count(1)
    return Boots(new_id=lambda: f"{next(numbers):016x}", offset=offset)


def test_an_image_as_it_is_read_from_disk_is_kept() -> None:
    frozen = replace(IMAGE, artefacts=MappingProxyType(dict(IMAGE.artefacts)))

    assert parse(dump(full(outcome="", image=frozen), BEFORE), BEFORE).image == IMAGE


def test_the_example_has_every_field() -> None:
    defaults = Boot("", MAC, None, 0.0, 0.0)

    assert [
        f.name for f in fields(Boot) if getattr(full(), f.name) == getattr(defaults, f.name)
    ] == ["mac"]


def test_every_field_comes_back() -> None:
    assert parse(dump(full(), BEFORE), BEFORE) == full()


def test_times_are_those_of_the_reading_process() -> None:
    boot = parse(dump(full(), BEFORE), AFTER)

    assert (boot.started, boot.seen, boot.ended, boot.window) == (-490.0, -468.5, -470.0, 110.0)
    assert [(step.begun, step.ended) for step in boot.steps] == [(-488.0, -486.0), (-470.0, -470.0)]
    assert boot.refresh is not None
    assert boot.refresh.at == -475.0


def test_every_time_is_known_as_one() -> None:
    """Whoever adds a number of seconds to the timeline says here whether it is a time."""
    for owner, names in record._TIMES.items():
        assert is_dataclass(owner)
        hints = get_type_hints(owner)
        assert {name for name, hint in hints.items() if hint in (float, float | None)} == set(names)


def test_what_ran_when_the_process_ended_is_cut_off() -> None:
    running = full(steps=[Step(Stage.INITRAMFS, 20.0, size=100, sent=40)], outcome="", ended=None)

    [step] = parse(dump(running, BEFORE), BEFORE).steps

    assert (step.outcome, step.ended, step.sent) == (CUT_OFF, 31.5, 40)


@given(st.binary(max_size=400))
def test_any_line_is_a_boot_or_refused(line: bytes) -> None:
    with pytest.raises(RecordError):
        parse(line, BEFORE)


@given(st.integers(0, 600), st.integers(0, 255))
def test_a_damaged_line_is_a_boot_or_refused(position: int, value: int) -> None:
    line = bytearray(dump(full(), BEFORE))
    line[position % len(line)] = value
    with suppress(RecordError):
        parse(bytes(line), BEFORE)


def test_a_line_that_is_too_long_is_refused() -> None:
    line = dump(full(error="x" * record.MAX_LINE), BEFORE)

    with pytest.raises(RecordError):
        parse(line, BEFORE)


async def restarted(first: Boots, folder: Path, offset: float = AFTER) -> Boots:
    await History(first, str(folder)).save()
    second = boots(offset)
    await History(second, str(folder)).load(NAMES.get)
    return second


async def test_a_new_process_knows_everyones_boots(tmp_path: Path) -> None:
    first = boots()
    for now in (0.0, 100.0, 200.0):
        first.up(first.discover(MAC, "n001", ClientKind.PXE, 7, now), now + 20)
    first.discover(OTHER, "n002", ClientKind.PXE, 7, 0.0)
    first.discover(Mac("52:54:00:00:00:99"), None, ClientKind.PXE, 7, 0.0)

    second = await restarted(first, tmp_path)

    assert [boot.id for boot in second.history(MAC)] == [boot.id for boot in first.history(MAC)]
    assert [boot.mac for boot in second] == [MAC, OTHER]
    assert stat.S_IMODE((tmp_path / "boots.jsonl").stat().st_mode) == 0o600


async def test_a_boot_under_way_goes_on_and_one_that_is_up_is_over(tmp_path: Path) -> None:
    first = boots()
    going = first.discover(MAC, "n001", ClientKind.IPXE, 7, 0.0)
    first.note(MAC, Stage.LOADER, 1.0)
    first.up(first.discover(OTHER, "n002", ClientKind.IPXE, 7, 0.0), 20.0)

    second = await restarted(first, tmp_path, BEFORE + 60)

    assert second.discover(MAC, "n001", ClientKind.IPXE, 7, -30.0).id == going.id
    over = second.of(OTHER)
    assert over is not None
    assert over.outcome == "up"
    assert second.discover(OTHER, "n002", ClientKind.IPXE, 7, -30.0) is not over


async def test_a_token_tells_of_a_boot_that_was_not_written_down_in_time(tmp_path: Path) -> None:
    first = boots()
    first.discover(MAC, "n001", ClientKind.PXE, 7, 0.0)
    second = await restarted(first, tmp_path, BEFORE)
    known = second.of(MAC)
    assert known is not None

    assert not second.missed(known, known.id, 900.0)
    assert second.missed(known, "b" * 16, 100.0 + second.window)  # it sent DHCP at 100
    assert not second.missed(known, "c" * 16, -100.0 + second.window)  # a token of long ago

    second.discover(MAC, "n001", ClientKind.PXE, 7, 50.0)
    assert not second.missed(known, "b" * 16, 100.0 + second.window)


async def test_ten_thousand_boots_are_bounded_and_the_latest_of_everyone_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MAX_BOOTS", 60)
    first = boots()
    for now in (0.0, 1000.0):
        for number in range(40):
            mac = Mac(f"52:54:00:00:00:{number:02x}")
            first.up(first.discover(mac, f"n{number}", ClientKind.PXE, 7, now), now + 1)

    second = await restarted(first, tmp_path)

    assert len(list(second)) == 40
    assert sum(len(second.history(boot.mac)) for boot in second) == 60
    assert all(boot.started + AFTER == 1000.0 + BEFORE for boot in second)


async def test_equal_images_are_one_in_memory(tmp_path: Path) -> None:
    first = boots()
    for number in range(3):
        mac = Mac(f"52:54:00:00:00:{number:02x}")
        first.discover(mac, f"n{number}", ClientKind.PXE, 7, 0.0).image = replace(IMAGE)

    second = await restarted(first, tmp_path)

    assert len({id(boot.image) for boot in second}) == 1


async def test_nothing_new_is_not_written_again(tmp_path: Path) -> None:
    first = boots()
    boot = first.discover(MAC, "n001", ClientKind.PXE, 7, 0.0)
    keeper = History(first, str(tmp_path))
    await keeper.save()
    file = tmp_path / "boots.jsonl"
    before = file.stat().st_ino

    await keeper.save()
    assert file.stat().st_ino == before

    first.up(boot, 5.0)
    await keeper.save()
    assert b'"outcome":"up"' in file.read_bytes()


async def test_a_running_node_that_asks_every_minute_is_not_written_down_each_time(
    tmp_path: Path,
) -> None:
    first = boots()
    boot = first.discover(MAC, "n001", ClientKind.PXE, 7, 0.0)
    first.up(boot, 5.0)
    keeper = History(first, str(tmp_path))
    file = tmp_path / "boots.jsonl"

    def ask(now: float, result: str = "unchanged") -> None:
        boot.seen, boot.refresh = now, Refresh(now, result, "0" * 64)

    ask(6.0)
    await keeper.save()
    before = file.stat().st_ino

    ask(66.0)
    await keeper.save()
    assert file.stat().st_ino == before

    ask(126.0, "failed")
    await keeper.save()
    assert b'"failed"' in file.read_bytes()

    ask(126.0 + COARSE, "failed")
    before = file.stat().st_ino
    await keeper.save()
    assert file.stat().st_ino != before


async def test_a_damaged_file_costs_the_boots_that_it_damages(tmp_path: Path) -> None:
    first = boots()
    first.discover(MAC, "n001", ClientKind.PXE, 7, 0.0)
    await History(first, str(tmp_path)).save()
    file = tmp_path / "boots.jsonl"
    file.write_bytes(b'{"half": \xff\n' + file.read_bytes() + b'{"id":"0123')

    second = boots()
    await History(second, str(tmp_path)).load(NAMES.get)

    assert [boot.mac for boot in second] == [MAC]


async def test_a_disk_that_is_full_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    first = boots()
    first.discover(MAC, "n001", ClientKind.PXE, 7, 0.0)
    keeper = History(first, str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(history, "write_atomic", full_disk)
        await keeper.save()
    assert not (tmp_path / "boots.jsonl").exists()

    await keeper.save()
    assert (tmp_path / "boots.jsonl").exists()


async def test_a_machine_that_is_another_node_now_takes_its_boots_along(tmp_path: Path) -> None:
    first = boots()
    for mac, name in ((MAC, "n001"), (OTHER, "n002")):
        first.discover(mac, name, ClientKind.PXE, 7, 0.0)
    await History(first, str(tmp_path)).save()

    second = boots()
    await History(second, str(tmp_path)).load({MAC: "n009"}.get)

    assert [(boot.mac, boot.node) for boot in second] == [(MAC, "n009"), (OTHER, None)]


async def test_without_a_file_there_is_nothing_to_know(tmp_path: Path) -> None:
    empty = boots()
    await History(empty, str(tmp_path)).load(NAMES.get)

    assert list(empty) == []


async def test_a_boot_that_cannot_be_put_into_words_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, dump = boots(), record.dump

    def fail_for_n001(boot: Boot, offset: float) -> bytes:
        if boot.node == "n001":
            raise ValueError("a type that nobody thought of")
        return dump(boot, offset)

    monkeypatch.setattr(record, "dump", fail_for_n001)
    for mac, name in ((MAC, "n001"), (OTHER, "n002")):
        first.discover(mac, name, ClientKind.PXE, 7, 0.0)
    await History(first, str(tmp_path)).save()

    second = boots()
    await History(second, str(tmp_path)).load(NAMES.get)
    assert [boot.node for boot in second] == ["n002"]
