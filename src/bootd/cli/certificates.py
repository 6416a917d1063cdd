"""A site's own certificate authority, and a server certificate that boot firmware accepts.

Pure but for randomness. What iPXE asks for (WIRE.md section 3.3): RSA of 2048 bits and SHA-256,
which builds in the ROMs of cards know as well; no OCSP responder named, which a network without
Internet would wait for; and the authority's own certificate in what the server sends, since an
iPXE built with ``TRUST=`` knows only its fingerprint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BITS: Final = 2048
SLACK: Final = timedelta(days=2)
"""How far a machine's clock may be behind: firmware clocks drift, and count local time."""
_MAX_CN: Final = 64


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as it stands in a file."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key as it stands in a file, without a passphrase: a daemon starts unattended."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, as browsers and openssl show it."""
        return self.certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def read(certificate: bytes, key: bytes) -> Pair:
    """A pair from the content of its files. Raises `ValueError` where it is none."""
    found = x509.load_pem_x509_certificate(certificate)
    private = serialization.load_pem_private_key(key, None)
    if not isinstance(private, rsa.RSAPrivateKey) or private.public_key() != found.public_key():
        raise ValueError("the key does not belong to the certificate")
    return Pair(found, private)


def fingerprint(certificate: bytes) -> bytes:
    """SHA-256 of a certificate (PEM) in DER form, as iPXE has it. Raises `ValueError`."""
    return x509.load_pem_x509_certificate(certificate).fingerprint(hashes.SHA256())


def authority(name: str, days: int, now: datetime) -> Pair:
    """A new authority that signs server certificates and nothing else."""
    key = _key()
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "bootd"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"bootd at {name}"[:_MAX_CN]),
        ]
    )
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=True,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    public = key.public_key()
    builder = (
        _builder(subject, subject, key, days, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    return Pair(builder.sign(key, hashes.SHA256()), key)


def server(
    issuer: Pair, addresses: Sequence[IPv4Address], names: Sequence[str], days: int, now: datetime
) -> Pair:
    """A certificate for a server that is reached by `addresses` and `names` (one at least).

    Addresses stand in it as such; as DNS names too, and the first as common name, for clients that
    compare text only.
    """
    key = _key()
    texts = [*map(str, addresses), *names]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, texts[0][:_MAX_CN])])
    alternatives = [*map(x509.IPAddress, addresses), *map(x509.DNSName, texts)]
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=True,
        data_encipherment=False, key_agreement=False, key_cert_sign=False, crl_sign=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    parent = issuer.key.public_key()
    builder = (
        _builder(subject, issuer.certificate.subject, key, days, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(parent), critical=False)
    )
    return Pair(builder.sign(issuer.key, hashes.SHA256()), key)


def now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)


def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, BITS)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: rsa.RSAPrivateKey, days: int, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SLACK)
        .not_valid_after(now + timedelta(days=days))
    )
