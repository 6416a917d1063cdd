"""``bootd explain``: what a machine would get, and why, through the daemon's own code."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import click

from bootd.cli.common import (
    Failure,
    WrongInput,
    config_option,
    json_option,
    print_json,
    refuse,
    size,
    table,
)
from bootd.text import escape

if TYPE_CHECKING:
    from bootd.explain import Question
    from bootd.model import Mac, Node
    from bootd.registry import Registry


@click.command()
@click.argument("who", metavar="NODE|MAC")
@config_option
@click.option("--arch", help="Architecture: bios, x64, arm64, x64-http, … or option 93's number.")
@click.option("--class", "vendor_class", help="Option 60: PXEClient or HTTPClient.")
@click.option("--user-class", help="Option 77: iPXE for what the loader asks.")
@click.option("--server", metavar="IP", help="Our address, where this machine has none yet.")
@json_option
def explain(
    who: str,
    config: str,
    arch: str | None,
    vendor_class: str | None,
    user_class: str | None,
    server: str | None,
    as_json: bool,
) -> None:
    """Show what NODE (or the machine with MAC) would get, and why.

    The decision, every value's place in the files, the DHCP answer, the script and the list of
    files, by the daemon's own code from the files as they are now. Needs no running daemon. Without
    options it answers for UEFI x64 firmware and for the iPXE that this loads.
    """
    from bootd import explain as explaining
    from bootd.config.load import load
    from bootd.model import ConfigError, ServerAddress
    from bootd.state import Learned

    try:
        registry = load(config)
    except ConfigError as error:
        refuse(error.faults)
    learned = Learned.load(registry.settings.state_dir)
    learned.forget(registry)
    registry = learned.apply(registry)
    machine = _machine(registry, who)
    us = ServerAddress(our_address(registry, machine, server), registry.settings.http.port)
    questions = _questions(machine, arch, vendor_class, user_class)
    answer = explaining.explain(registry, machine, us, questions, once_done=learned.once_done)
    answer["running"] = _running(registry, answer["node"])
    if as_json:
        print_json(answer)
    else:
        click.echo(_describe(answer))


def _running(registry: Registry, node: str | None) -> dict[str, Any] | None:
    """What the daemon says of the node's running system; None where there is no daemon to ask."""
    from bootd.cli.client import Client

    if node is None:
        return None
    try:
        answer = Client(registry.settings.control_socket, 10.0).get("drift", node)
    except (Failure, WrongInput):
        return None
    return dict(answer)


def _machine(registry: Registry, who: str) -> Node | Mac:
    from bootd.model import parse_mac

    node = registry.find(who)
    if node is not None:
        return node
    try:
        return parse_mac(who)
    except ValueError:
        from bootd.config.faults import nearest

        raise WrongInput(
            f"{escape(who)}: no node is called that, and it is no MAC address"
            f"{nearest(who, registry.nodes)}"
        ) from None


def _questions(
    machine: Node | Mac, arch: str | None, vendor_class: str | None, user_class: str | None
) -> list[Question]:
    from bootd.explain import ARCHES, Question
    from bootd.model import Node

    mac = (machine.macs[0] if machine.macs else None) if isinstance(machine, Node) else machine
    if mac is None:
        return []
    if arch is None:
        number = ARCHES["x64-http" if vendor_class == "HTTPClient" else "x64"]
    elif arch.isascii() and arch.isdigit() and int(arch) < 65536:
        number = int(arch)
    elif arch in ARCHES:
        number = ARCHES[arch]
    else:
        raise WrongInput(f"--arch {arch}: one of {', '.join(ARCHES)}, or a number below 65536")
    if vendor_class is None:
        vendor_class = "HTTPClient" if arch is not None and arch.endswith("-http") else "PXEClient"
    firmware = Question(mac, number, vendor_class, user_class or "")
    loaded = Question(mac, number, "PXEClient", "iPXE")
    alone = user_class is not None
    return [firmware] if alone else [firmware, loaded]


def our_address(registry: Registry, machine: Node | Mac, given: str | None) -> IPv4Address:
    """Our address as this machine reaches it: on its network, else the first served one."""
    import asyncio

    from bootd import log as logs
    from bootd.model import LogSettings, Node
    from bootd.net import Interfaces
    from bootd.registry import Current

    if given is not None:
        try:
            return IPv4Address(given)
        except ValueError as error:
            raise WrongInput(f"--server {given}: {error}") from error

    logs.configure(LogSettings(level="critical"), {})  # what is shown is the answer

    async def ours() -> list[Any]:
        net = Interfaces(Current(registry))
        await net.start()
        found = [address for addresses in net.addresses.values() for address in addresses]
        await net.stop()
        return found

    found = asyncio.run(ours())
    node_ip = machine.ip.ip if isinstance(machine, Node) and machine.ip is not None else None
    near = [address.ip for address in found if node_ip is not None and node_ip in address.network]
    every = [*near, *(address.ip for address in found), IPv4Address("127.0.0.1")]
    return IPv4Address(every[0])


def _describe(answer: dict[str, Any]) -> str:
    parts = [answer["decision"], f"Reached at {answer['server']}"]
    if answer["values"]:
        rows = [[each["key"], each["value"], each["origin"]] for each in answer["values"]]
        parts.append(_section("Values", table(["KEY", "VALUE", "DECIDED BY"], rows)))
    parts += [_dhcp(each) for each in answer["dhcp"]]
    script = answer["script"]
    if script is not None:
        if script.get("method"):
            kernel = f"kernel {script['kernel']}, " if script["kernel"] else ""
            parts.append(f"Root: {kernel}method {script['method']}: {escape(script['reason'])}")
        why = f": {escape(script['why'])}" if script["why"] else ""
        title = f"Script ({script['kind']}{why}), from {script['template']}"
        parts.append(_section(title, script["text"].rstrip()))
    if answer["files"] is not None:
        parts += _files(answer["files"])
    if answer["running"] is not None and answer["running"]["boot"] is not None:
        parts.append(_drift(answer["running"]))
    return "\n\n".join(parts)


def _section(title: str, text: str) -> str:
    return title + "\n" + "\n".join(f"  {line}" for line in text.splitlines())


def _dhcp(answer: dict[str, Any]) -> str:
    asked = answer["asked"]
    user_class = f", user class {asked['user_class']}" if asked["user_class"] else ""
    title = f"DHCP: DISCOVER of {asked['class']}, architecture {asked['arch']}{user_class}"
    if not answer["answered"]:
        return _section(title, f"no answer: {answer['reason']}")
    rows = [
        ["message", f"{answer['message']}, {answer['bytes']} bytes to {answer['to']}"],
        ["yiaddr", answer["yiaddr"]],
        ["siaddr", answer["siaddr"]],
        ["file", answer["file"]],
        *([f"option {name}", value] for name, value in answer["options"].items()),
    ]
    return _section(title, table(["FIELD", "VALUE"], rows))


def _drift(running: dict[str, Any]) -> str:
    """What a reboot would change."""
    title = "Running: what a reboot would change"
    if not running["differs"]:
        return _section(title, "nothing")
    lines = []
    for each in running["differs"]:
        if each["files"] is None:
            before, now = (text if len(text) != 64 else text[:12] for text in
                           (each["before"] or "none", each["now"] or "none"))  # fmt: skip
            lines.append(f"{each['what']}: {escape(before)} -> {escape(now)}")
        else:
            lines.append(f"{each['what']}:")
            lines += [f"  /{escape(path)} {how}" for path, how in each["files"].items()]
    return _section(title, "\n".join(lines))


def _files(files: dict[str, Any]) -> list[str]:
    rows = [[each["role"], size(each["bytes"]), each["path"]] for each in files["image"]]
    parts = [_section("Image", table(["ROLE", "SIZE", "FILE"], rows) if rows else "none")]
    if files["error"]:
        parts.append(_section("System overlay", files["error"]))
    elif files["system"]:
        rows = [
            [each["mode"], each["owner"], size(each["bytes"]), each["path"]]
            for each in files["system"]
        ]
        parts.append(_section("System overlay", table(["MODE", "OWNER", "SIZE", "PATH"], rows)))
    return parts
