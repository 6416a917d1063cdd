"""Running other programs for the lab: short commands, and long-lived ones inside a namespace.

Every long-lived program is started with a parent-death signal, so that even a lab that is killed
leaves no process behind, and only the process that was started is ever ended, by its own id.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, cast


class LabError(Exception):
    """The lab cannot do what was asked. `sentence` says what, why, and what to do; `detail` is what
    a program or a console said last."""

    def __init__(self, sentence: str, detail: str = "") -> None:
        super().__init__(f"{sentence}\n{detail}" if detail else sentence)
        self.sentence = sentence
        self.detail = detail


PACKAGE_OF = {
    "ip": "iproute2",
    "dnsmasq": "dnsmasq-base",
    "qemu-system-x86_64": "qemu-system-x86",
    "tcpdump": "tcpdump",
    "busybox": "busybox-static",
    "setpriv": "util-linux",
    "apt-get": "apt",
    "apt-cache": "apt",
    "dpkg-deb": "dpkg",
}
"""The Debian package that each program of the lab comes from."""


def is_alive(pid: str) -> bool:
    """True where a process has this id and is more than a zombie nobody has reaped."""
    try:
        status = Path("/proc", pid, "stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def program(name: str) -> str:
    """The path of a program, also where PATH has no /usr/sbin; `LabError` if missing."""
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found = shutil.which(name, path=search)
    if found is None:
        package = PACKAGE_OF.get(name, name)
        raise LabError(f"{name} is not installed; install it with: apt-get install {package}")
    return found


def run(
    *argv: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> str:
    """Run one short command and return its standard output; `LabError` with its own last words."""
    command = [program(argv[0]), *argv[1:]]
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=dict(env) if env is not None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"`{' '.join(argv)}` is not finished after {timeout:.0f} s") from None
    if done.returncode != 0:
        words = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
        lines = words.splitlines()
        raise LabError(f"`{' '.join(argv)}` fails: {lines[-1]}", words if lines[1:] else "")
    return done.stdout


class Program(asyncio.SubprocessProtocol):
    """One long-lived program: its standard output goes to `output`, its errors to a log file.

    Callbacks instead of reader tasks, so that a test may start it in a fixture and end it in
    another task.
    """

    def __init__(
        self,
        what: str,
        log: IO[bytes],
        output: Callable[[bytes], object] | None,
        ended: Callable[[], None] | None,
    ) -> None:
        self.what = what
        self.returncode: int | None = None
        self._log = log
        self._output = output or log.write
        self._when_ended = ended
        self._ended = asyncio.Event()
        self._transport: asyncio.SubprocessTransport | None = None

    @classmethod
    async def start(
        cls,
        what: str,
        argv: Sequence[str],
        *,
        namespace: str,
        log: Path,
        output: Callable[[bytes], object] | None = None,
        ended: Callable[[], None] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Program:
        """Start `argv` inside a network namespace. `log` takes what it writes to stderr, and to
        stdout where there is no `output`; `ended` is called when it is over, whatever ended it."""
        stream = log.open("ab", buffering=0)
        command = [
            program("ip"), "netns", "exec", namespace,
            program("setpriv"), "--pdeathsig", "KILL", "--",
            program(argv[0]), *argv[1:],
        ]  # fmt: skip
        try:
            _, protocol = await asyncio.get_running_loop().subprocess_exec(
                lambda: cls(what, stream, output, ended),
                *command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                start_new_session=True,  # Ctrl-C is for the lab, which ends them in order
                env=dict(env) if env is not None else None,
            )
        except OSError as exc:
            stream.close()
            raise LabError(f"{what} cannot be started: {exc}") from exc
        return protocol

    @property
    def pid(self) -> int:
        """The program's process id; ``ip netns exec`` and ``setpriv`` replace themselves by it."""
        assert self._transport is not None
        return self._transport.get_pid()

    @property
    def alive(self) -> bool:
        """True until the program has ended and all of its output was read."""
        return not self._ended.is_set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._output(data)

    def connection_lost(self, exc: Exception | None) -> None:
        assert self._transport is not None
        self.returncode = self._transport.get_returncode()
        self._transport.close()
        self._log.close()
        self._ended.set()
        if self._when_ended is not None:
            self._when_ended()

    def write(self, data: bytes) -> None:
        """Bytes for its standard input."""
        assert self._transport is not None
        pipe = cast(asyncio.WriteTransport, self._transport.get_pipe_transport(0))
        pipe.write(data)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this one process; nothing where it has ended."""
        if self.alive and self._transport is not None:
            self._transport.send_signal(number)

    async def wait(self) -> int:
        """Wait for its end; the exit status, negative for a signal."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    async def stop(self, grace: float = 10.0) -> int:
        """SIGTERM, and SIGKILL after `grace` seconds; the exit status."""
        self.signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self.wait(), grace)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            return await self.wait()
