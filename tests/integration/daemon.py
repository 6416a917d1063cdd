"""The whole daemon as a process on loopback, with free ports and a service manager's ear.

Synchronised by READY=1 and by its log, never by sleep.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

ROOT: Final = Path(__file__).resolve().parents[2]
PATIENCE: Final = 30.0
"""Seconds that anything may take on a busy machine."""

NODES: Final = """\
profiles:
  default:
    kernel: {args: [quiet]}
    overlays: {system: [base]}
nodes:
  n001: {mac: 52:54:00:12:34:56, ip: 10.0.0.11/24, tags: {rack: r1}}
  n002: {mac: 52:54:00:12:34:57}
"""


def free_ports(number: int) -> list[int]:
    """Ports that nobody has now, for UDP and TCP alike."""
    sockets = []
    ports: list[int] = []
    while len(ports) < number:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sockets += [udp, tcp]
        udp.bind(("", 0))
        try:
            tcp.bind(("", udp.getsockname()[1]))
        except OSError:
            continue
        ports.append(udp.getsockname()[1])
    for sock in sockets:
        sock.close()
    return ports


class Daemon:
    """One ``bootd serve``. Use it as a context manager; it is ended whatever happens.

    `settings` replaces sections of bootd.yaml, `environ` adds to the environment.
    """

    def __init__(
        self,
        folder: Path,
        *,
        nodes: str = NODES,
        settings: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.config = folder / "etc" / "bootd.yaml"
        self.nodes_file = folder / "etc" / "nodes.yaml"
        self.dhcp, self.pxe, self.tftp, self.http = free_ports(4)
        self.config.parent.mkdir()
        self.nodes_file.write_text(nodes)
        self.config.write_text(
            json.dumps(  # JSON is YAML
                {
                    "interfaces": ["lo"],
                    "state_dir": str(folder / "state"),
                    "run_dir": str(folder / "run"),
                    "nodes": ["nodes.yaml"],
                    "dhcp": {"port": self.dhcp, "pxe_port": self.pxe},
                    "tftp": {"port": self.tftp},
                    "http": {"port": self.http},
                    "log": {"format": "json"},
                    **(settings or {}),
                }
            )
        )
        self.events: list[dict[str, Any]] = []
        self.notified: list[str] = []
        self.stderr = folder / "stderr"
        self._environ = dict(environ or {})
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    # ---- life -----------------------------------------------------------------------------------

    def launch(self) -> Self:
        """Start the process; `ready` waits for it."""
        ear = self.folder / "notify"
        self._manager.bind(str(ear))
        self._manager.settimeout(PATIENCE)
        with self.stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bootd", "serve", "--config", str(self.config)],
                env=environment(NOTIFY_SOCKET=str(ear), **self._environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=self.folder,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                self._queue.put(json.loads(line))
        self._queue.put(None)

    def __enter__(self) -> Self:
        try:
            self.launch().ready()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """End the process if it still runs, and free what it had."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)
        if self._reader is not None:
            self._reader.join(PATIENCE)
        self._manager.close()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, within: float = PATIENCE) -> int:
        """Its exit code."""
        assert self._process is not None
        return self._process.wait(within)

    def alive(self) -> bool:
        """Whether it runs."""
        assert self._process is not None
        return self._process.poll() is None

    # ---- what it says ---------------------------------------------------------------------------

    def notification(self, key: str) -> str:
        """Wait for a notification of the service manager's with this key; the whole message."""
        while True:
            message = self._manager.recv(4096).decode()
            self.notified.append(message)
            if any(line.partition("=")[0] == key for line in message.splitlines()):
                return message

    def ready(self) -> None:
        """Wait for READY=1."""
        try:
            self.notification("READY")
        except TimeoutError:
            raise AssertionError(f"not ready: {self.stderr.read_text()}") from None

    def event(self, name: str, **keys: Any) -> dict[str, Any]:
        """Wait for an event of the log that comes now or later, with these keys."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                event = self._queue.get(timeout=max(deadline - time.monotonic(), 0.001))
            except queue.Empty:
                event = None
            if event is None:
                last = "\n".join(map(str, self.events[-20:]))
                raise AssertionError(f"no event {name} {keys}; the last ones:\n{last}")
            self.events.append(event)
            if event["event"] == name and all(event.get(key) == keys[key] for key in keys):
                return event

    def rest(self) -> list[dict[str, Any]]:
        """All events of a daemon that has ended."""
        assert self._reader is not None
        self._reader.join(PATIENCE)
        while (event := self._queue.get()) is not None:
            self.events.append(event)
        return self.events

    # ---- what it is asked -----------------------------------------------------------------------

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``bootd WORDS`` with this daemon's settings."""
        return command(*words, "--config", str(self.config), check=check)

    def ask(self, *words: str) -> Any:
        """What ``bootd WORDS --json`` says."""
        return json.loads(self.command(*words, "--json").stdout)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """GET by HTTP; status and body."""
        with socket.create_connection(("127.0.0.1", self.http), PATIENCE) as sock:
            fields = {"Host": "bootd", "Connection": "close", **(headers or {})}
            lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            sock.sendall(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        top, _, body = answer.partition(b"\r\n\r\n")
        return int(top.split()[1]), body


def environment(**more: str) -> dict[str, str]:
    """This process's environment with the checkout's source, and nothing of bootd's own."""
    hidden = ("BOOTD_", "NOTIFY_SOCKET", "JOURNAL_STREAM", "WATCHDOG")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    return {**kept, "PYTHONPATH": str(ROOT / "src"), **more}


def command(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run ``bootd WORDS``."""
    done = subprocess.run(
        [sys.executable, "-m", "bootd", *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done
