"""``bootd status`` and ``bootd watch``: where each node's boot is."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from typing import Any, Final

import click

from bootd.boots.timeline import Stage
from bootd.cli.client import Client, client_for
from bootd.cli.common import (
    config_option,
    duration,
    json_option,
    named,
    print_json,
    size,
    table,
)
from bootd.text import escape

HEADINGS: Final = ["NODE", "STAGE", "BYTES", "%", "RATE", "TOOK", "SEEN", "REBOOT", "ERROR"]
_COLOURS: Final = {"up": "green", "fail": "red"}
_RANKS: Final = {"failed": 0, "booting": 1, "up": 2, "local": 2}


def row(status: dict[str, Any]) -> list[str]:
    """One line of the table, of a node or of an unknown machine."""
    name = status.get("node") or status["mac"]
    if status["stage"] is None:
        return [name, "-", "-", "-", "-", "-", "-", "-", ""]
    return [
        name,
        _stage(status),
        size(status["bytes"]) if status["bytes"] else "-",
        f"{status['percent']:.0f}" if status["percent"] is not None else "-",
        f"{size(status['rate'])}/s" if status["rate"] else "-",
        duration(status["seconds"]),
        f"{duration(status['age'])} ago",
        _reboot(status),
        status["error"] or _refresh_error(status["refresh"]),
    ]


def _stage(status: dict[str, Any]) -> str:
    if status.get("outcome") == "local":
        return "local disk"
    return f"{status['stage']}, waits" if status.get("waits") else str(status["stage"])


def _reboot(status: dict[str, Any]) -> str:
    if status["stage"] != "up":
        return "-"
    return " ".join(status["stale"]) or "-" if status["stale"] is not None else "?"


def _refresh_error(refresh: dict[str, Any] | None) -> str:
    """What went wrong when the node last refreshed its runtime overlay; empty: nothing."""
    if refresh is None or (refresh["result"] != "failed" and not refresh["failed_hooks"]):
        return ""
    return f"refresh: {refresh['error'] or refresh['result']}"


def _rows(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [*answer["nodes"], *answer["unknown"]]


def _select(answer: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    if not names:
        return answer
    wanted = named(names, [each["node"] for each in answer["nodes"]])
    return {
        **answer,
        "nodes": [each for each in answer["nodes"] if each["node"] in wanted],
        "unknown": [],
    }


@click.command()
@click.argument("names", nargs=-1)
@config_option
@json_option
def status(names: tuple[str, ...], config: str, as_json: bool) -> None:
    """Show where each node's boot is: stage, bytes, rate, error.

    REBOOT says what a node that is up would get otherwise if it booted now: its kernel, its
    overlays, its arguments (`bootd explain NODE` says more); ? is not known yet.

    NAMES limits it to these nodes: n001 or n[001-128].
    """
    answer = _select(client_for(config).get("status"), names)
    if as_json:
        print_json(answer)
        return
    click.echo(table(HEADINGS, [row(each) for each in _rows(answer)]))


@click.command()
@click.argument("names", nargs=-1)
@config_option
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each look.")
def watch(names: tuple[str, ...], config: str, interval: float, as_json: bool) -> None:
    """Show the boots live until Ctrl-C. Nodes that never asked are left out.

    What is no terminal gets a table for each look.
    """
    client = client_for(config)
    if as_json or not sys.stdout.isatty():
        while True:
            click.echo(_look(client, names, as_json=as_json))
            time.sleep(interval)
    from rich.live import Live

    with Live(_picture(client, names), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(interval)
            live.update(_picture(client, names), refresh=True)


def _look(client: Client, names: tuple[str, ...], *, as_json: bool) -> str:
    """One look, for what is no terminal."""
    seen = _seen(client, names)
    if as_json:
        return json.dumps(seen, ensure_ascii=False)
    title = f"{_summary(seen)} ({time.strftime('%H:%M:%S')})"
    return f"{title}\n{table(HEADINGS, [row(each) for each in seen])}\n"


def _urgency(status: dict[str, Any]) -> tuple[int, float]:
    """Failed ones first, then those that have been booting for longest, then who came up last."""
    rank = _RANKS.get(status["outcome"], 1)
    return rank, status["age"] if rank == _RANKS["up"] else -status["seconds"]


def _summary(seen: list[dict[str, Any]]) -> str:
    """``3 failed, 12 kernel, 97 up``."""
    ends = ("failed", "local")
    counts = Counter(o if (o := each["outcome"]) in ends else each["stage"] for each in seen)
    order = (*ends, *(stage.value for stage in Stage))
    return ", ".join(f"{counts[name]} {name}" for name in order if counts[name]) or "no boots yet"


def _seen(client: Client, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The boots as `watch` shows them, the most urgent first."""
    answer = _select(client.get("status"), names)
    seen = [each for each in _rows(answer) if each["stage"] is not None]
    return sorted(seen, key=_urgency)


def _picture(client: Client, names: tuple[str, ...]) -> Any:
    from rich.table import Table
    from rich.text import Text

    seen = _seen(client, names)
    picture = Table(box=None, title=f"{_summary(seen)} ({time.strftime('%H:%M:%S')})")
    for heading in HEADINGS:
        picture.add_column(heading, no_wrap=heading != "ERROR")
    for each in seen:
        # Text, not markup: an error message comes from a node.
        cells = [Text(escape(cell)) for cell in row(each)]
        picture.add_row(*cells, style=_COLOURS.get(each["stage"], ""))
    return picture
