"""Container images: OCI layouts on disk, and whatever skopeo turns into one.

Layers are unpacked by `untar`, as archives are: nothing of an image is a path before it is checked,
and the same limits hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from bootd.image import tools
from bootd.image.beneath import Beneath
from bootd.image.disk import ImageInputError, Progress
from bootd.image.sources.limits import Limits
from bootd.image.sources.untar import unpack
from bootd.image.streams import Stream

TRANSPORTS: Final = (
    "docker",
    "docker-archive",
    "docker-daemon",
    "oci-archive",
    "containers-storage",
)
"""What skopeo reads, as ``TRANSPORT:…``."""
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
_MAX_JSON: Final = 4 << 20
_MAX_LAYERS: Final = 1000
_NESTED: Final = 3
_REF: Final = "org.opencontainers.image.ref.name"
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Registry:
    """How a registry is asked. `architecture` as containers name it: ``arm64``."""

    tls_verify: bool = True
    authfile: str = ""
    architecture: str = ""


def architecture(wanted: str) -> str:
    """The architecture that is meant, as containers name it; this machine's by itself."""
    return wanted or _ARCHITECTURES.get(platform.machine(), platform.machine())


def fetch(source: str, layout: Path, how: Registry, say: Callable[[str], None]) -> None:
    """Let skopeo copy ``docker://…`` or another image to the new OCI layout `layout`.

    Raises `ImageError`.
    """
    options = []
    if not Path("/etc/containers/policy.json").exists():
        options.append("--insecure-policy")  # skopeo's default, where its package has none
    if how.architecture:
        options += ["--override-arch", how.architecture]
    options.append("copy")
    if how.authfile:
        options += ["--src-authfile", how.authfile]
    if not how.tls_verify:
        options.append("--src-tls-verify=false")
    say(f"fetching {source}")
    tools.run("skopeo", *options, "--", source, f"oci:{layout}:bootd", what=source, say=say)


def is_layout(folder: Path) -> bool:
    """Whether a folder is an OCI layout."""
    return (folder / "oci-layout").is_file() and (folder / "index.json").is_file()


def unpack_layout(
    layout: Path, tag: str, arch: str, root: Path, limits: Limits, progress: Progress
) -> None:
    """Unpack the image `tag` of an OCI layout, or the only one, into the folder `root`.

    Raises `ImageInputError` and `OSError`.
    """
    with _Layout(layout) as blobs:
        layers = blobs.layers(tag, architecture(arch))
        for number, digest in enumerate(layers, 1):
            name = f"{layout}: layer {number} of {len(layers)}"
            role = f"layer {number}/{len(layers)}"
            with blobs.open(digest, name) as file:
                total = os.fstat(file.fileno()).st_size

                def tell(done: int, role: str = role, total: int = total) -> None:
                    progress(role, done, total)

                stream = Stream(file, name, tell)
                unpack(stream, root, limits, name=name, layer=True)
                progress(role, total, total)


class _Layout:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._beneath = Beneath(folder)

    def __enter__(self) -> _Layout:
        return self

    def __exit__(self, *error: Any) -> None:
        self._beneath.__exit__(*error)

    def layers(self, tag: str, arch: str) -> list[str]:
        """The digests of the image's layers, lowest first."""
        index = self._json(self._read("index.json"), "index.json")
        manifest = self._manifest(index, tag, arch, _NESTED)
        layers = [_digest(layer, "a layer") for layer in _maps(manifest, "layers")]
        if not layers or len(layers) > _MAX_LAYERS:
            raise ImageInputError(f"{self._folder}: an image of {len(layers)} layers")
        return layers

    def _manifest(self, index: dict[str, Any], tag: str, arch: str, depth: int) -> dict[str, Any]:
        entries = list(_maps(index, "manifests"))
        if tag:
            entries = [e for e in entries if _map(e, "annotations").get(_REF) == tag]
        if len(entries) > 1:
            fitting = [e for e in entries if _map(e, "platform").get("architecture") == arch]
            entries = fitting or entries
        if len(entries) != 1:
            known = [str(_map(e, "annotations").get(_REF)) for e in _maps(index, "manifests")]
            what = f"no image {tag!r}" if tag else f"{len(entries)} images to choose from"
            raise ImageInputError(
                f"{self._folder}: {what} for {arch}; it has {', '.join(known[:20]) or 'none'}: "
                "name one as oci:FOLDER:NAME"
            )
        digest = _digest(entries[0], "a manifest")
        with self.open(digest, "a manifest") as file:
            found = self._json(file.read(_MAX_JSON + 1), digest)
        if "manifests" in found and depth:
            return self._manifest(found, "", arch, depth - 1)
        return found

    def open(self, digest: str, what: str) -> BinaryIO:
        """A blob whose bytes are what its digest says, at their beginning."""
        try:
            folder = self._beneath.folder(("blobs", "sha256"), make=False)
            file = os.fdopen(_regular(folder, digest), "rb")
        except OSError as error:
            raise ImageInputError(
                f"{self._folder}: {what}: its blob {digest[:12]}… cannot be read: {error.strerror}"
            ) from None
        try:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ImageInputError(
                    f"{self._folder}: {what}: its blob {digest[:12]}… is not what its digest says"
                )
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def _read(self, name: str) -> bytes:
        try:
            with os.fdopen(_regular(self._beneath.root, name), "rb") as file:
                return file.read(_MAX_JSON + 1)
        except OSError as error:
            raise ImageInputError(f"{self._folder}/{name}: {error.strerror}") from None

    def _json(self, data: bytes, name: str) -> dict[str, Any]:
        try:
            found = json.loads(data) if len(data) <= _MAX_JSON else None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ImageInputError(f"{self._folder}: {name[:80]}: is not the JSON that OCI wants")
        return found


def _regular(folder: int, name: str) -> int:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(22, "not a regular file")
    return descriptor


def _maps(raw: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
    values = raw.get(key)
    for value in values if isinstance(values, list) else []:
        if isinstance(value, dict):
            yield value


def _map(raw: dict[str, Any], key: str) -> dict[str, Any]:
    value = raw.get(key)
    return value if isinstance(value, dict) else {}


def _digest(descriptor: dict[str, Any], what: str) -> str:
    """The hexadecimal digits of a digest, and nothing else that could be a path."""
    found = _DIGEST.fullmatch(str(descriptor.get("digest")))
    if found is None:
        raise ImageInputError(
            f"{what} has the digest {str(descriptor.get('digest'))[:80]!r}, which is no sha256 "
            "and 64 hex digits"
        )
    return found[1]
