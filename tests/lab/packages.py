"""Debian packages for the lab, downloaded and unpacked under ``build/lab`` and never installed.

So no service is started on the machine that runs the tests, nothing is changed on it, and the next
run finds everything there, also without a network.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.lab.run import LabError, program, run

BUILD: Final = Path(__file__).resolve().parents[2] / "build" / "lab"
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Two labs that start at once build one after the other; the second finds it done."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unpack(tree: Path, *packages: str, depends: bool = False, release: str = "") -> None:
    """Download `packages` and unpack them as `tree`; `depends`: also what they need and this
    machine lacks. They are those of the machine's own Debian, or of another `release` of it.

    Unpacked beside and then renamed: a download that was cut leaves no half tree. The caller holds
    `locked`. `LabError` says what apt said.
    """
    work = tree.with_name(f"{tree.name}.new")
    shutil.rmtree(work, ignore_errors=True)
    archives = work / "archives"
    (archives / "partial").mkdir(parents=True)
    environment = _of_release(work / "apt", release) if release else None
    what = (
        ["install", "--download-only", "--yes", "--no-install-recommends"]
        if depends
        else ["download"]
    )
    run(
        "apt-get", "--quiet", *what, "-o", f"Dir::Cache::archives={archives}",
        "-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=true", *packages,
        cwd=archives, env=environment, timeout=600,
    )  # fmt: skip
    for archive in archives.glob("*.deb"):
        run("dpkg-deb", "-x", str(archive), str(work), timeout=300)
    shutil.rmtree(archives)
    shutil.rmtree(work / "apt", ignore_errors=True)
    work.rename(tree)


def borrow(command: str, package: str, folder: Path = BUILD) -> tuple[Path, Mapping[str, str]]:
    """A server's program without its service: installed, or else unpacked. With it the environment
    in which it finds its libraries.

    Installing its package would start a server on the machine that only runs our tests. `LabError`
    where it is neither installed nor to be had.
    """
    try:
        return Path(program(command)), {}
    except LabError:
        tree = folder / package
    with locked(folder):
        if not tree.exists():
            unpack(tree, package, depends=True)
    libraries = {str(path.parent) for path in (tree / "usr" / "lib").rglob("lib*.so*")}
    paths = [path for path in tree.glob(f"usr/*bin/{command}") if path.is_file()]
    if not paths:
        raise LabError(f"the Debian package {package} has no {command}")
    return paths[0], {"LD_LIBRARY_PATH": ":".join(sorted(libraries))}


def _archive() -> str:
    """Where this machine has its own Debian from: another release of it is there too."""
    targets = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
    for uri in targets.split():
        if uri.rstrip("/").endswith("/debian"):
            return uri
    raise LabError("apt knows no Debian archive: its sources name none that ends in /debian")


def _of_release(folder: Path, release: str) -> dict[str, str]:
    """An apt configuration beside the machine's own, up to date; the environment that has it."""
    (folder / "lists" / "partial").mkdir(parents=True)
    source = folder / "sources.list"
    source.write_text(f"deb [signed-by={_KEYRING}] {_archive()} {release} main\n")
    configuration = folder / "apt.conf"
    configuration.write_text(
        f'Dir::Etc::SourceList "{source}";\n'
        'Dir::Etc::SourceParts "-";\n'
        f'Dir::State::Lists "{folder / "lists"}";\n'
        f'Dir::Cache "{folder}";\n'
        'APT::Sandbox::User "root";\n'
        'Acquire::Languages "none";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(configuration)}
    run("apt-get", "--quiet", "update", env=environment, timeout=300)
    return environment
