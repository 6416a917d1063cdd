"""newc cpio archives, the form Linux unpacks as initramfs: no file, no clock, no logger.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel. The same entries
give the same bytes: sorted by path, inodes counted from 1, times as given (0 unless told), so the
hash of an archive names its content.

What bites: the kernel makes no parent directories, so they are added here; it *applies* the mode
and owner of a directory entry to a directory that exists; it replaces a symlink by a directory
where an entry says so; and ``TRAILER!!!`` as a name ends the archive.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MAX_SIZE: Final = 0xFFFF_FFFF
"""newc writes a size in eight hex digits: 4 GiB less one byte."""
MAX_NAME: Final = 4095
"""PATH_MAX without its NUL: the kernel skips an entry with a longer name or link target."""
MAX_COMPONENT: Final = 255
_U32: Final = 0xFFFF_FFFF
_BLOCK: Final = 512
_TRAILER: Final = "TRAILER!!!"
_TYPES: Final = frozenset(
    (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO)
)
_HEADER: Final = "070701" + "{:08X}" * 13
_PADDING: Final = (b"", b"\0" * 3, b"\0" * 2, b"\0")


class CpioError(ValueError):
    """What was given cannot stand in an archive; the message is a sentence that names the path."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of an archive, checked when it is made (`CpioError`).

    `path` is relative, without empty, ``.`` or ``..`` components. `mode` has the type and the
    permission bits (``stat.S_IFREG | 0o644``). `content` is a file's bytes or a symlink's target;
    nothing else has any. `mtime` is in seconds since 1970. `rdev` is (major, minor) of a device.
    Regular files with the same non-empty `hardlink` become one inode.
    """

    path: str
    mode: int
    content: bytes = b""
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    rdev: tuple[int, int] = (0, 0)
    hardlink: str = ""

    def __post_init__(self) -> None:
        check_path(self.path)
        kind = stat.S_IFMT(self.mode)
        if kind not in _TYPES or self.mode > 0o177777:
            raise CpioError(f"{self.path!r}: mode {self.mode:#o} is no type an archive can hold")
        if len(self.content) > MAX_SIZE:
            raise CpioError(
                f"{self.path!r} has {len(self.content)} bytes; a newc archive holds files of at "
                f"most {MAX_SIZE} bytes (4 GiB): put it into the image or fetch it by HTTP"
            )
        if kind == stat.S_IFLNK:
            _check_target(self.path, self.content)
        elif kind != stat.S_IFREG and self.content:
            raise CpioError(f"{self.path!r}: only files and symlinks have content")
        for name, value in (("uid", self.uid), ("gid", self.gid), ("mtime", self.mtime)):
            if not 0 <= value <= _U32:
                raise CpioError(f"{self.path!r}: {name} {value} does not fit 32 bits")
        if any(not 0 <= number <= _U32 for number in self.rdev):
            raise CpioError(f"{self.path!r}: device number {self.rdev} does not fit 32 bits")
        if self.hardlink and kind != stat.S_IFREG:
            raise CpioError(f"{self.path!r}: only regular files can be hard links")


def check_path(path: str) -> None:
    """Raise `CpioError` unless `path` is one an archive may carry."""
    if not path:
        raise CpioError("an entry has an empty name")
    if path.startswith("/"):
        raise CpioError(f"{path!r} is absolute; names in an archive are relative to the root")
    if "\0" in path:
        raise CpioError(f"{path!r} has a NUL byte in its name")
    if path == _TRAILER:
        raise CpioError(f"{_TRAILER!r} ends an archive and cannot be a name in it")
    for component in path.split("/"):
        if component in ("", ".", ".."):
            raise CpioError(f"{path!r} has the component {component!r}")
        if len(_encode(component)) > MAX_COMPONENT:
            raise CpioError(f"{path!r} has a component of more than {MAX_COMPONENT} bytes")
    if len(_encode(path)) > MAX_NAME:
        raise CpioError(f"{path[:64]!r}… is longer than {MAX_NAME} bytes")


def _check_target(path: str, target: bytes) -> None:
    if not target or b"\0" in target:
        raise CpioError(f"{path!r}: the symlink's target is empty or has a NUL byte")
    if len(target) > MAX_NAME:
        raise CpioError(f"{path!r}: the symlink's target is longer than {MAX_NAME} bytes")


def _encode(name: str) -> bytes:
    """A file name's bytes. Names from a directory listing may carry undecodable bytes as
    surrogates (PEP 383); they go out as they came in."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise CpioError(f"{name!r} is no file name: it does not encode") from None


def with_parents(entries: Iterable[Entry]) -> list[Entry]:
    """`entries` in archive order, with directories of mode 0755 where a parent is missing.

    Raises `CpioError` where two entries have one path, or one stands below a path that is not a
    directory (unpacking would write through a symlink, or replace it).
    """
    by_path: dict[str, Entry] = {}
    for entry in entries:
        if entry.path in by_path:
            raise CpioError(f"{entry.path!r} stands twice in one archive")
        by_path[entry.path] = entry
    for path in list(by_path):
        parent = path.rpartition("/")[0]
        while parent:
            known = by_path.get(parent)
            if known is None:
                by_path[parent] = Entry(parent, stat.S_IFDIR | 0o755)
            elif not stat.S_ISDIR(known.mode):
                raise CpioError(f"{path!r} stands below {parent!r}, which is not a directory")
            parent = parent.rpartition("/")[0]
    # A path's bytes start with its parent's, so every directory comes before what is in it.
    return sorted(by_path.values(), key=lambda entry: _encode(entry.path))


def segments(entries: Iterable[Entry], *, trailer: bool = True) -> list[bytes]:
    """The archive in pieces, to be joined; a file's content is the very object of its entry, so
    archives that share a file share its memory. See `archive`."""
    ordered = with_parents(entries)
    links = _hardlinks(ordered)
    pieces: list[bytes] = []
    total = 0
    pending = b""
    inode = 0
    inodes: dict[str, int] = {}
    for entry in ordered:
        number, nlink, content = inode + 1, 2 if stat.S_ISDIR(entry.mode) else 1, entry.content
        if entry.hardlink:
            group = links[entry.hardlink]
            number, nlink = inodes.setdefault(entry.hardlink, number), len(group)
            # GNU cpio and the kernel both take the content from the last link of a group.
            content = entry.content if entry.path == group[-1] else b""
        inode = max(inode, number)
        head = pending + _header(entry, number, nlink, len(content))
        total += len(head) + len(content)
        pieces.append(head)
        if content:
            pieces.append(content)
        pending = _PADDING[len(content) % 4]
    tail = pending
    if trailer:
        tail += _frame(_TRAILER, (0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0))
        tail += b"\0" * (-(total + len(tail)) % _BLOCK)
    if tail:
        pieces.append(tail)
    return pieces


def archive(entries: Iterable[Entry], *, trailer: bool = True) -> bytes:
    """The newc archive of `entries` in any order, parent directories added.

    With `trailer` it ends with ``TRAILER!!!`` and is padded to 512 bytes; without, another newc
    archive can follow directly, and both are one stream. Raises `CpioError`.
    """
    return b"".join(segments(entries, trailer=trailer))


def around(path: str, mode: int, size: int) -> tuple[bytes, bytes]:
    """What goes before and after `size` bytes that are the content of a file in an archive without
    a trailer. Its parent directories are not added. Raises `CpioError`."""
    entry = Entry(path, mode)
    if size > MAX_SIZE:
        raise CpioError(f"{path!r} has {size} bytes; a newc archive holds at most {MAX_SIZE}")
    return _header(entry, 1, 1, size), _PADDING[size % 4]


def _hardlinks(ordered: list[Entry]) -> dict[str, list[str]]:
    """Hard link groups to their paths; one inode has one content, mode and owner."""
    groups: dict[str, list[Entry]] = {}
    for entry in ordered:
        if entry.hardlink:
            groups.setdefault(entry.hardlink, []).append(entry)
    for first, *others in groups.values():
        for other in others:
            if (first.mode, first.uid, first.gid, first.mtime, first.content) != (
                (other.mode, other.uid, other.gid, other.mtime, other.content)
            ):
                raise CpioError(
                    f"{first.path!r} and {other.path!r} are hard links of one file, "
                    "but differ in content, mode, owner or time"
                )
    return {name: [entry.path for entry in group] for name, group in groups.items()}


def _header(entry: Entry, inode: int, nlink: int, size: int) -> bytes:
    major, minor = entry.rdev
    fields = (inode, entry.mode, entry.uid, entry.gid, nlink, entry.mtime, size, 0, 0, major, minor)
    return _frame(entry.path, fields)


def _frame(name: str, fields: tuple[int, ...]) -> bytes:
    """Magic, eleven fields, name size, checksum (0 in newc), name; padded to 4 bytes."""
    raw = _encode(name)
    head = _HEADER.format(*fields, len(raw) + 1, 0).encode("ascii") + raw + b"\0"
    return head + _PADDING[len(head) % 4]
