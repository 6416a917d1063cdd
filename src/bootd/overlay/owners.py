"""Users and groups by name, which an archive holds as numbers: the node's, not this server's. Pure.

The image knows its own; those of the node's resources, which overlay `users` adds to it, have their
number there. Where both have one the image's stays: systemd-sysusers changes nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from bootd.config.faults import nearest
from bootd.model import EMPTY, MAX_ID, Account, Image, Node

Kind = Literal["user", "group"]


class OwnerError(ValueError):
    """A name that has no number; the message says why and what to do."""


def number(account: Account, kind: Kind, node: Node, image: Image | None) -> int:
    """The uid or gid of a user or group on `node`. Raises `OwnerError`."""
    name = account.name
    of_image = (image.users if kind == "user" else image.groups) if image is not None else EMPTY
    if name in of_image:
        return of_image[name]
    given = _GIVEN[kind](node.resources, name)
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given <= MAX_ID:
        return given
    raise OwnerError(_reason(name, kind, image, of_image))


def _reason(name: str, kind: Kind, image: Image | None, known: Mapping[str, int]) -> str:
    if image is None:
        return f"no image, so the number of {kind} {name!r} is not known: write the number"
    if known:
        return (
            f"image {image.name} has no {kind} {name!r}{nearest(name, known)}: install what makes "
            "it in the image, or write its number"
        )
    if image.archive is None and image.squashfs is None:
        return (
            f"image {image.name} is a kernel and an initramfs as they are, whose users are not "
            f"known: write the number of {kind} {name!r}"
        )
    return (
        f"image {image.name} does not say which {kind}s it has, as none does that an older bootd "
        f"imported: import it again, or write the number of {kind} {name!r}"
    )


def _user(resources: Mapping[str, Any], name: str) -> object:
    user = _named(resources, "users", name)
    return user.get("uid") if isinstance(user, Mapping) else None


def _group(resources: Mapping[str, Any], name: str) -> object:
    """A group, or the one of its own that a user without ``group`` has."""
    group = _named(resources, "groups", name)
    if group is not None:
        return group.get("gid") if isinstance(group, Mapping) else group
    user = _named(resources, "users", name)
    if isinstance(user, Mapping) and "group" not in user:
        return user.get("gid", user.get("uid"))
    return None


def _named(resources: Mapping[str, Any], what: str, name: str) -> object:
    there = resources.get(what)
    return there.get(name) if isinstance(there, Mapping) else None


_GIVEN: Final = {"user": _user, "group": _group}
