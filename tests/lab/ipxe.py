"""Debian 13's iPXE, and a copy of it that trusts an authority of the lab's own.

Debian 12's builds know no HTTPS. iPXE has whom it trusts as the SHA-256 of that certificate,
32 bytes in its program (iPXE: crypto/rootcert.c), so that a build with ``TRUST=`` and a copy with
other bytes there are the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tests.lab.packages import BUILD, locked, unpack
from tests.lab.run import LabError

IPXE_ORG: Final = bytes.fromhex("9faf717b7f8ca2f93c256c79f8ac5591895d66d1ff3bee6397a70d29c65eed1a")
"""The certificate of ipxe.org's own authority, which builds trust that were not told otherwise."""


def debian_13(folder: Path = BUILD) -> Path:
    """The folder of the package's boot loaders, unpacked where it is not there yet. `LabError` says
    what is missing."""
    tree = folder / "ipxe-trixie"
    with locked(folder):
        if not tree.exists():
            unpack(tree, "ipxe", release="trixie")
    return tree / "usr" / "lib" / "ipxe"


def trusting(authority: Path, loader: Path, copy: Path) -> None:
    """Write `copy`, an iPXE as `loader` that trusts the certificate `authority` (PEM)."""
    program = loader.read_bytes()
    if program.count(IPXE_ORG) != 1:
        raise LabError(f"{loader} does not say in one place whom it trusts")
    certificate = x509.load_pem_x509_certificate(authority.read_bytes())
    copy.write_bytes(program.replace(IPXE_ORG, certificate.fingerprint(hashes.SHA256())))
