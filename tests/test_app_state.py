"""What the daemon learns: on disk whole or not at all, and applied to the registry."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bootd import state
from bootd.model import BootTarget, Node, Settings, StartError
from bootd.registry import Current, Registry
from bootd.state import KEY_BYTES, Learned, Memory, load_node_secrets, prepare, write_atomic


def registry(*nodes: Node) -> Registry:
    return Registry(
        settings=Settings(),
        nodes={node.name: node for node in nodes},
        images={},
        overlays={},
        templates={},
    )


def test_a_file_is_written_whole_with_its_mode_and_nothing_is_left_beside_it(
    tmp_path: Path,
) -> None:
    write_atomic(tmp_path / "x.json", b"new", 0o640)

    assert (tmp_path / "x.json").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "x.json").stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()  # a file cannot replace a folder

    with pytest.raises(OSError, match="x"):
        write_atomic(tmp_path / "x", b"new")

    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_key_is_made_once_readable_by_us_alone_and_found_again(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()

    first = load_node_secrets(str(tmp_path))
    again = load_node_secrets(str(tmp_path))

    assert first == again
    assert len(first[0]) == KEY_BYTES
    (file,) = (tmp_path / "keys" / "nodes").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_newest_key_signs_and_older_ones_are_still_accepted(tmp_path: Path) -> None:
    keys = tmp_path / "keys" / "nodes"
    keys.mkdir(parents=True)
    for name, age in (("old", 1000), ("new", 2000)):
        (keys / f"{name}.key").write_bytes(name.encode() * 16)
        os.utime(keys / f"{name}.key", (age, age))
    (keys / "cut.key").write_bytes(b"short")

    assert load_node_secrets(str(tmp_path)) == (b"new" * 16, b"old" * 16)


def test_folders_are_made_and_one_that_is_in_the_way_is_named(tmp_path: Path) -> None:
    prepare(str(tmp_path / "state"), str(tmp_path / "run"))
    assert stat.S_IMODE((tmp_path / "state" / "keys").stat().st_mode) == 0o700

    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="file"):
        prepare(str(tmp_path / "file"), str(tmp_path / "run"))


def test_once_that_is_spent_is_local_and_survives_a_restart(tmp_path: Path) -> None:
    learned = Learned()
    learned.spend("n001")
    learned.save(str(tmp_path))

    nodes = (Node("n001", boot=BootTarget.ONCE), Node("n002", boot=BootTarget.ONCE))
    applied = Learned.load(str(tmp_path)).apply(registry(*nodes))

    assert applied.nodes["n001"].boot is BootTarget.LOCAL
    assert applied.nodes["n002"].boot is BootTarget.ONCE


def test_the_flag_is_dropped_when_the_file_no_longer_says_once() -> None:
    learned = Learned(["n001", "n002", "gone"])

    learned.forget(registry(Node("n001"), Node("n002", boot=BootTarget.ONCE)))

    assert learned.once_done == {"n002"}


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"once_done": 5}', "\0\0"])
def test_a_damaged_file_counts_as_empty(tmp_path: Path, damage: str) -> None:
    (tmp_path / "learned.json").write_text(damage)

    assert Learned.load(str(tmp_path)).once_done == frozenset()


async def test_a_node_that_is_up_is_written_down_and_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "SETTLE", 0)
    current = Current(registry(Node("n001", boot=BootTarget.ONCE), Node("n002")))
    swapped = asyncio.Event()

    class Watched(Current):
        def swap(self, new: Registry) -> Registry:
            swapped.set()
            return super().swap(new)

    current = Watched(current.registry)
    memory = Memory(Learned(), current, str(tmp_path))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(memory.run())
        memory.node_up("n002")
        memory.node_up("n001")
        await swapped.wait()
        task.cancel()

    assert json.loads((tmp_path / "learned.json").read_text()) == {"once_done": ["n001"]}
    assert current.registry.nodes["n001"].boot is BootTarget.LOCAL


async def test_a_full_disk_is_logged_and_the_node_still_boots_locally(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "SETTLE", 0)
    swapped = asyncio.Event()

    class Watched(Current):
        def swap(self, new: Registry) -> Registry:
            swapped.set()
            return super().swap(new)

    current = Watched(registry(Node("n001", boot=BootTarget.ONCE)))
    memory = Memory(Learned(), current, str(tmp_path / "gone"))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(memory.run())
        with capture_logs() as logged:
            memory.node_up("n001")
            await swapped.wait()
        task.cancel()

    assert logged[0]["event"] == "state.write-failed"
    assert current.registry.nodes["n001"].boot is BootTarget.LOCAL
