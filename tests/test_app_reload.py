"""Reloading: the old registry serves on until a whole new one is there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from bootd.model import ConfigError, DhcpMode, DhcpSettings, HttpSettings, Node, Settings
from bootd.notify import Notifier
from bootd.registry import Current, Registry
from bootd.reload import Reloader, pin


def registry(*names: str, generation: int = 1, settings: Settings | None = None) -> Registry:
    return Registry(
        settings=settings or Settings(),
        nodes={name: Node(name) for name in names},
        images={},
        overlays={},
        templates={},
        generation=generation,
    )


class Spoken(Notifier):
    """A service manager's ear."""

    def __init__(self) -> None:
        super().__init__(None)
        self.said: list[str] = []

    def send(self, **fields: str | int) -> bool:
        self.said.append(next(iter(fields)))
        return True


class Files:
    """What `load` finds. `hold` keeps it from finishing, to see what happens meanwhile."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ("n001", "n002")
        self.error: Exception | None = None
        self.settings = Settings()
        self.loads = 0
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()

    def load(self, generation: int) -> Registry:
        self.loads += 1
        self.begun.set()
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        return registry(*self.names, generation=generation, settings=self.settings)


@asynccontextmanager
async def running(
    files: Files, notifier: Notifier | None = None, swapped: Callable[..., None] | None = None
) -> AsyncIterator[tuple[Reloader, Current]]:
    current = Current(registry("n001"))
    reloader = Reloader(
        current=current,
        load=files.load,
        notifier=notifier or Notifier(None),
        swapped=swapped or (lambda _old, _new: None),
        status=lambda: "Serving",
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(reloader.run())
        yield reloader, current
        task.cancel()


async def test_a_good_file_is_swapped_in_and_says_what_changed() -> None:
    files = Files()
    async with running(files) as (reloader, current):
        with capture_logs() as logged:
            outcome = await reloader.reload()

    assert outcome.faults == ()
    assert outcome.changes is not None
    assert outcome.changes.added == ("n002",)
    assert set(current.registry.nodes) == {"n001", "n002"}
    assert current.registry.generation == 2
    assert [entry["event"] for entry in logged] == ["registry.loaded"]
    assert logged[0]["added"] == "n002"


async def test_names_in_the_log_are_folded() -> None:
    files = Files()
    files.names = tuple(f"n{number:03}" for number in range(1, 129))
    async with running(files) as (reloader, _):
        with capture_logs() as logged:
            await reloader.reload()

    assert logged[0]["added"] == "n[002-128]"


async def test_a_broken_file_keeps_the_old_registry_and_logs_every_fault() -> None:
    files = Files()
    files.error = ConfigError(["nodes.yaml:1:1: a: b", "nodes.yaml:2:1: c: d"])
    async with running(files) as (reloader, current):
        before = current.registry
        with capture_logs() as logged:
            outcome = await reloader.reload()

    assert current.registry is before
    assert outcome.faults == ("nodes.yaml:1:1: a: b", "nodes.yaml:2:1: c: d")
    assert [entry["fault"] for entry in logged] == list(outcome.faults)
    assert {entry["event"] for entry in logged} == {"registry.rejected"}


@pytest.mark.parametrize("error", [RecursionError("deep"), MemoryError(), RuntimeError("a bug")])
async def test_a_fault_of_our_own_keeps_the_old_registry_too(error: Exception) -> None:
    files = Files()
    files.error = error
    async with running(files) as (reloader, current):
        before = current.registry
        with capture_logs():
            outcome = await reloader.reload()

    assert current.registry is before
    assert len(outcome.faults) == 1


async def test_the_manager_hears_reloading_then_ready_even_when_a_file_is_broken() -> None:
    files, notifier = Files(), Spoken()
    files.error = ConfigError(["x:1:1: y"])
    async with running(files, notifier) as (reloader, _):
        with capture_logs():
            await reloader.reload()

    assert notifier.said == ["RELOADING", "READY"]


async def test_a_storm_of_requests_while_one_reload_runs_makes_one_more() -> None:
    files = Files()
    async with running(files) as (reloader, _):
        files.go.clear()
        reloader.request()
        await asyncio.to_thread(files.begun.wait, 10)
        for _number in range(1000):
            reloader.request()
        last = asyncio.ensure_future(reloader.reload())  # noqa: TID251 -- the test owns it
        await asyncio.sleep(0)
        files.go.set()
        outcome = await last

    assert files.loads == 2
    assert outcome.generation == 3


async def test_who_waits_gets_the_outcome_of_a_reload_that_began_after_the_request() -> None:
    files = Files()
    async with running(files) as (reloader, current):
        files.go.clear()
        reloader.request()
        await asyncio.to_thread(files.begun.wait, 10)
        waiting = asyncio.ensure_future(reloader.reload())  # noqa: TID251 -- the test owns it
        await asyncio.sleep(0)
        files.names = ("n003",)  # edited while the first reload reads
        files.go.set()
        await waiting

    assert set(current.registry.nodes) == {"n003"}


async def test_the_swap_is_told_at_once_with_both_registries() -> None:
    files, seen = Files(), []
    async with running(files, swapped=lambda old, new: seen.append((old, new))) as (reloader, now):
        await reloader.reload()

    assert [(len(old.nodes), len(new.nodes)) for old, new in seen] == [(1, 2)]
    assert seen[0][1] is now.registry


async def test_a_port_that_changes_in_the_file_keeps_its_value_until_a_restart() -> None:
    files = Files()
    files.settings = Settings(http=HttpSettings(port=1234), dhcp=DhcpSettings(lease_time=60))
    async with running(files) as (reloader, current):
        with capture_logs() as logged:
            outcome = await reloader.reload()

    assert outcome.restart == ("http.port",)
    assert current.registry.settings.http.port == HttpSettings().port
    assert current.registry.settings.dhcp.lease_time == 60
    assert logged[-1]["event"] == "registry.restart-needed"
    assert logged[-1]["settings"] == "http.port"


def test_settings_that_did_not_change_need_no_restart() -> None:
    settings = Settings(state_dir="/srv")

    assert pin(settings, replace(settings)) == (settings, ())


def test_dhcp_is_switched_on_or_off_by_a_restart_only_but_changes_its_mode_at_once() -> None:
    proxy, off = Settings(), Settings(dhcp=DhcpSettings(mode=DhcpMode.OFF))
    reservation = Settings(dhcp=DhcpSettings(mode=DhcpMode.RESERVATION))

    assert pin(proxy, reservation) == (reservation, ())
    assert pin(proxy, off) == (proxy, ("dhcp.mode",))
    assert pin(off, proxy) == (off, ("dhcp.mode",))


def test_folders_stay_where_they_are_until_a_restart() -> None:
    old = Settings(state_dir="/a", run_dir="/b")

    pinned, names = pin(old, Settings(state_dir="/c", run_dir="/d"))

    assert (pinned.state_dir, pinned.run_dir) == ("/a", "/b")
    assert names == ("state_dir", "run_dir")
