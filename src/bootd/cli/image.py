"""``bootd image``: what nodes boot."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bootd.cli.client import client_for
from bootd.cli.common import (
    Failure,
    WrongInput,
    config_option,
    json_option,
    print_json,
    refuse,
    size,
    table,
)

if TYPE_CHECKING:
    from bootd.image.disk import Progress
    from bootd.image.store import Generation, ImageStore


@click.group()
@config_option
@click.pass_context
def image(ctx: click.Context, config: str) -> None:
    """Import, list, activate and delete images.

    Every import is a generation of its image; nodes boot the active one.
    """
    ctx.obj = config


@image.command("import")
@click.argument("name")
@click.option("--kernel", required=True, metavar="FILE", help="The kernel, as it is.")
@click.option("--initramfs", required=True, metavar="FILE", help="The initramfs, as it is.")
@click.option("--no-activate", is_flag=True, help="Let nodes boot what they booted before.")
@click.pass_obj
def import_(config: str, name: str, kernel: str, initramfs: str, no_activate: bool) -> None:
    """Make a new generation of image NAME, and let nodes boot it."""
    store = _store(config)
    with _errors(), _progress() as progress:
        made = store.import_files(name, kernel, initramfs, progress, activate=not no_activate)
    total = size(sum(artefact.size for artefact in made.artefacts.values()))
    version = f", kernel {made.kernel_version}" if made.kernel_version else ""
    click.echo(f"imported {name} {made.generation}: {total}{version}")
    if no_activate:
        click.echo(
            f"not active; `bootd image activate {name} {made.generation}` lets nodes boot it"
        )
        return
    _tell_daemon(config)


@image.command("list")
@json_option
@click.pass_obj
def list_(config: str, as_json: bool) -> None:
    """List every generation of every image, oldest first."""
    with _errors():
        generations = [g for all_of in _store(config).images().values() for g in all_of]
    if as_json:
        print_json([_describe(generation) for generation in generations])
        return
    if not generations:
        click.echo("no images; `bootd image import NAME --kernel FILE --initramfs FILE` makes one")
        return
    rows = [
        [
            g.name,
            g.generation,
            "active" if g.active else "",
            (g.manifest.kernel_version if g.manifest else None) or "-",
            size(g.size),
            g.fault,
        ]
        for g in generations
    ]
    click.echo(table(["IMAGE", "GENERATION", "", "KERNEL", "SIZE", ""], rows))


@image.command()
@click.argument("name")
@json_option
@click.pass_obj
def show(config: str, name: str, as_json: bool) -> None:
    """Show what image NAME is made of."""
    with _errors():
        generations = _store(config).generations(name)
    if as_json:
        print_json([_describe(generation) for generation in generations])
        return
    for generation in generations:
        click.echo(f"{name} {generation.generation}{' (active)' if generation.active else ''}")
        if generation.fault:
            click.echo(f"  damaged   {generation.fault}")
        if generation.manifest is None or generation.image is None:
            continue
        click.echo(
            f"  created   {generation.manifest.created} by bootd {generation.manifest.bootd}"
        )
        click.echo(f"  from      {generation.manifest.source}")
        click.echo(f"  kernel    {generation.manifest.kernel_version or 'of unknown version'}")
        for role, artefact in generation.image.artefacts.items():
            click.echo(f"  {role:9} {size(artefact.size):>8}  sha256 {artefact.sha256}")
            click.echo(f"            {artefact.path}")


@image.command()
@click.argument("name")
@click.argument("generation", required=False)
@click.pass_obj
def activate(config: str, name: str, generation: str | None) -> None:
    """Let nodes boot GENERATION of image NAME; without one, the newest."""
    with _errors():
        made = _store(config).activate(name, generation)
    click.echo(f"active: {name} {made.generation}")
    _tell_daemon(config)


@image.command()
@click.argument("name")
@click.argument("generation")
@click.pass_obj
def delete(config: str, name: str, generation: str) -> None:
    """Remove GENERATION of image NAME; the active one is refused."""
    with _errors():
        _store(config).delete(name, generation)
    click.echo(f"deleted: {name} {generation}")


@image.command()
@click.argument("name")
@click.argument("generation")
@click.pass_obj
def verify(config: str, name: str, generation: str) -> None:
    """Read GENERATION of image NAME and compare its digests."""
    with _errors():
        faults = _store(config).verify(name, generation)
    if faults:
        raise Failure("\n".join(faults))
    click.echo(f"in order: {name} {generation}")


def _store(config: str) -> ImageStore:
    from bootd.config.load import load_settings
    from bootd.image.store import ImageStore
    from bootd.model import ConfigError

    try:
        return ImageStore(load_settings(config).state_dir)
    except ConfigError as error:
        refuse(error.faults)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
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
def _progress() -> Iterator[Progress]:
    """A bar per file on a terminal, a line per finished file elsewhere."""
    if not sys.stderr.isatty():
        yield _lines
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
                tasks[role] = bars.add_task(role, total=total)
            bars.update(tasks[role], completed=done)

        yield advance


def _lines(role: str, done: int, total: int) -> None:
    if done == total:
        click.echo(f"{role}: {size(total)}", err=True)


def _tell_daemon(config: str) -> None:
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
    click.echo("the daemon has reloaded: nodes that boot now get it")


def _describe(generation: Generation) -> dict[str, Any]:
    """For programs: plain values."""
    manifest, found = generation.manifest, generation.image
    artefacts = found.artefacts if found is not None else {}
    return {
        "name": generation.name,
        "generation": generation.generation,
        "active": generation.active,
        "fault": generation.fault or None,
        "created": manifest.created if manifest else None,
        "source": manifest.source if manifest else None,
        "kernel_version": manifest.kernel_version if manifest else None,
        "size": generation.size,
        "artefacts": {
            role: {"path": a.path, "size": a.size, "sha256": a.sha256}
            for role, a in artefacts.items()
        },
    }
