"""What the commands of ``bootd image`` share: store, errors, progress, the running daemon."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bootd.cli.client import client_for
from bootd.cli.common import Failure, WrongInput, refuse, size
from bootd.text import escape

if TYPE_CHECKING:
    from types import FrameType

    from bootd.image.disk import Progress
    from bootd.image.store import ImageStore
    from bootd.model import Settings
    from bootd.registry import Registry


def store_of(config: str) -> ImageStore:
    """The images on disk."""
    from bootd.image.store import ImageStore

    return ImageStore(settings_of(config).state_dir)


def settings_of(config: str) -> Settings:
    """The daemon's settings, for what they say of images."""
    from bootd.config.load import load_settings
    from bootd.model import ConfigError

    try:
        return load_settings(config)
    except ConfigError as error:
        refuse(error.faults)


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Exit 2 for what was typed wrong, 1 for what could not be done."""
    from bootd.image.disk import ImageError, ImageInputError
    from bootd.model import ConfigError

    try:
        yield
    except ImageInputError as error:
        raise WrongInput(str(error)) from error
    except (ImageError, ConfigError) as error:
        raise Failure(str(error)) from error


@contextlib.contextmanager
def tidy() -> Iterator[None]:
    """A SIGTERM, or a terminal that is closed, ends the command as Ctrl-C does: tidily."""

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupted) for number in numbers]
    try:
        yield
    except KeyboardInterrupt:
        click.echo("interrupted: nothing was changed", err=True)
        raise
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def shown_progress() -> Iterator[tuple[Progress, Callable[[str], None]]]:
    """A bar for each step on a terminal, a line for each that is finished elsewhere; and what says
    a line without breaking the bars."""
    if not sys.stderr.isatty():
        told: set[str] = set()

        def line(role: str, done: int, total: int) -> None:
            if done == total and role not in told:
                told.add(role)
                click.echo(f"{role}: {size(total)}", err=True)

        yield line, _say
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    speed = (TransferSpeedColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, *speed, console=Console(stderr=True)) as bars:

        def advance(role: str, done: int, total: int) -> None:
            if role not in tasks:
                tasks[role] = bars.add_task(escape(role), total=total)
            bars.update(tasks[role], completed=done)

        def say(line: str) -> None:
            bars.console.print(escape(line), markup=False, highlight=False)

        yield advance, say


def _say(line: str) -> None:
    click.echo(escape(line), err=True)


def tell_daemon(config: str) -> None:
    """Make the running daemon use what is active now; without one there is nobody to tell."""
    client = client_for(config, 80.0)
    if not Path(client.path).exists():
        click.echo("bootd is not running here; it will use this when it starts")
        return
    try:
        status, answer = client.post("reload")
    except Failure as error:
        raise Failure(
            f"{error.message} The image is active on disk; `systemctl reload bootd` makes the "
            "daemon use it."
        ) from error
    if status != 200:
        faults = answer.get("faults") or [str(answer.get("error", answer))]
        raise Failure(
            "\n".join(faults) + "\nThe image is active on disk, but the daemon keeps what it had: "
            "its configuration has faults. Correct them, then `systemctl reload bootd`."
        )
    click.echo("the daemon has reloaded")


def in_use(config: str) -> dict[tuple[str, str], str]:
    """The generations that must stay, by image and generation, each with the reason: what nodes
    name, what the daemon gives out, and what boots in progress are fetching.

    Raises `Failure` where that cannot be known.
    """
    from bootd.config.load import load
    from bootd.model import ConfigError

    reasons: dict[tuple[str, str], str] = {}
    try:
        nodes = load(config).nodes.values()
    except ConfigError as error:
        raise Failure(
            "\n".join(error.faults) + "\nWhich generations nodes name cannot be told while the "
            "configuration has faults: correct them first"
        ) from error
    for node in nodes:
        image, _, generation = (node.image or "").partition("@")
        if generation:
            reasons.setdefault((image, generation), f"node {node.name} names it")
    client = client_for(config)
    if Path(client.path).exists():
        for used in client.get("images"):
            reasons.setdefault((str(used["name"]), str(used["generation"])), str(used["why"]))
    return reasons


def registry_of(config: str) -> Registry | None:
    """What the configuration says, or None where it has faults."""
    from bootd.config.load import load
    from bootd.model import ConfigError

    try:
        return load(config, patience=0.0)
    except ConfigError:
        return None


def counted(number: int, what: str) -> str:
    """``1 generation``, ``3 generations``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def describe(generation: Any) -> dict[str, Any]:
    """A generation for programs: plain values."""
    manifest, found = generation.manifest, generation.image
    files = found.artefacts if found is not None else {}
    return {
        "name": generation.name,
        "generation": generation.generation,
        "active": generation.active,
        "fault": generation.fault or None,
        "created": manifest.created if manifest else None,
        "source": manifest.source if manifest else None,
        "kernel_version": found.kernel_version if found else None,
        "size": generation.size,
        "unpacked": manifest.unpacked if manifest else None,
        "files": manifest.files if manifest else None,
        "os": manifest.os if manifest else None,
        "init": manifest.init if manifest else None,
        "secret": manifest.secret if manifest else None,
        "warnings": list(manifest.warnings) if manifest else [],
        "tools": dict(manifest.tools) if manifest else {},
        "excludes": list(manifest.excludes) if manifest else [],
        "artefacts": {role: _artefact(file) for role, file in files.items()},
        "kernels": [
            {
                "version": kernel.version,
                "debug": kernel.debug,
                "features": sorted(kernel.features),
                "kernel": _artefact(kernel.kernel),
                "initramfs": _artefact(kernel.initramfs) if kernel.initramfs else None,
            }
            for kernel in (found.kernels if found is not None else ())
        ],
    }


def _artefact(file: Any) -> dict[str, Any]:
    return {"path": file.path, "size": file.size, "sha256": file.sha256}
