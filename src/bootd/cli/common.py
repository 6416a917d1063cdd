"""What the commands share: the ``--config`` and ``--json`` options, errors, numbers for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, NoReturn, TypeVar

import click

from bootd.text import duration as duration
from bootd.text import escape
from bootd.text import size as size

DEFAULT_CONFIG: Final = "/etc/bootd/bootd.yaml"

F = TypeVar("F", bound=Callable[..., Any])


def _inherit(ctx: click.Context, _param: click.Parameter, value: str | None) -> str:
    """``bootd --config F check`` means the same as ``bootd check --config F``."""
    if value is not None:
        return value
    above = ctx.parent.obj if ctx.parent is not None else None
    return above if isinstance(above, str) else DEFAULT_CONFIG


def config_option(function: F) -> F:
    """``--config FILE``, also from BOOTD_CONFIG or given before the command."""
    return click.option(
        "-c",
        "--config",
        metavar="FILE",
        envvar="BOOTD_CONFIG",
        show_envvar=True,
        callback=_inherit,
        help=f"The daemon's settings; default {DEFAULT_CONFIG}.",
    )(function)


class ConfigGroup(click.Group):
    """A group whose commands read the settings' file from ``ctx.obj``: each takes ``--config`` as
    well, as all others do; but not one that passes on options of other programs."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """As click's, with the option added."""
        if not cmd.context_settings.get("ignore_unknown_options"):
            option = click.Option(
                ["-c", "--config"],
                metavar="FILE",
                expose_value=False,
                callback=_put,
                help=f"The daemon's settings; default {DEFAULT_CONFIG}.",
            )
            cmd.params.append(option)
        super().add_command(cmd, name)


def _put(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.obj = value


def json_option(function: F) -> F:
    """``--json``: for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(
        function
    )


class Failure(click.ClickException):
    """The command was right, but could not be done: exit 1 with a sentence."""

    exit_code = 1


class WrongInput(click.ClickException):
    """What was typed, or a file, is wrong: exit 2 with a sentence."""

    exit_code = 2


def refuse(faults: Iterable[str]) -> NoReturn:
    """Print every fault of the configuration on stderr, and exit 2."""
    lines = list(faults)
    for line in lines:
        click.echo(line, err=True)
    number = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
    click.echo(f"bootd: {number} in the configuration; nothing was changed", err=True)
    raise click.exceptions.Exit(2)


def named(names: Iterable[str], known: Collection[str]) -> frozenset[str]:
    """The nodes that `names` (``n001``, ``n[001-128]``) mean. Raises `WrongInput` where one of them
    is not among the `known`."""
    from bootd.config.faults import nearest
    from bootd.text import fold, unfold

    try:
        wanted = {name for each in names for name in unfold(each)}
    except ValueError as error:
        raise WrongInput(str(error)) from error
    strange = sorted(wanted.difference(known))
    if strange:
        hint = nearest(strange[0], known) if len(strange) == 1 else ""
        raise WrongInput(f"{escape(fold(strange))}: no node is called that{hint}")
    return frozenset(wanted)


def print_json(value: object) -> None:
    """Print `value` as JSON, indented."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(headings: list[str], rows: Iterable[list[str]]) -> str:
    """Plain columns, as wide as they need to be. Cells may come from the network."""
    lines = [[escape(cell) for cell in line] for line in (headings, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
