"""The site's overlays of a Warewulf server, copied into the shape of bootd's."""

from __future__ import annotations

import glob
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from bootd.config import values
from bootd.migrate.gotemplate import translate
from bootd.migrate.nodesconf import OVERLAYS, Report

MAX_TEMPLATE: Final = 1024 * 1024
"""Bytes of a template that is looked at."""


def own(folder: Path, taken: frozenset[str], report: Report) -> dict[str, str]:
    """The site's own overlays in `folder`, and what they are called here: as there, but for names
    that are `taken` by overlays of the distribution."""
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        name = path.name
        if not path.is_dir() or path.is_symlink():
            continue
        if name in OVERLAYS:
            ours = OVERLAYS[name] or "nothing"
            report.add(
                f"overlay {name}",
                f"the site has its own version of Warewulf's; bootd's {ours} is used: compare them",
            )
            continue
        try:
            values.name(name)
        except ValueError as error:
            report.add(f"overlay {name!r}", f"{error}; left out")
            continue
        found[name] = f"site-{name}" if name in taken else name
    return found


def copy(source: Path, target: Path, aside: Path, where: str, report: Report) -> None:
    """Copy one overlay to `target`; templates that a person has to translate go to `aside`.

    Links are copied as links; what is neither file, folder nor link is left out. Warewulf's nodes
    have the server's owners, here overlay.yaml says them. Raises `OSError`.
    """
    root = source / "rootfs" if (source / "rootfs").is_dir() else source
    (target / "rootfs").mkdir(parents=True)
    owners = {}
    for path in _beneath(root):
        inside = path.relative_to(root)
        made = target / "rootfs" / inside
        found = path.lstat()
        mode = found.st_mode
        if (found.st_uid, found.st_gid) != (0, 0):
            owners[inside] = {"owner": found.st_uid, "group": found.st_gid}
        if stat.S_ISLNK(mode):
            made.symlink_to(path.readlink())
        elif stat.S_ISDIR(mode):
            made.mkdir(mode=stat.S_IMODE(mode) | 0o700)
        elif not stat.S_ISREG(mode):
            report.add(f"{where}: /{inside}", "neither file nor link; left out")
        elif path.suffix == ".ww":
            _template(path, made, aside / inside, f"{where}: /{inside}", report)
        else:
            if path.suffix == ".j2":
                report.add(f"{where}: /{inside}", "ends in .j2, so bootd takes it for a template")
            shutil.copy(path, made)
    _write_owners(owners, target)


def _write_owners(owners: Mapping[Path, Mapping[str, int]], target: Path) -> None:
    """Say in overlay.yaml whose those paths are, as far as they were copied."""
    lines = []
    for inside, owner in owners.items():
        name = inside.with_suffix("") if inside.suffix in (".ww", ".j2") else inside
        rootfs = target / "rootfs"
        if os.path.lexists(rootfs / name) or os.path.lexists(rootfs / f"{name}.j2"):
            # JSON is YAML too.
            lines.append(f"  {json.dumps(glob.escape(str(name)))}: {json.dumps(owner)}\n")
    if lines:
        (target / "overlay.yaml").write_text("paths:\n" + "".join(lines))


def _template(path: Path, made: Path, aside: Path, where: str, report: Report) -> None:
    try:
        text = path.read_text() if path.stat().st_size <= MAX_TEMPLATE else None
    except UnicodeDecodeError:
        text = None
    translated = translate(text) if text is not None else None
    if translated is None:
        aside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, aside)
        report.add(where, f"a Go template: write it anew as {made.with_suffix('').name}.j2")
        return
    made = made.with_suffix(".j2")
    made.write_text(translated)
    shutil.copymode(path, made)


def _beneath(root: Path) -> Iterator[Path]:
    """Everything below `root`, folders before what is in them; links are not followed."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in (*folders, *sorted(files)):
            yield Path(folder, name)
