"""The one table of routes: a request's target in, what it asks for out.

Pure. The path is decoded once and folded once, before anything is compared, so that no spelling
(``//``, ``%2f``, ``/./``) reaches another answer than the plain one; authorisation then works on
what this returns, never on the string (SECURITY.md A4, H4).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from urllib.parse import unquote_to_bytes

from bootd import loaders
from bootd.model import Mac, parse_mac

MAX_TARGET: Final = 4096
"""Characters of a request target, the query included."""

ROLES: Final = ("kernel", "initramfs", "image", "squashfs")
"""Files of an image, as they are named in URLs."""
PARTS: Final = (*ROLES, "system", "hook", "runtime", "ready", "up", "fail")
"""What stands behind ``/b/{token}/``."""
STAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        **{stage: stage for stage in ("ipxe", "grub", "system", "runtime", *ROLES)},
        "overlay-system": "system",
        "overlay-runtime": "runtime",
        "container": "image",
        "provision": "",
    }
)
"""Warewulf's routes, the older names too, and what they are called here; ``provision`` is whatever
its query says."""
FIXED: Final = ("healthz", "status", "metrics", "events")


@dataclass(frozen=True, slots=True)
class Script:
    """``/ipxe/{mac}``; None where what stands there is no MAC address."""

    mac: Mac | None


@dataclass(frozen=True, slots=True)
class BootPart:
    """``/b/{token}/{part}``; `part` is one of `PARTS`. The token is not checked yet."""

    token: str
    part: str


@dataclass(frozen=True, slots=True)
class Runtime:
    """``/runtime/{mac}``, and with `report` ``/runtime/{mac}/report``. No key is checked yet."""

    mac: Mac
    report: bool = False


@dataclass(frozen=True, slots=True)
class Public:
    """``/kernel/{mac}`` and its like: a file of the node's image, without a token."""

    role: str
    mac: Mac


@dataclass(frozen=True, slots=True)
class System:
    """``/system/{mac}``: Warewulf's route. Nothing is checked yet."""

    mac: Mac


@dataclass(frozen=True, slots=True)
class Provision:
    """Warewulf's other ways to name a machine and a stage, one of the values of `STAGES`; where it
    is empty or `mac` None, the query says it."""

    stage: str
    mac: Mac | None


@dataclass(frozen=True, slots=True)
class SiteFile:
    """``/files/{path}``: Warewulf's route to files of the site's own. Nothing is checked yet."""

    path: str


@dataclass(frozen=True, slots=True)
class Blob:
    """``/blob/sha256/{digest}``: 64 hex digits, lower case."""

    digest: str


@dataclass(frozen=True, slots=True)
class File:
    """A path that HTTP shares with TFTP: loaders, ``autoexec.ipxe`` (`loaders.route`)."""

    target: loaders.Target


@dataclass(frozen=True, slots=True)
class Fixed:
    """One of `FIXED`, or ``index`` for ``/``."""

    name: str


@dataclass(frozen=True, slots=True)
class Bad:
    """A target that is none of ours whatever files there are. `reason` is one word; `sentence`
    says it to whoever asked."""

    status: int
    reason: str
    sentence: str


Route = (
    Script | BootPart | Runtime | System | Provision | SiteFile | Public | Blob | File | Fixed | Bad
)

_ABSOLUTE: Final = re.compile(r"https?://[^/?#]*", re.ASCII | re.IGNORECASE)
_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SENTENCES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "control-character": "the path has a control character in it",
        "backslash": "the path has a backslash in it",
        "dot-dot": "the path has a .. in it",
        "too-long": f"the path is longer than {loaders.MAX_PATH} characters",
        "not-a-mac": "this is no card's MAC address: six pairs of hex digits, as 52-54-00-12-34-56",
    }
)


def split_target(target: str) -> tuple[str, str]:
    """A request target as its path, still encoded, and its query.

    The absolute form, which a server has to accept (RFC 9112, section 3.2.2), loses its scheme and
    host: nothing here depends on the name that a client believes it speaks to.
    """
    target = _ABSOLUTE.sub("", target, count=1) if not target.startswith("/") else target
    path, _, query = target.partition("?")
    return path or "/", query


def route(target: str) -> Route:
    """What a request target asks for."""
    if len(target) > MAX_TARGET:
        return Bad(414, "too-long", f"the URL is longer than {MAX_TARGET} characters")
    path, _ = split_target(target)
    if not path.startswith("/") or "#" in path or ("%" in path and _ESCAPE.search(path)):
        return Bad(400, "malformed", "the path is malformed")
    decoded = path
    if "%" in path or not path.isascii():
        try:
            decoded = unquote_to_bytes(path).decode("utf-8")
        except UnicodeError:
            return Bad(400, "malformed", "the path is not UTF-8")
    cleaned = loaders.clean(decoded)
    if isinstance(cleaned, loaders.Refused):
        return Fixed("index") if cleaned.reason == "empty" else _bad(cleaned.reason)
    return _named(cleaned.split("/"), cleaned)


def _bad(reason: str) -> Bad:
    return Bad(400, reason, _SENTENCES[reason])


def _named(parts: list[str], path: str) -> Route:
    match parts:
        case ["ipxe", name]:
            return Script(_mac(name))
        case ["b", token, part] if part in PARTS:
            return BootPart(token, part)
        case ["b", *_]:
            return Bad(404, "not-found", "there is no such part of a boot")
        case ["runtime", name] | ["runtime", name, "report"]:
            mac = _mac(name)
            return Runtime(mac, len(parts) == 3) if mac is not None else _bad("not-a-mac")
        case [role, name] if role in ROLES:
            mac = _mac(name)
            return Public(role, mac) if mac is not None else _bad("not-a-mac")
        case ["blob", "sha256", digest] if _DIGEST.fullmatch(digest):
            return Blob(digest)
        case ["blob", *_]:
            return Bad(404, "not-found", "a blob is /blob/sha256/ and 64 hex digits in lower case")
        case [name] if name in FIXED:
            return Fixed(name)
        case ["system", name]:
            mac = _mac(name)
            return System(mac) if mac is not None else _bad("not-a-mac")
        case [stage] if stage in STAGES:
            return Provision(STAGES[stage], None)
        case ["provision" | "container" | "overlay-system" | "overlay-runtime" as stage, name]:
            mac = _mac(name)
            return Provision(STAGES[stage], mac) if mac is not None else _bad("not-a-mac")
        case ["files", _, *_]:
            return SiteFile(path.removeprefix("files/"))
        case ["boot", _, *_]:
            return _file(path.removeprefix("boot/"))
    return _file(path)


def _mac(name: str) -> Mac | None:
    try:
        return parse_mac(name)
    except ValueError:
        return None


def _file(path: str) -> Route:
    target = loaders.route(path)
    return _bad(target.reason) if isinstance(target, loaders.Refused) else File(target)
