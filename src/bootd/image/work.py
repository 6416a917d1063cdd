"""Working in an image: its root, writable, on a layer that becomes the next generation.

The generation's squashfs is mounted, read-only, and an overlay over it; so a change costs the disk
what it writes and nothing else. The mounts are in a mount namespace of our own: whatever ends this
process, they go with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from bootd.image import tools
from bootd.image.beneath import Beneath, parts_of
from bootd.image.disk import ImageError, ImageInputError
from bootd.model import Image
from bootd.overlay.cpio import Entry
from bootd.text import escape

_CLONE_NEWNS: Final = 0x20000
_NSPAWN: Final = "/run/systemd/nspawn"


@contextlib.contextmanager
def layer(image: Image, work: Path) -> Iterator[Path]:
    """The root of `image`, writable, in the folder `work`; what is written lies in ``upper``.

    Raises `ImageError` and `OSError`.
    """
    if image.squashfs is None:
        raise ImageInputError(
            f"image {image.name} {image.generation} has no root to work in: it was imported as "
            "kernel and initramfs"
        )
    if os.geteuid() != 0:
        raise ImageError(f"image {image.name}: to work in it needs mounts: run it as root")
    _own_mounts()
    folders = {name: work / name for name in ("lower", "upper", "overlay", "merged")}
    for folder in folders.values():
        folder.mkdir(mode=0o755)
    with contextlib.ExitStack() as stack:
        _lower(Path(image.squashfs.path), folders["lower"], stack)
        top = folders["lower"].stat()
        folders["upper"].chmod(stat.S_IMODE(top.st_mode))
        os.chown(folders["upper"], top.st_uid, top.st_gid)
        options = (
            f"lowerdir={folders['lower']},upperdir={folders['upper']},workdir={folders['overlay']}"
        )
        if any(mark in str(work) for mark in (",", ":", "\\")):
            raise ImageError(f"{work}: overlayfs takes no path with a comma, colon or backslash")
        _mount(stack, folders["merged"], "-t", "overlay", "overlay", "-o", options)
        yield folders["merged"]


def changed(work: Path) -> bool:
    """Whether the layer in `work` holds anything but folders that were only looked into."""
    for folder, folders, files in os.walk(work / "upper"):
        if files:
            return True
        for name in folders:
            path = Path(folder, name)
            if (
                path.is_symlink()
                or not (work / "lower" / path.relative_to(work / "upper")).is_dir()
            ):
                return True
    return False


def run(root: Path, command: Sequence[str], binds: Iterable[str], *, interactive: bool) -> None:
    """Run a command in the root, by systemd-nspawn with the machine's network; without one, the
    shell of its root. Raises `ImageError` where it fails."""
    argv = [
        tools.find("systemd-nspawn"),
        *("--quiet", "--register=no", f"--directory={root}", "--machine=bootd-image"),
        *([] if Path("/run/systemd/system").is_dir() else ["--keep-unit"]),
        *("--resolv-conf=bind-host", "--timezone=off", "--link-journal=no", "--as-pid2"),
        f"--console={'interactive' if interactive else 'pipe'}",
        *_binds(binds),
    ]
    if not command:
        shell = next((s for s in ("/bin/bash", "/bin/sh") if os.path.lexists(f"{root}{s}")), "")
        if not shell:
            raise ImageInputError("the image has neither /bin/bash nor /bin/sh")
        command = [shell, "-l"]
    code = subprocess.run([*argv, "--", *command], env=tools.environment(), check=False).returncode
    if code:
        raise ImageError(
            f"`{escape(' '.join(command))}` ended with {code}: the image is as it was before"
        )


def _binds(binds: Iterable[str]) -> Iterator[str]:
    """``SOURCE``, ``SOURCE:TARGET`` and ``SOURCE:TARGET:ro`` as nspawn writes them."""
    for bind in binds:
        source, _, rest = bind.partition(":")
        target, _, mode = rest.partition(":")
        if not source.startswith("/") or (target and not target.startswith("/")):
            raise ImageInputError(f"--bind {bind!r}: is written /SOURCE[:/TARGET[:ro]]")
        if mode not in ("", "ro", "rw"):
            raise ImageInputError(f"--bind {bind!r}: {mode!r} is neither ro nor rw")
        if not Path(source).exists():
            raise ImageInputError(f"--bind {bind!r}: there is no {source}")
        yield f"--bind{'-ro' if mode == 'ro' else ''}={source}:{target or source}"


def put(root: Path, entries: Iterable[Entry]) -> None:
    """Put what a node's overlays make over the root, as the node would find it."""
    with Beneath(root, follow=True) as beneath:
        for entry in entries:
            parts = parts_of(entry.path)
            folder = beneath.folder(parts[:-1])
            name = parts[-1]
            kind = stat.S_IFMT(entry.mode)
            if kind == stat.S_IFDIR:
                beneath.folder(parts)
                continue
            if kind not in (stat.S_IFREG, stat.S_IFLNK):
                continue
            beneath.remove(folder, name)
            if kind == stat.S_IFLNK:
                os.symlink(entry.content, name, dir_fd=folder)
            else:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with os.fdopen(os.open(name, flags, 0o600, dir_fd=folder), "wb") as file:
                    file.write(entry.content)
                    os.fchmod(file.fileno(), stat.S_IMODE(entry.mode))
            os.chown(name, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)


def _own_mounts() -> None:
    """Leave the machine's mount namespace; what is mounted from here on nobody else sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        number = ctypes.get_errno()
        raise ImageError(f"a mount namespace of its own: {os.strerror(number)}")
    tools.run("mount", "--make-rprivate", "/", what="mounts that nobody else sees")
    # What nspawn keeps of its machines is ours alone too: two may work in images at once.
    Path(_NSPAWN).mkdir(parents=True, exist_ok=True)
    tools.run("mount", "-t", "tmpfs", "tmpfs", _NSPAWN, what="a place for systemd-nspawn")


def _lower(squashfs: Path, folder: Path, stack: contextlib.ExitStack) -> None:
    """The squashfs at `folder`: mounted, or unpacked where there are no loop devices."""
    try:
        _mount(stack, folder, "-t", "squashfs", "-o", "loop,ro", str(squashfs))
    except ImageError:
        tools.run("unsquashfs", "-f", "-d", str(folder), str(squashfs), what="the root")


def _mount(stack: contextlib.ExitStack, target: Path, *arguments: str) -> None:
    tools.run("mount", *arguments, str(target), what=f"mounting {target.name}")

    def unmount() -> None:
        with contextlib.suppress(ImageError):
            tools.run("umount", "--lazy", str(target), what="unmounting")

    stack.callback(unmount)
