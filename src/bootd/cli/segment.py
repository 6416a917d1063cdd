"""Who answers DHCP on a network segment: asked as boot firmware asks, by scapy, which shares no
code with the daemon. For ``bootd doctor`` only."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bootd.model import DhcpMode, UnknownPolicy

MAC: Final = "02:b0:07:d0:c0:01"
"""Whom the doctor pretends to be: always the same, so that it is one unknown machine at most."""
SLOW: Final = 1.0
"""Seconds after which an answer is late: iPXE waits two for it, U-Boot a tenth."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One offer. `address` is what it offers, empty for a proxy; `after` is in seconds."""

    server: str
    address: str
    file: str
    vendor_class: str
    netmask: bool
    after: float


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `level` is ``ok``, ``warn`` or ``fail``; `todo` is what to do."""

    level: str
    about: str
    what: str
    todo: str = ""


def listen(interface: str, wait: float, port: int = 67) -> list[Heard]:
    """Ask on `interface` and collect every offer for `wait` seconds. Raises `OSError`."""
    from scapy.layers.dhcp import BOOTP, DHCP

    transaction = secrets.randbits(32)
    asked: Any = BOOTP(
        xid=transaction, flags=0x8000, chaddr=bytes.fromhex(MAC.replace(":", "")).ljust(16, b"\0")
    ) / DHCP(
        options=[
            ("message-type", "discover"),
            ("vendor_class_id", b"PXEClient:Arch:00007:UNDI:003016"),
            (93, b"\0\7"),
            (94, b"\1\3\x10"),
            (97, bytes(17)),
            ("param_req_list", [1, 3, 43, 54, 60, 66, 67]),
            "end",
        ]
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        sock.bind(("", 68))
        began = time.monotonic()
        sock.sendto(bytes(asked), ("255.255.255.255", port))
        heard = [
            _read(BOOTP(data), source, at - began)
            for data, source, at in _received(sock, began + wait)
            if int.from_bytes(data[4:8], "big") == transaction and data[:1] == b"\2"
        ]
    return list(dict.fromkeys(heard))


def _received(sock: socket.socket, until: float) -> Iterator[tuple[bytes, str, float]]:
    while (left := until - time.monotonic()) > 0:
        sock.settimeout(left)
        with contextlib.suppress(TimeoutError):
            data, (source, _) = sock.recvfrom(4096)
            yield data, source, time.monotonic()


def _read(message: Any, source: str, after: float) -> Heard:
    from scapy.layers.dhcp import DHCP

    written = message[DHCP].options if message.haslayer(DHCP) else []
    options = {o[0]: o[1] for o in written if isinstance(o, tuple) and len(o) > 1}
    named = options.get("boot-file-name", b"") or message.file
    return Heard(
        server=str(options.get("server_id", source)),
        address="" if message.yiaddr == "0.0.0.0" else message.yiaddr,
        file=bytes(named).rstrip(b"\0").decode("latin-1"),
        vendor_class=bytes(options.get("vendor_class_id", b"")).decode("latin-1"),
        netmask="subnet_mask" in options,
        after=round(after, 3),
    )


def judge(
    interface: str,
    heard: Sequence[Heard],
    ours: str,
    *,
    running: bool,
    mode: DhcpMode,
    unknown: UnknownPolicy,
) -> Iterator[Finding]:
    """What the offers on one interface mean for boots; `ours` is our own address there."""
    about = f"DHCP on {interface}"
    leases = [each for each in heard if each.address]
    yield from _addresses(about, leases, mode)
    for each in heard:
        if each.server == ours or (not each.address and not each.vendor_class):
            continue
        yield from _stranger(about, each)
    mine = next((each for each in heard if each.server == ours), None)
    if mine is not None and mine.after > SLOW:
        what = f"bootd's own answer took {mine.after:.1f} s"
        yield Finding("warn", about, what, "what keeps this machine busy? iPXE waits two seconds")
    elif mine is not None:
        yield Finding("ok", about, f"bootd answers, with {mine.file or 'nothing to load'}")
    elif running and mode is not DhcpMode.OFF and unknown is UnknownPolicy.HOLD:
        yield Finding(
            "fail",
            about,
            "bootd runs, and an unknown machine got no answer from it",
            "a firewall on this machine? allow UDP 67, 68, 69 and 4011",
        )


def _addresses(about: str, leases: Sequence[Heard], mode: DhcpMode) -> Iterator[Finding]:
    servers = sorted({each.server for each in leases})
    if len(servers) > 1:
        todo = "one of them is probably not meant to be there"
        yield Finding("warn", about, f"{', '.join(servers)} all give addresses", todo)
    elif servers:
        lease = leases[0]
        yield Finding("ok", about, f"{servers[0]} gives addresses, {lease.address} for one")
    elif mode is not DhcpMode.RESERVATION:
        yield Finding(
            "fail",
            about,
            "nobody gives addresses to a machine that is new",
            "bootd adds the boot to a DHCP server's answer: start one here (or it answers known "
            "machines only, or a switch drops its answers), or set dhcp.mode: reservation",
        )
    if any(not each.netmask for each in leases):
        todo = "let the DHCP server send option 1: UEFI takes no address without"
        yield Finding("fail", about, "an offer has no netmask", todo)


def _stranger(about: str, each: Heard) -> Iterator[Finding]:
    """An offer that is not ours and says something of booting."""
    if not each.address:
        yield Finding(
            "fail",
            about,
            f"{each.server} is another boot server, and offers {each.file or 'a menu'}",
            "two on one segment race: switch it off, or bootd off on this interface",
        )
    elif each.vendor_class.startswith(("PXEClient", "HTTPClient")):
        yield Finding(
            "fail",
            about,
            f"the DHCP server {each.server} sends option 60 {each.vendor_class}",
            "take that out of its configuration: UEFI then asks no proxy (PXE-E55, PXE-E16)",
        )
    elif each.file:
        yield Finding(
            "warn",
            about,
            f"the DHCP server {each.server} names a boot file itself, {each.file}",
            "take filename (option 67) and next-server out of its configuration",
        )
