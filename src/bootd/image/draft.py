"""A generation while it is made: whole or not at all.

It is made in ``.tmp-GENERATION`` beside the others, synced, and renamed into place. Whatever kills
the process leaves no half of one: leftovers are never read, and the next import removes them (it
holds the image's locks, so nobody can be writing them).
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from bootd import __version__
from bootd.image.disk import (
    BUILDS,
    CHANGES,
    TEMPORARY,
    ImageError,
    locked,
    make_folder,
    point,
    remove_leftovers,
    sync_folder,
    write_file,
)
from bootd.image.manifest import File, KernelFiles, Manifest

MANIFEST: Final = "manifest.json"
_STAMP: Final = "%Y%m%d-%H%M%S"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a generation has beside its name, date and source; as in `Manifest`."""

    artefacts: Mapping[str, File]
    kernels: tuple[KernelFiles, ...] = ()
    kernel_version: str | None = None
    secret: bool = False
    unpacked: int = 0
    files: int = 0
    init: str = ""
    os: str = ""
    warnings: tuple[str, ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    excludes: tuple[str, ...] = ()
    users: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)


class Draft:
    """The folder that becomes a generation, and one beside it for what is needed only meanwhile."""

    def __init__(self, image: Path, generation: str, created: datetime) -> None:
        self._image = image
        self._created = created
        self.name = image.name
        self.generation = generation
        self.folder = image / f"{TEMPORARY}{generation}"
        self.work = image / f"{TEMPORARY}work-{generation}"

    def finish(self, source: str, contents: Contents, *, activate: bool) -> None:
        """Write the manifest and give the generation its name; nodes boot it then where it is to
        be `activate`. Raises `ImageError` and `OSError`."""
        manifest = Manifest(
            name=self.name,
            generation=self.generation,
            created=self._created.astimezone(UTC).isoformat(timespec="seconds"),
            source=source,
            artefacts=contents.artefacts,
            kernel_version=contents.kernel_version,
            secret=contents.secret,
            bootd=__version__,
            kernels=contents.kernels,
            unpacked=contents.unpacked,
            files=contents.files,
            init=contents.init,
            os=contents.os,
            warnings=contents.warnings,
            tools=contents.tools,
            excludes=contents.excludes,
            users=contents.users,
            groups=contents.groups,
        )
        write_file(self.folder / MANIFEST, manifest.encode())
        for folder in self.folder.rglob("*"):
            if folder.is_dir():
                sync_folder(folder)
        sync_folder(self.folder)
        with locked(self._image):
            self.folder.rename(self._image / self.generation)
            sync_folder(self._image)
            if activate:
                point(self._image, self.generation)


@contextlib.contextmanager
def draft(root: Path, name: str, now: datetime) -> Iterator[Draft]:
    """Make a generation of image `name` below `root`; one at a time.

    Where the block does not come to `Draft.finish` everything is as it was before, and so is a new
    image: not there. Raises `ImageError` and `OSError`.
    """
    image = root / name
    make_folder(root)
    is_new = not image.exists()
    make_folder(image)
    try:
        with locked(image, BUILDS):
            with locked(image):
                remove_leftovers(image)
                made = Draft(image, _next_name(image, now), now)
                make_folder(made.folder)
            try:
                make_folder(made.work)
                made.work.chmod(0o700)  # a root of any source, with its setuid programs
                yield made
            finally:
                shutil.rmtree(made.work, ignore_errors=True)
                shutil.rmtree(made.folder, ignore_errors=True)
    except BaseException:
        if is_new:
            _forget(image)
        raise


def _forget(image: Path) -> None:
    """Remove an image that has nothing but its locks."""
    with contextlib.suppress(OSError, ImageError):
        kept = {path.name for path in image.iterdir()}
        if kept <= {CHANGES, BUILDS}:
            for name in kept:
                (image / name).unlink()
            image.rmdir()


def _next_name(folder: Path, now: datetime) -> str:
    """A name for a new generation that sorts after all that are there, also where two are made in
    one second or the clock was set back."""
    stamp = now.astimezone(UTC)
    for path in folder.iterdir():
        with contextlib.suppress(ValueError):
            known = datetime.strptime(path.name[:15], _STAMP).replace(tzinfo=UTC)
            stamp = max(stamp, known + timedelta(seconds=1))
    return f"{stamp:{_STAMP}}-{secrets.token_hex(2)}"
