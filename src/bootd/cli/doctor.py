"""``bootd doctor``: what stands between this server and a boot, and what to do about it."""

from __future__ import annotations

import http.client
import os
import pwd
import shutil
import socket
import stat
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from bootd.cli.common import config_option, json_option, print_json, size
from bootd.cli.segment import Finding, judge, listen

if TYPE_CHECKING:
    from bootd.model import Settings
    from bootd.registry import Registry

ROOM: Final = 1_000_000_000
"""Bytes free in state_dir below which an import is likely to fail."""
_COLOURS: Final = {"ok": "green", "warn": "yellow", "fail": "red"}
_USER: Final = "bootd"


@click.command()
@config_option
@json_option
@click.option("--wait", default=3.0, show_default=True, help="Seconds to listen for DHCP offers.")
@click.option("--no-wire", is_flag=True, help="Send no DHCP packet.")
def doctor(config: str, as_json: bool, wait: float, no_wire: bool) -> None:
    """Look for what keeps machines from booting, and say what to do.

    Files, boot loaders, interfaces, ports, permissions, the daemon's answers, and who else answers
    DHCP: for that it asks as a machine that boots would (as root; --no-wire leaves it out). Exit
    code 0, or 1 where something was found that must be mended.
    """
    findings: list[Finding] = []
    for finding in examine(config, wait, wire=not no_wire):
        findings.append(finding)
        if not as_json:
            _print(finding)
    failed = sum(finding.level == "fail" for finding in findings)
    if as_json:
        keys = ("level", "about", "what", "todo")
        listed = [{key: getattr(finding, key) for key in keys} for finding in findings]
        print_json({"ok": not failed, "findings": listed})
    else:
        click.echo(
            f"{failed} to mend" if failed else "nothing found that keeps machines from booting"
        )
    raise click.exceptions.Exit(1 if failed else 0)


def _print(finding: Finding) -> None:
    from bootd.text import escape

    level = click.style(f"{finding.level:4}", fg=_COLOURS[finding.level])
    click.echo(f"{level}  {finding.about}: {escape(finding.what)}")
    if finding.todo:
        click.echo(f"      {escape(finding.todo)}")


def examine(config: str, wait: float, *, wire: bool) -> Iterator[Finding]:
    """Everything in turn; what others need to make sense comes first."""
    from bootd.config.load import load, load_settings
    from bootd.model import ConfigError, DhcpMode
    from bootd.registry import Registry

    try:
        registry = load(config)
        yield Finding("ok", "files", f"{len(registry.nodes)} nodes, {len(registry.images)} images")
    except ConfigError as error:
        for fault in error.faults:
            yield Finding("fail", "files", fault)
        try:
            registry = Registry(
                load_settings(config), nodes={}, images={}, overlays={}, templates={}
            )
        except ConfigError:
            return
    settings = registry.settings
    running = yield from _daemon(settings)
    yield from _state(settings)
    yield from _loaders(registry)
    yield from _ports(settings, running=running)
    served = yield from _interfaces(registry)
    for name, address in served.items():
        if running:
            yield from _answers(settings, name, address)
        if wire and settings.dhcp.mode is not DhcpMode.OFF:
            yield from _segment(settings, name, address, wait, running=running)


def _daemon(settings: Settings) -> Generator[Finding, None, bool]:
    from bootd.cli.client import Client
    from bootd.cli.common import Failure

    try:
        said = Client(settings.control_socket, 5.0).get("version")
    except Failure as failure:
        level = "fail" if Path(settings.control_socket).exists() else "warn"
        todo = "systemctl start bootd, then ask again" if level == "warn" else ""
        yield Finding(level, "daemon", failure.message, todo)
        return False
    yield Finding("ok", "daemon", f"version {said['version']} runs, pid {said['pid']}")
    return True


def _state(settings: Settings) -> Iterator[Finding]:
    folder = Path(settings.state_dir)
    about = f"state_dir {folder}"
    if not folder.is_dir():
        todo = "the daemon makes it when it starts, where it may; `make install` does as well"
        yield Finding("warn", about, "is not there", todo)
        return
    owner = folder.stat().st_uid
    try:
        wanted = pwd.getpwnam(_USER).pw_uid
    except KeyError:
        wanted = os.getuid()
    if owner != wanted and wanted != 0:
        todo = f"chown -R {_USER}:{_USER} {folder}"
        yield Finding("fail", about, f"belongs to user {owner}, and the daemon is {_USER}", todo)
    open_keys = [
        path
        for path in folder.glob("keys/**/*")
        if path.is_file() and path.suffix != ".pub" and stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    for path in open_keys:
        yield Finding("fail", about, f"{path} can be read by others", f"chmod 600 {path}")
    free = shutil.disk_usage(folder).free
    if free < ROOM:
        yield Finding("warn", about, f"has {size(free)} left", "an image needs twice its size")
    else:
        yield Finding("ok", about, f"{size(free)} free")


def _loaders(registry: Registry) -> Iterator[Finding]:
    from bootd.files import missing, search_path

    search = search_path(registry.settings.state_dir)
    choices = {node.loader for node in registry.nodes.values()} or {"auto"}
    for choice in sorted(choices):
        lacking = missing(search, choice)
        level, what = ("fail", lacking) if lacking else ("ok", "there")
        yield Finding(level, f"boot loader {choice}", what)


def _ports(settings: Settings, *, running: bool) -> Iterator[Finding]:
    from bootd.model import DhcpMode
    from bootd.ports import holders

    wanted = [("tcp", settings.http.port, "http.port")]
    wanted += [("udp", settings.tftp.port, "tftp.port")] if settings.tftp.enabled else []
    if settings.dhcp.mode is not DhcpMode.OFF:
        wanted += [("udp", settings.dhcp.pxe_port, "dhcp.pxe_port")]
        others = [name for name in holders("udp", settings.dhcp.port) if not _is_ours(name)]
        if others:
            what = f"UDP {settings.dhcp.port} is also {' and '.join(others)}'s"
            yield Finding("ok", "ports", f"{what}: bootd works beside it, with CAP_NET_RAW")
    for protocol, port, key in wanted:
        others = [name for name in holders(protocol, port) if not (running and _is_ours(name))]
        if others:
            what = f"{protocol.upper()} {port} is held by {' and '.join(others)}"
            yield Finding("fail", "ports", what, f"stop it, or set {key} in bootd.yaml")


def _is_ours(name: str) -> bool:
    return name.startswith(("bootd", "python")) or name == f"a process of user {_USER}"


def _interfaces(registry: Registry) -> Generator[Finding, None, dict[str, str]]:
    """What is served; returns name and first address of each."""
    served = _served(registry)
    for name in registry.settings.interfaces:
        if name not in served:
            there = Path("/sys/class/net", name).exists()
            what = "is down, or has no IPv4 address" if there else "is not there"
            names = ", ".join(sorted(path.name for path in Path("/sys/class/net").iterdir()))
            todo = f"ip link set {name} up" if there else f"there are {names}"
            yield Finding("fail", f"interface {name}", what, todo)
    for name, address in served.items():
        yield Finding("ok", f"interface {name}", address)
    if not served and not registry.settings.interfaces:
        todo = "give one an address, or name one in `interfaces`"
        yield Finding("fail", "interfaces", "none is up with an IPv4 address", todo)
    return served


def _served(registry: Registry) -> dict[str, str]:
    import asyncio

    from bootd import log as logs
    from bootd.model import LogSettings
    from bootd.net import Interfaces
    from bootd.registry import Current

    logs.configure(LogSettings(level="critical"), {})

    async def ours() -> dict[str, str]:
        net = Interfaces(Current(registry))
        await net.start()
        found = {each.name: str(each.addresses[0].ip) for each in net.served().values()}
        await net.stop()
        return found

    return asyncio.run(ours())


def _answers(settings: Settings, name: str, address: str) -> Iterator[Finding]:
    """Whether the daemon answers by HTTP and TFTP on its own address."""
    about = f"daemon on {name}"
    connection = http.client.HTTPConnection(address, settings.http.port, timeout=3)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
        yield Finding("ok" if status == 200 else "fail", about, f"HTTP answers {status}")
    except (OSError, http.client.HTTPException) as error:
        yield Finding("fail", about, f"HTTP {address}:{settings.http.port}: {error}")
    finally:
        connection.close()
    if settings.tftp.enabled:
        yield _tftp(about, address, settings.tftp.port)


def _tftp(about: str, address: str, port: int) -> Finding:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        try:
            sock.sendto(b"\0\1bootd-doctor\0octet\0tsize\x000\0", (address, port))
            sock.recvfrom(2048)
        except OSError as error:
            what = f"TFTP {address}:{port}: {error}"
            return Finding("fail", about, what, "a firewall on this machine? allow UDP 69")
    return Finding("ok", about, "TFTP answers")


def _segment(
    settings: Settings, name: str, address: str, wait: float, *, running: bool
) -> Iterator[Finding]:
    try:
        heard = listen(name, wait, settings.dhcp.port)
    except PermissionError:
        yield Finding(
            "warn", f"DHCP on {name}", "was not asked: only root may", "sudo bootd doctor"
        )
        return
    except OSError as error:
        what = f"could not be asked: {error.strerror or error}"
        yield Finding("warn", f"DHCP on {name}", what)
        return
    dhcp: Any = settings.dhcp
    yield from judge(name, heard, address, running=running, mode=dhcp.mode, unknown=dhcp.unknown)
