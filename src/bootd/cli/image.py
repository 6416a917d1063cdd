"""``bootd image``: what nodes boot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bootd.cli import imagemake, imagework
from bootd.cli.common import (
    ConfigGroup,
    Failure,
    WrongInput,
    config_option,
    json_option,
    print_json,
    size,
    table,
)
from bootd.cli.imagecommon import (
    counted,
    describe,
    errors,
    in_use,
    registry_of,
    settings_of,
    store_of,
    tell_daemon,
)

if TYPE_CHECKING:
    from bootd.image.store import Generation


@click.group(cls=ConfigGroup)
@config_option
@click.pass_context
def image(ctx: click.Context, config: str) -> None:
    """Import, list, activate and change images.

    Every import is a generation of its image; nodes boot the active one, or the one that they name
    (image: NAME@GENERATION). One command goes back: bootd image activate NAME --previous.
    """
    ctx.obj = config


image.add_command(imagemake.import_)
image.add_command(imagemake.profiles)
image.add_command(imagework.exec_)
image.add_command(imagework.shell)
image.add_command(imagework.sync_users)


@image.command("list")
@click.argument("name", required=False)
@json_option
@click.pass_obj
def list_(config: str, name: str | None, as_json: bool) -> None:
    """List every generation of every image, or of NAME, oldest first, with who boots it."""
    store = store_of(config)
    with errors():
        images = {name: store.generations(name)} if name else store.images()
        generations = [g for all_of in images.values() for g in all_of]
    boots = _who_boots(config, generations)
    if as_json:
        print_json(
            [describe(g) | {"nodes": boots.get((g.name, g.generation))} for g in generations]
        )
        return
    if not generations:
        click.echo("no images; `bootd image import NAME SOURCE` makes one")
        return
    rows = [
        [
            g.name,
            g.generation,
            "active" if g.active else "",
            (g.image.kernel_version if g.image else None) or "-",
            size(g.size),
            _nodes(boots.get((g.name, g.generation))),
            g.fault,
        ]
        for g in generations
    ]
    click.echo(table(["IMAGE", "GENERATION", "", "KERNEL", "SIZE", "NODES", ""], rows))


def _nodes(names: list[str] | None) -> str:
    if names is None:
        return "?"
    if not names:
        return "-"
    return names[0] if len(names) == 1 else f"{len(names)} ({names[0]}, …)"


def _who_boots(
    config: str, generations: list[Generation]
) -> dict[tuple[str, str], list[str] | None]:
    """The nodes that would be given each generation; None where the configuration has faults."""
    registry = registry_of(config)
    found: dict[tuple[str, str], list[str] | None]
    if registry is None:
        return {(g.name, g.generation): None for g in generations}
    found = {(g.name, g.generation): [] for g in generations}
    active = {g.name: g.generation for g in generations if g.active}
    for node in registry.nodes.values():
        name, _, generation = (node.image or "").partition("@")
        nodes = found.get((name, generation or active.get(name, "")))
        if nodes is not None:
            nodes.append(node.name)
    return found


@image.command()
@click.argument("name")
@click.argument("generation", required=False)
@json_option
@click.pass_obj
def show(config: str, name: str, generation: str | None, as_json: bool) -> None:
    """Show what image NAME is made of: its generations, or one of them."""
    with errors():
        generations = store_of(config).generations(name)
    if generation is not None:
        generations = tuple(g for g in generations if g.generation == generation)
        if not generations:
            raise WrongInput(
                f"image {name} has no generation {generation!r}; `bootd image list` shows them"
            )
    if as_json:
        print_json([describe(g) for g in generations])
        return
    for one in generations:
        _show(one)


def _show(generation: Generation) -> None:
    active = " (active)" if generation.active else ""
    click.echo(f"{generation.name} {generation.generation}{active}")
    manifest, found = generation.manifest, generation.image
    if generation.fault:
        click.echo(f"  damaged   {generation.fault}")
    if manifest is None or found is None:
        return
    click.echo(f"  created   {manifest.created} by bootd {manifest.bootd}")
    click.echo(f"  from      {manifest.source}")
    if manifest.unpacked:
        click.echo(
            f"  root      {manifest.os or 'of unknown kind'}, {counted(manifest.files, 'file')}, "
            f"{size(manifest.unpacked)} in memory, init {manifest.init or 'none'}"
        )
    for number, kernel in enumerate(found.kernels):
        notes = [*sorted(kernel.features), *(["debug"] if kernel.debug else [])]
        click.echo(
            f"  {'' if number else 'kernel':9} {kernel.version or 'of unknown version'}"
            + (f" ({', '.join(notes)})" if notes else "")
        )
    for role, artefact in found.artefacts.items():
        click.echo(f"  {role:9} {size(artefact.size):>8}  sha256 {artefact.sha256}")
        click.echo(f"            {artefact.path}")
    for warning in manifest.warnings:
        click.echo(f"  warning   {warning}")


@image.command()
@click.argument("name")
@click.argument("generation", required=False)
@click.option("--previous", is_flag=True, help="Go back to what was active before.")
@click.pass_obj
def activate(config: str, name: str, generation: str | None, previous: bool) -> None:
    """Let nodes boot GENERATION of image NAME; without one, the newest."""
    if previous and generation is not None:
        raise WrongInput("name a generation, or say --previous, but not both")
    store = store_of(config)
    with errors():
        made = store.activate(name, store.previous(name) if previous else generation)
    click.echo(f"active: {name} {made.generation}")
    tell_daemon(config)


@image.command()
@click.argument("name")
@click.argument("generation", required=False)
@click.option("--all", "whole", is_flag=True, help="The image, with all its generations.")
@click.pass_obj
def delete(config: str, name: str, generation: str | None, whole: bool) -> None:
    """Remove GENERATION of image NAME; one in use is refused."""
    store = store_of(config)
    if (generation is None) is not whole:
        raise WrongInput(
            "name the generation that shall go, or say --all for the image; `bootd image list "
            f"{name}` shows them"
        )
    if generation is None:
        _delete_all(config, name)
        return
    with errors():
        known = {g.generation: g.active for g in store.generations(name)}
        if known.get(generation) is False:
            why = in_use(config).get((name, generation))
            if why is not None:
                raise WrongInput(f"generation {generation} of image {name} is in use: {why}")
        store.delete(name, generation)
    click.echo(f"deleted: {name} {generation}")


def _delete_all(config: str, name: str) -> None:
    store = store_of(config)
    with errors():
        store.generations(name)
        used = {image: why for (image, _), why in in_use(config).items() if image == name}
        registry = registry_of(config)
        for node in registry.nodes.values() if registry is not None else ():
            if node.image == name:
                used.setdefault(name, f"node {node.name} boots it")
        if used:
            raise WrongInput(f"image {name} is in use: {used[name]}")
        store.remove(name)
    click.echo(f"deleted: {name}")
    tell_daemon(config)


@image.command()
@click.argument("name", required=False)
@click.option(
    "--keep",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Generations of each image to keep; default `images: {keep: …}`, which is 3.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
@click.pass_obj
def gc(config: str, name: str | None, keep: int | None, dry_run: bool, as_json: bool) -> None:
    """Remove old generations of every image, or of NAME.

    The newest N stay, and whatever is active, was active before, is named by a node or is being
    booted. What interrupted imports left goes too.
    """
    store = store_of(config)
    number = keep if keep is not None else settings_of(config).images.keep
    gone: list[dict[str, Any]] = []
    with errors():
        used = in_use(config)
        for one in [name] if name else list(store.images()):
            mine = [generation for image, generation in used if image == one]
            for generation in store.old(one, number, mine):
                if not dry_run:
                    store.delete(one, generation.generation)
                gone.append(describe(generation))
            if not dry_run:
                store.tidy(one)
    if as_json:
        print_json(gone)
        return
    for entry in gone:
        would = "would be removed" if dry_run else "removed"
        click.echo(f"{would}: {entry['name']} {entry['generation']}, {size(entry['size'])}")
    freed = sum(entry["size"] for entry in gone)
    click.echo(
        f"{counted(len(gone), 'generation')}, {size(freed)}{' (nothing was done)' * dry_run}"
    )


@image.command()
@click.argument("name")
@click.argument("generation")
@click.pass_obj
def verify(config: str, name: str, generation: str) -> None:
    """Read GENERATION of image NAME and compare its digests."""
    with errors():
        faults = store_of(config).verify(name, generation)
    if faults:
        raise Failure("\n".join(faults))
    click.echo(f"in order: {name} {generation}")
