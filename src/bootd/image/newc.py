"""The two streams that a root becomes: newc for the kernel, tar for mksquashfs. Pure headers.

newc (Documentation/driver-api/early-userspace/buffer-format.rst) has no room for extended
attributes and none for files of 4 GiB; tar (POSIX.1-2001 pax) has both.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MAX_SIZE: Final = 0xFFFF_FFFF
"""Bytes that a file in a newc archive may have."""
_MAX_TIME: Final = 0xFFFF_FFFF
_NEWC: Final = b"070701" + b"%08X" * 13
_OCTAL_SIZE: Final = 8 << 30
_OCTAL_ID: Final = 1 << 21


@dataclass(frozen=True, slots=True)
class Inode:
    """One path of a root as it goes into the archives. `path` is relative, ``.`` for the root
    itself; `target` a symlink's; `link` the path of an earlier hard link to the same file."""

    path: str
    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    rdev: int = 0
    ino: int = 0
    nlink: int = 1
    target: str = ""
    link: str | None = None
    xattrs: tuple[tuple[str, bytes], ...] = ()


def newc(inode: Inode) -> bytes:
    """Header, name and padding; what follows is `size` bytes, padded to four, of a regular file
    that is no later link, or nothing. A symlink's target is in it already.

    Of a file with several names the first has the bytes; the kernel and every cpio link the others
    to it by inode number.
    """
    name = os.fsencode(inode.path)
    body = os.fsencode(inode.target) if stat.S_ISLNK(inode.mode) else b""
    if stat.S_ISREG(inode.mode) and inode.link is None:
        size = inode.size
        if size > MAX_SIZE:
            raise ValueError(f"{inode.path}: has 4 GiB or more, which newc cannot say")
    else:
        size = len(body)
    device = stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode)
    fields = (
        *(inode.ino, inode.mode, inode.uid, inode.gid, inode.nlink),
        *(min(max(inode.mtime, 0), _MAX_TIME), size, 0, 0),
        *(os.major(inode.rdev) if device else 0, os.minor(inode.rdev) if device else 0),
        *(len(name) + 1, 0),
    )
    head = _NEWC % fields + name + b"\0"
    return head + bytes(-len(head) % 4) + body + bytes(-len(body) % 4)


def newc_end() -> bytes:
    """The trailer, padded to a block of 512 bytes as every cpio does."""
    return newc(Inode("TRAILER!!!", 0, ino=0, nlink=1))


_TYPES: Final[Mapping[int, bytes]] = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}


def tar(inode: Inode) -> bytes:
    """The header blocks; what follows is `size` bytes, padded to 512, of a regular file that is no
    later link, or nothing."""
    name = os.fsencode(inode.path) + (b"/" if stat.S_ISDIR(inode.mode) else b"")
    link = os.fsencode(inode.link if inode.link is not None else inode.target)
    kind = b"1" if inode.link is not None else _TYPES[stat.S_IFMT(inode.mode)]
    size = inode.size if kind == b"0" else 0
    records = b"".join(
        _record(b"SCHILY.xattr." + os.fsencode(key), value) for key, value in inode.xattrs
    )
    if len(name) > 100:
        records += _record(b"path", name)
    if len(link) > 100:
        records += _record(b"linkpath", link)
    for key, value, limit in (
        (b"size", size, _OCTAL_SIZE),
        (b"uid", inode.uid, _OCTAL_ID),
        (b"gid", inode.gid, _OCTAL_ID),
    ):
        if value >= limit:
            records += _record(key, b"%d" % value)
    if not 0 <= inode.mtime < _OCTAL_SIZE:
        records += _record(b"mtime", b"%d" % inode.mtime)
    head = _block(name, link, kind, size, inode)
    if not records:
        return head
    extra = _block(b"pax", b"", b"x", len(records), Inode("pax", 0o644))
    return extra + records + bytes(-len(records) % 512) + head


def _record(key: bytes, value: bytes) -> bytes:
    """``LENGTH key=value\\n``, where the length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _block(name: bytes, link: bytes, kind: bytes, size: int, inode: Inode) -> bytes:
    device = kind in (b"3", b"4")
    head = bytearray(
        b"%-100b%07o\0%07o\0%07o\0%011o\0%011o\0        %b"
        % (
            name[:100].ljust(100, b"\0"),
            stat.S_IMODE(inode.mode),
            inode.uid if inode.uid < _OCTAL_ID else 0,
            inode.gid if inode.gid < _OCTAL_ID else 0,
            size if size < _OCTAL_SIZE else 0,
            inode.mtime if 0 <= inode.mtime < _OCTAL_SIZE else 0,
            kind,
        )
    )
    head += link[:100].ljust(100, b"\0") + b"ustar\x0000" + bytes(64)
    head += b"%07o\0%07o\0" % (
        os.major(inode.rdev) if device else 0,
        os.minor(inode.rdev) if device else 0,
    )
    head += bytes(512 - len(head))
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


TAR_END: Final = bytes(1024)
