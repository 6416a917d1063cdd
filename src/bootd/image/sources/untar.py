"""Tar archives unpacked below a folder, with everything kept and nothing trusted.

Python's `tarfile` reads the headers and no more: its extraction and its filters have been led out
of the folder again and again. Here every member is made by `Beneath`.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final, Self, cast

from bootd.image.beneath import Beneath, parts_of
from bootd.image.disk import CHUNK, ImageInputError
from bootd.image.sources.limits import Limits, Metered
from bootd.image.streams import Readable

_MAX_HEADER: Final = 1 << 20
"""Bytes of a pax header or long name; tarfile reads them whole."""
_HEADERS: Final = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_MAX_FOLDERS: Final = 2_000_000
_HOLE: Final = 4096
_XATTR: Final = "SCHILY.xattr."
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_MALFORMED: Final = (
    tarfile.TarError,
    ValueError,
    ArithmeticError,
    LookupError,
    RecursionError,
)


class _Header(tarfile.TarInfo):
    """Refuses what tarfile would take as the end of the archive, or read whole into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            made = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not any(buf):  # the end, as it should be
                raise
            raise ImageInputError(f"is damaged, or no tar archive: {error}") from None
        if made.size < 0:
            raise ImageInputError(f"{made.name!r}: a size below 0")
        if made.type in _HEADERS and made.size > _MAX_HEADER:
            raise ImageInputError(f"a header of {made.size} bytes: no archive needs that")
        return made


def unpack(
    stream: Readable,
    root: Path,
    limits: Limits,
    *,
    name: str,
    layer: bool = False,
    tell: Callable[[], None] = lambda: None,
) -> None:
    """Unpack a tar archive into the folder `root`, which is as the archive says afterwards.

    `layer`: whiteouts remove what earlier layers brought (OCI image-spec, layer.md), and symlinks
    on the way are followed inside `root`. Raises `ImageInputError`, which begins with `name`, and
    `OSError`.
    """
    try:
        with (
            Beneath(root, follow=layer) as beneath,
            contextlib.closing(_opened(metered := Metered(stream))) as tar,
        ):
            _Unpacking(beneath, limits, layer, tell).run(tar, metered)
    except ImageInputError as error:
        raise ImageInputError(f"{name}: {error}") from None
    except _MALFORMED as error:
        raise ImageInputError(f"{name}: is damaged, or no tar archive: {error}") from None


def _opened(stream: Readable) -> tarfile.TarFile:
    return tarfile.open(
        fileobj=cast("IO[bytes]", stream),
        mode="r|",
        tarinfo=_Header,
        encoding="utf-8",
        errors="surrogateescape",
    )


class _Unpacking:
    def __init__(
        self, beneath: Beneath, limits: Limits, layer: bool, tell: Callable[[], None]
    ) -> None:
        self._beneath = beneath
        self._limits = limits
        self._layer = layer
        self._tell = tell
        self._brought: set[int] = set()
        """Hashes of the paths of this layer: its whiteouts are for those below."""
        self._folders: dict[tuple[str, ...], tuple[int, float]] = {}
        """Mode and time of each folder, put on when all is in it."""

    def run(self, tar: tarfile.TarFile, metered: Metered) -> None:
        while True:
            with metered.header():
                member = tar.next()
            if member is None:
                break
            tar.members = []  # type: ignore[attr-defined]  # it would keep every header
            self._tell()
            try:
                self._put(tar, member)
            except OSError as error:
                raise ImageInputError(f"{member.name[:128]!r}: {error.strerror or error}") from None
        self._beneath.forget()
        for parts, (mode, mtime) in reversed(self._folders.items()):
            folder = self._beneath.folder(parts, make=False)
            os.fchmod(folder, mode)
            os.utime(folder, (mtime, mtime))

    def _put(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = parts_of(member.name)
        self._limits.take(f"{member.name[:128]!r}", member.size if member.isreg() else 0)
        if not parts:
            if not member.isdir():
                raise ImageInputError(f"{member.name!r}: the root of an image is a folder")
            self._attributes(self._beneath.root, member)
            self._folders[()] = (stat.S_IMODE(member.mode), member.mtime)
            return
        if member.isreg() and not member.issparse():
            self._limits.check_disk(f"{member.name[:128]!r}", self._beneath.root, member.size)
        folder = self._beneath.folder(parts[:-1])
        name = parts[-1]
        if self._layer and name.startswith(_WHITEOUT):
            if member.size:
                raise ImageInputError(f"{member.name[:128]!r}: a whiteout with something in it")
            self._whiteout(folder, parts)
            return
        if self._layer:
            self._remember(parts)
        self._make(tar, member, parts, folder)

    def _make(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, parts: tuple[str, ...], folder: int
    ) -> None:
        name = parts[-1]
        if member.isdir():
            self._make_folder(member, parts, folder)
            return
        if member.islnk():
            self._hard_link(member, parts)
            return
        self._folders.pop(parts, None)
        self._beneath.remove(folder, name)
        if member.isreg():
            self._file(tar, member, folder, name)
            return
        if member.issym():
            _check_symlink(member, parts)
            os.symlink(member.linkname, name, dir_fd=folder)
        elif member.isfifo():
            os.mkfifo(name, 0o600, dir_fd=folder)
        elif member.ischr() or member.isblk():
            self._device(member, parts, folder)
        else:
            raise ImageInputError(f"{member.name!r}: of an unknown kind ({member.type!r})")
        os.chown(name, *_owner(member), dir_fd=folder, follow_symlinks=False)
        if not member.issym():
            os.chmod(name, stat.S_IMODE(member.mode), dir_fd=folder)
        _xattrs(f"/proc/self/fd/{folder}/{name}", member)
        os.utime(name, (member.mtime, member.mtime), dir_fd=folder, follow_symlinks=False)

    def _make_folder(self, member: tarfile.TarInfo, parts: tuple[str, ...], folder: int) -> None:
        name = parts[-1]
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        except FileNotFoundError:
            found = 0
        if stat.S_ISLNK(found) and not self._layer:
            raise ImageInputError(
                f"{member.name!r}: a folder where a symlink is already: a trap that leads "
                "files out of the image"
            )
        if not stat.S_ISDIR(found):
            if found:
                self._beneath.remove(folder, name)
            os.mkdir(name, 0o700, dir_fd=folder)
        if len(self._folders) >= _MAX_FOLDERS:
            raise ImageInputError("holds more folders than any image does")
        inner = os.open(
            name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder
        )
        try:
            self._attributes(inner, member)
        finally:
            os.close(inner)
        self._folders.pop(parts, None)
        self._folders[parts] = (stat.S_IMODE(member.mode), member.mtime)

    def _attributes(self, descriptor: int, member: tarfile.TarInfo) -> None:
        os.fchown(descriptor, *_owner(member))
        _xattrs(f"/proc/self/fd/{descriptor}", member, follow=True)

    def _file(self, tar: tarfile.TarFile, member: tarfile.TarInfo, folder: int, name: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        source = tar.extractfile(member)
        assert source is not None
        with os.fdopen(os.open(name, flags, 0o600, dir_fd=folder), "wb", buffering=0) as file:
            done = 0
            while done < member.size:
                data = source.read(min(CHUNK, member.size - done))
                if not data:
                    raise ImageInputError(f"{member.name!r}: the archive ends in the middle of it")
                done += len(data)
                _write(file.fileno(), data, sparse=member.issparse())
                self._tell()
            if member.issparse():
                file.truncate(member.size)
            os.fchown(file.fileno(), *_owner(member))
            os.fchmod(file.fileno(), stat.S_IMODE(member.mode))
            _xattrs(f"/proc/self/fd/{file.fileno()}", member, follow=True)
            os.utime(file.fileno(), (member.mtime, member.mtime))

    def _hard_link(self, member: tarfile.TarInfo, parts: tuple[str, ...]) -> None:
        target = parts_of(member.linkname, f", a hard link of {member.name[:128]!r}")
        if not target:
            raise ImageInputError(f"{member.name!r}: a hard link to the root")
        if target == parts:
            return
        try:
            source = os.dup(self._beneath.folder(target[:-1], make=False))
        except FileNotFoundError:
            raise ImageInputError(f"{member.name!r}: a hard link to nothing") from None
        try:
            try:
                found = os.stat(target[-1], dir_fd=source, follow_symlinks=False).st_mode
            except FileNotFoundError:
                raise ImageInputError(f"{member.name!r}: a hard link to nothing") from None
            if stat.S_ISLNK(found) and not self._layer:
                raise ImageInputError(f"{member.name!r}: a hard link to a symlink: a trap")
            folder = self._beneath.folder(parts[:-1])
            self._beneath.remove(folder, parts[-1])
            os.link(
                target[-1], parts[-1], src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False
            )
        finally:
            os.close(source)

    def _device(self, member: tarfile.TarInfo, parts: tuple[str, ...], folder: int) -> None:
        if parts[0] != "dev" or len(parts) < 2:
            raise ImageInputError(f"{member.name!r}: a device node outside of /dev")
        kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
        device = os.makedev(member.devmajor, member.devminor)
        os.mknod(parts[-1], 0o600 | kind, device, dir_fd=folder)

    # ---- layers ---------------------------------------------------------------------------------

    def _remember(self, parts: tuple[str, ...]) -> None:
        self._brought.update(hash(parts[:n]) for n in range(1, len(parts) + 1))

    def _whiteout(self, folder: int, parts: tuple[str, ...]) -> None:
        name = parts[-1]
        if name == _OPAQUE:
            for inner in os.listdir(folder):
                self._remove_below(folder, (*parts[:-1], inner))
            return
        hidden = name.removeprefix(_WHITEOUT)
        if hidden in ("", ".", "..") or hidden.startswith(_WHITEOUT):
            raise ImageInputError(f"{'/'.join(parts)!r}: a whiteout of nothing in its folder")
        self._remove_below(folder, (*parts[:-1], hidden))

    def _remove_below(self, folder: int, parts: tuple[str, ...]) -> None:
        """Remove what earlier layers brought; what this one has brought stays."""
        if hash(parts) not in self._brought:
            self._forget(parts)
            self._beneath.remove(folder, parts[-1])
            return
        try:
            inner = os.open(parts[-1], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
        except OSError:
            return
        try:
            for name in os.listdir(inner):  # noqa: PTH208 - a descriptor
                self._remove_below(inner, (*parts, name))
        finally:
            os.close(inner)

    def _forget(self, parts: tuple[str, ...]) -> None:
        """Nothing is put on folders that are gone."""
        for known in [p for p in self._folders if p[: len(parts)] == parts]:
            del self._folders[known]


def _check_symlink(member: tarfile.TarInfo, parts: tuple[str, ...]) -> None:
    """An absolute symlink is as good as any inside of its root. One that climbs out of it is not:
    nobody makes one by accident."""
    target = member.linkname
    if not target or "\0" in target or len(os.fsencode(target)) > 4095:
        raise ImageInputError(f"{member.name!r}: a symlink to no possible name")
    if target.startswith("/"):
        return
    depth = len(parts) - 1
    for part in target.split("/"):
        depth += -1 if part == ".." else part not in ("", ".")
        if depth < 0:
            raise ImageInputError(
                f"{member.name!r}: a symlink to {target[:128]!r}, which leads out of the image"
            )


def _owner(member: tarfile.TarInfo) -> tuple[int, int]:
    for number in (member.uid, member.gid):
        if not 0 <= number < 0xFFFF_FFFF:
            raise ImageInputError(f"{member.name!r}: {number} is nobody's number")
    return member.uid, member.gid


def _xattrs(place: str, member: tarfile.TarInfo, *, follow: bool = False) -> None:
    """Put on what pax headers say, after the owner: a change of owner takes capabilities away."""
    headers: Mapping[str, Any] = member.pax_headers
    for key, value in headers.items():
        if not key.startswith(_XATTR):
            continue
        name = key.removeprefix(_XATTR)
        if not name.startswith(("user.", "security.", "trusted.")) or name.startswith(
            "trusted.overlay."
        ):
            continue
        data = value.encode("utf-8", "surrogateescape")
        try:
            os.setxattr(place, name, data, follow_symlinks=follow)
        except OSError as error:
            if name in ("security.selinux", "security.ima", "security.evm"):
                continue  # labels of the machine that packed it, for its own policy
            raise ImageInputError(
                f"{member.name!r}: its attribute {name[:64]!r} cannot be kept: {error.strerror}"
            ) from None


def _write(descriptor: int, data: bytes, *, sparse: bool) -> None:
    """Write all of it; of a sparse file the pages that are zero are skipped."""
    if not sparse:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        return
    for start in range(0, len(data), _HOLE):
        page = data[start : start + _HOLE]
        if page.count(0) == len(page):
            os.lseek(descriptor, len(page), os.SEEK_CUR)
        else:
            os.write(descriptor, page)
