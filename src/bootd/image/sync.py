"""The server's users and groups, put into a root."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from bootd.image.beneath import Beneath, read_inside
from bootd.image.disk import ImageInputError
from bootd.image.users import MAX_FILE, Table, UsersError, merge, parse, with_groups
from bootd.image.walk import walk


def sync(root: Path, server: Path = Path("/")) -> list[str]:
    """Give users and groups of `root` the numbers of those of `server`; what was done, in lines.

    Raises `ImageInputError`, then nothing was changed, and `OSError`.
    """
    try:
        groups = _merged(root, server, "group", 4, "group")
        users = _merged(root, server, "passwd", 7, "user")
    except UsersError as error:
        raise ImageInputError(str(error)) from None
    passwd = with_groups(users, groups)
    _write(root, "group", groups.text)
    _write(root, "passwd", passwd)
    moved = _chown(root, users.moved, groups.moved)
    said = [
        f"{what}s: {len(table.added)} added, {len(table.moved)} have another number"
        for what, table in (("user", users), ("group", groups))
    ]
    return [*said, f"{moved} files have another owner"]


def _merged(root: Path, server: Path, name: str, fields: int, what: str) -> Table:
    ours, theirs = (read_inside(place, f"etc/{name}", MAX_FILE) for place in (server, root))
    if ours is None or theirs is None:
        missing = "the server" if ours is None else "the image"
        raise UsersError(f"{missing} has no /etc/{name}")
    return merge(
        parse(ours.decode(errors="surrogateescape"), f"/etc/{name}", fields),
        parse(theirs.decode(errors="surrogateescape"), f"/etc/{name} of the image", fields),
        what,
    )


def _write(root: Path, name: str, text: str) -> None:
    """Replace a file in /etc of the root in one step."""
    data = text.encode(errors="surrogateescape")
    if read_inside(root, f"etc/{name}", MAX_FILE) == data:
        return
    with Beneath(root, follow=True) as beneath:
        folder = beneath.folder(("etc",))
        temporary = f".{name}.bootd"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o644, dir_fd=folder), "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)


def _chown(root: Path, users: dict[int, int], groups: dict[int, int]) -> int:
    """Hand over what belongs to a number that moved; capabilities and setuid bits stay."""
    if not users and not groups:
        return 0
    number = 0
    for step in walk(root, lambda path: path in ("proc", "sys", "run", "dev")):
        uid = users.get(step.stat.st_uid, step.stat.st_uid)
        gid = groups.get(step.stat.st_gid, step.stat.st_gid)
        if (uid, gid) == (step.stat.st_uid, step.stat.st_gid):
            continue
        kept = step.xattrs()
        place = step.name if step.folder < 0 else f"/proc/self/fd/{step.folder}/{step.name}"
        os.chown(place, uid, gid, follow_symlinks=False)
        number += 1
        if stat.S_ISLNK(step.stat.st_mode):
            continue
        os.chmod(place, stat.S_IMODE(step.stat.st_mode))  # noqa: PTH101 - a name in a folder
        for key, value in kept:
            if key == "security.capability":
                os.setxattr(place, key, value, follow_symlinks=False)
    return number
