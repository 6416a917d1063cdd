"""bootd itself, run from this checkout inside the boot server's namespace, as an operator would."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.lab.image import ROOT, DemoImage
from tests.lab.netns import Network
from tests.lab.run import LabError, Program, run

DEFAULTS: Final[Mapping[str, Any]] = {
    "image": "demo",
    "kernel": {"args": ["quiet", "console=ttyS0,115200"]},
    "overlays": {"system": ["base"]},
}
"""Profile ``default`` of the lab's nodes."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of bootd's log: its keys, and when it was read (monotonic seconds)."""

    at: float
    keys: Mapping[str, Any]

    def matches(self, event: str, **keys: Any) -> bool:
        """True where it is `event` and has all of `keys`."""
        return self.keys.get("event") == event and all(
            self.keys.get(key) == value for key, value in keys.items()
        )


class Server:
    """One bootd with a configuration, state and run folder of its own under `folder`.

    `listen` is called with each event of its log; `ended` with a sentence when the process ends
    though nobody stopped it.
    """

    def __init__(
        self,
        network: Network,
        folder: Path,
        *,
        listen: Callable[[Event], None] | None = None,
        ended: Callable[[str], None] | None = None,
    ) -> None:
        self.config = folder / "etc" / "bootd.yaml"
        self.state = folder / "state"
        self.default: Mapping[str, Any] = DEFAULTS
        self.nodes_file = folder / "etc" / "nodes.yaml"
        self.events: list[Event] = []
        self._network = network
        self._folder = folder
        self._listen = listen
        self._when_ended = ended
        self._program: Program | None = None
        self._stopping = False
        self._ready = asyncio.Event()
        self._heard = asyncio.Event()
        self._rest = b""

    def configure(self, nodes: Mapping[str, Mapping[str, Any]], **settings: Any) -> None:
        """Write bootd.yaml and nodes.yaml; `settings` are sections of bootd.yaml to replace."""
        self.config.parent.mkdir(parents=True, exist_ok=True)
        (self._folder / "run").mkdir(exist_ok=True)
        self.config.write_text(
            _yaml(
                {
                    "interfaces": ["eth0"],
                    "state_dir": str(self.state),
                    "run_dir": str(self._folder / "run"),
                    "nodes": ["nodes.yaml"],
                    "log": {"level": "info", "format": "json"},
                    **settings,
                }
            )
        )
        self.write_nodes(nodes)

    def write_nodes(self, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        """Edit nodes.yaml: these are all nodes there are. Each has profile ``default``, which is
        `default`."""
        whole = {name: {"profiles": ["default"], **node} for name, node in nodes.items()}
        self.nodes_file.write_text(
            _yaml({"profiles": {"default": dict(self.default)}, "nodes": whole})
        )

    def import_image(self, image: DemoImage, name: str = "demo") -> None:
        """``bootd image import``; the service need not run."""
        self.command(
            "image", "import", name,
            "--kernel", str(image.kernel), "--initramfs", str(image.initramfs),
        )  # fmt: skip

    def add_loader(self, path: Path) -> None:
        """Put a boot loader where a site puts its own: ``state_dir/tftp``."""
        folder = self.state / "tftp"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)

    def command(self, *words: str) -> str:
        """Run ``bootd WORDS`` with this server's settings; its output, or `LabError`."""
        return run(*self.argv(*words), cwd=ROOT, env=self.environment(), timeout=300)

    def argv(self, *words: str) -> list[str]:
        """The command line of ``bootd WORDS`` with this server's settings."""
        return [sys.executable, "-m", "bootd", "--config", str(self.config), *words]

    @staticmethod
    def environment() -> dict[str, str]:
        """The environment for `argv`."""
        return _environment()

    @property
    def namespace(self) -> str:
        """The network namespace that it runs in."""
        return self._network.boot

    async def ask(self, *words: str) -> Any:
        """What ``bootd WORDS --json`` answers, while the lab goes on."""
        return json.loads(await asyncio.to_thread(self.command, *words, "--json"))

    async def status(self, node: str) -> dict[str, Any]:
        """The line of ``bootd status --json`` about a node, or about an unknown MAC."""
        answer = await self.ask("status")
        rows = [*answer["nodes"], *answer["unknown"]]
        found: dict[str, Any] = next(row for row in rows if node in (row.get("node"), row["mac"]))
        return found

    async def start(self, within: float = 30.0) -> None:
        """Start ``bootd serve`` and wait for its READY=1; `LabError` says why it does not come."""
        path = self._folder / "notify.sock"
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Notifications(self._ready), family=socket.AF_UNIX, local_addr=str(path)
        )
        try:
            await self._launch(path)
            async with asyncio.timeout(within):
                await self._ready.wait()
        except TimeoutError:
            raise self._failed(f"is not ready after {within:.0f} s") from None
        finally:
            transport.close()
            path.unlink(missing_ok=True)
        assert self._program is not None
        if not self._program.alive:
            raise self._failed(f"ended with status {self._program.returncode} when it started")

    async def _launch(self, notify: Path) -> None:
        self._program = await Program.start(
            "bootd",
            [sys.executable, "-m", "bootd", "serve", "--config", str(self.config)],
            namespace=self._network.boot,
            log=self._folder / "bootd.stderr",
            output=self._hear,
            ended=self._over,
            env={**_environment(), "NOTIFY_SOCKET": str(notify)},
        )

    def _failed(self, why: str) -> LabError:
        words = (self._folder / "bootd.stderr").read_text(errors="replace").strip()
        lines = words.splitlines() or ["it says nothing"]
        return LabError(f"bootd {why}: {lines[-1]}", words if lines[1:] else "")

    def _over(self) -> None:
        self._ready.set()  # nobody waits for a dead process
        if not self._stopping and self._when_ended is not None and self._program is not None:
            self._when_ended(f"bootd ended by itself with status {self._program.returncode}")

    def _hear(self, data: bytes) -> None:
        with (self._folder / "bootd.log").open("ab") as log:
            log.write(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            event = Event(time.monotonic(), _keys(line))
            self.events.append(event)
            if self._listen is not None:
                self._listen(event)
        self._heard.set()

    async def wait_for(self, event: str, within: float, **keys: Any) -> Event:
        """Wait for an event of the log with these keys, also one that was before."""
        try:
            async with asyncio.timeout(within):
                while True:
                    found = next(
                        (each for each in self.events if each.matches(event, **keys)), None
                    )
                    if found is not None:
                        return found
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError:
            tail = "\n".join(f"  {dict(each.keys)}" for each in self.events[-20:])
            raise LabError(f"bootd did not log {event} {keys} in {within:.0f} s", tail) from None

    def signal(self, number: signal.Signals) -> None:
        """Send bootd a signal, as ``systemctl kill`` would."""
        if self._program is not None:
            self._program.signal(number)

    async def stop(self) -> int:
        """SIGTERM; the exit status."""
        self._stopping = True
        return await self._program.stop(grace=20.0) if self._program is not None else 0


class _Notifications(asyncio.DatagramProtocol):
    """The service manager's end of sd_notify(3)."""

    def __init__(self, ready: asyncio.Event) -> None:
        self._ready = ready

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if b"READY=1" in data.split(b"\n"):
            self._ready.set()


def _keys(line: bytes) -> Mapping[str, Any]:
    try:
        keys = json.loads(line)
    except ValueError:
        keys = None
    return keys if isinstance(keys, dict) else {"event": "(not JSON)", "line": repr(line)}


def _environment() -> dict[str, str]:
    """This process's environment, with the checkout's source first."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("BOOTD_")}
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(value), sort_keys=False, default_flow_style=None)
