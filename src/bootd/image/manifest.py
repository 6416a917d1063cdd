"""What a generation says of itself: ``manifest.json``, written once, read defensively. Pure.

Two forms are read. A kernel and an initramfs given as they are have both under ``artefacts`` and no
``kernels``; an image built from a root has ``image`` and ``squashfs`` there, and its kernels, best
first, under ``kernels``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from bootd.model import MAX_ID, safe_name

MAX_MANIFEST: Final = 1 << 20
"""Bytes that a manifest may have."""
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ROLE = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)
_DEPTH: Final = 3
"""Components that a file's name may have: ``kernels/VERSION/kernel``."""


class ManifestError(ValueError):
    """A manifest that does not say what it must; the message is a sentence."""


@dataclass(frozen=True, slots=True)
class File:
    """One artefact: its name relative to the generation's folder, bytes, SHA-256 in hex."""

    file: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """One kernel of a root, and the root's own initramfs for it; see `bootd.model.Kernel`."""

    version: str
    kernel: File
    initramfs: File | None = None
    debug: bool = False
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """One generation. `created` is ISO 8601 in UTC; `source` is what it was imported from.

    Of a root: `unpacked` bytes in `files` files, `init` its absolute path or empty, `os` as in
    ``debian-12``, `warnings` sentences, `tools` their versions by name, `excludes` the patterns of
    what was left out, `users` and `groups` its own with their numbers.
    """

    name: str
    generation: str
    created: str
    source: str
    artefacts: Mapping[str, File]
    kernel_version: str | None = None
    secret: bool = False
    bootd: str = ""
    kernels: tuple[KernelFiles, ...] = ()
    unpacked: int = 0
    files: int = 0
    init: str = ""
    os: str = ""
    warnings: tuple[str, ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    excludes: tuple[str, ...] = ()
    users: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)

    def all_files(self) -> tuple[File, ...]:
        """Every artefact's file, each once."""
        own = (f for k in self.kernels for f in (k.kernel, k.initramfs) if f is not None)
        return tuple(dict.fromkeys((*self.artefacts.values(), *own)))

    def encode(self) -> bytes:
        """The file's bytes."""
        return (json.dumps(asdict(self), indent=2, sort_keys=True) + "\n").encode()


def decode(data: bytes) -> Manifest:
    """Read a manifest. Any bytes give a `Manifest` whose names are safe as path components, or
    `ManifestError`."""
    if len(data) > MAX_MANIFEST:
        raise ManifestError(f"has more than {MAX_MANIFEST} bytes")
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ManifestError("is not a JSON object")
    artefacts = raw.get("artefacts")
    if not isinstance(artefacts, dict) or not artefacts:
        raise ManifestError("names no artefacts")
    version = raw.get("kernel_version")
    if version is not None and not isinstance(version, str):
        raise ManifestError("kernel_version is not a text")
    try:
        return Manifest(
            name=safe_name(_text(raw, "name"), "image"),
            generation=safe_name(_text(raw, "generation"), "generation"),
            created=_text(raw, "created"),
            source=_text(raw, "source"),
            artefacts={_role(role): _file(role, value) for role, value in artefacts.items()},
            kernel_version=version,
            secret=raw.get("secret") is True,
            bootd=str(raw.get("bootd", "")),
            kernels=tuple(_kernel(value) for value in _list(raw, "kernels")),
            unpacked=_number(raw, "unpacked"),
            files=_number(raw, "files"),
            init=_text(raw, "init", ""),
            os=_text(raw, "os", ""),
            warnings=_texts(raw, "warnings"),
            tools=_tools(raw.get("tools", {})),
            excludes=_texts(raw, "excludes"),
            users=_accounts(raw, "users"),
            groups=_accounts(raw, "groups"),
        )
    except ManifestError:
        raise
    except ValueError as error:
        raise ManifestError(str(error)) from None


def _text(raw: dict[str, Any], key: str, default: str | None = None) -> str:
    value = raw.get(key, default)
    if not isinstance(value, str):
        raise ManifestError(f"{key} is missing or not a text")
    return value


def _list(raw: dict[str, Any], key: str) -> list[Any]:
    value = raw.get(key, [])
    if not isinstance(value, list):
        raise ManifestError(f"{key} is not a list")
    return value


def _texts(raw: dict[str, Any], key: str) -> tuple[str, ...]:
    values = _list(raw, key)
    if not all(isinstance(value, str) for value in values):
        raise ManifestError(f"{key} is not a list of texts")
    return tuple(values)


def _number(raw: dict[str, Any], key: str) -> int:
    value = raw.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ManifestError(f"{key} is not a number")
    return value


def _tools(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ManifestError("tools is not a map of texts")
    return value


def _accounts(raw: dict[str, Any], key: str) -> dict[str, int]:
    value = raw.get(key, {})
    if not isinstance(value, dict) or not all(
        isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= MAX_ID
        for number in value.values()
    ):
        raise ManifestError(f"{key} is not a map of numbers")
    return value


def _kernel(value: object) -> KernelFiles:
    if not isinstance(value, dict):
        raise ManifestError("a kernel is not an object")
    version = safe_name(_text(value, "version"), "kernel version")
    initramfs = value.get("initramfs")
    return KernelFiles(
        version,
        _file(f"kernel {version}", value.get("kernel")),
        _file(f"initramfs of kernel {version}", initramfs) if initramfs is not None else None,
        value.get("debug") is True,
        _texts(value, "features"),
    )


def _role(role: str) -> str:
    if not _ROLE.fullmatch(role):
        raise ManifestError(f"{role[:64]!r} is no artefact's role")
    return role


def _file(role: str, value: object) -> File:
    if not isinstance(value, dict):
        raise ManifestError(f"artefact {role} is not an object")
    size, digest = value.get("size"), value.get("sha256")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ManifestError(f"artefact {role}: size is not a number of bytes")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ManifestError(f"artefact {role}: sha256 is not 64 hex digits")
    parts = _text(value, "file").split("/")
    if len(parts) > _DEPTH:
        raise ManifestError(f"artefact {role}: file has more than {_DEPTH} components")
    return File("/".join(safe_name(part, "file") for part in parts), size, digest)
