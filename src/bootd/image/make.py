"""From a source to a generation: its root, what is in it, its archives and its kernels."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import zstandard

from bootd.image import kernel as header
from bootd.image import tools
from bootd.image.beneath import open_inside, read_inside
from bootd.image.bootloaders import copy_loaders
from bootd.image.build import Options as BuildOptions
from bootd.image.build import pack
from bootd.image.disk import (
    ImageError,
    ImageInputError,
    Progress,
    copy_hashed,
    make_folder,
    open_source,
    sentences,
)
from bootd.image.draft import Contents, Draft
from bootd.image.excludes import ALWAYS, FILES, MAX_FILE, ExcludeError, Excludes, parse
from bootd.image.initramfs import features
from bootd.image.inside import FoundKernel, Inside, look, measured
from bootd.image.manifest import KernelFiles
from bootd.image.sources.source import Options as SourceOptions
from bootd.image.sources.source import Source, make_root
from bootd.image.store import ImageStore
from bootd.image.versions import best_first, is_debug
from bootd.image.walk import survey
from bootd.model import Image, Kernel, safe_name

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """How an image is made. `compression` is ``auto``, ``zstd`` or ``gzip``; `kernel` and
    `initramfs` are files from outside of the root."""

    source: SourceOptions = field(default_factory=SourceOptions)
    build: BuildOptions = field(default_factory=BuildOptions)
    compression: str = "auto"
    excludes: tuple[str, ...] = ()
    kernel: str | None = None
    initramfs: str | None = None
    secret: bool = False


def import_source(
    store: ImageStore,
    name: str,
    source: Source,
    wish: Wish,
    *,
    progress: Progress,
    say: Say,
    activate: bool = True,
    now: datetime | None = None,
) -> Image:
    """Make a new generation of image `name` from `source`.

    Raises `ImageError`; then there is no new generation, and the active one is what it was.
    """
    if source.kind != "folder" and os.geteuid() != 0:
        raise ImageError(
            f"image {name}: owners and device nodes of {source.label} can only be kept by root: "
            "run it as root"
        )
    _excludes(wish.excludes)  # what was typed wrong is told before minutes of work
    _check_kernel(wish)
    with sentences(name), store.draft(name, now) as draft:
        root = make_root(source, draft.work, wish.source, progress, say)
        if Path(store.root).resolve().is_relative_to(root):
            raise ImageInputError(f"{root}: holds bootd's own images; an image cannot hold itself")
        contents = build(root, draft, wish, progress=progress, say=say)
        draft.finish(source.label, contents, activate=activate)
    return store.image(name, draft.generation)


def build(
    root: Path,
    draft: Draft,
    wish: Wish,
    *,
    progress: Progress,
    say: Say,
    carry: tuple[Kernel, ...] = (),
) -> Contents:
    """Make archives and kernels of `root` in the draft's folder.

    `carry` are kernels of the generation that the root was made from: those whose modules are still
    there stay, also where the files in /boot were left out. Raises `ImageError` and `OSError`.
    """
    excludes = _excludes((*ALWAYS, *wish.excludes, *_own_excludes(root)))
    found = survey(root, excludes)
    say(f"{found.files} files, {found.size / 1e6:.0f} MB")
    inside = look(root)
    kind = wish.compression
    if kind == "auto":
        kind = "zstd" if inside.zstd else "gzip"
    options = replace(wish.build, compression=kind)
    artefacts = pack(
        root, draft.folder, excluded=excludes, found=found, options=options, progress=progress
    )
    kernels = _kernels(root, draft.folder, inside, wish, carry, progress)
    artefacts |= copy_loaders(root, draft.folder, progress)
    archive = artefacts.get("image")
    warnings = [
        *(w for w in inside.warnings if not (kernels and w.startswith("it has no kernel"))),
        *measured(found, archive.size if archive else None),
    ]
    return Contents(
        artefacts,
        kernels,
        kernel_version=kernels[0].version if kernels else None,
        secret=wish.secret,
        unpacked=found.unpacked,
        files=found.files,
        init=inside.init,
        os=inside.os,
        warnings=tuple(warnings),
        tools=_versions(),
        excludes=excludes.patterns,
        users=inside.users,
        groups=inside.groups,
    )


def _excludes(patterns: tuple[str, ...]) -> Excludes:
    try:
        return Excludes(patterns)
    except ExcludeError as error:
        raise ImageInputError(f"--exclude: {error}") from None


def _own_excludes(root: Path) -> tuple[str, ...]:
    """What the image itself wants left out."""
    for path in FILES:
        data = read_inside(root, path, MAX_FILE)
        if data is not None:
            try:
                return parse(data, f"/{path} of the image")
            except ExcludeError as error:
                raise ImageInputError(str(error)) from None
    return ()


def _versions() -> Mapping[str, str]:
    return {
        "mksquashfs": tools.version("mksquashfs", ("-version",)),
        "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
    }


# ---- kernels ------------------------------------------------------------------------------------


def _kernels(
    root: Path,
    folder: Path,
    inside: Inside,
    wish: Wish,
    carry: tuple[Kernel, ...],
    progress: Progress,
) -> tuple[KernelFiles, ...]:
    """The kernels of the root, of `carry`, and the one that was given, which goes first."""
    made: dict[str, KernelFiles] = {}
    given = _given(folder, wish, progress)
    if given is not None:
        made[given.version] = given
    for found in inside.kernels:
        if found.version not in made:
            made[found.version] = _from_root(root, folder, found, progress)
    for kernel in carry:
        has_modules = any(
            (root / place / kernel.version).is_dir() for place in ("lib/modules", "usr/lib/modules")
        )
        if kernel.version not in made and (has_modules or not inside.kernels):
            made[kernel.version] = _carried(folder, kernel, progress)
    order = best_first(list(made))
    if given is not None:
        order = [given.version, *(version for version in order if version != given.version)]
    return tuple(made[version] for version in order)


def _from_root(root: Path, folder: Path, found: FoundKernel, progress: Progress) -> KernelFiles:
    with contextlib.ExitStack() as stack:

        def opened(path: str) -> BinaryIO:
            return stack.enter_context(os.fdopen(open_inside(root, path), "rb"))

        return _copy(
            folder,
            found.version,
            opened(found.kernel),
            opened(found.initramfs) if found.initramfs else None,
            found.features,
            progress,
        )


def _check_kernel(wish: Wish) -> str | None:
    """The version of the kernel that was given; None without one. Raises `ImageInputError`."""
    if wish.kernel is None:
        if wish.initramfs is not None:
            raise ImageInputError("--initramfs goes with --kernel")
        return None
    with open_source("kernel", Path(wish.kernel)) as kernel:
        head = kernel.read(header.HEADER_BYTES)
    if not header.is_kernel(head):
        raise ImageInputError(f"{wish.kernel}: does not begin as a kernel does")
    if wish.initramfs is not None:
        with open_source("initramfs", Path(wish.initramfs)) as initramfs:
            if not header.is_initramfs(initramfs.read(16)):
                raise ImageInputError(f"{wish.initramfs}: does not begin as an initramfs does")
    version = header.version(head) or Path(wish.kernel).name.partition("-")[2] or "given"
    try:
        return safe_name(version, "kernel version")
    except ValueError as error:
        raise ImageInputError(f"{wish.kernel}: {error}") from None


def _given(folder: Path, wish: Wish, progress: Progress) -> KernelFiles | None:
    version = _check_kernel(wish)
    if version is None or wish.kernel is None:
        return None
    with contextlib.ExitStack() as stack:
        kernel = stack.enter_context(open_source("kernel", Path(wish.kernel)))
        initramfs = None
        can: tuple[str, ...] = ()
        if wish.initramfs is not None:
            initramfs = stack.enter_context(open_source("initramfs", Path(wish.initramfs)))
            can = features(initramfs)
            initramfs.seek(0)
        return _copy(folder, version, kernel, initramfs, can, progress)


def _carried(folder: Path, kernel: Kernel, progress: Progress) -> KernelFiles:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(Path(kernel.kernel.path).open("rb"))
        own = kernel.initramfs
        initramfs = stack.enter_context(Path(own.path).open("rb")) if own is not None else None
        can = tuple(sorted(kernel.features))
        return _copy(folder, kernel.version or "given", file, initramfs, can, progress)


def _copy(
    folder: Path,
    version: str,
    kernel: BinaryIO,
    initramfs: BinaryIO | None,
    can: tuple[str, ...],
    progress: Progress,
) -> KernelFiles:
    place = folder / "kernels" / version
    make_folder(place.parent)
    make_folder(place)
    files = {}
    for role, file in (("kernel", kernel), ("initramfs", initramfs)):
        if file is not None:
            copied = copy_hashed(file, place / role, f"{role} {version}", progress)
            files[role] = replace(copied, file=f"kernels/{version}/{role}")
    return KernelFiles(version, files["kernel"], files.get("initramfs"), is_debug(version), can)
