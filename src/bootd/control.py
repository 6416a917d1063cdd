"""The control socket: HTTP and JSON for the command line, on ``run_dir/control.sock``.

Only root and members of group ``bootd`` may open it; the kernel checks that, by the socket's mode.
Handlers translate: they read one snapshot, call a function that never saw a request, and answer.
Big answers are made in a worker thread, so that a status of ten thousand nodes delays no boot.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import platform
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import prometheus_client
import structlog
from aiohttp import web

from bootd import __version__, metrics, status
from bootd.boots.timeline import Boots
from bootd.boots.unknown import Unknown, describe
from bootd.claiming import Claiming, ClaimRefused
from bootd.drift import Drift
from bootd.model import StartError
from bootd.registry import Current, Registry
from bootd.reload import Outcome

log = structlog.get_logger()

GROUP: Final = "bootd"
MAX_BODY: Final = 65536
LAST_ANSWERS: Final = 1.0
"""Seconds that answers under way get when the daemon ends."""


class Refused(Exception):
    """The request cannot be done: `status` and a sentence for who typed it."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class ControlServer:
    """Serves the control socket. `reload` reloads and waits; `info` tells of the process."""

    def __init__(
        self,
        *,
        current: Current,
        boots: Boots,
        path: str,
        reload: Callable[[], Awaitable[Outcome]],
        unknown: Unknown,
        drift: Drift,
        claiming: Claiming,
        info: Callable[[], dict[str, Any]],
    ) -> None:
        self._current = current
        self._boots = boots
        self._path = path
        self._reload = reload
        self._unknown = unknown
        self._drift = drift
        self._claiming = claiming
        self._info = info
        self._runner: web.AppRunner | None = None
        self._inode: tuple[int, int] | None = None

    async def start(self) -> None:
        """Bind the socket, in place of a dead one. Raises `StartError`."""
        app = web.Application(middlewares=[_errors], client_max_size=MAX_BODY)
        app.add_routes(
            [
                web.get("/version", self._get_version),
                web.get("/status", self._get_status),
                web.get("/nodes", self._get_nodes),
                web.get("/timeline/{who}", self._get_timeline),
                web.get("/drift/{who}", self._get_drift),
                web.get("/unknown", self._get_unknown),
                web.get("/images", self._get_images),
                web.get("/metrics", self._get_metrics),
                web.post("/reload", self._post_reload),
                web.post("/claim", self._post_claim),
            ]
        )
        listener = await asyncio.to_thread(listen, self._path)
        found = Path(self._path).stat()
        self._inode = (found.st_dev, found.st_ino)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=LAST_ANSWERS
        )
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def run(self) -> None:
        """Answer until cancelled."""
        await asyncio.get_running_loop().create_future()

    async def stop(self, deadline: float) -> None:  # noqa: ARG002 -- answers are short
        """Close, and remove the socket where it is still ours."""
        if self._runner is None:
            return
        await self._runner.cleanup()
        self._runner = None
        with contextlib.suppress(OSError):
            found = Path(self._path).stat()
            if (found.st_dev, found.st_ino) == self._inode:
                Path(self._path).unlink()

    async def _get_version(self, _request: web.Request) -> web.Response:
        return _json(self._info())

    async def _get_status(self, _request: web.Request) -> web.Response:
        registry, now = self._current.registry, asyncio.get_running_loop().time()
        return await _json_in_thread(
            lambda: {
                "server": self._info(),
                "nodes": status.node_rows(registry, self._boots, now),
                "unknown": status.unknown_rows(registry, self._boots, now),
            }
        )

    async def _get_nodes(self, _request: web.Request) -> web.Response:
        registry = self._current.registry
        return await _json_in_thread(
            lambda: [status.describe_node(registry, node) for node in registry.nodes.values()]
        )

    async def _get_timeline(self, request: web.Request) -> web.Response:
        who = request.match_info["who"]
        now = asyncio.get_running_loop().time()
        found = status.timeline(self._current.registry, self._boots, who, now)
        if found is None:
            raise Refused(404, f"{who}: no node of that name, and no machine of that MAC asked")
        return _json(found)

    async def _get_drift(self, request: web.Request) -> web.Response:
        """What a reboot would change for a node that is up; ``boot`` is null for others."""
        registry, who = self._current.registry, request.match_info["who"]
        node = registry.find(who)
        if node is None:
            raise Refused(404, f"{who}: there is no such node")
        boot = status.latest(self._boots, node)
        if boot is None or boot.outcome != "up":
            return _json({"node": node.name, "boot": None, "differs": []})
        differs = await self._drift.explain(registry, node, boot)
        return _json({"node": node.name, "boot": boot.id, "differs": differs})

    async def _get_unknown(self, _request: web.Request) -> web.Response:
        now = asyncio.get_running_loop().time()
        machines = self._unknown.in_order()
        return _json([describe(machine, now, self._boots.offset) for machine in machines])

    async def _get_images(self, _request: web.Request) -> web.Response:
        registry, now = self._current.registry, asyncio.get_running_loop().time()
        return await _json_in_thread(lambda: status.images_in_use(registry, self._boots, now))

    async def _get_metrics(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=prometheus_client.generate_latest(metrics.REGISTRY),
            headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST},
        )

    async def _post_reload(self, _request: web.Request) -> web.Response:
        return _answer(await self._reload())

    async def _post_claim(self, request: web.Request) -> web.Response:
        try:
            body = json.loads(await request.read())
            mac, nodes = body.get("mac"), str(body["nodes"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(400, "a claim is an object with nodes, and mac or none") from error
        try:
            pairs, outcome = await self._claiming.claim(str(mac) if mac else None, nodes)
        except ClaimRefused as error:
            raise Refused(409, str(error)) from error
        claimed = [{"mac": address, "node": name} for address, name in pairs]
        return _json({"claimed": claimed, **outcome.describe()}, status=_status(outcome))


def _answer(outcome: Outcome) -> web.Response:
    return _json(outcome.describe(), status=_status(outcome))


def _status(outcome: Outcome) -> int:
    return 422 if outcome.faults else 200


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=_dump(value), status=status, content_type="application/json")


async def _json_in_thread(make: Callable[[], object]) -> web.Response:
    body = await asyncio.to_thread(lambda: _dump(make()))
    return web.Response(body=body, content_type="application/json")


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@web.middleware
async def _errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """The one place that turns refusals into statuses."""
    try:
        return await handler(request)
    except Refused as error:
        return _json({"error": str(error)}, status=error.status)
    except web.HTTPException as error:
        return _json({"error": error.reason}, status=error.status)
    except Exception as error:
        metrics.EXCEPTIONS.labels("control").inc()
        log.exception("control.failed", route=request.path)
        return _json({"error": f"bootd failed: {error!r}"}, status=500)


def listen(path: str) -> socket.socket:
    """A listening socket at `path`, mode 0660 and group bootd where that exists.

    A dead daemon's socket is replaced. Raises `StartError` where a living one answers, or where
    something is in the way that is no socket.
    """
    try:
        _remove_dead(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.bind(path)  # the umask is 077: nobody else can connect before the next lines
            with contextlib.suppress(KeyError, PermissionError):
                os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)
            Path(path).chmod(0o660)
            listener.listen(64)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise StartError(
            f"{path}: {error.strerror}. It is the control socket; `run_dir` in bootd.yaml says "
            f"where it is, and the daemon's user must be able to write there."
        ) from error
    return listener


def _remove_dead(path: str) -> None:
    try:
        found = Path(path).lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise StartError(f"{path} is in the way and is no socket: move it away.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
    raise StartError(
        f"{path}: another bootd answers there. Stop it first (systemctl stop bootd), or give this "
        f"one its own run_dir."
    )


def describe_process(started: float, registry: Registry) -> dict[str, Any]:
    """Version, process and registry; `started` is wall-clock seconds since 1970."""
    return {
        "version": __version__,
        "pid": os.getpid(),
        "python": platform.python_version(),
        "started": round(started, 3),
        "config": registry.settings.config_file,
        "generation": registry.generation,
        "nodes": len(registry.nodes),
    }
