"""``bootd image exec|shell|sync-users``: changes that become the next generation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bootd.cli.common import Failure, WrongInput, refuse
from bootd.cli.imagecommon import (
    errors,
    settings_of,
    shown_progress,
    tell_daemon,
    tidy,
)
from bootd.cli.imagemake import report, source_date
from bootd.text import escape

if TYPE_CHECKING:
    from bootd.overlay.cpio import Entry

_BIND = click.option(
    "--bind",
    multiple=True,
    metavar="SOURCE[:TARGET[:ro]]",
    help="A folder of this machine to see in the image.",
)
_NODE = click.option(
    "--node",
    metavar="NODE",
    help="See the image as NODE would, with its overlays; then nothing is kept.",
)
_NO_ACTIVATE = click.option(
    "--no-activate", is_flag=True, help="Let nodes boot what they booted before."
)
_EXCLUDE = click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out.")


@click.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("name", metavar="NAME[@GENERATION]")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_BIND
@_NODE
@_NO_ACTIVATE
@_EXCLUDE
@click.pass_obj
def exec_(
    config: str,
    name: str,
    command: tuple[str, ...],
    bind: tuple[str, ...],
    node: str | None,
    no_activate: bool,
    exclude: tuple[str, ...],
) -> None:
    """Run COMMAND in image NAME; what it changes becomes a new generation.

    Where it fails, or changes nothing, everything is as it was. It sees this machine's network.

    \b
      bootd image exec debian-12 -- apt-get install -y htop
      bootd image exec debian-12 --node n001 -- cat /etc/hosts
    """
    _work(config, name, command, bind, node, no_activate, exclude)


@click.command()
@click.argument("name", metavar="NAME[@GENERATION]")
@_BIND
@_NODE
@_NO_ACTIVATE
@_EXCLUDE
@click.pass_obj
def shell(
    config: str,
    name: str,
    bind: tuple[str, ...],
    node: str | None,
    no_activate: bool,
    exclude: tuple[str, ...],
) -> None:
    """Open a shell in image NAME; what you change becomes a new generation.

    `exit 1` leaves it as it was before.
    """
    _work(config, name, (), bind, node, no_activate, exclude)


@click.command("sync-users")
@click.argument("name", metavar="NAME[@GENERATION]")
@_NO_ACTIVATE
@_EXCLUDE
@click.pass_obj
def sync_users(config: str, name: str, no_activate: bool, exclude: tuple[str, ...]) -> None:
    """Give the users and groups of image NAME this machine's numbers, and add those it lacks.

    Files in the image go to the new numbers; passwords are not copied.
    """
    from bootd.image.sync import sync

    def change(root: Path, _work: Path) -> None:
        for line in sync(root):
            click.echo(escape(line))

    _change(config, name, change, "sync-users", not no_activate, exclude)


def _work(
    config: str,
    name: str,
    command: tuple[str, ...],
    bind: tuple[str, ...],
    node: str | None,
    no_activate: bool,
    exclude: tuple[str, ...],
) -> None:
    from bootd.image import work

    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    entries = _overlays(config, node) if node is not None else []

    def change(root: Path, _work: Path) -> None:
        work.put(root, entries)
        work.run(root, command, bind, interactive=interactive)

    said = f"exec {' '.join(command)}" if command else "shell"
    _change(config, name, change, said, not no_activate, exclude, keep=node is None)


def _change(
    config: str,
    reference: str,
    change: Callable[[Path, Path], None],
    said: str,
    activate: bool,
    exclude: tuple[str, ...],
    *,
    keep: bool = True,
) -> None:
    """Let `change` work in a root, and make a generation of what it becomes."""
    from bootd.image import make, work
    from bootd.image.build import Options
    from bootd.image.disk import sentences
    from bootd.image.store import ImageStore

    settings = settings_of(config)
    store = ImageStore(settings.state_dir)
    name, _, generation = reference.partition("@")
    with tidy(), errors():
        base = store.image(name, generation)
        with sentences(name), store.draft(name) as draft, work.layer(base, draft.work) as root:
            change(root, draft.work)
            if not keep:
                return
            if not work.changed(draft.work):
                click.echo(f"{name}: nothing was changed; there is no new generation")
                return
            wish = make.Wish(
                build=Options(latest=source_date()),
                compression=settings.images.compression,
                excludes=exclude,
                secret=base.secret,
            )
            with shown_progress() as (progress, say):
                contents = make.build(
                    root, draft, wish, progress=progress, say=say, carry=base.kernels
                )
            draft.finish(f"{name}@{base.generation}, {said[:200]}", contents, activate=activate)
        made = store.image(name, draft.generation)
    report(config, made)
    if activate:
        tell_daemon(config)
    else:
        click.echo(
            f"not active; `bootd image activate {made.name} {made.generation}` lets nodes boot it"
        )


def _overlays(config: str, name: str) -> list[Entry]:
    """What a node's overlays make, runtime over system."""
    from bootd.cli.explain import our_address
    from bootd.config.load import load
    from bootd.model import ConfigError, ServerAddress
    from bootd.overlay.hostkeys import HostKeys
    from bootd.overlay.render import render
    from bootd.overlay.template import RenderError

    try:
        registry = load(config)
    except ConfigError as error:
        refuse(error.faults)
    node = registry.find(name)
    if node is None:
        raise WrongInput(f"there is no node {escape(name)}")
    us = ServerAddress(our_address(registry, node, None), registry.settings.http.port)
    keys = HostKeys(registry.settings.state_dir, make=False)
    try:
        return [
            *render(registry, node, "system", us, secrets=keys),
            *render(registry, node, "runtime", us, secrets=keys),
        ]
    except RenderError as error:
        raise Failure(str(error)) from error
