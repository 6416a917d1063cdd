"""bootd.yaml as `config.schema` checked it -> `Settings` with absolute paths. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from posixpath import join, normpath

from bootd.config.faults import Fault
from bootd.config.schema import BootdFile
from bootd.config.source import Document, dotted
from bootd.model import (
    DhcpMode,
    DhcpSettings,
    HttpSettings,
    ImageSettings,
    LogSettings,
    SecuritySettings,
    Settings,
    TftpSettings,
    TlsSettings,
)


def settings(checked: BootdFile, config_file: str) -> Settings:
    """The daemon's settings; relative paths count from the folder of `config_file` (absolute)."""
    folder = config_file.rpartition("/")[0] or "/"

    def path(text: str) -> str:
        return normpath(join(folder, text))

    def paths(texts: Iterable[str]) -> tuple[str, ...]:
        return tuple(path(text) for text in texts)

    tls = checked.http.tls
    return Settings(
        config_file=config_file,
        interfaces=checked.interfaces,
        state_dir=path(checked.state_dir),
        run_dir=path(checked.run_dir),
        nodes=paths(checked.nodes),
        overlays=paths(checked.overlays),
        templates=paths(checked.templates),
        dhcp=DhcpSettings(**{**dict(checked.dhcp), "lease_time": int(checked.dhcp.lease_time)}),
        tftp=TftpSettings(**dict(checked.tftp)),
        http=HttpSettings(
            port=checked.http.port,
            tls=None
            if tls is None
            else TlsSettings(tls.port, path(tls.certificate), path(tls.key), tls.scripts),
            max_image_transfers=checked.http.max_image_transfers,
            admin_networks=checked.http.admin_networks,
        ),
        security=SecuritySettings(**dict(checked.security)),
        images=ImageSettings(**dict(checked.images)),
        log=LogSettings(**dict(checked.log)),
    )


def ports_in_conflict(checked: BootdFile, document: Document) -> Iterator[Fault]:
    """A fault for each port that is given to two services of the same protocol."""
    udp: list[tuple[tuple[str, ...], int]]
    udp = [(("dhcp", "port"), checked.dhcp.port), (("dhcp", "pxe_port"), checked.dhcp.pxe_port)]
    if checked.dhcp.mode is DhcpMode.OFF:
        udp = []
    if checked.tftp.enabled:
        udp.append((("tftp", "port"), checked.tftp.port))
    tcp: list[tuple[tuple[str, ...], int]] = [(("http", "port"), checked.http.port)]
    if checked.http.tls is not None:
        tcp.append((("http", "tls", "port"), checked.http.tls.port))
    for services in (udp, tcp):
        users: dict[int, tuple[str, ...]] = {}
        for path, port in services:
            first = users.setdefault(port, path)
            if first != path:
                what = f"port {port} is also {dotted(first)}"
                yield Fault(document.origin(path), dotted(path), what)
