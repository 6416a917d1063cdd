"""What overlay templates can apply to a value: pure functions of their arguments."""

from __future__ import annotations

import hashlib
import shlex
import uuid
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from bootd.model import Node


class TemplateValueError(ValueError):
    """A value that a filter cannot take; the message says which and why."""


def sh(value: object) -> str:
    """Quoted as one word for a POSIX shell."""
    text = str(value)
    if "\0" in text:
        raise TemplateValueError("a shell word cannot have a NUL byte")
    return shlex.quote(text)


def machine_id(node: Node) -> str:
    """A machine-id(5) that stays the same from boot to boot: made of the node's name and MAC.

    It has the form of a random UUID (version 4), as systemd's own do.
    """
    digest = hashlib.sha256(f"bootd machine-id\0{node.name}\0{node.mac or ''}".encode()).digest()
    return uuid.UUID(bytes=digest[:16], version=4).hex


FILTERS: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {"sh": sh, "machine_id": machine_id}
)
