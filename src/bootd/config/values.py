"""Single values of the configuration files: text in, checked value out.

Pure. Every function takes what YAML gave (text, a whole number, a bool) and raises `ValueError`
with a sentence for the operator. Text fields take numbers and bools as they were typed: a serial
number is text even when it has only digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from enum import StrEnum
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    ip_network,
)
from itertools import pairwise
from typing import Final, TypeVar

from bootd.config.faults import nearest, shown
from bootd.model import Mac, Network, parse_mac

MAX_TEXT: Final = 4096
"""The longest single value, in characters."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", re.ASCII)
_QUIRK: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}(?:@[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){0,5})?")
_NODE_KEY: Final = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._,/\[\]-]*", re.ASCII)
_INTERFACE: Final = re.compile(r"[^\s/:]{1,15}", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}", re.ASCII)
_SIZE = re.compile(r"(\d{1,15})([KMGT]?)(?:i?B)?", re.ASCII | re.IGNORECASE)
_DURATION: Final = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)
_UNITS: Final = (86400, 3600, 60, 1)

E = TypeVar("E", bound=StrEnum)


def line(value: object) -> str:
    """One line of text: no control characters, at most `MAX_TEXT` characters."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{said(value)} where text is expected")
    if len(value) > MAX_TEXT:
        raise ValueError(f"the text is {len(value)} characters long; at most {MAX_TEXT} are read")
    if not value.isprintable() and _CONTROL.search(value):
        raise ValueError(f"{shown(value)} has control characters or line breaks")
    return value


def prose(value: object) -> str:
    """Text that may run over several lines, for people: a comment."""
    if isinstance(value, str):
        return line(value.replace("\n", " ").replace("\t", " ")) and value
    return line(value)


def said(value: object) -> str:
    """What was given, as an error message calls it."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a map"
    return "a list" if isinstance(value, list) else shown(value)


def name(value: object) -> str:
    """The name of a profile, image, overlay or template; it becomes part of paths."""
    text = line(value)
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{shown(text)} is not a name: letters, digits and . _ + - after a letter or digit, at"
            " most 64"
        )
    return text


def image_name(value: object) -> str:
    """An image's name, or ``NAME@GENERATION``."""
    text = line(value)
    image, at, generation = text.partition("@")
    return name(image) + at + (name(generation) if at else "")


def quirk(value: object) -> str:
    """``binl``, or ``binl@00:11:22`` for one maker's cards; ``~`` before it takes it away."""
    text = line(value)
    if not _QUIRK.fullmatch(text.removeprefix("~")):
        raise ValueError(f"{shown(text)} is not a quirk, like binl or binl@00:11:22")
    return text


def removable_name(value: object) -> str:
    """A `name`, or ``~name``, which takes that name away."""
    text = line(value)
    return "~" + name(text[1:]) if text.startswith("~") else name(text)


def node_key(value: object) -> str:
    """A node's name, or a set of names: ``n[001-128]``, ``n[1-4,7],login1``."""
    text = line(value)
    if not _NODE_KEY.fullmatch(text):
        raise ValueError(
            f"{shown(text)} is not a node name: letters, digits, - and . after a letter or digit;"
            " a set is written n[001-128]"
        )
    return text


def mac(value: object) -> Mac:
    """A MAC address in any common spelling."""
    return parse_mac(line(value))


def ip(value: object) -> IPv4Interface:
    """A host's IPv4 address with its prefix length; without one it stands alone (/32)."""
    text = line(value)
    try:
        found = IPv4Interface(text)
    except ValueError:
        if _is_v6(text):
            raise ValueError(f"{shown(text)} is an IPv6 address: write it as ip6") from None
        raise ValueError(
            f"{shown(text)} is not an IPv4 address with prefix length, like 10.0.0.11/24"
        ) from None
    network = found.network = _same_network(found.network)
    if network.prefixlen < 31 and found.ip in (network.network_address, network.broadcast_address):
        raise ValueError(f"{shown(text)} is the address of the network itself, not of a host in it")
    if found.ip.is_multicast or found.ip.is_unspecified or found.ip.is_loopback:
        raise ValueError(f"{shown(text)} is no address that a node can have")
    return found


@lru_cache(maxsize=1024)
def _same_network(found: IPv4Network) -> IPv4Network:
    """One object for equal networks: of the 1,700 bytes of an IPv4Interface, 1,200 are these."""
    return found


def _is_v6(text: str) -> bool:
    try:
        IPv6Interface(text)
    except ValueError:
        return False
    return True


def ip6(value: object) -> IPv6Interface:
    """A host's IPv6 address with its prefix length."""
    text = line(value)
    try:
        found = IPv6Interface(text)
    except ValueError:
        raise ValueError(
            f"{shown(text)} is not an IPv6 address with prefix length, like 2001:db8::11/64"
        ) from None
    if found.ip.is_multicast or found.ip.is_unspecified or found.ip.is_loopback:
        raise ValueError(f"{shown(text)} is no address that a node can have")
    return found


def gateway(value: object) -> IPv4Address:
    """A router's IPv4 address, without prefix length."""
    text = line(value)
    try:
        return IPv4Address(text)
    except ValueError:
        raise ValueError(f"{shown(text)} is not an IPv4 address, like 10.0.0.1") from None


def gateway6(value: object) -> IPv6Address:
    """A router's IPv6 address, without prefix length."""
    text = line(value)
    try:
        return IPv6Address(text)
    except ValueError:
        raise ValueError(f"{shown(text)} is not an IPv6 address, like fe80::1") from None


def network(value: object) -> Network:
    """An address or a network of either family: ``10.0.0.0/8``, ``::1/128``."""
    text = line(value)
    try:
        return ip_network(text)
    except ValueError as error:
        if "host bits" in str(error):
            proper = ip_network(text, strict=False)
            raise ValueError(f"{shown(text)} has host bits set: the network is {proper}") from None
        raise ValueError(f"{shown(text)} is not an address or a network") from None


def network4(value: object) -> IPv4Network:
    """An IPv4 address or network."""
    found = network(value)
    if not isinstance(found, IPv4Network):
        raise ValueError(f"{shown(value)} is IPv6: relay agents speak DHCPv4")
    return found


def uuid(value: object) -> str:
    """A UUID in lower case with dashes, as SMBIOS tools print it."""
    text = line(value).lower()
    if not _UUID.fullmatch(text):
        raise ValueError(f"{shown(value)} is not a UUID")
    digits = text.replace("-", "")
    cuts = (0, 8, 12, 16, 20, 32)
    return "-".join(digits[a:b] for a, b in pairwise(cuts))


def interface(value: object) -> str:
    """The name of a network interface, as the kernel allows it (IFNAMSIZ less one byte)."""
    text = line(value)
    if not _INTERFACE.fullmatch(text) or text in (".", ".."):
        raise ValueError(
            f"{shown(text)} is not an interface name (at most 15 characters, no space)"
        )
    return text


def kernel_argument(value: object) -> str:
    """One kernel argument, or ``~argument``. One with a space is passed on as written."""
    text = line(value)
    if not text.strip() or text == "~":
        raise ValueError("an empty kernel argument")
    if not text.isascii():
        raise ValueError(f"{shown(text)}: a kernel command line is ASCII")
    if text in ("||", "&&") or text.startswith("#"):
        raise ValueError(f"{shown(text)} would end iPXE's command, not reach the kernel")
    return text


def loader(value: object) -> str:
    """``auto``, ``ipxe``, ``snponly``, ``shim``, ``grub``, or a file among the boot loaders."""
    text = line(value)
    if text.startswith("/") or "\\" in text or not all(map(_NAME.fullmatch, text.split("/"))):
        raise ValueError(
            f"{shown(text)} is not a boot loader: auto, ipxe, snponly, shim, grub, or a file's path"
            " below state_dir/tftp"
        )
    return text


def path(value: object) -> str:
    """A path on the server; relative ones count from the folder of bootd.yaml."""
    text = line(value)
    if not text:
        raise ValueError("an empty path")
    return text


def flag(value: object) -> bool:
    """true or false; Python's ``True`` and ``False`` too, but not ``yes``, which YAML 1.2 calls
    text."""
    if isinstance(value, bool):
        return value
    if value in ("True", "TRUE", "False", "FALSE"):
        return str(value).lower() == "true"
    raise ValueError(f"{said(value)} is not true or false")


def _said(value: object) -> str:
    return said(value)


def whole(low: int, high: int, what: str) -> Callable[[object], int]:
    """A check for a whole number from `low` to `high`."""

    def check(value: object) -> int:
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{said(value)} is not {what} ({low} to {high})")
        return value

    return check


def auto_or(check: Callable[[object], int]) -> Callable[[object], int | None]:
    """A check for ``auto``, which becomes None, or a number."""

    def check_auto(value: object) -> int | None:
        if value == "auto":
            return None
        try:
            return check(value)
        except ValueError as error:
            raise ValueError(f"{error}, nor auto") from None

    return check_auto


def duration(low: int, high: int) -> Callable[[object], float]:
    """A check for a time span, ``90s``, ``10m``, ``1h30m``, ``2d`` or whole seconds; in seconds."""

    def check(value: object) -> float:
        text = line(value)
        match = _DURATION.fullmatch(text + "s" if text.isdigit() else text)
        if match is None or not text or len(text) > 32:
            raise ValueError(f"{shown(value)} is not a time span, like 90s, 10m or 1h30m")
        total = sum(int(n) * unit for n, unit in zip(match.groups("0"), _UNITS, strict=True))
        if not low <= total <= high:
            raise ValueError(f"{shown(value)} is out of range ({low}s to {high}s)")
        return float(total)

    return check


def size(value: object) -> int:
    """Bytes, or ``500M``, ``64G``, ``2T`` (powers of 1024)."""
    text = line(value)
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{shown(value)} is not a size, like 500M or 64G")
    number = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[match[2].upper()]
    if not 1 << 20 <= number <= 1 << 50:
        raise ValueError(f"{shown(value)} is out of range (1M to 1024T)")
    return number


def choice(words: Collection[str]) -> Callable[[object], str]:
    """A check for one of `words`."""

    def check(value: object) -> str:
        if isinstance(value, str) and value in words:
            return value
        hint = nearest(value, words) if isinstance(value, str) else ""
        raise ValueError(f"{said(value)} is not one of {', '.join(words)}{hint}")

    return check


def member(kind: type[E]) -> Callable[[object], E]:
    """A check for one of an enumeration's words."""
    check_word = choice([item.value for item in kind])

    def check(value: object) -> E:
        return kind(check_word(value))

    return check
