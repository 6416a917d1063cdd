"""What overlay templates can apply to a value: pure functions of their arguments.

The first line of each docstring is what the reference shows (`overlay.reference`).
"""

from __future__ import annotations

import hashlib
import json as _json
import shlex
import string
import uuid as _uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields as _fields
from dataclasses import is_dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from types import MappingProxyType
from typing import Any, Final

from bootd.model import Node, parse_mac
from bootd.overlay.links import TemplateValueError, links
from bootd.text import fold as _fold

_NAMESPACE: Final = _uuid.UUID("6f1c2c0e-5f0b-4c1b-9a57-6c6f6f746421")
"""What `uuid` makes its names unique with."""
_UNIT_PLAIN: Final = frozenset(string.ascii_letters + string.digits + ":_.")
_MAC_FORMS: Final = ("colon", "dash", "dot", "plain")


def sh(value: object) -> str:
    """Quoted as one word for a POSIX shell."""
    return shlex.quote(_line(value))


def word(value: object) -> str:
    """As it is, where it is one word: blanks, quotes, colons and line breaks are errors."""
    text = _line(value)
    if not text or any(character in " :\"'\\`" for character in text):
        raise TemplateValueError(f"{text[:40]!r} is not one word without blanks, quotes and colons")
    return text


def fail(reason: object) -> str:
    """An error with this text: what a template says where a node cannot be given its file."""
    raise TemplateValueError(str(reason))


def json(value: object) -> str:
    """As JSON, which is also YAML: texts in quotes, lists, maps."""
    return _json.dumps(_plain(value), ensure_ascii=False, sort_keys=True)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(fields(value))
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def line(value: object) -> str:
    """As it is, where it is one line: a line break or control character is an error."""
    return _line(value)


def _line(value: object) -> str:
    if value is None:
        raise TemplateValueError("there is no value")
    text = str(value)
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
        raise TemplateValueError(f"{text[:40]!r} has line breaks or control characters")
    return text


def ip(value: object) -> str:
    """The address without its prefix length: 10.0.0.11"""
    return str(_interface(value).ip)


def prefix(value: object) -> int:
    """The prefix length of an address: 24"""
    return int(_interface(value).network.prefixlen)


def netmask(value: object) -> str:
    """The netmask of an address: 255.255.255.0"""
    return str(_interface(value).netmask)


def cidr(value: object) -> str:
    """The network of an address: 10.0.0.0/24"""
    return str(_interface(value).network)


def broadcast(value: object) -> str:
    """The broadcast address of an IPv4 address: 10.0.0.255"""
    found = _interface(value)
    if isinstance(found, IPv6Interface):
        raise TemplateValueError(f"{found} is IPv6, which has no broadcast address")
    return str(found.network.broadcast_address)


def _interface(value: object) -> IPv4Interface | IPv6Interface:
    if isinstance(value, IPv4Interface | IPv6Interface):
        return value
    if value is None:
        raise TemplateValueError("there is no address")
    try:
        return ip_interface(str(value))
    except ValueError:
        raise TemplateValueError(f"{str(value)[:64]!r} is not an IP address") from None


def mac(value: object, form: str = "colon") -> str:
    """A MAC address in a form: colon (52:54:00:12:34:56), dash, dot (5254.0012.3456) or plain."""
    if form not in _MAC_FORMS:
        raise TemplateValueError(f"{form!r} is no form of a MAC address: {', '.join(_MAC_FORMS)}")
    if value is None:
        raise TemplateValueError("there is no MAC address")
    try:
        colon = parse_mac(str(value))
    except ValueError as error:
        raise TemplateValueError(str(error)) from None
    digits = colon.replace(":", "")
    dotted = f"{digits[:4]}.{digits[4:8]}.{digits[8:]}"
    forms = {"colon": colon, "dash": colon.replace(":", "-"), "dot": dotted, "plain": digits}
    return forms[form]


def unit(value: object) -> str:
    """Escaped for the name of a systemd unit, as systemd-escape does: a-b becomes a\\x2db"""
    text = _line(value)
    return "".join(_escaped(character, not at) for at, character in enumerate(text))


def unit_path(value: object) -> str:
    """A path as the name of a systemd unit, as systemd-escape --path does: srv-data"""
    parts = [part for part in _line(value).split("/") if part]
    if any(part in (".", "..") for part in parts):
        raise TemplateValueError(f"{value!r} is not a plain path")
    return unit("/".join(parts)) if parts else "-"


def _escaped(character: str, first: bool) -> str:
    if character == "/":
        return "-"
    if character in _UNIT_PLAIN and not (first and character == "."):
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode())


def systemd(value: object) -> str:
    """Quoted as one word of a setting in a systemd unit file, with % as %%."""
    text = _line(value).replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def fstab(value: object) -> str:
    """Escaped as one field of fstab(5): a blank becomes \\040"""
    text = _line(value)
    if not text:
        raise TemplateValueError("a field of fstab cannot be empty")
    return text.replace("\\", "\\134").replace(" ", "\\040").replace("#", "\\043")


def fold(names: Iterable[object]) -> str:
    """Names, or nodes, folded: n[001-128]"""
    return _fold(name.name if isinstance(name, Node) else str(name) for name in names)


def fields(value: object) -> dict[str, object]:
    """All that a node, image or device says, by name; without its asset key."""
    if not is_dataclass(value) or isinstance(value, type):
        raise TemplateValueError(f"a {type(value).__name__} has no fields")
    hidden = ("asset_key", "origins")
    return {f.name: getattr(value, f.name) for f in _fields(value) if f.name not in hidden}


def machine_id(node: Node) -> str:
    """A machine-id(5) for a node: the same from boot to boot, made of its name and MAC."""
    digest = hashlib.sha256(f"bootd machine-id\0{node.name}\0{node.mac or ''}".encode()).digest()
    # The form of a random UUID (version 4), as systemd's own have.
    return _uuid.UUID(bytes=digest[:16], version=4).hex


def uuid(value: object) -> str:
    """A UUID made from a text: always the same for the same text."""
    return str(_uuid.uuid5(_NAMESPACE, str(value)))


FILTERS: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {
        function.__name__: function
        for function in (
            *(sh, json, line, word, fail, systemd, unit, unit_path, fstab),
            *(ip, prefix, netmask, cidr, broadcast, mac),
            *(fields, fold, links, machine_id, uuid),
        )
    }
)
