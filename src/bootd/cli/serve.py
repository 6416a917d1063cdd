"""``bootd serve``, ``bootd reload``, ``bootd version``: the daemon and its handle."""

from __future__ import annotations

import os
from typing import Any, Final

import click

from bootd.cli.client import client_for
from bootd.cli.common import Failure, config_option, json_option, print_json, refuse

RELOAD_TIMEOUT: Final = 80.0
"""Seconds that `bootd reload` waits: below systemd's usual 90, so that it tells the reason."""


@click.command()
@config_option
def serve(config: str) -> None:
    """Run the daemon until SIGTERM; SIGHUP makes it read its files again.

    Exit code 2 where a file is wrong: every fault is on stderr and nothing was started.
    """
    from bootd import app

    app.leave(app.serve(config, os.environ))


@click.command()
@config_option
@json_option
def reload(config: str, as_json: bool) -> None:
    """Make the daemon read its files again, and wait for the outcome.

    Exit code 2 where a file is wrong: every fault is printed, and the daemon goes on with what it
    had.
    """
    status, answer = client_for(config, RELOAD_TIMEOUT).post("reload")
    if as_json:
        print_json(answer)
        raise click.exceptions.Exit(0 if status == 200 else 2)
    if answer.get("faults"):
        refuse(answer["faults"])
    if status != 200:
        raise Failure(str(answer.get("error", answer)))
    click.echo(_summary(answer))
    if answer["restart"]:
        click.echo(f"needs a restart to take effect: {', '.join(answer['restart'])}", err=True)


def _summary(answer: dict[str, Any]) -> str:
    from bootd.text import fold

    parts = [
        f"{key} {fold(names)}"
        for key in ("added", "removed", "changed")
        if (names := answer["changes"][key])
    ]
    reboot = answer["changes"]["reboot"]
    parts += [f"a reboot would change {fold(reboot)}"] if reboot else []
    what = "; ".join(parts) or "no node changed"
    return f"reloaded in {answer['seconds']:.1f} s, generation {answer['generation']}: {what}"


@click.command()
@config_option
@json_option
def version(config: str, as_json: bool) -> None:
    """Print the version of this command, and of the daemon where one runs."""
    import platform

    from bootd import __version__

    try:
        daemon = client_for(config, 2.0).get("version")
    except click.ClickException:
        daemon = None
    if as_json:
        print_json({"version": __version__, "python": platform.python_version(), "daemon": daemon})
        return
    click.echo(f"bootd {__version__} (Python {platform.python_version()})")
    if daemon is not None:
        click.echo(f"daemon {daemon['version']}, pid {daemon['pid']}, {daemon['nodes']} nodes")
