"""The console: what firmware writes becomes lines that a test can wait for."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.console import Console
from tests.lab.run import LabError

UEFI = (
    b"\x1b[2J\x1b[01;01H\x1b[=3h\x1b[0m\x1b[35m\x1b[40m\x1b[01;01H>>Start PXE over IPv4."
    b"\x1b[0m\r\n  NBP filename is snponly.efi\x1b[12;03HBdsDxe: starting\r\n"
)


def lines(console: Console) -> list[str]:
    return [line.text for line in console.lines]


def test_cursor_codes_are_taken_out_and_a_moved_cursor_begins_a_line() -> None:
    console = Console("m")

    console.feed(UEFI)

    assert lines(console) == [
        ">>Start PXE over IPv4.",
        "  NBP filename is snponly.efi",
        "BdsDxe: starting",
    ]


def test_a_backspace_takes_back_what_was_written() -> None:
    console = Console("m")

    console.feed(b"kernel... 12%\b\b\b\b")
    console.feed(b" 99%\b\b\b\b ok\r\n")

    assert lines(console) == ["kernel... ok"]


@given(st.lists(st.integers(0, len(UEFI)), max_size=6))
def test_the_lines_are_the_same_wherever_the_bytes_are_cut(cuts: list[int]) -> None:
    whole, parts = Console("m"), Console("m")
    whole.feed(UEFI)
    edges = [0, *sorted(cuts), len(UEFI)]

    for begin, end in pairwise(edges):
        parts.feed(UEFI[begin:end])

    assert lines(parts) == lines(whole)


@given(st.binary())
def test_any_bytes_give_text_without_control_characters(data: bytes) -> None:
    console = Console("m")

    console.feed(data)
    console.close()

    assert not any(character < " " for text in lines(console) for character in text)


async def test_stages_are_matched_in_order() -> None:
    console = Console("m")
    console.feed(b"ready 1\nready 2\nprompt> ")

    first = await console.wait_for(r"^ready \d", within=1)
    second = await console.wait_for(r"^ready \d", within=1)
    await console.wait_for("prompt> ", within=1)

    assert (first.group(), second.group()) == ("ready 1", "ready 2")


async def test_a_pattern_that_does_not_come_is_an_error_with_the_last_lines() -> None:
    console = Console("n001")
    console.feed(b"no bootable device\nhalf a li")

    with pytest.raises(LabError, match="n001: 0 s passed before its console showed 'up'") as caught:
        await console.wait_for("up", within=0)

    assert "no bootable device" in caught.value.detail
    assert "half a li" in caught.value.detail


async def test_nobody_waits_for_a_machine_that_is_off() -> None:
    console = Console("n001")
    console.feed(b"Power down")
    console.close()

    await console.wait_for("Power down", within=60)
    with pytest.raises(LabError, match="the machine went off"):
        await console.wait_for("up", within=60)
