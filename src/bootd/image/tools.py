"""Other programs: found, run to their end, and ended with us."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from bootd.image.disk import ImageError
from bootd.text import escape

PACKAGES: Final = {
    "mksquashfs": "squashfs-tools",
    "unsquashfs": "squashfs-tools",
    "skopeo": "skopeo",
    "umoci": "umoci",
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "mount": "mount",
    "unshare": "util-linux",
    "umount": "mount",
}
"""Program to the Debian package that has it."""
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT: Final = ("HOME", "TMPDIR", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "TERM")
_TAIL: Final = 1500
_VERSION = re.compile(r"\d+\.\d+[\w.~+-]*")


def find(name: str) -> str:
    """The path of a program. Raises `ImageError` that names the Debian package."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_PATH}")
    if found is None:
        raise ImageError(
            f"{name} is not installed, and this needs it: apt-get install {PACKAGES[name]}"
        )
    return found


def environment() -> dict[str, str]:
    """What programs see: nothing that changes what they make, but the way out to the network."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key in _KEPT or key.lower().endswith("_proxy")
    }
    return {"PATH": _PATH, "LC_ALL": "C.UTF-8", **kept}


@contextmanager
def running(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Whatever happens meanwhile, neither the program nor what it started is left behind. It has a
    session of its own: a Ctrl-C is ours to answer."""
    try:
        yield process
    finally:
        if process.poll() is None:
            with_all = process.pid
            for how, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 30.0)):
                try:
                    os.killpg(with_all, how)
                    process.wait(seconds)
                    break
                except subprocess.TimeoutExpired:
                    continue
                except ProcessLookupError:
                    break


def run(
    name: str, *arguments: str, what: str, say: Callable[[str], None] = lambda _line: None
) -> None:
    """Run a program to its end. `say` is told each line that it prints.

    Raises `ImageError`: `what` it was for, and the last lines that it said.
    """
    last: deque[bytes] = deque(maxlen=12)
    process = subprocess.Popen(
        [find(name), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
        start_new_session=True,
    )
    assert process.stdout is not None
    with running(process), process.stdout:
        for line in process.stdout:
            last.append(line)
            say(line.decode(errors="replace").rstrip())
        process.wait()
    if process.returncode:
        raise ImageError(failed(name, process.returncode, what, b"".join(last)))


def failed(name: str, code: int, what: str, said: bytes) -> str:
    """A sentence for a program that failed, and the last lines that it said."""
    how = f"was ended by signal {-code}" if code < 0 else f"fails with {code}"
    lines = said[-_TAIL:].decode(errors="replace").strip().splitlines()
    said_last = "".join(f"\n  {escape(line)}" for line in lines[-12:])
    return f"{what}: {name} {how}{':' if said_last else ''}{said_last}"


def version(name: str, arguments: Sequence[str] = ("--version",)) -> str:
    """The version that a program says it has, or ``unknown``."""
    try:
        done = subprocess.run(
            [find(name), *arguments],
            capture_output=True,
            env=environment(),
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    found = _VERSION.search((done.stdout or done.stderr).decode(errors="replace"))
    return found[0] if found else "unknown"
