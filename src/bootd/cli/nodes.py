"""``bootd nodes``, ``timeline``, ``unknown``, ``claim``: what the daemon knows of machines."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from bootd.cli.client import client_for
from bootd.cli.common import (
    Failure,
    WrongInput,
    config_option,
    duration,
    json_option,
    named,
    print_json,
    size,
    table,
)
from bootd.text import escape


@click.command()
@click.argument("names", nargs=-1)
@config_option
@json_option
def nodes(names: tuple[str, ...], config: str, as_json: bool) -> None:
    """List the nodes of the running daemon.

    NAMES limits it to these nodes: n001 or n[001-128].
    """
    answer = client_for(config).get("nodes")
    if names:
        wanted = named(names, [node["node"] for node in answer])
        answer = [node for node in answer if node["node"] in wanted]
    if as_json:
        print_json(answer)
        return
    rows = [
        [
            node["node"],
            " ".join(node["macs"]) or "-",
            node["ip"] or "-",
            ",".join(node["profiles"]) or "-",
            node["image"] or "-",
            node["boot"],
        ]
        for node in answer
    ]
    click.echo(table(["NODE", "MAC", "IP", "PROFILES", "IMAGE", "BOOT"], rows))


@click.command()
@click.argument("node")
@config_option
@json_option
def timeline(node: str, config: str, as_json: bool) -> None:
    """Show what the boots of NODE (a name or a MAC address) did, step by step."""
    answer = client_for(config).get("timeline", node)
    if as_json:
        print_json(answer)
        return
    if not answer["boots"]:
        click.echo(f"{node}: no boot seen yet")
    for boot in answer["boots"]:
        click.echo(_describe(answer["node"] or "unknown", boot))


def _describe(name: str, boot: dict[str, Any]) -> str:
    started = datetime.fromtimestamp(boot["started"]).astimezone()
    head = (
        f"{name} {boot['mac']} boot {boot['boot']} of {started:%Y-%m-%d %H:%M:%S}, "
        f"{boot['firmware'] or 'firmware unknown'}: {boot['outcome']} "
        f"after {duration(boot['seconds'])}"
    )
    if boot["error"]:
        head += f" ({escape(boot['error'])})"
    rows = [
        [
            f"+{step['after']:.3f} s",
            step["stage"],
            duration(step["seconds"]),
            size(step["bytes"]) if step["bytes"] else "-",
            step["outcome"],
            step["detail"],
        ]
        for step in boot["steps"]
    ]
    lines = table(["AT", "STAGE", "TOOK", "BYTES", "OUTCOME", "WHAT"], rows).splitlines()
    if boot["refresh"] is not None:
        lines.append(_refresh(boot["refresh"]))
    return head + "\n" + "\n".join(f"  {line}" for line in lines)


def _refresh(refresh: dict[str, Any]) -> str:
    """How the node's last refresh of its runtime overlay went."""
    failed = f", {refresh['failed_hooks']} commands failed" if refresh["failed_hooks"] else ""
    error = f" ({escape(refresh['error'])})" if refresh["error"] else ""
    what = f"{refresh['result']}, {refresh['changed']} paths changed{failed}{error}"
    return f"last refresh {duration(refresh['age'])} ago: {what}"


@click.command()
@config_option
@json_option
def unknown(config: str, as_json: bool) -> None:
    """List machines that asked but no node names, in order of arrival."""
    answer = client_for(config).get("unknown")
    if as_json:
        print_json(answer)
        return
    rows = [
        [
            row["mac"],
            row["vendor"] or "-",
            row["uuid"] or "-",
            row["serial"] or "-",
            " ".join(filter(None, (row["relay"], row["circuit"], row["remote"]))) or "-",
            str(row["count"]),
            f"{duration(row['age'])} ago",
        ]
        for row in answer
    ]
    click.echo(table(["MAC", "VENDOR CLASS", "UUID", "SERIAL", "PORT", "ASKED", "SEEN"], rows))


@click.command()
@click.argument("mac_or_nodes")
@click.argument("node", required=False)
@config_option
@json_option
def claim(mac_or_nodes: str, node: str | None, config: str, as_json: bool) -> None:
    """Give the machine with a MAC address to a node: bootd claim 52:54:00:12:34:56 n005.

    With nodes alone (bootd claim n[001-128]) the machines that wait, in order of arrival, are given
    to those of the nodes that have no MAC address.
    """
    mac, names = (None, mac_or_nodes) if node is None else (mac_or_nodes, node)
    status, answer = client_for(config, 80.0).post("claim", body={"mac": mac, "nodes": names})
    if status not in (200, 422):
        raise (WrongInput if status < 500 else Failure)(str(answer.get("error", answer)))
    if as_json:
        print_json(answer)
    for pair in [] if as_json else answer["claimed"]:
        click.echo(f"{pair['mac']} is {pair['node']}")
    if answer["faults"]:
        raise Failure(
            "The claim is kept, but the files have faults now, so it does not count yet:\n"
            + "\n".join(answer["faults"])
        )
