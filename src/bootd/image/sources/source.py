"""What an operator calls a source, and the root that it becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bootd.image.disk import ImageInputError, Progress
from bootd.image.sources import oci, suite
from bootd.image.sources.limits import Limits
from bootd.image.sources.untar import unpack
from bootd.image.streams import open_stream


@dataclass(frozen=True, slots=True)
class Options:
    """How sources are read. `max_size` is bytes that one may unpack to."""

    max_size: int = 64 << 30
    registry: oci.Registry = field(default_factory=oci.Registry)
    profile: str = "minimal"
    mirrors: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    architecture: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A source that was recognised: `kind` is ``folder``, ``tar``, ``oci``, ``registry`` or
    ``suite``."""

    kind: str
    what: str
    tag: str = ""
    label: str = field(default="")
    """For the manifest."""


FORMS: Final = (
    "a folder, a tar archive, an OCI layout or archive, docker://HOST/NAME:TAG, "
    "docker-archive:FILE, or a suite like bookworm or suite:NAME"
)


def recognise(text: str) -> Source:
    """What `text` names. Raises `ImageInputError` where it is nothing."""
    scheme, colon, rest = text.partition(":")
    if colon and scheme in ("suite", "debian", "ubuntu"):
        return Source("suite", rest, label=f"suite {rest}")
    if colon and scheme in oci.TRANSPORTS:
        if scheme == "docker" and not rest.startswith("//"):
            raise ImageInputError(f"{text!r}: is written docker://HOST/NAME:TAG")
        return Source("registry", text, label=text)
    path = text
    if colon and scheme == "oci":
        folder, _, tag = rest.partition(":")
        return Source("oci", folder, tag, label=f"oci:{Path(folder).absolute()}:{tag}".rstrip(":"))
    if colon and scheme in ("tar", "dir", "folder", "file"):
        path = rest
    found = Path(path)
    if found.is_dir():
        if oci.is_layout(found):
            return Source("oci", path, label=f"oci:{found.absolute()}")
        return Source("folder", path, label=f"folder {found.absolute()}")
    if found.is_file():
        return Source("tar", path, label=f"archive {found.absolute()}")
    if suite.is_suite(text):
        return Source("suite", text, label=f"suite {text}")
    if found.exists():
        raise ImageInputError(f"{path}: is neither a folder nor a file")
    raise ImageInputError(f"{text}: there is nothing of that name; a source is {FORMS}")


def make_root(
    source: Source, work: Path, options: Options, progress: Progress, say: Callable[[str], None]
) -> Path:
    """The root folder of a source: the folder itself, or a new one in the folder `work`.

    Raises `ImageError` and `OSError`; what is in `work` then is for the caller to remove.
    """
    if source.kind == "folder":
        return Path(source.what).resolve()
    root = work / "root"
    root.mkdir(mode=0o755)
    if source.kind == "suite":
        wanted = suite.Wanted(
            source.what, options.profile, options.mirrors, options.include, options.architecture
        )
        suite.bootstrap(wanted, root, say)
        return root
    limits = Limits(options.max_size)
    if source.kind == "tar":
        _untar(Path(source.what), root, limits, progress)
        inner = _image_inside(root)
        if not inner:
            return root
        layout, root = root, work / "image"
        root.mkdir(mode=0o755)
        if inner == "docker-archive":
            layout = work / "layout"
            oci.fetch(f"docker-archive:{source.what}", layout, options.registry, say)
    elif source.kind == "registry":
        layout = work / "layout"
        oci.fetch(source.what, layout, options.registry, say)
    else:
        layout = Path(source.what)
    tag = source.tag or ("bootd" if layout == work / "layout" else "")
    oci.unpack_layout(layout, tag, options.architecture, root, limits, progress)
    return root


def _untar(path: Path, root: Path, limits: Limits, progress: Progress) -> None:
    file, stream = open_stream(path, lambda done, total: progress("unpack", done, total))
    with file:
        unpack(stream, root, limits, name=str(path))


def _image_inside(root: Path) -> str:
    """Whether an archive was that of a container image, and whose."""
    if any((root / name).exists() for name in ("etc", "usr", "bin")):
        return ""
    if oci.is_layout(root):
        return "oci-archive"
    return "docker-archive" if (root / "manifest.json").is_file() else ""
