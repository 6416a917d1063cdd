"""Boot firmware as DHCP clients, after its source: what it sends, which offers it takes, what it
asks next (EDK2 NetworkPkg/UefiPxeBcDxe, iPXE net/udp/dhcp.c, U-Boot net/bootp.c, PXE 2.1).

Only the waiting is shorter: an offer from a server and one from a proxy end it, where firmware
would go on listening.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from bootd.dhcp.wire import Message, WireError, decode, encode
from tests.dhcp_messages import GOOD_FEATURES, message

OpenSocket = Callable[[int], socket.socket]
"""Opens the client's UDP socket on a port."""
SetAddress = Callable[[IPv4Address, int], None]
"""Gives the client's interface an address with its prefix length."""

TRIES: Final = 4
WAIT: Final = 1.0
_transactions = itertools.count(0x51000000)


@dataclass(frozen=True, slots=True)
class Booted:
    """How far the firmware came: its address, and the file it would load from where."""

    address: IPv4Address
    server: IPv4Address
    file: str
    pxe_port: bool
    """True where it had to ask port 4011."""
    offers: int


class NothingToBoot(Exception):
    """What the firmware would show."""


class Firmware:
    """What all of them share; the kinds differ in what they send and which offers they take."""

    vendor_class = b"PXEClient:Arch:00007:UNDI:003016"
    arch = 7
    options: dict[int, bytes] = {}  # noqa: RUF012 -- each kind's own, never changed

    def __init__(self, mac: str, open_socket: OpenSocket, set_address: SetAddress) -> None:
        self._chaddr = bytes.fromhex(mac.replace(":", "")).ljust(16, b"\0")
        self._open = open_socket
        self._set_address = set_address
        self._xid = next(_transactions)

    # ---- the conversation -----------------------------------------------------------------------

    def boot(self) -> Booted:
        """DISCOVER to boot file. Raises `NothingToBoot`."""
        with self._open(68) as sock:
            offers = self._gather(sock)
            lease = self.lease(offers)
            if lease is None:
                raise NothingToBoot("PXE-E16: no offer received")
            address = self._request(sock, lease)
            boot = self.choose(lease, offers)
            if boot is None:
                raise NothingToBoot("PXE-E16: no offer to boot from")
            if not self.needs_pxe_port(boot):
                return self._booted(address, boot, len(offers), pxe_port=False)
        return self._booted(address, self._ask_pxe_port(address, boot), len(offers), pxe_port=True)

    def _gather(self, sock: socket.socket) -> list[Message]:
        """Offers, until there is an address and something to boot, or nobody says more."""
        offers: list[Message] = []
        for _ in range(TRIES):
            sock.sendto(encode(self.message(1)), ("255.255.255.255", 67))
            end = time.monotonic() + WAIT
            while (found := self._receive(sock, end, 67)) is not None:
                if found.options.get(53) == b"\x02" and self.accepts(found):
                    offers.append(found)
                lease = self.lease(offers)
                if lease is not None and self.choose(lease, offers) is not None:
                    return offers
        return offers

    def _request(self, sock: socket.socket, lease: Message) -> IPv4Address:
        wanted = {50: lease.yiaddr, 54: lease.options[54]}
        for _ in range(TRIES):
            sock.sendto(encode(self.message(3, wanted)), ("255.255.255.255", 67))
            end = time.monotonic() + WAIT
            while (found := self._receive(sock, end, 67)) is not None:
                if found.options.get(53) == b"\x06":
                    raise NothingToBoot("DHCPNAK")
                if found.options.get(53) == b"\x05" and found.yiaddr == lease.yiaddr:
                    address = IPv4Address(found.yiaddr)
                    mask = int.from_bytes(found.options[1], "big")
                    self._set_address(address, mask.bit_count())
                    return address
        raise NothingToBoot("PXE-E51: no DHCP or proxyDHCP offers were received")

    def _ask_pxe_port(self, address: IPv4Address, proxy: Message) -> Message:
        server = IPv4Address(proxy.siaddr if any(proxy.siaddr) else proxy.options[54])
        with self._open(4011) as sock:
            for _ in range(TRIES):
                asked = encode(self.message(3)._replace(ciaddr=address.packed))
                sock.sendto(asked, (str(server), 4011))
                found = self._receive(sock, time.monotonic() + WAIT, 4011)
                if found is not None and found.options.get(53) == b"\x05":
                    return found
        raise NothingToBoot("PXE-E55: ProxyDHCP service did not reply to request on port 4011")

    def _receive(self, sock: socket.socket, end: float, port: int) -> Message | None:
        """The next reply in this conversation that comes from a server's port."""
        while (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                data, source = sock.recvfrom(2048)
                found = decode(data)
            except TimeoutError:
                return None
            except WireError as exc:
                raise AssertionError(f"a broken reply: {exc.reason}") from exc
            if source[1] == port and (found.op, found.xid, found.chaddr) == (
                2,
                self._xid,
                self._chaddr,
            ):
                return found
        return None

    # ---- what the kinds decide ------------------------------------------------------------------

    def message(self, kind: int, more: dict[int, bytes] | None = None) -> Message:
        """What it sends."""
        return message(
            kind,
            vendor_class=self.vendor_class,
            arch=self.arch,
            options={97: b"\0" + self._chaddr, **self.options, **(more or {})},
            xid=self._xid,
            chaddr=self._chaddr,
        )

    def accepts(self, offer: Message) -> bool:
        """Whether it looks at an offer at all: EDK2 and others want a server identifier."""
        return len(offer.options.get(54, b"")) == 4

    def lease(self, offers: list[Message]) -> Message | None:
        """The offer whose address it takes."""
        return next((o for o in offers if o.yiaddr[0] and 1 in o.options), None)

    def choose(self, lease: Message, offers: list[Message]) -> Message | None:
        """The offer it boots from."""
        raise NotImplementedError

    def needs_pxe_port(self, offer: Message) -> bool:
        """Whether it asks port 4011 after this offer."""
        return False

    def file_of(self, offer: Message) -> str:
        """The boot file as it reads it."""
        return (offer.options.get(67) or offer.file).split(b"\0")[0].decode()

    def _booted(
        self, address: IPv4Address, offer: Message, offers: int, *, pxe_port: bool
    ) -> Booted:
        file = self.file_of(offer)
        if not file:
            raise NothingToBoot("PXE-E53: no boot filename received")
        return Booted(address, IPv4Address(offer.siaddr), file, pxe_port, offers)


class Edk2(Firmware):
    """UEFI PXE: sorts offers into kinds, and takes the best (PxeBcDhcp4.c:445-608, 891-998)."""

    def kind_of(self, offer: Message) -> str:
        """EDK2's own name for an offer."""
        where = "Dhcp" if offer.yiaddr[0] else "Proxy"
        if not offer.options.get(60, b"").startswith(b"PXEClient"):
            return "DhcpOnly" if offer.yiaddr[0] else "none"
        tags = set(_tags(offer.options.get(43, b"")))
        return where + ("Pxe10" if tags & {6, 7, 8, 9, 10} else "Binl")

    def choose(self, lease: Message, offers: list[Message]) -> Message | None:
        kinds = {self.kind_of(offer): offer for offer in reversed(offers)}
        for wanted in ("DhcpPxe10", "ProxyPxe10", "DhcpBinl", "ProxyBinl"):
            if wanted in kinds and (wanted.startswith("Dhcp") or "DhcpOnly" in kinds):
                return kinds[wanted]
        return None

    def lease(self, offers: list[Message]) -> Message | None:
        # An address that comes with a boot class of its own shuts the proxy out (edk2#8149).
        found = super().lease(offers)
        return found if found is not None and found.options.get(1) else None

    def needs_pxe_port(self, offer: Message) -> bool:
        return self.kind_of(offer).endswith("Binl")


class Edk2Arm64(Edk2):
    """The same on ARM64."""

    vendor_class = b"PXEClient:Arch:00011:UNDI:003000"
    arch = 11


class Edk2Http(Firmware):
    """UEFI HTTP boot: a URL from who answers as HTTPClient (HttpBootDhcp4.c:372-555)."""

    vendor_class = b"HTTPClient:Arch:00016:UNDI:003000"
    arch = 16

    def choose(self, lease: Message, offers: list[Message]) -> Message | None:
        for offer in offers:
            mine = offer.options.get(60, b"").startswith(b"HTTPClient")
            if mine and self.file_of(offer).startswith("http://"):
                return offer
        return None


class PxeRom(Firmware):
    """A BIOS PXE ROM: reads option 43, and asks port 4011 unless told to load at once."""

    vendor_class = b"PXEClient:Arch:00000:UNDI:002001"
    arch = 0

    def choose(self, lease: Message, offers: list[Message]) -> Message | None:
        mine = [o for o in offers if o.options.get(60, b"").startswith(b"PXEClient")]
        return mine[0] if mine else None

    def needs_pxe_port(self, offer: Message) -> bool:
        return not _tags(offer.options.get(43, b"")).get(6, b"\0")[0] & 8

    def file_of(self, offer: Message) -> str:
        return offer.file.decode()


class Ipxe(Firmware):
    """iPXE (dhcp.c:408-445): a proxy's offer has class PXEClient; the header's file goes first."""

    vendor_class = b"PXEClient:Arch:00007:UNDI:003010"
    options = {77: b"iPXE", 175: GOOD_FEATURES}  # noqa: RUF012 -- as above

    def choose(self, lease: Message, offers: list[Message]) -> Message | None:
        for offer in offers:
            if offer.options.get(60, b"").startswith(b"PXEClient") and offer.options.get(54):
                return offer
        return None

    def needs_pxe_port(self, offer: Message) -> bool:
        return not (any(offer.siaddr) and self.file_of(offer))

    def file_of(self, offer: Message) -> str:
        return (offer.file or offer.options.get(67, b"").split(b"\0")[0]).decode()


class UBoot(Firmware):
    """U-Boot with SERVERIP_FROM_PROXYDHCP: siaddr and the header's file, no options read."""

    vendor_class = b"PXEClient:Arch:00022:UNDI:003000"
    arch = 22

    def choose(self, lease: Message, offers: list[Message]) -> Message | None:
        return next((o for o in offers if any(o.siaddr) and o.file), None)

    def file_of(self, offer: Message) -> str:
        return offer.file.decode()


KINDS: Final[dict[str, type[Firmware]]] = {
    "edk2": Edk2,
    "edk2-arm64": Edk2Arm64,
    "edk2-http": Edk2Http,
    "pxe-rom": PxeRom,
    "ipxe": Ipxe,
    "u-boot": UBoot,
}


def _tags(value: bytes) -> dict[int, bytes]:
    """Option 43's tags up to its end."""
    found, at = {}, 0
    while at + 2 <= len(value) and value[at] != 255:
        found[value[at]] = value[at + 2 : at + 2 + value[at + 1]]
        at += 2 + value[at + 1]
    return found
