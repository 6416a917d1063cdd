"""SSH host keys of nodes, made once and kept: ``state_dir/keys/ssh/NODE/ssh_host_TYPE_key``.

Private keys in OpenSSH's form, 0600, so that keys a node had before can be put there by hand. A key
is written beside its name, synced, and linked into place: of two who make one the first wins, and a
key that was once given out is never replaced.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from bootd.model import Node
from bootd.overlay.links import TemplateValueError
from bootd.overlay.secrets import HostKey, key_types

RSA_BITS: Final = 3072  # ssh-keygen's default
_MAX_KEY: Final = 64 << 10
_BULK: Final = 8
"""Keys made at once from which on the disk is synced once for all: a cluster's first known_hosts
makes one for every node, and a sync for each would take minutes."""
_WAITING: Final = "(made when the node first boots)"


class HostKeys:
    """The keys below `state_dir`; a `bootd.overlay.secrets.Secrets`.

    With `make` False a key that is missing stays missing: a command that root runs must not leave
    files that the daemon's user cannot read.
    """

    def __init__(self, state_dir: str | Path, *, make: bool = True) -> None:
        self.folder = Path(state_dir) / "keys" / "ssh"
        self._make = make
        self._public: dict[Path, tuple[tuple[int, int], str]] = {}

    def host_keys(self, node: Node) -> Sequence[HostKey]:
        """All keys of a node. Missing ones are made; RSA takes a tenth of a second."""
        files = {kind: self._file(node, kind) for kind in key_types(node)}
        with _told(self.folder):
            self._make_missing(files.values())
            return [self._read(node, kind, file) for kind, file in files.items()]

    def public_keys(self, nodes: Sequence[Node]) -> Sequence[str]:
        """The ed25519 key of each node, made where it is missing."""
        files = [self._file(node, "ed25519") for node in nodes]
        with _told(self.folder):
            self._make_missing(files)
            return [self._public_key(file) for file in files]

    def _file(self, node: Node, kind: str) -> Path:
        if "/" in node.name or "\0" in node.name or node.name.startswith("."):
            raise TemplateValueError(f"{node.name!r} cannot name a folder of host keys")
        return self.folder / node.name / f"ssh_host_{kind}_key"

    def _make_missing(self, files: Iterable[Path]) -> None:
        missing = [file for file in files if not file.exists()] if self._make else []
        temporaries = {file: _write_new(file) for file in missing}
        if len(missing) >= _BULK:
            os.sync()
        for file, temporary in temporaries.items():
            if len(missing) < _BULK:
                _sync(temporary)
            with contextlib.suppress(FileExistsError):
                file.hardlink_to(temporary)
            temporary.unlink()
            if len(missing) < _BULK:
                _sync(file.parent)

    def _read(self, node: Node, kind: str, file: Path) -> HostKey:
        if not self._make and not file.exists():
            return HostKey(kind, f"{_WAITING}\n", f"{_WAITING}\n")
        private = _private(file)
        return HostKey(kind, private.decode("ascii"), f"{_public(file, private)} {node.name}\n")

    def _public_key(self, file: Path) -> str:
        """From memory as long as the file is the same one."""
        if not self._make and not file.exists():
            return f"ssh-ed25519 {_WAITING}"
        found = file.stat()
        signature = (found.st_ino, found.st_mtime_ns)
        known = self._public.get(file)
        if known is None or known[0] != signature:
            known = self._public[file] = (signature, _public(file, _private(file)))
        return known[1]


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """A disk that fails becomes a sentence; the template's error then names node and file."""
    try:
        yield
    except OSError as error:
        raise TemplateValueError(
            f"SSH host keys: {error.filename or folder}: {error.strerror}; bootd's user keeps them "
            f"below {folder}"
        ) from error


def _write_new(file: Path) -> Path:
    """A new key of the type that `file` is named for, beside it; not yet synced."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600), "wb") as out:
        out.write(_new(file.name.split("_")[2]))
    return temporary


def _new(kind: str) -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if kind == "ed25519":
        key = ed25519.Ed25519PrivateKey.generate()
    elif kind == "ecdsa":
        key = ec.generate_private_key(ec.SECP256R1())
    else:
        key = rsa.generate_private_key(65537, RSA_BITS)
    form = serialization.PrivateFormat.OpenSSH
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _private(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(_MAX_KEY)


def _public(file: Path, private: bytes) -> str:
    """The public half, as OpenSSH writes it without a comment."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_ssh_private_key(private, password=None).public_key()
        raw = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TemplateValueError(
            f"{file} is not a private key of OpenSSH without a passphrase: {error}. Remove it, and "
            "a new one is made"
        ) from None
    return raw.decode("ascii")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
