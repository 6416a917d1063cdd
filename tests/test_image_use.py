"""Which generations the running daemon holds on to."""

from __future__ import annotations

from itertools import count

from bootd.boots.timeline import Boots
from bootd.model import ClientKind, Image, Node, Settings, parse_mac
from bootd.registry import Registry
from bootd.status import BOOT_PATIENCE, images_in_use

MAC = parse_mac("52:54:00:00:00:01")
OLD, NEW = Image("debian", "1", {}), Image("debian", "2", {})


def registry() -> Registry:
    nodes = {"n001": Node("n001", mac=MAC, image="debian"), "n002": Node("n002", image="debian")}
    return Registry(Settings(), nodes, {"debian": NEW, "unused": Image("unused", "1", {})}, {}, {})


def booting(image: Image | None) -> Boots:
    numbers = count()
    boots = Boots(new_id=lambda: f"{next(numbers):016x}")
    boots.discover(MAC, "n001", ClientKind.PXE, 0, 100.0).image = image
    return boots


def used(boots: Boots, now: float = 101.0) -> dict[str, str]:
    return {row["generation"]: row["why"] for row in images_in_use(registry(), boots, now)}


def test_what_nodes_are_given_and_what_a_boot_began_with_are_in_use() -> None:
    assert used(booting(OLD)) == {
        "2": "node n001 boots it",
        "1": "n001 is booting it (dhcp)",
    }


def test_a_boot_that_is_over_or_without_an_image_holds_none() -> None:
    up = booting(OLD)
    boot = up.of(MAC)
    assert boot is not None
    up.up(boot, 101.0)

    assert list(used(up)) == ["2"]
    assert list(used(booting(None))) == ["2"]


def test_a_machine_that_was_switched_off_does_not_hold_its_image_for_ever() -> None:
    boots = booting(OLD)

    assert "1" in used(boots, 100.0 + BOOT_PATIENCE)
    assert "1" not in used(boots, 101.0 + BOOT_PATIENCE)
