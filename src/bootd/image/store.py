"""Images on disk: generations that appear whole or not at all.

``state_dir/images/NAME/GENERATION/{manifest.json,kernel,initramfs}`` and beside them ``active``, a
symlink to the generation that nodes boot. A generation is made in ``.tmp-…``, synced, and renamed
into place, so whatever kills the process leaves no half of one: leftovers are never read, and the
next import removes them (it holds the image's lock, so nobody can be writing them).
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import stat
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from bootd.image import kernel as kernels
from bootd.image.disk import (
    ACTIVE,
    BUILDS,
    PREVIOUS,
    TEMPORARY,
    ImageError,
    ImageInputError,
    Progress,
    check_space,
    copy_hashed,
    locked,
    open_source,
    point,
    read_regular,
    remove_leftovers,
    sentences,
    sync_folder,
)
from bootd.image.draft import MANIFEST, Contents, Draft, draft
from bootd.image.manifest import File, Manifest, ManifestError, decode
from bootd.model import Artefact, ConfigError, Image, Kernel, safe_name


class NoSuchImage(ImageInputError):
    """There is no image or generation of that name."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation on disk; `fault` says why it cannot be booted, where it cannot."""

    name: str
    generation: str
    active: bool
    image: Image | None
    manifest: Manifest | None
    fault: str = ""

    @property
    def size(self) -> int:
        """Bytes of all its artefacts."""
        files = self.manifest.all_files() if self.manifest is not None else ()
        return sum(file.size for file in files)


class ImageStore:
    """The images below `state_dir`. Methods block on the disk: call them in a thread."""

    def __init__(self, state_dir: str | Path) -> None:
        self.root = Path(state_dir) / "images"

    def active(self, named: Iterable[str] = ()) -> Mapping[str, Image]:
        """The generation that nodes boot, by image name; and those that are `named`, as
        ``NAME@GENERATION``, by that reference. What does not exist is left out.

        Raises `ConfigError` that names every image whose generation is damaged.
        """
        images: dict[str, Image] = {}
        faults: list[str] = []
        for name in self._names():
            generation = self._active_name(name)
            if generation is None:
                continue
            try:
                images[name] = self._image(name, generation)
            except ImageError as error:
                faults.append(
                    f"{error}. Switch to another generation with `bootd image activate {name} "
                    f"GENERATION`, or import it again"
                )
        for reference in sorted(set(named)):
            name, _, generation = reference.partition("@")
            try:
                images[reference] = self._image(name, generation)
            except NoSuchImage:
                continue
            except ImageError as error:
                faults.append(f"{error}. Nodes name it: let them name another, or import it again")
        if faults:
            raise ConfigError(faults)
        return MappingProxyType(images)

    def images(self) -> Mapping[str, tuple[Generation, ...]]:
        """Every generation of every image, oldest first; damaged ones say so in `fault`."""
        return {name: self.generations(name) for name in self._names()}

    def generations(self, name: str) -> tuple[Generation, ...]:
        """The generations of one image, oldest first. Raises `NoSuchImage`."""
        folder = self._folder(name)
        active = self._active_name(name)
        found = sorted(
            path.name
            for path in folder.iterdir()
            if not path.name.startswith(".") and path.is_dir() and not path.is_symlink()
        )
        return tuple(self._generation(name, generation, active) for generation in found)

    def import_files(
        self,
        name: str,
        kernel: str | Path,
        initramfs: str | Path,
        progress: Progress = lambda _role, _done, _total: None,
        *,
        activate: bool = True,
        now: datetime | None = None,
    ) -> Image:
        """Copy a kernel and an initramfs as they are into a new generation of image `name`.

        Raises `ImageError`; then there is no new generation, and the active one is what it was.
        """
        _safe(name, "image")
        with sentences(name), contextlib.ExitStack() as stack:
            sources = {
                role: stack.enter_context(open_source(role, Path(path)))
                for role, path in (("kernel", kernel), ("initramfs", initramfs))
            }
            version = _check_sources(sources)
            draft = stack.enter_context(self.draft(name, now))
            check_space(draft.folder, sources)
            files = {
                role: copy_hashed(source, draft.folder / role, role, progress)
                for role, source in sources.items()
            }
            draft.finish(
                f"kernel {Path(kernel).absolute()}, initramfs {Path(initramfs).absolute()}",
                Contents(files, kernel_version=version),
                activate=activate,
            )
        return self._image(name, draft.generation)

    def draft(self, name: str, now: datetime | None = None) -> AbstractContextManager[Draft]:
        """A new generation of image `name`; it appears where `Draft.finish` is called."""
        _safe(name, "image")
        return draft(self.root, name, now if now is not None else datetime.now(UTC))

    def image(self, name: str, generation: str = "") -> Image:
        """One generation, by itself the active one. Raises `ImageError`."""
        self._folder(name)
        generation = generation or self._active_name(name) or ""
        if not generation:
            raise NoSuchImage(f"image {name} has no active generation; `bootd image list {name}`")
        return self._image(name, generation)

    def manifest(self, name: str, generation: str) -> Manifest:
        """What a generation says of itself. Raises `ImageError`."""
        return self._manifest(name, generation)

    def activate(self, name: str, generation: str | None = None) -> Image:
        """Let nodes boot `generation`, by default the newest. Raises `ImageError`."""
        folder = self._folder(name)
        if generation is None:
            whole = [g.generation for g in self.generations(name) if not g.fault]
            if not whole:
                raise NoSuchImage(f"image {name} has no generation that can be booted")
            generation = whole[-1]
        with sentences(name), locked(folder):
            image = self._image(name, generation)
            point(folder, generation)
        return image

    def previous(self, name: str) -> str:
        """What was active before the active generation, or else the one made before it.

        Raises `NoSuchImage` where there is none that can be booted.
        """
        folder = self._folder(name)
        active = self._active_name(name)
        whole = [g.generation for g in self.generations(name) if not g.fault]
        with contextlib.suppress(OSError):
            before = (folder / PREVIOUS).readlink().name
            if before != active and before in whole:
                return before
        older = [generation for generation in whole if active is None or generation < active]
        if not older:
            raise NoSuchImage(f"image {name} has no generation before the active one")
        return older[-1]

    def delete(self, name: str, generation: str) -> None:
        """Remove a generation; the active one is refused. Raises `ImageError`."""
        folder = self._folder(name)
        path = self._existing(name, generation)
        with sentences(name), locked(folder):
            if self._active_name(name) == generation:
                raise ImageInputError(
                    f"generation {generation} of image {name} is active: nodes boot it. Activate "
                    f"another one first with `bootd image activate {name} GENERATION`"
                )
            # Renamed first: it is gone as a whole, however long the removal takes.
            gone = folder / f"{TEMPORARY}deleted-{generation}"
            path.rename(gone)
            sync_folder(folder)
            shutil.rmtree(gone)

    def remove(self, name: str) -> None:
        """Remove an image with all its generations, the active one too. Raises `ImageError`."""
        folder = self._folder(name)
        with sentences(name), locked(folder, BUILDS), locked(folder):
            gone = self.root / f"{TEMPORARY}deleted-{name}"
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            sync_folder(self.root)
            shutil.rmtree(gone)

    def old(self, name: str, keep: int, used: Collection[str] = ()) -> tuple[Generation, ...]:
        """The generations that nobody would miss: not among the newest `keep`, not active, not
        active before, and not `used`. Raises `NoSuchImage`."""
        generations = self.generations(name)
        stay = {g.generation for g in generations[-keep:]} | set(used)
        with contextlib.suppress(NoSuchImage):
            stay.add(self.previous(name))
        return tuple(g for g in generations if not g.active and g.generation not in stay)

    def tidy(self, name: str) -> int:
        """Remove what interrupted commands left; returns how much that was. Raises `ImageError`
        where one is under way."""
        folder = self._folder(name)
        with sentences(name), locked(folder, BUILDS), locked(folder):
            return remove_leftovers(folder)

    def verify(self, name: str, generation: str) -> list[str]:
        """Read every artefact and compare its SHA-256; what is wrong, as sentences."""
        image = self._image(name, generation)
        faults = []
        for artefact in image.files():
            with sentences(name), Path(artefact.path).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != artefact.sha256:
                faults.append(
                    f"{artefact.path}: {Path(artefact.path).name} has the SHA-256 {digest}, "
                    f"its manifest says {artefact.sha256}"
                )
        return faults

    def _names(self) -> list[str]:
        try:
            return sorted(
                path.name
                for path in self.root.iterdir()
                if path.is_dir() and not path.name.startswith(".")
            )
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError([f"{self.root}: images: {error.strerror}"]) from error

    def _folder(self, name: str) -> Path:
        folder = self.root / _safe(name, "image")
        if not folder.is_dir():
            known = ", ".join(self._names()) or "none"
            raise NoSuchImage(f"there is no image {name!r}; images: {known}")
        return folder

    def _existing(self, name: str, generation: str) -> Path:
        path = self._folder(name) / _safe(generation, "generation")
        if generation == ACTIVE or path.is_symlink() or not path.is_dir():
            raise NoSuchImage(
                f"image {name} has no generation {generation!r}; `bootd image list` shows them"
            )
        return path

    def _active_name(self, name: str) -> str | None:
        """Where ``active`` points, or None where there is no such link."""
        try:
            return (self.root / name / ACTIVE).readlink().name
        except OSError:
            return None

    def _generation(self, name: str, generation: str, active: str | None) -> Generation:
        is_active = generation == active
        try:
            manifest = self._manifest(name, generation)
            image = _to_image(manifest, self.root / name / generation)
        except ImageError as error:
            return Generation(name, generation, is_active, None, None, str(error))
        return Generation(name, generation, is_active, image, manifest)

    def _image(self, name: str, generation: str) -> Image:
        path = self._existing(name, generation)
        return _to_image(self._manifest(name, generation), path)

    def _manifest(self, name: str, generation: str) -> Manifest:
        path = self._existing(name, generation) / MANIFEST
        try:
            manifest = decode(read_regular(path))
        except ManifestError as error:
            raise ImageError(f"{path}: {error}") from None
        except OSError as error:
            raise ImageError(f"{path}: cannot be read: {error.strerror}") from None
        if (manifest.name, manifest.generation) != (name, generation):
            raise ImageError(f"{path}: is of {manifest.name}/{manifest.generation}")
        return manifest


def _safe(text: str, what: str) -> str:
    try:
        return safe_name(text, what)
    except ValueError as error:
        raise ImageInputError(str(error)) from None


def _artefact(folder: Path, file: File) -> Artefact:
    """The file of a manifest where it is there with the size that it says."""
    path = folder / file.file
    try:
        found = path.lstat()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise ImageError(f"{path}: is not a regular file")
    if found.st_size != file.size:
        raise ImageError(
            f"{path}: has {found.st_size} bytes, its manifest says {file.size}: damaged"
        )
    return Artefact(str(path), file.size, file.sha256)


def _to_image(manifest: Manifest, folder: Path) -> Image:
    """The image of a manifest whose files are there with the sizes it says."""
    artefacts = {role: _artefact(folder, file) for role, file in manifest.artefacts.items()}
    kernels = tuple(
        Kernel(
            k.version,
            _artefact(folder, k.kernel),
            _artefact(folder, k.initramfs) if k.initramfs is not None else None,
            k.debug,
            frozenset(k.features),
        )
        for k in manifest.kernels
    )
    if kernels:
        artefacts["kernel"] = kernels[0].kernel
        if kernels[0].initramfs is not None:
            artefacts["initramfs"] = kernels[0].initramfs
    elif "kernel" in artefacts:
        own = artefacts.get("initramfs")
        kernels = (Kernel(manifest.kernel_version or "", artefacts["kernel"], own),)
    return Image(
        manifest.name,
        manifest.generation,
        MappingProxyType(artefacts),
        kernels[0].version or None if kernels else manifest.kernel_version,
        manifest.created,
        manifest.secret,
        kernels,
        manifest.unpacked,
        manifest.init,
        manifest.os,
        manifest.source,
        manifest.warnings,
        MappingProxyType(manifest.users),
        MappingProxyType(manifest.groups),
    )


def _check_sources(sources: Mapping[str, BinaryIO]) -> str | None:
    """Refuse files given in the wrong order; returns the kernel's release where it says so."""
    heads = {role: file.read(kernels.HEADER_BYTES) for role, file in sources.items()}
    for file in sources.values():
        file.seek(0)
    if kernels.is_kernel(heads["initramfs"]) and not kernels.is_initramfs(heads["initramfs"]):
        raise ImageInputError(
            f"{sources['initramfs'].name}: given as initramfs, but it begins as a kernel does: "
            "are --kernel and --initramfs swapped?"
        )
    if kernels.is_initramfs(heads["kernel"]):
        # arm64 kernels come as Image.gz too, but no boot loader here unpacks those.
        raise ImageInputError(
            f"{sources['kernel'].name}: given as kernel, but it begins as an initramfs or a "
            "compressed file does: are --kernel and --initramfs swapped? A compressed kernel "
            "(Image.gz) must be unpacked first"
        )
    return kernels.version(heads["kernel"])
