"""What a generation says of itself: ``manifest.json``, written once, read defensively. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Final

from bootd.model import safe_name

MAX_MANIFEST: Final = 1 << 20
"""Bytes that a manifest may have."""
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ROLE = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)


class ManifestError(ValueError):
    """A manifest that does not say what it must; the message is a sentence."""


@dataclass(frozen=True, slots=True)
class File:
    """One artefact: its name in the generation's folder, bytes, SHA-256 in hex."""

    file: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One generation. `created` is ISO 8601 in UTC; `source` is what it was imported from."""

    name: str
    generation: str
    created: str
    source: str
    artefacts: dict[str, File]
    kernel_version: str | None = None
    secret: bool = False
    bootd: str = ""

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
        )
    except ManifestError:
        raise
    except ValueError as error:
        raise ManifestError(str(error)) from None


def _text(raw: dict[str, Any], key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str):
        raise ManifestError(f"{key} is missing or not a text")
    return value


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
    return File(safe_name(_text(value, "file"), "file"), size, digest)
