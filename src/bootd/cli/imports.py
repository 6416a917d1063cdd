"""``bootd import warewulf``: another boot server's files, made into bootd's, in a new folder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from ipaddress import IPv4Network, ip_interface
from pathlib import Path
from typing import Any, Final

import click
import yaml

from bootd.cli.common import Failure, WrongInput, json_option, print_json, refuse
from bootd.migrate import overlays
from bootd.migrate.nodesconf import Cluster, Report

_NODES: Final = ("nodes.conf", "warewulf/nodes.conf", "etc/warewulf/nodes.conf")
_OVERLAYS: Final = ("overlays", "var/lib/warewulf/overlays", "../../var/lib/warewulf/overlays")
_HEAD: Final = "# Made from {source} by bootd import warewulf; report.txt has what is missing.\n"


@click.group(name="import")
def imports() -> None:
    """Take over the files of another boot server."""


@imports.command()
@click.argument("folder", metavar="DIR")
@click.option("-o", "--output", default="bootd-import", show_default=True, help="A new folder.")
@click.option("--overlays", "given", metavar="DIR", help="The site's overlays, where not in DIR.")
@json_option
def warewulf(folder: str, output: str, given: str | None, as_json: bool) -> None:
    """Make bootd.yaml, nodes.yaml and overlays of a Warewulf 4 server's files in DIR.

    DIR is /etc/warewulf or a copy of it: nodes.conf, warewulf.conf, overlays. Nothing there is
    changed. What could not be taken over is told, and stands in report.txt.
    """
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise WrongInput(f"{output} exists and is not an empty folder: name another with --output")
    conf = _first(Path(folder), _NODES)
    if conf is None:
        raise WrongInput(f"{folder}: no nodes.conf in it. Name the folder that has one.")
    nodes, settings = _read(conf), _read_if_there(conf.with_name("warewulf.conf"))
    report = Report()
    own = Path(given) if given is not None else _first(Path(folder), _OVERLAYS)
    if given is not None and not Path(given).is_dir():
        raise WrongInput(f"{given}: no such folder")
    try:
        made = _write(target, conf, nodes, settings, own, report)
    except OSError as error:
        raise Failure(f"{error.filename or output}: {error.strerror or error}") from error
    lines = [{"where": where, "what": what} for where, what in report]
    faults = _check(target)
    if as_json:
        print_json({"folder": str(target), **made, "left": lines, "faults": faults})
        return
    click.echo(
        f"{target}: {made['nodes']} nodes, {made['profiles']} profiles, "
        f"{len(made['overlays'])} overlays from {conf}"
    )
    for line in lines:
        click.echo(f"  {line['where']}: {line['what']}")
    for image in made["images"]:
        click.echo(f"next: bootd image import {image} /var/lib/warewulf/chroots/{image}/rootfs")
    if faults:
        click.echo(f"`bootd check --config {target / 'bootd.yaml'}` finds, until that is done:")
    for fault in faults:
        click.echo(f"  {fault}")


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def _read_if_there(path: Path) -> Mapping[str, Any]:
    return _read(path) if path.exists() else {}


def _read(path: Path) -> Mapping[str, Any]:
    """A YAML file that is a map. Ends the command with every fault."""
    from bootd.config import files, source

    try:
        document = source.parse(files.read(str(path)), path.name)
    except files.Unreadable as error:
        raise WrongInput(f"{path}: {error}") from error
    if document.faults:
        refuse(map(str, document.faults))
    value = source.plain(document.value)
    if not isinstance(value, dict):
        raise WrongInput(f"{path}: is no map of keys")
    return value


def _write(
    target: Path,
    conf: Path,
    nodes: Mapping[str, Any],
    settings: Mapping[str, Any],
    own: Path | None,
    report: Report,
) -> dict[str, Any]:
    """Make the folder, whole or not at all."""
    from bootd.overlay.tree import load

    names = overlays.own(own, frozenset(load([])), report) if own is not None else {}
    profiles, entries = (_map(nodes.get(key)) for key in ("nodeprofiles", "nodes"))
    cluster = Cluster(profiles, entries, names, _network(settings), report)
    content = cluster.convert()
    daemon = _settings(settings, report)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".bootd-import-") as scratch:
        new = Path(scratch, "new")
        new.mkdir(0o750)
        for name, ours in names.items():
            assert own is not None
            aside = new / "unconverted" / ours
            overlays.copy(own / name, new / "overlays" / ours, aside, f"overlay {name}", report)
        head = _HEAD.format(source=conf)
        for file, value in (("bootd.yaml", daemon), ("nodes.yaml", content)):
            (new / file).write_text(head + _dump(value))
            (new / file).chmod(0o640)  # addresses and keys of the site are nobody else's business
        text = "".join(f"{where}: {what}\n" for where, what in report)
        (new / "report.txt").write_text(text or "Everything was taken over.\n")
        if target.exists():
            target.rmdir()
        new.rename(target)
    images = {entry.get("image") for part in content.values() for entry in part.values()}
    return {
        "nodes": len(entries),
        "profiles": len(profiles),
        "overlays": sorted(names.values()),
        "images": sorted(image for image in images if image),
    }


def _dump(value: object) -> str:
    return str(
        yaml.safe_dump(
            value, default_flow_style=None, sort_keys=False, width=100, allow_unicode=True
        )
    )


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _network(settings: Mapping[str, Any]) -> IPv4Network | None:
    """The cluster's network, for addresses that have no netmask of their own."""
    address, mask = settings.get("ipaddr"), settings.get("netmask")
    try:
        found = ip_interface(f"{address}/{mask}" if mask else str(address)).network
    except ValueError:
        return None
    return found if isinstance(found, IPv4Network) and found.prefixlen < 32 else None


def _settings(settings: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """bootd.yaml of warewulf.conf."""
    daemon, dhcp, tftp = (_map(settings.get(key)) for key in ("warewulf", "dhcp", "tftp"))
    made: dict[str, Any] = {"http": {"port": daemon.get("port", 9873)}}
    if str(dhcp.get("template", "default")) == "static":
        made["dhcp"] = {"mode": "reservation"}
        report.add("warewulf.conf: dhcp", "bootd hands out the nodes' addresses: stop dhcpd")
    else:
        report.add(
            "warewulf.conf: dhcp",
            "the DHCP server stays for addresses: take filename, next-server and the options for "
            "PXE out of its configuration; bootd adds them",
        )
    if str(tftp.get("enabled", True)).lower() == "false":
        report.add("warewulf.conf: tftp", "was off; bootd serves TFTP itself")
    for key, what in (
        ("nfs", "bootd exports nothing: keep the NFS server as it is"),
        ("api", "bootd has status and metrics by HTTP, and its command line; no such API"),
        ("image mounts", "`bootd image exec --bind` takes them one by one"),
        ("ipaddr6", "bootd's DHCP is IPv4; HTTP answers IPv6 as well"),
    ):
        if settings.get(key):
            report.add(f"warewulf.conf: {key}", what)
    if daemon.get("tls"):
        report.add("warewulf.conf: tls", "write http.tls with port, certificate and key")
    if daemon.get("secure"):
        report.add(
            "warewulf.conf: secure",
            "bootd gives overlays to booting machines only; for an image that has Warewulf's own "
            "client or dracut module write `security: warewulf` into its nodes' profile",
        )
    return made


def _check(target: Path) -> list[str]:
    """What `bootd check` says of the new files."""
    from bootd.config.load import load
    from bootd.model import ConfigError

    try:
        load(str(target / "bootd.yaml"))
    except ConfigError as error:
        return list(error.faults)
    return []
