"""``bootd image import``: from a source to a generation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from bootd.cli.common import WrongInput, json_option, print_json, size, table
from bootd.cli.imagecommon import (
    counted,
    errors,
    registry_of,
    settings_of,
    shown_progress,
    store_of,
    tell_daemon,
    tidy,
)
from bootd.text import escape

if TYPE_CHECKING:
    from bootd.image.make import Wish
    from bootd.model import Image, Settings


def _bytes(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    from bootd.config import values

    if value is None:
        return None
    try:
        return values.size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command("import")
@click.argument("name")
@click.argument("source", required=False)
@click.option("--kernel", metavar="FILE", help="A kernel from outside of the root.")
@click.option("--initramfs", metavar="FILE", help="The initramfs for --kernel.")
@click.option("--no-activate", is_flag=True, help="Let nodes boot what they booted before.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out, like var/cache/*.")
@click.option(
    "--excludes", metavar="FILE", help="Patterns to leave out, one a line; # begins a comment."
)
@click.option(
    "--compress",
    type=click.Choice(["auto", "zstd", "gzip"]),
    help="Of the archive for method initramfs.",
)
@click.option("--secret", is_flag=True, help="Only nodes in their boot may fetch it.")
@click.option(
    "--max-size",
    metavar="SIZE",
    callback=_bytes,
    help="What the source may unpack to, like 200G; default `images: {max_size: …}`.",
)
@click.option("--profile", default="minimal", metavar="NAME|FILE", help="Packages of a suite.")
@click.option("--include", multiple=True, metavar="PACKAGE", help="One more package of a suite.")
@click.option("--mirror", multiple=True, metavar="URL|LINE", help="Where a suite is fetched from.")
@click.option("--arch", default="", metavar="ARCH", help="amd64, arm64; default this machine's.")
@click.option("--authfile", default="", metavar="FILE", help="Registry's credentials, as skopeo's.")
@click.option("--no-tls-verify", is_flag=True, help="Ask a registry without a valid certificate.")
@click.pass_obj
def import_(
    config: str,
    name: str,
    source: str | None,
    kernel: str | None,
    initramfs: str | None,
    no_activate: bool,
    exclude: tuple[str, ...],
    excludes: str | None,
    compress: str | None,
    secret: bool,
    max_size: int | None,
    profile: str,
    include: tuple[str, ...],
    mirror: tuple[str, ...],
    arch: str,
    authfile: str,
    no_tls_verify: bool,
) -> None:
    """Make a new generation of image NAME, and let nodes boot it.

    SOURCE is a folder that holds a root, a tar archive (plain, gz, xz, zst, bz2), an OCI layout or
    archive, docker://HOST/NAME:TAG, docker-archive:FILE, or a Debian or Ubuntu suite: bookworm,
    noble, suite:NAME. Without one, --kernel and --initramfs are served as they are.

    \b
      bootd image import debian-12 bookworm --profile hpc
      bootd image import rocky-9 docker://registry.example.org/rocky-node:9
      bootd image import compute /srv/roots/compute
      bootd image import rescue --kernel vmlinuz --initramfs initrd.img
    """
    if source is None:
        if kernel is None or initramfs is None:
            raise WrongInput(
                "what is to be imported? Name a SOURCE, or --kernel FILE and --initramfs FILE; see "
                "`bootd image import --help`"
            )
        store = store_of(config)
        with tidy(), errors(), shown_progress() as (progress, _say):
            made = store.import_files(name, kernel, initramfs, progress, activate=not no_activate)
        _imported(config, made, no_activate)
        return
    from bootd.image.sources.oci import Registry
    from bootd.image.sources.source import Options

    settings = settings_of(config)
    options = Options(
        max_size=max_size if max_size is not None else settings.images.max_size,
        registry=Registry(not no_tls_verify, authfile, arch),
        profile=profile,
        mirrors=mirror,
        include=include,
        architecture=arch,
    )
    with errors():
        from bootd.image.build import Options as BuildOptions
        from bootd.image.make import Wish

        wish = Wish(
            source=options,
            compression=compress or settings.images.compression,
            excludes=(*exclude, *_patterns(excludes)),
            kernel=kernel,
            initramfs=initramfs,
            secret=secret,
            build=BuildOptions(latest=source_date()),
        )
    _import(config, settings, name, source, wish, no_activate)


def _import(
    config: str, settings: Settings, name: str, source: str, wish: Wish, no_activate: bool
) -> None:
    from bootd.image.make import import_source
    from bootd.image.sources.source import recognise
    from bootd.image.store import ImageStore

    store = ImageStore(settings.state_dir)
    with tidy(), errors(), shown_progress() as (progress, say):
        made = import_source(
            store,
            name,
            recognise(source),
            wish,
            progress=progress,
            say=say,
            activate=not no_activate,
        )
    _imported(config, made, no_activate)


def _patterns(path: str | None) -> tuple[str, ...]:
    """The patterns of ``--excludes FILE``."""
    if path is None:
        return ()
    from bootd.image.disk import ImageInputError
    from bootd.image.excludes import MAX_FILE, ExcludeError, parse

    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return parse(file.read(MAX_FILE), path)
    except (OSError, ExcludeError) as error:
        raise ImageInputError(str(error)) from None


def _imported(config: str, made: Image, no_activate: bool) -> None:
    report(config, made)
    if no_activate:
        click.echo(
            f"not active; `bootd image activate {made.name} {made.generation}` lets nodes boot it"
        )
        return
    tell_daemon(config)


def report(config: str, made: Image) -> None:
    """What was made, in a few lines; warnings on stderr, also for nodes with too little memory."""
    total = size(sum(artefact.size for artefact in made.files()))
    version = f", kernel {made.kernel_version}" if made.kernel_version else ""
    click.echo(f"imported {made.name} {made.generation}: {total}{version}")
    if made.archive is not None:
        need = made.unpacked + made.archive.size
        click.echo(
            f"a node holds {size(made.unpacked)} of it in memory by method initramfs, and "
            f"{size(need)} while it unpacks"
        )
    for warning in (*made.warnings, *_too_small(config, made)):
        click.echo(f"warning: {escape(warning)}", err=True)


def _too_small(config: str, made: Image) -> Iterator[str]:
    """The nodes that boot this image, and whose files say that they have too little memory."""
    from bootd.methods import short_of_memory

    registry = registry_of(config)
    short = {
        node.name: why
        for node in (registry.nodes.values() if registry is not None else ())
        if node.image in (made.name, f"{made.name}@{made.generation}")
        and (why := short_of_memory(node, made))
    }
    if short:
        name, why = next(iter(short.items()))
        others = f" (and {counted(len(short) - 1, 'other node')})" if len(short) > 1 else ""
        yield f"node {name}{others} {why}"


@click.command()
@json_option
def profiles(as_json: bool) -> None:
    """List the profiles that a suite can be imported with."""
    from bootd.image.sources.suite import profiles as known

    found = known()
    if as_json:
        print_json(
            [
                {"name": p.name, "description": p.description, "packages": list(p.packages)}
                for p in found.values()
            ]
        )
        return
    rows = [[p.name, p.description] for p in found.values()]
    click.echo(table(["PROFILE", ""], rows))


def source_date() -> int | None:
    """SOURCE_DATE_EPOCH, for builds that shall come out the same."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not text.isdecimal() or len(text) > 10:
        raise WrongInput(f"SOURCE_DATE_EPOCH is {text[:40]!r}, which are no seconds since 1970")
    return int(text)
