"""``bootd overlay``: what nodes get on top of their image, and what it looks like for one."""

from __future__ import annotations

import difflib
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from bootd.cli.common import (
    ConfigGroup,
    Failure,
    WrongInput,
    config_option,
    json_option,
    print_json,
    refuse,
    size,
    table,
)
from bootd.cli.explain import our_address
from bootd.config.faults import nearest
from bootd.text import escape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bootd.model import Account, Node, Overlay, ServerAddress, Settings
    from bootd.overlay.cpio import Entry
    from bootd.overlay.render import Which
    from bootd.overlay.tree import Shadow
    from bootd.registry import Registry

_CLASSES: Final = ("system", "runtime")


@click.group(cls=ConfigGroup)
@config_option
@click.pass_context
def overlay(ctx: click.Context, config: str) -> None:
    """List overlays, and render them for a node."""
    ctx.obj = config


@overlay.command("list")
@json_option
@click.pass_obj
def list_(config: str, as_json: bool) -> None:
    """List all overlays, and which of the site's files stand in front of which."""
    settings, overlays, shadows = _trees(config)
    described = [_summary(found, settings, shadows) for found in overlays.values()]
    if as_json:
        print_json(described)
        return
    rows = [
        [str(row["name"]), str(row["from"]), str(row["paths"]), str(row["description"])]
        for row in described
    ]
    click.echo(table(["OVERLAY", "FROM", "PATHS", "WHAT"], rows))
    for shadow in shadows:
        click.echo(f"{shadow.overlay}: {shadow.file} stands in front of {shadow.hides}")


def _summary(found: Overlay, settings: Settings, shadows: list[Shadow]) -> dict[str, Any]:
    from bootd.overlay.tree import distribution

    places = [str(distribution()), *settings.overlays]
    of_site = any(Path(place, found.name).is_dir() for place in places[1:])
    of_distribution = Path(places[0], found.name).is_dir()
    return {
        "name": found.name,
        "from": " over ".join(
            name for name, there in (("site", of_site), ("distribution", of_distribution)) if there
        ),
        "description": found.description,
        "paths": sum(entry.kind != "dir" for entry in found.entries),
        "shadows": [
            {"path": s.path, "file": str(s.file), "hides": str(s.hides)}
            for s in shadows
            if s.overlay == found.name
        ],
    }


@overlay.command()
@click.argument("name")
@json_option
@click.pass_obj
def show(config: str, name: str, as_json: bool) -> None:
    """Show what overlay NAME puts on a node, and from which file each path comes."""
    from bootd.overlay.scan import RULES

    _, overlays, _ = _trees(config)
    found = _named(overlays, name)
    if as_json:
        print_json(
            {
                "name": found.name,
                "description": found.description,
                "when": found.when.text if found.when else None,
                "delete": list(found.delete),
                "on_change": [list(pair) for pair in found.on_change],
                "entries": [
                    {
                        "path": entry.path,
                        "kind": entry.kind,
                        "mode": f"{entry.mode:04o}",
                        "uid": _number_or_name(entry.uid),
                        "gid": _number_or_name(entry.gid),
                        "when": entry.when.text if entry.when else None,
                        "source": entry.source,
                    }
                    for entry in found.entries
                ],
            }
        )
        return
    click.echo(f"{found.name}: {found.description or 'no description'}")
    if found.when is not None:
        click.echo(f"only where {escape(found.when.text)}")
    rows = [
        [
            f"/{entry.path}",
            entry.kind,
            f"{entry.mode:04o} {entry.uid}:{entry.gid}",
            entry.when.text if entry.when else "",
            entry.source,
        ]
        for entry in found.entries
        # Folders that are there for their files' sake tell nothing.
        if entry.kind != "dir" or Path(entry.source).name == RULES
    ]
    rows += [[f"/{path}", "deleted", "", "", ""] for path in found.delete]
    click.echo(table(["PATH", "KIND", "MODE", "WHEN", "FROM"], rows))
    for pattern, command in found.on_change:
        click.echo(f"when {pattern} changes: {command}")


def _number_or_name(who: int | Account) -> int | str:
    return who if isinstance(who, int) else who.name


@overlay.command()
@click.argument("what", metavar="OVERLAY|PATH")
@click.argument("node")
@click.option("--server", metavar="IP", help="Our address, where this machine has none yet.")
@click.option(
    "--archive",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Write the archive (newc cpio), as the node would get it; - is the standard output.",
)
@click.pass_obj
def render(config: str, what: str, node: str, server: str | None, archive: str | None) -> None:
    """Print what NODE gets: one file's bytes (PATH, as /etc/hosts) or all of OVERLAY's.

    `system` and `runtime` are all of the node's overlays of that class. SSH host keys that the
    daemon has not made yet are not made here.
    """
    from bootd.model import ServerAddress

    registry = _load(config)
    machine = registry.nodes.get(node) or registry.find(node)
    if machine is None:
        raise WrongInput(f"there is no node {escape(node)}{nearest(node, registry.nodes)}")
    us = ServerAddress(our_address(registry, machine, server), registry.settings.http.port)
    if what in registry.overlays or what in _CLASSES:
        entries = _entries(registry, machine, what, us)
        if archive is not None:
            _write_archive(entries, archive)
        else:
            _print_entries(entries)
        return
    if archive is not None:
        raise WrongInput("--archive takes an overlay, `system` or `runtime`, not a path")
    sys.stdout.buffer.write(_file(registry, machine, what, us))
    sys.stdout.buffer.flush()


@overlay.command()
@click.argument("name", required=False)
@click.pass_obj
def diff(config: str, name: str | None) -> None:
    """Show how the site's files differ from the distribution's that they stand in front of."""
    _, overlays, shadows = _trees(config)
    if name is not None:
        _named(overlays, name)
    for shadow in shadows:
        if name in (None, shadow.overlay):
            for line in _difference(shadow):
                click.echo(line, nl=False)


@overlay.command()
def reference() -> None:
    """Print everything that templates can use: variables, filters, statements (Markdown)."""
    from bootd.overlay.reference import reference as text

    click.echo(text(), nl=False)


def _trees(config: str) -> tuple[Settings, Mapping[str, Overlay], list[Shadow]]:
    from bootd.config.load import load_settings
    from bootd.model import ConfigError
    from bootd.overlay import tree

    try:
        settings = load_settings(config)
        return settings, tree.load(settings.overlays), tree.shadows(settings.overlays)
    except ConfigError as error:
        refuse(error.faults)


def _load(config: str) -> Registry:
    from bootd.config.load import load
    from bootd.model import ConfigError

    try:
        return load(config)
    except ConfigError as error:
        refuse(error.faults)


def _named(overlays: Mapping[str, Overlay], name: str) -> Overlay:
    found = overlays.get(name)
    if found is None:
        raise WrongInput(f"there is no overlay {escape(name)}{nearest(name, overlays)}")
    return found


def _entries(registry: Registry, node: Node, what: str, us: ServerAddress) -> list[Entry]:
    """What `node` gets of one overlay, whether it has it or not, or of a class."""
    from dataclasses import replace

    from bootd.overlay.hostkeys import HostKeys
    from bootd.overlay.render import render
    from bootd.overlay.template import RenderError

    which: Which = "runtime" if what == "runtime" else "system"
    if what not in _CLASSES:
        node = replace(node, overlays_system=(what,), overlays_runtime=())
    keys = HostKeys(registry.settings.state_dir, make=False)
    try:
        return render(registry, node, which, us, secrets=keys)
    except RenderError as error:
        raise WrongInput(str(error)) from error


def _file(registry: Registry, node: Node, path: str, us: ServerAddress) -> bytes:
    """One file of what the node really gets; the runtime overlay's is the later one."""
    wanted = path.strip("/")
    for what in reversed(_CLASSES):
        for entry in _entries(registry, node, what, us):
            if entry.path == wanted and not stat.S_ISDIR(entry.mode):
                return entry.content
    raise WrongInput(
        f"{escape(path)} is no overlay, and no file that {node.name}'s overlays make "
        f"(system: {', '.join(node.overlays_system) or 'none'}; "
        f"runtime: {', '.join(node.overlays_runtime) or 'none'})"
    )


def _write_archive(entries: list[Entry], file: str) -> None:
    from bootd.overlay.cpio import archive

    data = archive(entries)
    if file == "-":
        sys.stdout.buffer.write(data)
        return
    try:
        path = Path(file)
        path.touch(mode=0o600)  # it has what only the node may read
        path.write_bytes(data)
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}") from error
    click.echo(f"{file}: {size(len(data))}, {len(entries)} paths")


def _print_entries(entries: list[Entry]) -> None:
    for entry in entries:
        kind = stat.filemode(entry.mode)
        link = f" -> {escape(entry.content.decode(errors='replace'))}" if kind[0] == "l" else ""
        click.echo(f"==> /{entry.path}{link} ({kind} {entry.uid}:{entry.gid})")
        if stat.S_ISREG(entry.mode):
            text = entry.content.decode(errors="replace")
            click.echo(text, nl=not text.endswith("\n"))


def _difference(shadow: Shadow) -> list[str]:
    """Unified diff from the distribution's file to the site's."""
    before, after = (_lines(path) for path in (shadow.hides, shadow.file))
    return [
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
        for line in difflib.unified_diff(before, after, str(shadow.hides), str(shadow.file))
    ]


def _lines(path: Path) -> list[str]:
    try:
        if path.is_symlink():
            return [f"symlink to {path.readlink()}\n"]
        return path.read_bytes().decode(errors="replace").splitlines(keepends=True)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from error
