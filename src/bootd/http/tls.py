"""TLS: what is spoken, and a certificate that can be exchanged while the port stays open.

iPXE speaks TLS 1.2 at most, with RSA certificates, and in card ROMs only with RSA key exchange and
CBC (WIRE.md 3.3), so those suites stand at the end of the list; everyone else takes TLS 1.3 or
ECDHE with GCM. Which certificate is good was checked when the configuration was loaded.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Final

import structlog

from bootd.model import StartError, TlsSettings

log = structlog.get_logger()

_SUITES: Final = ":".join(
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "AES256-SHA256",
        "AES128-SHA256",
    )
)
_Version = tuple[str, str, int, int]


class Certificate:
    """The server's certificate. Reads files: make it in a thread. Raises `StartError`.

    `chain` is the certificate and those that vouch for it, as PEM: what a client needs to know us.
    """

    def __init__(self, settings: TlsSettings) -> None:
        try:
            self._version = _version(settings)
            self.context = self._now = _context(settings)
            self.chain = Path(settings.certificate).read_bytes()
        except (OSError, ssl.SSLError) as exc:
            raise StartError(
                f"{settings.certificate}, {settings.key}: no certificate for HTTPS: {exc}"
            ) from exc
        # Called for every handshake, with or without a server name: each takes what is current, as
        # a whole. (Loading another chain into a context in use is not one step.)
        self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _: ssl.SSLContext) -> None:
        connection.context = self._now

    async def follow(self, settings: TlsSettings) -> None:
        """Take what the files hold now; on an error what there was stays."""
        try:
            version = await asyncio.to_thread(_version, settings)
            if version == self._version:
                return
            self._now = await asyncio.to_thread(_context, settings)
            self.chain = await asyncio.to_thread(Path(settings.certificate).read_bytes)
            self._version = version
        except (OSError, ssl.SSLError) as exc:
            log.error("tls.certificate-rejected", file=settings.certificate, reason=str(exc))
        else:
            log.info("tls.certificate", file=settings.certificate)


def _version(settings: TlsSettings) -> _Version:
    states = [Path(name).stat() for name in (settings.certificate, settings.key)]
    return (settings.certificate, settings.key, states[0].st_mtime_ns, states[1].st_mtime_ns)


def _context(settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_SUITES)
    context.load_cert_chain(settings.certificate, settings.key, password=lambda: "")
    return context
