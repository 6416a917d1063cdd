"""DHCP beside another DHCP server on the same machine: a packet socket where UDP's port is taken.

The kernel gives each datagram to one socket of a port, and dnsmasq, Kea and ISC dhcpd take port 67
for themselves. A packet socket sees what they see. Replies go out through a raw IP socket, with
headers made here, so that they too come from port 67, and the kernel still routes them.
Needs CAP_NET_RAW.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Callable
from typing import Final

from bootd.dhcp.channel import LARGEST, Datagram, pktinfo, receive_drops, size_buffers

_ETH_P_IP: Final = 0x0800
_PACKET_HOST, _PACKET_BROADCAST = 0, 1
_SO_ATTACH_FILTER: Final = 26
_UDP: Final = 17
_TTL: Final = 64
_TOS_CS6: Final = 0xC0
_EVERYONE: Final = b"\xff\xff\xff\xff"

_IP: Final = struct.Struct("!BBHHHBBH4s4s")
_UDP_HEADER: Final = struct.Struct("!HHHH")
_INSTRUCTION: Final = struct.Struct("=HBBI")


class PacketChannel:
    """Port `port` through a packet socket on every interface.

    `index_of` tells an interface's index by its name (0: gone), `ours` whether four bytes are an
    address of this machine: a router sees others' packets too. `why` is for the log. Raises
    `PermissionError` without CAP_NET_RAW.
    """

    def __init__(
        self, port: int, *, index_of: Callable[[str], int], ours: Callable[[bytes], bool], why: str
    ) -> None:
        self.port = port
        self.drops = 0
        self.description = f"packet socket: {why}"
        self._index_of = index_of
        self._ours = ours
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        self._in = socket.socket(socket.AF_PACKET, kind, socket.htons(_ETH_P_IP))
        try:
            _attach(self._in, _only_udp_to(port))
            size_buffers(self._in)
            kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
            self._out = socket.socket(socket.AF_INET, kind, socket.IPPROTO_RAW)
            self._out.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        except BaseException:
            self._in.close()
            raise

    def fileno(self) -> int:
        """For the loop's `add_reader`."""
        return self._in.fileno()

    def receive(self) -> Datagram | None:
        """The next datagram for us; None where there is none now. Raises `OSError`."""
        while True:
            try:
                packet, ancillary, _, link = self._in.recvmsg(LARGEST + 60 + 8, 64)
            except (BlockingIOError, InterruptedError):
                return None
            self.drops = receive_drops(ancillary, self.drops)
            name, _, kind, *_ = link
            # The port again: what came before the filter was in place passed without it.
            datagram = read_datagram(packet, self.port, self._index_of(name))
            if datagram is None or kind not in (_PACKET_HOST, _PACKET_BROADCAST):
                continue
            if kind == _PACKET_BROADCAST or datagram.local == _EVERYONE:
                return datagram._replace(local=b"")
            if self._ours(datagram.local):
                return datagram

    def send(self, data: bytes, to: tuple[str, int], interface: int, source: bytes) -> None:
        """Send from our port and the address `source`, out of `interface` (0: as routed). Raises
        `OSError`."""
        host, port = to
        packet = write_datagram(data, source, self.port, socket.inet_aton(host), port)
        self._out.sendmsg((packet,), pktinfo(interface, source), 0, (host, 0))

    def close(self) -> None:
        """Close both sockets."""
        self._in.close()
        self._out.close()


def read_datagram(packet: bytes, port: int, interface: int) -> Datagram | None:
    """The UDP datagram to `port` in an IPv4 packet, its destination as `local`; None otherwise."""
    if len(packet) < _IP.size:
        return None
    first, _, size, _, fragment, _, protocol, _, source, destination = _IP.unpack_from(packet)
    start = (first & 0xF) * 4
    if first >> 4 != 4 or start < _IP.size or protocol != _UDP or fragment & 0x3FFF:
        return None
    if len(packet) < start + _UDP_HEADER.size:
        return None
    source_port, to, length, _ = _UDP_HEADER.unpack_from(packet, start)
    end = min(size, start + length)  # a short Ethernet frame is padded behind its packet
    if to != port or length < _UDP_HEADER.size or size < start + length:
        return None
    data = packet[start + _UDP_HEADER.size : end]
    return Datagram(data, interface, (socket.inet_ntoa(source), source_port), destination)


def write_datagram(data: bytes, source: bytes, port: int, destination: bytes, to: int) -> bytes:
    """`data` in UDP in IPv4; the kernel fills in IP's length, identification and checksum."""
    length = _UDP_HEADER.size + len(data)
    header = _IP.pack(0x45, _TOS_CS6, 0, 0, 0, _TTL, _UDP, 0, source, destination)
    bare = _UDP_HEADER.pack(port, to, length, 0)
    pseudo = source + destination + struct.pack("!HH", _UDP, length)
    checksum = internet_checksum(pseudo + bare + data) or 0xFFFF  # 0 means "none" (RFC 768)
    return header + _UDP_HEADER.pack(port, to, length, checksum) + data


def internet_checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _only_udp_to(port: int) -> bytes:
    """Classic BPF on an IPv4 packet: UDP, whole or a first fragment at most, to `port`."""
    instructions = (
        (0x30, 0, 0, 9),  # A = protocol
        (0x15, 0, 6, _UDP),  # UDP? else drop
        (0x28, 0, 0, 6),  # A = flags and fragment offset
        (0x45, 4, 0, 0x1FFF),  # a later fragment: drop
        (0xB1, 0, 0, 0),  # X = length of the IP header
        (0x48, 0, 0, 2),  # A = destination port
        (0x15, 0, 1, port),  # ours? else drop
        (0x06, 0, 0, 0xFFFF),  # take all of it
        (0x06, 0, 0, 0),  # drop
    )
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in instructions)


def _attach(sock: socket.socket, program: bytes) -> None:
    buffer = ctypes.create_string_buffer(program, len(program))
    count = len(program) // _INSTRUCTION.size
    sock.setsockopt(
        socket.SOL_SOCKET,
        _SO_ATTACH_FILTER,
        struct.pack("@HP", count, ctypes.addressof(buffer)),
    )
