"""``bootd tls``: a certificate authority of the site's own, the server's certificate, and an iPXE
that trusts them."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bootd.cli.common import ConfigGroup, Failure, WrongInput, config_option, refuse

if TYPE_CHECKING:
    from bootd.cli.certificates import Pair
    from bootd.model import Settings

DAYS: Final = 3650
"""Ten years: whoever has put it into machines' iPXE does not want to do that again soon."""
_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?", re.ASCII)
_MAX_NAME: Final = 253


@dataclass(frozen=True, slots=True)
class _Files:
    """Where the four files are."""

    authority: Path
    authority_key: Path
    certificate: Path
    key: Path


@click.group(cls=ConfigGroup)
@config_option
@click.pass_context
def tls(ctx: click.Context, config: str) -> None:
    """Make what HTTPS needs: a private certificate authority, the server's certificate, and iPXE
    that trusts them."""
    ctx.obj = config


_address_option = click.option(
    "--address", "addresses", multiple=True, metavar="IP",
    help="An address that nodes reach the server by; default: all of its interfaces'.",
)  # fmt: skip
_name_option = click.option(
    "--name", "names", multiple=True, metavar="NAME", help="A DNS name to stand in it as well."
)
_days_option = click.option(
    "--days", default=DAYS, type=click.IntRange(1, 20 * 365), show_default=True,
    help="How long it is good.",
)  # fmt: skip


@tls.command()
@_address_option
@_name_option
@_days_option
@click.option("--force", is_flag=True, help="Replace files that are there already.")
@click.pass_obj
def init(
    config: str, addresses: tuple[str, ...], names: tuple[str, ...], days: int, force: bool
) -> None:
    """Make an authority, and this server's certificate.

    The files go beside bootd.yaml, into tls/, or where http.tls says. Nothing is overwritten
    without --force: whoever trusts the old authority does not trust a new one.
    """
    from bootd.cli import certificates

    settings = _settings(config)
    files = _files(settings)
    known = _known(settings, addresses)
    _check_names(names)
    there = [str(path) for path in _paths(files) if path.exists()]
    if there and not force:
        raise Failure(
            f"there already: {', '.join(there)}. `bootd tls renew` makes a new server certificate "
            "with the same authority; --force makes everything anew."
        )
    with _told(files):
        made = certificates.authority(socket.gethostname(), days, certificates.now())
        own = certificates.server(made, known, names, days, certificates.now())
        _write(files.authority, made.certificate_pem, 0o644)
        _write(files.authority_key, made.key_pem, 0o600)
        _write_server(settings, files, made, own)
    click.echo(f"{files.authority}: the authority, SHA-256 {made.fingerprint}")
    click.echo(f"{files.authority_key}: its key; only `bootd tls renew` reads it")
    _show_server(files, own)
    _show_next(settings, files, known, names)


@tls.command()
@_address_option
@_name_option
@_days_option
@click.pass_obj
def renew(config: str, addresses: tuple[str, ...], names: tuple[str, ...], days: int) -> None:
    """Make a new certificate with the same authority.

    For when it ends, or the server has got another address. Clients notice nothing.
    """
    from bootd.cli import certificates

    settings = _settings(config)
    files = _files(settings)
    known = _known(settings, addresses)
    _check_names(names)
    with _told(files):
        with _made_by_init(files.authority, files.authority_key):
            issuer = certificates.read(
                files.authority.read_bytes(), files.authority_key.read_bytes()
            )
        own = certificates.server(issuer, known, names, days, certificates.now())
        _write_server(settings, files, issuer, own)
    _show_server(files, own)
    click.echo("next: systemctl reload bootd")


@tls.command()
@click.argument(
    "sources", nargs=-1, metavar="[FILE]...",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)  # fmt: skip
@click.option(
    "--to", "folder", metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the copies go; default: tftp/ in state_dir, which bootd looks into first.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace other programs that are there already.")
@click.pass_obj
def loader(config: str, sources: tuple[Path, ...], folder: Path | None, force: bool) -> None:
    """Make copies of iPXE that trust the authority.

    Of each FILE, an EFI program of iPXE's with HTTPS in it, as in Debian 13's package ipxe. Without
    FILE: of the snponly.efi and ipxe.efi that this server has, for x64 and arm64. Nothing is built:
    the fingerprint of ipxe.org's authority in it is replaced. A file that is there already is
    replaced where it differs in nothing but whom it trusts; another one not without --force.
    """
    from bootd.cli import certificates
    from bootd.files import search_path

    settings = _settings(config)
    files = _files(settings)
    search = search_path(settings.state_dir)
    found = [[source] for source in sources] or _on_server(search)
    if not found:
        raise Failure(
            f"there is no iPXE for UEFI in {search[0]} and {search[1]}: name the files of Debian "
            "13's package `ipxe`"
        )
    with _told(files):
        with _made_by_init(files.authority):
            fingerprint = certificates.fingerprint(files.authority.read_bytes())
        done = [_copy(paths, folder or search[0], fingerprint, force) for paths in found]
    if not all(done):
        raise click.exceptions.Exit(1)


def _settings(config: str) -> Settings:
    from bootd.config.load import load_settings
    from bootd.model import ConfigError

    try:
        return load_settings(config)
    except ConfigError as error:
        refuse(error.faults)


def _files(settings: Settings) -> _Files:
    """As ``http.tls`` says, else in ``tls/``; the authority is beside the certificate."""
    folder = Path(settings.config_file).absolute().parent / "tls"
    certificate, key = folder / "cert.pem", folder / "key.pem"
    if settings.http.tls is not None:
        certificate, key = Path(settings.http.tls.certificate), Path(settings.http.tls.key)
    beside = certificate.parent
    return _Files(beside / "ca.pem", beside / "ca.key", certificate, key)


def _paths(files: _Files) -> tuple[Path, ...]:
    return (files.authority, files.authority_key, files.certificate, files.key)


def _known(settings: Settings, given: Sequence[str]) -> list[IPv4Address]:
    """The addresses to certify: those that were typed, else those of the interfaces."""
    try:
        found = [IPv4Address(text) for text in given] or _interface_addresses(settings)
    except ValueError as error:
        raise WrongInput(f"--address: {error}") from error
    if not found:
        raise Failure(
            "no interface of bootd's has an IPv4 address now: say with --address how nodes reach "
            "this server"
        )
    return sorted(set(found))


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
            raise WrongInput(f"--name: {name!r} is not a DNS name")


def _interface_addresses(settings: Settings) -> list[IPv4Address]:
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        names = {link["index"]: link.get("ifname") for link in netlink.get_links()}
        found = [
            (names.get(entry["index"]), IPv4Address(entry.get("local") or entry.get("address")))
            for entry in netlink.get_addr(family=socket.AF_INET)
        ]
    return [
        address
        for name, address in found
        if (name in settings.interfaces if settings.interfaces else not address.is_loopback)
    ]


def _on_server(search: Sequence[Path]) -> list[list[Path]]:
    """Of each build of iPXE that the server has, its files, the one that is served first."""
    from bootd import loaders

    found = [
        [root / name for name in names for root in search if (root / name).is_file()]
        for names in loaders.ipxe_files()
    ]
    return [paths for paths in found if paths]


def _copy(sources: Sequence[Path], folder: Path, fingerprint: bytes, force: bool) -> bool:
    """Copy the first of `sources` that can be made to trust the authority with this fingerprint,
    or say why the first of all cannot. True where the copy is in `folder`."""
    from bootd import ipxe

    reasons = []
    for source in sources:
        try:
            copy = ipxe.trusting(source.read_bytes(), fingerprint)
            arch = ipxe.arch(copy)
        except ipxe.Unusable as error:
            reasons.append(f"{source}: {error}")
            continue
        return _place(source, copy, arch, folder, fingerprint, force)
    click.echo(reasons[0], err=True)
    return False


def _place(
    source: Path, copy: bytes, arch: int, folder: Path, fingerprint: bytes, force: bool
) -> bool:
    """Write `copy`, or say why not. True where it is there."""
    from bootd import ipxe, loaders

    path = folder / loaders.ipxe_name(source.name, arch)
    there = path.read_bytes() if os.path.lexists(path) else None
    if there == copy:
        click.echo(f"{path}: already trusts this authority")
        return True
    if there is not None and not force and not ipxe.same_but_trust(there, copy, fingerprint):
        click.echo(
            f"{path}: there already, and differs from {source} in more than whom it trusts: "
            "--force replaces it",
            err=True,
        )
        return False
    _write(path, copy, 0o644)
    known = loaders.candidates(path.name) != (path.name,)
    whose = "" if known else f", for nodes with `loader: {path.name}`"
    click.echo(f"{path}: {source}, trusting this authority{whose}")
    return True


def _write_server(settings: Settings, files: _Files, issuer: Pair, own: Pair) -> None:
    """The key is the daemon's user's own: whoever has `state_dir`."""
    _write(files.key, own.key_pem, 0o600)
    if os.geteuid() == 0:
        with contextlib.suppress(FileNotFoundError):
            owner = Path(settings.state_dir).stat()
            os.chown(files.key, owner.st_uid, owner.st_gid)
    _write(files.certificate, own.certificate_pem + issuer.certificate_pem, 0o644)


def _write(path: Path, data: bytes, mode: int) -> None:
    from bootd.state import write_atomic

    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_atomic(path, data, mode)


@contextlib.contextmanager
def _told(files: _Files) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = Path(error.filename or files.certificate)
        where = where.parent if where.name.startswith(".") else where  # a temporary file
        raise Failure(f"{where}: {error.strerror or error}; are you root?") from error


@contextlib.contextmanager
def _made_by_init(*paths: Path) -> Iterator[None]:
    """Say what makes these files, or that something is wrong with what is in them."""
    try:
        yield
    except FileNotFoundError as error:
        raise Failure(f"{error.filename} is not there: `bootd tls init` makes it") from error
    except (ValueError, TypeError) as error:
        raise Failure(f"{' and '.join(map(str, paths))}: {error}") from error


def _show_server(files: _Files, own: Pair) -> None:
    from cryptography import x509

    found = own.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    names = dict.fromkeys(found.get_values_for_type(x509.DNSName))
    until = own.certificate.not_valid_after_utc.date()
    click.echo(f"{files.certificate}: this server, for {', '.join(names)}, until {until}")
    click.echo(f"{files.key}: its key")


def _show_next(
    settings: Settings, files: _Files, addresses: Sequence[IPv4Address], names: Sequence[str]
) -> None:
    port = settings.http.tls.port if settings.http.tls is not None else 9874
    where = f"https://{(*names, *addresses)[0]}:{port}"
    beside = Path(settings.config_file).absolute().parent
    shown = [
        path.relative_to(beside) if path.is_relative_to(beside) else path
        for path in (files.certificate, files.key)
    ]
    click.echo(
        f"""
Next:
 1. In bootd.yaml, then `systemctl restart bootd` (a port is opened at the start):
      http:
        tls: {{port: {port}, certificate: {shown[0]}, key: {shown[1]}}}
 2. Try it:
      curl --cacert {files.authority} {where}/healthz
 3. Machines that boot by HTTPS need an iPXE that trusts this authority. Of the server's, or of
    files that you name (Debian 13's package ipxe has HTTPS, Debian 12's has not):
      bootd tls loader
    BIOS machines need one that is built: docs/security.md.
 4. `scripts: true` in http.tls, and a restart: iPXE gets its script, and what is in it, by
    HTTPS only"""
    )
