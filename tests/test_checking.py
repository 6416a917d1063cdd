"""Templates that a reload had no time to try are tried after it, and faults are told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from bootd import checking
from bootd.checking import Templates
from bootd.model import Node, Overlay, OverlayEntry, Settings
from bootd.registry import Current, Registry

TEXT = b"{% if node.name == 'n199' %}{{ tags.nothing }}{% endif %}{{ node.name }}"


def registry(text: bytes = TEXT, count: int = 200) -> Registry:
    entry = OverlayEntry("etc/x", "template", 0o644, text, source="own/x.j2")
    nodes = {f"n{n:03}": Node(f"n{n:03}", overlays_runtime=("own",)) for n in range(count)}
    return Registry(Settings(), nodes, {}, {"own": Overlay("own", (entry,), "d")}, {})


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "REST", 0.0)
    monkeypatch.setattr(checking, "PERIOD", 0.01)


def faults(lines: list[Any]) -> list[str]:
    return [each["fault"] for each in lines if each["event"] == "templates.fault"]


async def test_a_fault_of_the_last_node_is_found_and_told_once() -> None:
    found = registry()

    with capture_logs() as lines:
        await Templates(Current(found)).check(found)

    (fault,) = faults(lines)
    assert fault.startswith("own/x.j2:1:1: nodes.n199: ")


async def test_a_fault_of_all_nodes_is_one_line() -> None:
    found = registry(b"{{ tags.nothing }}")

    with capture_logs() as lines:
        await Templates(Current(found)).check(found)

    assert len(faults(lines)) == 1


async def test_it_ends_where_another_registry_comes() -> None:
    found = registry()
    templates = Templates(Current(registry(b"x")))

    with capture_logs() as lines:
        await templates.check(found)

    assert faults(lines) == []


async def test_each_registry_is_tried_once() -> None:
    current = Current(registry(count=1))
    with capture_logs() as lines:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(Templates(current).run())
            current.swap(registry())
            async with asyncio.timeout(10):
                while not faults(lines):  # noqa: ASYNC110 -- it is told in the log
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            task.cancel()

    assert len(faults(lines)) == 1
