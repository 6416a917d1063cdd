"""Where DHCP datagrams come in and go out, with the interface each belongs to.

A shell's lower half: sockets and headers, no DHCP. `UdpChannel` is the ordinary way: one socket on
every address, IP_PKTINFO to tell the interface of arrival and to choose the one to answer from.
Where the port is taken there is `dhcp.packet.PacketChannel`.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

RECEIVE_BUFFER: Final = 8 << 20
"""Bytes: ten thousand machines that ask within one blink fit in."""
_SEND_BUFFER: Final = 1 << 20
LARGEST: Final = 1501
"""One byte more than the decoder takes, so that it sees what was too long."""

_IP_PKTINFO: Final = 8  # not in `socket` before Python 3.12
_IP_MTU_DISCOVER, _IP_PMTUDISC_DONT = 10, 0
_SO_RCVBUFFORCE: Final = 33
_SO_RXQ_OVFL: Final = 40
_TOS_CS6: Final = 0xC0

_PKTINFO: Final = struct.Struct("=i4s4s")
_UINT32: Final = struct.Struct("=I")
_ANCILLARY: Final = socket.CMSG_SPACE(_PKTINFO.size) + socket.CMSG_SPACE(_UINT32.size)
_NOWHERE: Final = bytes(4)


class Datagram(NamedTuple):
    """One datagram: payload, index of the interface of arrival, sender, and the four bytes of
    our address that it was sent to (empty where it was broadcast)."""

    data: bytes
    interface: int
    source: tuple[str, int]
    local: bytes


class Channel(Protocol):
    """One DHCP port."""

    port: int
    drops: int
    """Datagrams that the kernel threw away because nobody fetched them."""
    description: str

    def fileno(self) -> int:
        """For the loop's `add_reader`."""

    def receive(self) -> Datagram | None:
        """The next datagram; None where there is none now. Raises `OSError`."""

    def send(self, data: bytes, to: tuple[str, int], interface: int, source: bytes) -> None:
        """Send from our port and the address `source`, out of `interface` (0: as routed). Raises
        `OSError`."""

    def close(self) -> None:
        """Close the socket."""


class UdpChannel:
    """A UDP socket on every address."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.drops = 0
        self.description = f"UDP port {port}"
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            # Firmware answers no ICMP: never set "don't fragment".
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _TOS_CS6)
            size_buffers(sock)
            sock.bind(("", port))
        except BaseException:
            sock.close()
            raise
        self._sock = sock

    def fileno(self) -> int:
        """For the loop's `add_reader`."""
        return self._sock.fileno()

    def receive(self) -> Datagram | None:
        """The next datagram; None where there is none now. Raises `OSError`."""
        try:
            data, ancillary, _, source = self._sock.recvmsg(LARGEST, _ANCILLARY)
        except (BlockingIOError, InterruptedError):
            return None
        index, local = 0, b""
        for level, kind, value in ancillary:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                index, chosen, destination = _PKTINFO.unpack(value)
                # Equal for unicast; for a broadcast the kernel chose one of our addresses.
                if chosen == destination:
                    local = destination
            elif level == socket.SOL_SOCKET and kind == _SO_RXQ_OVFL:
                (self.drops,) = _UINT32.unpack(value)
        return Datagram(data, index, source, local)

    def send(self, data: bytes, to: tuple[str, int], interface: int, source: bytes) -> None:
        """Send from our port and the address `source`, out of `interface` (0: as routed). Raises
        `OSError`."""
        self._sock.sendmsg((data,), pktinfo(interface, source), 0, to)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


@lru_cache(maxsize=256)
def pktinfo(interface: int, source: bytes) -> tuple[tuple[int, int, bytes], ...]:
    """Ancillary data that sends out of `interface` (0: as routed) from the address `source`."""
    return ((socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO.pack(interface, source, _NOWHERE)),)


def receive_drops(ancillary: Iterable[tuple[int, int, bytes]], known: int) -> int:
    """How many datagrams the kernel dropped in all, as a datagram's ancillary data says."""
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_RXQ_OVFL:
            (known,) = _UINT32.unpack(value)
    return known


def size_buffers(sock: socket.socket) -> None:
    """Give the socket room for a burst, past the system's limit where we may (CAP_NET_ADMIN), and
    have it tell what it dropped."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
