"""The daemon's lifecycle: load, start the services in order, reload, drain, end.

One `asyncio.TaskGroup` owns every task, inside an `AsyncExitStack` that closes the services: tasks
end before sockets close. A service that dies ends the process (systemd restarts it). The decisions
are elsewhere; this file only connects.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import secrets
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final, NoReturn, Protocol

import structlog
import uvloop

from bootd import __version__, checking, control, health, metrics, ports
from bootd import log as logs
from bootd.boots.timeline import Boot, Boots
from bootd.boots.unknown import Unknown
from bootd.claiming import Claiming
from bootd.config.load import load
from bootd.dhcp.server import DhcpServer
from bootd.drift import Drift
from bootd.files import LoaderFiles, search_path
from bootd.history import History
from bootd.http.server import HttpServer
from bootd.keyring import TokenKeys
from bootd.model import ConfigError, LogSettings, Settings, StartError
from bootd.net import Interfaces
from bootd.notify import Notifier
from bootd.overlay.cache import OverlayCache
from bootd.registry import Current, Registry
from bootd.reload import Reloader
from bootd.state import Learned, Memory, load_node_secrets, prepare
from bootd.tftp.server import TftpServer

log = structlog.get_logger()

DRAIN: Final = 8.0
"""Seconds that transfers in progress get after SIGTERM; the process ends within ten."""


class Service(Protocol):
    """What the daemon starts and stops."""

    async def start(self) -> None:
        """Bind. Raises `StartError`."""
        ...

    async def run(self) -> None:
        """Serve until cancelled."""
        ...

    async def stop(self, deadline: float) -> None:
        """Drain until `deadline` (loop time), then close."""
        ...


class FollowedBoots(Boots):
    """Boots that tell the daemon when a node is up."""

    on_up: Callable[[str], None] | None = None

    def up(self, boot: Boot, now: float) -> None:
        """As `Boots.up`, and tell."""
        super().up(boot, now)
        if self.on_up is not None and boot.node is not None:
            self.on_up(boot.node)


class ServiceEnded(Exception):
    """A service's `run` returned although nobody stopped it."""


def serve(config_file: str, environ: Mapping[str, str]) -> int:
    """Run the daemon until SIGTERM or SIGINT.

    Returns the exit code: 0, 1 where something failed, 2 where a file is wrong.
    """
    os.umask(0o077)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sink = logs.configure(LogSettings(), environ)
    # Not asyncio.Runner: it waits for worker threads without limit, and a disk that hangs must not
    # hold up the end of the process.
    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(Daemon(config_file, environ, sink).run())
    finally:
        loop.close()


def load_frozen(config_file: str, generation: int) -> Registry:
    """`load`, and what it made is put aside from the garbage collector, which would otherwise walk
    all of it at once and hold the loop meanwhile (10,000 nodes: 90 ms; so 40). A registry that was
    replaced is freed by its reference counts: it has no cycles."""
    gc.disable()
    try:
        registry = load(config_file, generation=generation)
        gc.freeze()
    finally:
        gc.enable()
    return registry


def leave(code: int) -> NoReturn:
    """End the process with `code`; a worker thread that hangs in a system call gets two seconds."""
    hard = threading.Timer(2.0, os._exit, (code,))
    hard.daemon = True
    hard.start()
    sys.exit(code)


class Daemon:
    """One run of the daemon, from files to exit code."""

    def __init__(self, config_file: str, environ: Mapping[str, str], sink: logs.Sink) -> None:
        self._config_file = config_file
        self._sink = sink
        self._environ = environ
        self._notifier = Notifier.from_environment(environ)
        self._learned = Learned()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._hup_early = False
        self._serving = False
        self._reloader: Reloader | None = None
        self._services: dict[str, Service] = {}
        self._stopped: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._began = time.monotonic()

    async def run(self) -> int:
        """Live. Returns the exit code."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(health.ExceptionHandler(loop.time))
        # First of all: the default action of SIGHUP is death (SECURITY.md R9).
        loop.add_signal_handler(signal.SIGHUP, self._on_hup)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_term)
        try:
            registry = await asyncio.to_thread(self._load, 1)
        except ConfigError as error:
            self._complain(error.faults)
            return 2
        self._sink.close()
        self._sink = logs.configure(registry.settings.log, self._environ, cache=True)
        log.info("bootd.starting", version=__version__, config=self._config_file, pid=os.getpid())
        try:
            return await self._serve(registry)
        except StartError as error:
            await asyncio.to_thread(self._explain_start, error, registry.settings)
            return 1
        finally:
            self._notifier.close()
            self._sink.close()

    # ---- signals --------------------------------------------------------------------------------

    def _on_hup(self) -> None:
        if self._reloader is None:
            self._hup_early = True  # the files may have changed since they were read: once more
        else:
            self._reloader.request()

    def _on_term(self) -> None:
        """The first one drains; a second one, from someone in a hurry, cuts."""
        if not self._serving:
            os._exit(0)
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    # ---- files ----------------------------------------------------------------------------------

    def _load(self, generation: int) -> Registry:
        """In a worker thread: files to registry, with what was learned. Raises `ConfigError`."""
        registry = load_frozen(self._config_file, generation)
        if generation == 1:
            self._learned = Learned.load(registry.settings.state_dir)
        self._learned.forget(registry)
        return self._learned.apply(registry)

    def _complain(self, faults: Iterable[str]) -> None:
        for fault in faults:
            log.error("registry.rejected", fault=fault)
            self._tell(fault)
        self._tell("bootd: not started; see `bootd check`")

    def _tell(self, sentence: str) -> None:
        """On stderr, where that is not the journal: there the log's entry is enough."""
        if not logs.under_journal(self._environ):
            print(sentence, file=sys.stderr, flush=True)

    def _explain_start(self, error: StartError, settings: Settings) -> None:
        what = str(error)
        ended = what if what.endswith((".", "?")) else f"{what}."
        sentence = " ".join([ended, *ports.explain(error, settings)])
        log.critical("bootd.cannot-start", fault=sentence)
        self._tell(f"bootd: {sentence}")

    # ---- life -----------------------------------------------------------------------------------

    async def _serve(self, registry: Registry) -> int:
        loop = asyncio.get_running_loop()
        settings = registry.settings
        await asyncio.to_thread(prepare, settings.state_dir, settings.run_dir)
        keys = await asyncio.to_thread(TokenKeys, settings.state_dir, time.time)  # noqa: TID251
        node_secrets = await asyncio.to_thread(load_node_secrets, settings.state_dir)
        signing = (keys.current, node_secrets)
        current = Current(registry)
        memory = Memory(self._learned, current, settings.state_dir)
        boots = FollowedBoots(
            new_id=lambda: secrets.token_hex(8),
            window=settings.security.boot_window,
            offset=time.time() - loop.time(),  # noqa: TID251 -- as above
        )
        boots.on_up = memory.node_up
        unknown = Unknown()
        overlays = OverlayCache()
        drift = Drift(current=current, boots=boots, overlays=overlays)
        reloader = self._make_reloader(current, boots, unknown, memory, drift)
        history = History(boots, settings.state_dir)
        await history.load(lambda mac: node.name if (node := registry.by_mac.get(mac)) else None)
        async with AsyncExitStack() as stack:
            stack.callback(overlays.close)
            stack.push_async_callback(history.save)
            self._services = self._make_services(
                current, boots, unknown, signing, reloader, overlays, drift, stack
            )
            for name, service in self._services.items():
                # Pushed before the start: one that fails half-way is closed as well.
                stack.push_async_callback(self._stop, name, service, 0.0)
                await service.start()
            self._note_registry(registry)
            self._reloader = reloader
            if self._hup_early:
                reloader.request()
            runs = {name: service.run for name, service in self._services.items()}
            others = {
                "reload": reloader.run,
                "memory": memory.run,
                "keys": keys.run,
                "history": history.run,
                "drift": drift.run,
                "templates": checking.Templates(current).run,
                "lag": health.measure_lag,
                "tidy": health.tidy,
            }
            return await self._live(runs | others, registry)

    def _make_services(
        self,
        current: Current,
        boots: Boots,
        unknown: Unknown,
        keys: tuple[Sequence[bytes], Sequence[bytes]],
        reloader: Reloader,
        overlays: OverlayCache,
        drift: Drift,
        stack: AsyncExitStack,
    ) -> dict[str, Service]:
        """In the order they start. DHCP is late: who gets an answer must find the rest running."""
        settings = current.registry.settings
        started = time.time()  # noqa: TID251 -- app reads the clock for everyone
        net = Interfaces(current)
        files = LoaderFiles(search_path(settings.state_dir))
        stack.callback(files.close)
        return {
            "net": net,
            "http": HttpServer(
                current=current,
                boots=boots,
                files=files,
                overlays=overlays,
                net=net,
                keys=keys[0],
                node_secrets=keys[1],
                unknown=unknown,
            ),
            "tftp": TftpServer(
                current=current,
                boots=boots,
                files=files,
                net=net,
                keys=keys[0],
                node_secrets=keys[1],
                overlays=overlays,
            ),
            "dhcp": DhcpServer(
                current=current, boots=boots, net=net, on_boot=overlays.warm, unknown=unknown
            ),
            "control": control.ControlServer(
                current=current,
                boots=boots,
                path=settings.control_socket,
                unknown=unknown,
                reload=reloader.reload,
                drift=drift,
                claiming=Claiming(current=current, unknown=unknown, reload=reloader.reload),
                info=lambda: control.describe_process(started, current.registry),
            ),
        }

    def _make_reloader(
        self, current: Current, boots: Boots, unknown: Unknown, memory: Memory, drift: Drift
    ) -> Reloader:
        def swapped(_old: Registry, new: Registry) -> None:
            boots.window = new.settings.security.boot_window
            boots.rename(lambda mac: node.name if (node := new.by_mac.get(mac)) else None)
            unknown.forget(new.by_mac)
            drift.forget()
            logs.set_level(new.settings.log.level)
            memory.reloaded()
            self._note_registry(new)

        return Reloader(
            current=current,
            load=self._load,
            notifier=self._notifier,
            swapped=swapped,
            status=lambda: _status(current.registry),
        )

    @staticmethod
    def _note_registry(registry: Registry) -> None:
        metrics.NODES.set(len(registry.nodes))
        metrics.LOADED_AT.set(time.time())  # noqa: TID251 -- as above
        loaded = time.monotonic()
        metrics.REGISTRY_AGE.set_function(lambda: time.monotonic() - loaded)

    async def _live(
        self, runs: Mapping[str, Callable[[], Awaitable[None]]], registry: Registry
    ) -> int:
        """Run everything until a signal comes or something dies."""
        died = False
        try:
            async with asyncio.TaskGroup() as group:
                self._tasks = [
                    group.create_task(self._guard(name, run), name=name)
                    for name, run in runs.items()
                ]
                watchdog = group.create_task(health.feed_watchdog(self._notifier, self._healthy))
                self._ready(registry)
                await self._stopping.wait()
                await self._drain()
                for task in (*self._tasks, watchdog):
                    task.cancel()
        except* Exception:
            died = True  # `_guard` has told who and why
        if not died:
            log.info("bootd.stopped")
        return int(died)

    def _ready(self, registry: Registry) -> None:
        self._serving = True
        seconds = round(time.monotonic() - self._began, 3)
        log.info(
            "bootd.ready", nodes=len(registry.nodes), images=len(registry.images), seconds=seconds
        )
        self._notifier.ready(_status(registry))

    def _healthy(self) -> bool:
        """Whether the watchdog may be fed: no task has ended, and the loop got here to ask."""
        return self._stopping.is_set() or not any(task.done() for task in self._tasks)

    async def _guard(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        try:
            await run()
            if not self._stopping.is_set():
                raise ServiceEnded(name)
        except Exception:
            metrics.EXCEPTIONS.labels(name).inc()
            log.critical("service.died", service=name, exc_info=True)
            raise

    async def _drain(self) -> None:
        """Let transfers finish for `DRAIN` seconds, or until a second signal."""
        self._notifier.stopping()
        log.info("bootd.stopping", drain_seconds=DRAIN)
        async with asyncio.TaskGroup() as group:
            drain = group.create_task(self._stop_all(asyncio.get_running_loop().time() + DRAIN))
            hurry = group.create_task(self._hurry.wait())
            await asyncio.wait(
                {drain, hurry}, timeout=DRAIN + 0.5, return_when=asyncio.FIRST_COMPLETED
            )
            drain.cancel()
            hurry.cancel()

    async def _stop_all(self, deadline: float) -> None:
        # The interfaces stay: what drains still asks them. The exit stack closes them at the end.
        async with asyncio.TaskGroup() as group:
            for name, service in self._services.items():
                if name != "net":
                    group.create_task(self._stop(name, service, deadline))

    async def _stop(self, name: str, service: Service, deadline: float) -> None:
        """Stop a service once, whatever comes of it: the others must be stopped as well."""
        if name in self._stopped:
            return
        try:
            await service.stop(deadline)
        except Exception:
            metrics.EXCEPTIONS.labels(name).inc()
            log.exception("service.stop-failed", service=name)
        self._stopped.add(name)


def _status(registry: Registry) -> str:
    """One line for `systemctl status`."""
    return f"Serving {len(registry.nodes)} nodes, registry generation {registry.generation}"
