"""The UDP sockets of TFTP: the port that listens, and one for each transfer. No protocol here.

Both send a `Burst`: with UDP_SEGMENT (Linux 4.18) the kernel cuts one send into datagrams. Where it
can't (an older kernel, IPsec, blocks above the path's MTU), the first send says so and datagrams go
one by one. A full send buffer, or a network that is gone for the moment, loses the datagram as the
wire might; the transfer's timer knows what to do.
"""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import struct
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Final, NamedTuple, Protocol

from bootd.tftp.admission import Peer
from bootd.tftp.frames import Burst

_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_IP_PKTINFO: Final = 8  # not in `socket` before Python 3.12
_IP_MTU_DISCOVER, _IP_PMTUDISC_DONT = 10, 0
_SO_RCVBUFFORCE: Final = 33
_RECEIVE_BUFFER: Final = 4 << 20
"""Bytes: a rack's worth of requests within one turn of the loop."""

_PKTINFO: Final = struct.Struct("=i4s4s")
_SEGMENT: Final = struct.Struct("=H")
_ANCILLARY: Final = socket.CMSG_SPACE(_PKTINFO.size)
_NOT_SEGMENTED: Final = frozenset(
    {errno.EINVAL, errno.EMSGSIZE, errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT}
)
_LARGEST_REPLY: Final = 128
"""Bytes of an ACK, or of an ERROR's start: all that is read of it."""
_DRAINED: Final = 16


class Arrival(NamedTuple):
    """A datagram at the listening port: who sent it, over which interface, to which address of
    ours (for a broadcast, the one that the kernel would answer from)."""

    data: bytes
    peer: Peer
    interface: int
    local: IPv4Address


class Channel(Protocol):
    """The way to one client."""

    def send(self, burst: Burst) -> None:
        """Send; what can't be sent is lost."""

    def drain(self) -> None:
        """Hand over what has already arrived and waits to be read."""

    def close(self) -> None:
        """No more."""


class Listener:
    """The port that requests come to, on every address. Raises `OSError` where it is taken."""

    def __init__(self, port: int) -> None:
        sock = _udp_socket()
        try:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            try:
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            sock.bind(("", port))
        except BaseException:
            sock.close()
            raise
        self._sock = sock
        self._segments = True
        self.port: int = sock.getsockname()[1]

    def fileno(self) -> int:
        """For the loop's `add_reader`."""
        return self._sock.fileno()

    def receive(self) -> Arrival | None:
        """The next datagram; None where there is none now."""
        try:
            data, ancillary, _, peer = self._sock.recvmsg(2048, _ANCILLARY)
        except OSError:
            return None
        for level, kind, value in ancillary:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                interface, local, _ = _PKTINFO.unpack(value)
                return Arrival(data, peer, interface, IPv4Address(local))
        return None

    def send(self, burst: Burst, peer: Peer, local: IPv4Address) -> None:
        """Send from the listening port and `local`, the address that the client asked."""
        information = (socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO.pack(0, local.packed, bytes(4)))
        if len(burst.payload) > burst.size and self._segments:
            segment = (_SOL_UDP, _UDP_SEGMENT, _SEGMENT.pack(burst.size))
            try:
                self._sock.sendmsg((burst.payload,), (information, segment), 0, peer)
            except OSError as exc:
                if exc.errno not in _NOT_SEGMENTED:
                    return
                # Too large for this way only, or for every one: the large ones tell nothing.
                self._segments = exc.errno in (errno.EINVAL, errno.EMSGSIZE)
            else:
                return
        for datagram in burst.datagrams():
            with suppress(OSError):
                self._sock.sendmsg((datagram,), (information,), 0, peer)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class SharedChannel:
    """A client reached from the listening port (``single_port``)."""

    def __init__(self, listener: Listener, peer: Peer, local: IPv4Address) -> None:
        self._listener = listener
        self._peer = peer
        self._local = local

    def send(self, burst: Burst) -> None:
        """Send; what can't be sent is lost."""
        self._listener.send(burst, self._peer, self._local)

    def drain(self) -> None:
        """It is read for all at once."""

    def close(self) -> None:
        """The port stays open for the others."""


class Owner(Protocol):
    """Whose channel it is, told what comes in."""

    def receive(self, datagram: bytes) -> None:
        """A datagram from the client."""

    def unreachable(self) -> None:
        """The client's host says that nobody listens there."""

    def stranger(self, datagram: bytes, source: Peer) -> bytes | None:
        """A datagram from someone else, and what to answer."""


class Strangers:
    """What comes to the transfers' ports from anyone but their clients.

    A connected socket is a tenth cheaper to serve, and deaf to everyone else, who must be told
    (RFC 1350 4). So a second socket is bound to the same port, which the kernel gives the rest.
    These wait in one epoll set, as hardly any is ever heard. Made in the loop that serves it.
    """

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._heard: dict[int, tuple[socket.socket, Owner]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._poll.fileno(), self._read)

    def watch(self, owner: Owner, address: Peer) -> socket.socket:
        """Hear for `owner` what comes to `address`. Raises `OSError`."""
        sock = _udp_socket()
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            self._poll.register(sock.fileno(), select.EPOLLIN)
        except BaseException:
            sock.close()
            raise
        self._heard[sock.fileno()] = (sock, owner)
        return sock

    def forget(self, sock: socket.socket) -> None:
        """Close it."""
        del self._heard[sock.fileno()]
        sock.close()

    def _read(self) -> None:
        """Take in one datagram from each port that has some."""
        for number, _ in self._poll.poll(0, _DRAINED):
            sock, owner = self._heard[number]
            with suppress(OSError):
                datagram, source = sock.recvfrom(_LARGEST_REPLY)
                answer = owner.stranger(datagram, source)
                if answer is not None:
                    sock.sendto(answer, source)

    def close(self) -> None:
        """Hear nothing any more; every port was forgotten."""
        self._loop.remove_reader(self._poll.fileno())
        self._poll.close()


class OwnChannel:
    """A client reached from a port of its own: TFTP's transfer identifier (RFC 1350 4).

    Bound to the address that the client asked, because it takes an answer from no other, and
    connected to the client. Raises `OSError` where there is no port, no way or no descriptor left.
    """

    def __init__(
        self,
        owner: Owner,
        peer: Peer,
        local: IPv4Address,
        strangers: Strangers,
        segment: int | None = None,
    ) -> None:
        self._owner = owner
        self._strangers = strangers
        self._loop = asyncio.get_running_loop()
        sock = self._sock = _udp_socket()
        try:
            sock.bind((str(local), 0))
            sock.connect(peer)
            self._receive, self._send = sock.recv, sock.send
            self._segments = segment is not None and _set_segment(sock, segment)
            # While the second socket is bound only: nobody else on this machine gets the port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._second = strangers.watch(owner, sock.getsockname())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            self._loop.add_reader(sock.fileno(), self.read)
        except BaseException:
            sock.close()
            raise

    def read(self) -> None:
        """The loop says that there is a datagram or an error: take in one."""
        if not self._take() and self._sock.fileno() >= 0:
            # An error, maybe one that a send has met first: uvloop has stopped watching.
            self._loop.remove_reader(self._sock.fileno())
            self._loop.add_reader(self._sock.fileno(), self.read)

    def _take(self) -> bool:
        """Take in one datagram; False where there was none."""
        try:
            datagram = self._receive(_LARGEST_REPLY)
        except OSError as exc:
            self._failed(exc)
            return False
        self._owner.receive(datagram)
        return True

    def send(self, burst: Burst) -> None:
        """Send; what can't be sent is lost."""
        if self._segments or len(burst.payload) <= burst.size:
            try:
                self._send(burst.payload)
            except OSError as exc:
                self._failed(exc)
                if exc.errno not in _NOT_SEGMENTED or not self._segments:
                    return
            else:
                return
            self._segments = False
            with suppress(OSError):
                self._sock.setsockopt(_SOL_UDP, _UDP_SEGMENT, 0)
        for datagram in burst.datagrams():
            try:
                self._send(datagram)
            except OSError as exc:
                self._failed(exc)

    def drain(self) -> None:
        """Hand over what has already arrived and waits to be read."""
        for _ in range(_DRAINED):
            if self._sock.fileno() < 0 or not self._take():
                return

    def close(self) -> None:
        """Close both sockets."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._strangers.forget(self._second)

    def _failed(self, error: OSError) -> None:
        """A host that can't be reached (any more) may be on its way up again, and the timer decides
        about it. One that says the port is closed has ended it."""
        if isinstance(error, ConnectionRefusedError):
            self._owner.unreachable()


def _udp_socket() -> socket.socket:
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    sock = socket.socket(socket.AF_INET, kind)
    # Firmware does not handle "fragmentation needed": never set "don't fragment".
    sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
    return sock


def _set_segment(sock: socket.socket, size: int) -> bool:
    try:
        sock.setsockopt(_SOL_UDP, _UDP_SEGMENT, size)
    except OSError:
        return False
    return True
