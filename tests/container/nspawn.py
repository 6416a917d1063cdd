"""A whole Debian with systemd as PID 1, in systemd-nspawn, to run the unit as a server would.

The root folder is made once by mmdebstrap, under ``build/container``, and found again; a container
runs on a layer of memory over it, so that each one begins fresh and leaves nothing. Everything is
bounded in time. The host needs no systemd.

    with Container() as machine:
        machine.install_bootd()
        machine.run("systemctl", "start", "bootd")
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, Self

ROOT: Final = Path(__file__).resolve().parents[2]
BUILD: Final = ROOT / "build" / "container"
SUITE: Final = "bookworm"
PACKAGES: Final = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3",
    "python3-venv",
    "iproute2",
    "procps",
    "make",
    "curl",
    "cpio",
)
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
_ENTER_CGROUPS: Final = (
    'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs"; shift; done; shift; exec "$@"'
)
_numbers = itertools.count(1)


class ContainerError(Exception):
    """The container cannot do what was asked: a sentence, and what a program said last."""


def program(name: str, package: str) -> str:
    """The path of a program; `ContainerError` names the package that has it."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise ContainerError(f"{name} is not installed: apt-get install {package}")
    return found


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two test runs at once build one after the other; the second finds it done."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _build(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, made by `make` in a folder beside it where it is not there: whole or not at all."""
    with _locked(target.parent):
        if not target.exists():
            new = target.with_name(f"{target.name}.new")
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            make(new)
            new.rename(target)
    return target


def _call(*argv: str, timeout: float, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=timeout, env=env, check=False
    )
    if done.returncode:
        raise ContainerError(
            f"`{' '.join(argv)}` fails:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )


def root_folder(packages: Sequence[str] = PACKAGES) -> Path:
    """The Debian that every container starts from; made where it is not there yet (a minute)."""
    mmdebstrap = program("mmdebstrap", "mmdebstrap")

    def make(folder: Path) -> None:
        archive = folder.with_suffix(".tar")
        include = ",".join(packages)
        _call(
            mmdebstrap, "--quiet", "--variant=minbase", f"--include={include}", SUITE, str(archive),
            timeout=900,
        )  # fmt: skip
        _call("tar", "-C", str(folder), "--numeric-owner", "-xf", str(archive), timeout=300)
        archive.unlink()
        # Only what the test asks for is to run.
        (folder / "etc/hostname").write_text("bootd-test\n")

    return _build(BUILD / f"root-{_key(SUITE, *packages)}", make)


def wheelhouse() -> Path:
    """Wheels of everything that install.sh needs, for the container's Python: no network there."""
    lock = (ROOT / "requirements/runtime.txt").read_text()
    if sys.version_info[:2] != (3, 11):
        raise ContainerError(
            "the wheels are for Debian 12's Python: run the tests with Python 3.11"
        )

    def make(folder: Path) -> None:
        _call(
            sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check",
            "--wheel-dir", str(folder), "-r", str(ROOT / "requirements/runtime.txt"), "hatchling",
            timeout=600,
        )  # fmt: skip

    return _build(BUILD / f"wheels-{_key(lock)}", make)


class Container:
    """One running machine. Use it as a context manager.

    `namespace` is a network namespace that exists (``ip netns``), for firmware that boots from it;
    without one it has a network of its own with loopback only. `binds` are host paths that it sees
    read-only: destination to source. `logs` is where its console is kept; `root` is a root folder
    to start from instead of the common one.
    """

    def __init__(
        self,
        *,
        namespace: str | None = None,
        binds: Mapping[str, Path] | None = None,
        logs: Path | None = None,
        root: Path | None = None,
    ) -> None:
        self.name = f"bootd-{os.getpid()}-{next(_numbers)}"
        self._namespace = namespace
        self._root = root
        self._binds = {"/src": ROOT, "/wheels": wheelhouse(), **(binds or {})}
        for folder in ("/usr/lib/ipxe",):
            if Path(folder).is_dir():
                self._binds.setdefault(folder, Path(folder))
        self._console_file = (logs or BUILD) / f"{self.name}.console"
        self._console: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._pidfd = -1
        self._cgroups: list[Path] = []

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- life -----------------------------------------------------------------------------------

    def start(self, timeout: float = 60.0) -> None:
        """Boot it, until systemd says that it runs. Raises `ContainerError`."""
        network = (
            f"--network-namespace-path=/run/netns/{self._namespace}"
            if self._namespace
            else "--private-network"
        )
        argv = [
            "/bin/sh", "-c", _ENTER_CGROUPS, "sh", *map(str, self._make_cgroups()), "--",
            program("setpriv", "util-linux"), "--pdeathsig", "TERM", "--",
            program("systemd-nspawn", "systemd-container"),
            *([] if _systemd_here() else ["--keep-unit"]),
            "--quiet", "--register=no", "--boot", "--volatile=overlay",
            "--console=pipe", "--kill-signal=SIGRTMIN+3", f"--machine={self.name}", network,
            f"--directory={self._root or root_folder()}",
            *(f"--bind-ro={source}:{target}" for target, source in self._binds.items()),
        ]  # fmt: skip
        self._console = self._console_file.open("wb")
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + timeout
        self._wait(self._find_leader, deadline)
        self._wait(self._is_running, deadline)

    def stop(self) -> None:
        """Shut it down, within 20 s; then end it. Safe to call again."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)  # nspawn passes its kill signal on to PID 1
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(20)
            self._process = None
        if self._pidfd >= 0:
            # PID 1 outlives an nspawn that was killed; with it all its processes end.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._console is not None:
            self._console.close()
            self._console = None
            with contextlib.suppress(FileNotFoundError):
                self._console_file.unlink()
        for folder in self._cgroups:
            for path in sorted((folder, *folder.rglob("*/")), reverse=True):
                with contextlib.suppress(OSError):
                    path.rmdir()
        self._cgroups = []

    def _make_cgroups(self) -> list[Path]:
        """Control groups of its own, where no systemd of the host makes one: two containers in one
        group would end each other's processes."""
        if _systemd_here():
            return []
        top = Path("/sys/fs/cgroup")
        mounts = [top / "systemd", top / "unified", top]
        self._cgroups = [
            mount / self.name for mount in mounts if (mount / "cgroup.procs").is_file()
        ]
        for folder in self._cgroups:
            folder.mkdir()
        return self._cgroups

    def console(self) -> str:
        """What its console has shown so far."""
        return self._console_file.read_text(errors="replace")

    def _wait(self, done: Callable[[], bool], deadline: float) -> None:
        while not done():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ContainerError(f"the container does not start:\n{self.console()[-3000:]}")
            time.sleep(0.05)  # a state of another system is asked for; it sends no event

    def _find_leader(self) -> bool:
        assert self._process is not None
        pid = self._process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            found = [each for each in children if _comm(each) == "systemd"]
        except OSError:
            return False
        if not found:
            return False
        self._leader = int(found[0])
        self._pidfd = os.pidfd_open(self._leader)
        return True

    def _is_running(self) -> bool:
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    # ---- what tests ask -------------------------------------------------------------------------

    def run(
        self,
        *argv: str,
        check: bool = True,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it as root. With `check`, `ContainerError` where it fails."""
        command = [
            program("nsenter", "util-linux"), "--target", str(self._leader),
            "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--wdns=/", "--", *argv,
        ]  # fmt: skip
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**_ENVIRONMENT, **(env or {})},
            check=False,
        )
        if check and done.returncode:
            raise ContainerError(
                f"`{' '.join(argv)}` exits {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done

    def read(self, path: str) -> str:
        """A file's text."""
        return self.run("cat", path).stdout

    def write(self, path: str, text: str) -> None:
        """Write a file as an editor would, keeping owner and mode of one that is there."""
        self.run("sh", "-c", 'cat > "$1"', "sh", path, stdin=text)

    def install_bootd(self) -> str:
        """``make install`` from this checkout, without a network; what it printed."""
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}
        return self.run("make", "-C", "/src", "install", env=offline, timeout=300).stdout

    def journal(self, *matches: str) -> list[str]:
        """Messages of the journal, oldest first: ``BOOTD_NODE=n001``, ``-u bootd``, …"""
        output = self.run("journalctl", "--no-pager", "-o", "cat", *matches).stdout
        return output.splitlines()

    def property(self, name: str, unit: str = "bootd") -> str:
        """One property of a unit, as `systemctl show` says it."""
        return self.run("systemctl", "show", "-P", name, unit).stdout.strip()

    def wait_for(self, what: str, done: Callable[[], bool], timeout: float = 30.0) -> None:
        """Wait until `done`, else `ContainerError` with `what` and the unit's journal."""
        deadline = time.monotonic() + timeout
        while not done():
            if time.monotonic() > deadline:
                last = "\n".join(self.journal("-u", "bootd", "-n", "40"))
                raise ContainerError(f"{what}: not within {timeout:.0f} s\n{last}")
            time.sleep(0.1)  # another system's state; it sends no event


def _systemd_here() -> bool:
    """Whether the host's own PID 1 is systemd, which manages control groups (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def _comm(pid: str) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()
