"""``bootd inventory``: the nodes as a dynamic inventory for Ansible.

Read from the files, as `bootd check` reads them, so it works without a daemon. Nothing in it is
secret: neither asset keys nor `resources`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import click

from bootd.cli.common import WrongInput, config_option, print_json, refuse
from bootd.model import Node

_NO_GROUP_NAME: Final = re.compile(r"[^A-Za-z0-9_]")
_TAKEN: Final = frozenset({"all", "ungrouped", "_meta"})


@click.command()
@click.option("--list", "everything", is_flag=True, help="All groups, and every node's variables.")
@click.option("--host", metavar="NODE", help="The variables of one node.")
@config_option
def inventory(everything: bool, host: str | None, config: str) -> None:
    """Print the nodes as an inventory for Ansible, in JSON.

    Every profile is a group of the nodes that it is merged into, and every tag with its value is
    one: tag rack: r1 is group rack_r1. Use it by a script that says: exec bootd inventory "$@"
    """
    from bootd.config.load import load
    from bootd.model import ConfigError

    if everything == (host is not None):
        raise click.UsageError("say either --list or --host NODE")
    try:
        registry = load(config)
    except ConfigError as error:
        refuse(error.faults)
    if host is None:
        print_json(describe(registry.nodes))
    elif host in registry.nodes:
        print_json(variables(registry.nodes[host]))
    else:
        raise WrongInput(f"{host}: no node is called that")


def describe(nodes: Mapping[str, Node]) -> dict[str, Any]:
    """What Ansible wants of ``--list``: groups with their hosts, and all variables at once."""
    groups: dict[str, set[str]] = {}
    for node in nodes.values():
        for name in (*node.profiles, *(f"{key}_{value}" for key, value in node.tags.items())):
            groups.setdefault(group_name(name), set()).add(node.name)
    return {
        "_meta": {"hostvars": {node.name: variables(node) for node in nodes.values()}},
        "all": {"children": [*sorted(groups), "ungrouped"], "hosts": list(nodes)},
        **{name: {"hosts": [n for n in nodes if n in groups[name]]} for name in sorted(groups)},
    }


def group_name(text: str) -> str:
    """`text` as the name of a group, which Ansible wants to be one of Python's names."""
    name = _NO_GROUP_NAME.sub("_", text)
    return f"_{name}" if name in _TAKEN or name[:1].isdigit() or not name else name


def variables(node: Node) -> dict[str, Any]:
    """One node's variables: its address, and what bootd knows of it as ``bootd_…``."""
    found: dict[str, Any] = {
        "bootd_mac": node.mac,
        "bootd_profiles": list(node.profiles),
        "bootd_image": node.image,
        "bootd_kernel_args": list(node.kernel_args),
        "bootd_boot": node.boot.value,
        "bootd_tags": dict(node.tags),
        "bootd_comment": node.comment,
        "bootd_network": {
            name: {
                "device": device.device,
                "type": device.type,
                "mac": device.mac,
                "ip": str(device.ip) if device.ip is not None else None,
            }
            for name, device in node.network.items()
        },
    }
    if node.ip is not None:
        found["ansible_host"] = str(node.ip.ip)
    return found
