"""``bootd check`` and ``bootd schema``: for whoever edits the files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bootd.cli.common import config_option, json_option, print_json, refuse

if TYPE_CHECKING:
    from bootd.registry import Registry

_SHOWN: Final = 20
"""Warnings that are shown one by one."""


@click.command()
@config_option
@json_option
def check(config: str, as_json: bool) -> None:
    """Read all files as the daemon would, and show every fault.

    Exit code 0 and a summary, or 2 and all faults as file:line:column: where: what.
    """
    from bootd import scripts
    from bootd.config.load import load
    from bootd.model import ConfigError
    from bootd.text import escape

    try:
        registry = load(config, patience=math.inf)
    except ConfigError as error:
        if as_json:
            print_json({"ok": False, "faults": list(error.faults)})
            raise click.exceptions.Exit(2) from None
        refuse(error.faults)
    waiting = scripts.unbootable(registry)
    without = [node.name for node in registry.nodes.values() if not node.macs]
    loaders = _missing_loaders(registry)
    folders = _missing_folders(registry)
    weak = _keyless(registry)
    summary = {
        "ok": True,
        "faults": [],
        "nodes": len(registry.nodes),
        "nodes_without_mac": without,
        "warnings": waiting,
        "loaders_missing": loaders,
        "folders_missing": folders,
        "security": weak,
        "images": sorted(registry.images),
        "overlays": sorted(registry.overlays),
    }
    if as_json:
        print_json(summary)
        return
    click.echo(
        f"{config}: in order. {len(registry.nodes)} nodes, images: "
        f"{', '.join(sorted(registry.images)) or 'none'}, {len(registry.overlays)} overlays"
    )
    for sentence in waiting[:_SHOWN]:
        click.echo(f"warning: {escape(sentence)}: it will wait, not boot")
    if len(waiting) > _SHOWN:
        click.echo(f"warning: and {len(waiting) - _SHOWN} more nodes")
    for sentence in (*folders, *loaders, *weak):
        click.echo(f"warning: {escape(sentence)}")
    if without:
        from bootd.text import fold

        click.echo(f"without a MAC address, so never booted: {fold(without)}")


def _keyless(registry: Registry) -> list[str]:
    """What nodes without an asset key get, or do not get, where that is not what one would expect;
    as sentences."""
    from bootd import warewulf
    from bootd.text import fold

    keyless = [node for node in registry.nodes.values() if not node.asset_key]
    if registry.settings.security.asset_key == "required":
        names = [node.name for node in keyless]
        what = "without an asset_key, which security.asset_key requires: they get no overlays"
    else:
        names = [node.name for node in keyless if warewulf.switched(node)]
        what = "security: warewulf without an asset_key: a low source port is all that is asked"
    return [f"{fold(names)}: {what}"] if names else []


def _missing_folders(registry: Registry) -> list[str]:
    """Of the site's folders that are not the usual ones, those that are not there, as sentences:
    what they should have stood in front of is given without a word."""
    settings = registry.settings
    home = Path(settings.config_file).parent
    return [
        f"{key}: there is no folder {folder}"
        for key, folders in (("overlays", settings.overlays), ("templates", settings.templates))
        for folder in folders
        if folder != str(home / key) and not Path(folder).is_dir()
    ]


def _missing_loaders(registry: Registry) -> list[str]:
    """Of each ``loader`` that nodes have and that the server has not, who has it and what to do."""
    from bootd.files import missing, search_path
    from bootd.text import fold

    search = search_path(registry.settings.state_dir)
    users: dict[str, list[str]] = {}
    for node in registry.nodes.values():
        users.setdefault(node.loader, []).append(node.name)
    found = {loader: missing(search, loader) for loader in users}
    return [
        f"loader: {loader} ({fold(users[loader])}): {sentence}"
        for loader, sentence in found.items()
        if sentence
    ]


@click.command()
@click.argument("file", type=click.Choice(["nodes.yaml", "bootd.yaml"]), default="nodes.yaml")
def schema(file: str) -> None:
    """Print the JSON Schema of nodes.yaml (or bootd.yaml), for editors."""
    from bootd.config.schema import json_schema

    print_json(json_schema()[file])
