"""Interfaces, addresses and neighbours as the kernel tells them, followed while they change.

Links and addresses come by netlink events, decoded with pyroute2's codec on a socket of our own:
pyroute2's asyncio sockets do not open on uvloop ("invalid family 16", 0.9.7). Neighbours are asked
for one at a time: a rack that boots makes thousands of neighbour events, at 200 us each to decode,
where one question costs 20 us and its answer is never stale.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface
from typing import Any, Final

import structlog
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from bootd.model import Mac, StartError, mac_from_bytes
from bootd.registry import Current

_log = structlog.get_logger()

_RTMGRP_LINK: Final = 0x1
_RTMGRP_IPV4_IFADDR: Final = 0x10
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWNEIGH, _GETNEIGH = 28, 30
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_IFA_F_SECONDARY: Final = 0x1
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_VALID: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
"""Reachable, stale, delay, probe, noarp, permanent: the address is known."""
_RECEIVE_SIZE: Final = 1 << 16
_EVENT_BUFFER: Final = 1 << 20

_NLMSG = struct.Struct("=IHHII")
_RTATTR = struct.Struct("=HH")
_NDMSG = struct.Struct("=BxxxiHBB")


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface; `addresses` primary ones first, in the kernel's order."""

    index: int
    name: str
    up: bool
    loopback: bool
    mtu: int
    addresses: tuple[IPv4Interface, ...] = ()


class Interfaces:
    """The machine's interfaces, and which of them bootd serves.

    Those are the ones that ``interfaces:`` of bootd.yaml names; without it every one that is up,
    has an IPv4 address and is no loopback. Needs no privileges.
    """

    def __init__(self, current: Current) -> None:
        self._current = current
        self._marshal: Any = MarshalRtnl()
        self._events: socket.socket | None = None
        self._questions: socket.socket | None = None
        self._all: dict[int, Interface] = {}
        self._secondary: set[tuple[int, IPv4Interface]] = set()
        self._wanted: tuple[str, ...] | None = None
        self._served: dict[int, Interface] = {}
        self._faulty = False
        self._indices: dict[str, int] = {}
        self._ours: frozenset[bytes] = frozenset()
        self._listeners: list[Callable[[], None]] = []

    async def start(self) -> None:
        """Read what is there and begin to follow it. Raises `StartError`."""
        try:
            self._events = _netlink(_RTMGRP_LINK | _RTMGRP_IPV4_IFADDR)
            self._questions = _netlink(0)
            self._resync()
        except OSError as exc:
            raise StartError(f"the kernel does not tell its interfaces: {exc}") from exc
        asyncio.get_running_loop().add_reader(self._events.fileno(), self._readable)
        self._warn_of_missing()

    async def run(self) -> None:
        """Until cancelled; events are handled as the loop hears of them."""
        await asyncio.Event().wait()

    async def stop(self, deadline: float = 0.0) -> None:  # noqa: ARG002 -- nothing to drain
        """Close the netlink sockets."""
        if self._events is not None:
            asyncio.get_running_loop().remove_reader(self._events.fileno())
            self._events.close()
        if self._questions is not None:
            self._questions.close()
        self._events = self._questions = None

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after the set of served interfaces or their addresses changed."""
        self._listeners.append(listener)

    # ---- what others ask ------------------------------------------------------------------------

    @property
    def addresses(self) -> dict[int, tuple[IPv4Interface, ...]]:
        """Of each served interface by index, its addresses, the primary one first."""
        return {index: found.addresses for index, found in self.served().items()}

    def served(self) -> dict[int, Interface]:
        """The interfaces that bootd answers on, by index."""
        wanted = self._current.registry.settings.interfaces
        if wanted is not self._wanted:
            self._wanted = wanted
            self._served = self._select(wanted)
        return self._served

    def server_address(self, index: int) -> IPv4Address | None:
        """Our address on that interface; None where bootd does not serve it."""
        found = self.served().get(index)
        return found.addresses[0].ip if found is not None else None

    def mtu(self, index: int) -> int:
        """The interface's MTU in bytes; 1500 where it is not known (any more)."""
        found = self._all.get(index)
        return found.mtu if found is not None else 1500

    def name(self, index: int) -> str:
        """The interface's name, ``if7`` where it is gone."""
        found = self._all.get(index)
        return found.name if found is not None else f"if{index}"

    def index(self, name: str) -> int:
        """The index of the interface with that name; 0 where there is none."""
        return self._indices.get(name, 0)

    def is_ours(self, address: bytes) -> bool:
        """True where these four bytes are an address of this machine."""
        return address in self._ours

    def neighbour(self, address: IPv4Address) -> Mac | None:
        """The MAC address that the kernel's neighbour table has for an address on one of the served
        links; None where it has none. Costs some 20 us a served interface that could have it."""
        for found in self.served().values():
            if any(address in own.network for own in found.addresses):
                mac = self._ask_neighbour(found.index, address)
                if mac is not None:
                    return mac
        return None

    # ---- netlink --------------------------------------------------------------------------------

    def _resync(self) -> None:
        """Read everything anew: at the start, and after events were lost."""
        self._all.clear()
        self._secondary.clear()
        for kind, body in (
            (_GETLINK, struct.pack("=BxHiII", 0, 0, 0, 0, 0)),
            (_GETADDR, struct.pack("=BBBBi", socket.AF_INET, 0, 0, 0, 0)),
        ):
            self._dump(kind, body)
        self._changed()

    def _dump(self, kind: int, body: bytes) -> None:
        assert self._questions is not None
        header = _NLMSG.pack(_NLMSG.size + len(body), kind, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
        self._questions.send(header + body)
        # The kernel answers within send and recv: nothing to wait for, nobody else sends here.
        while True:
            for message in self._marshal.parse(self._questions.recv(_RECEIVE_SIZE)):
                if message["header"]["type"] in (_NLMSG_DONE, _NLMSG_ERROR):
                    return
                self._apply(message)

    def _readable(self) -> None:
        assert self._events is not None
        try:
            for message in self._marshal.parse(self._events.recv(_RECEIVE_SIZE)):
                self._apply(message)
            self._changed()
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: events were lost
            self._read_again()
        except Exception as exc:  # a message that pyroute2's codec or we do not understand
            if not self._faulty:
                _log.error("net.fault", exc_info=exc)
            self._faulty = True

    def _read_again(self) -> None:
        _log.warning("net.events-lost", reason="too many at once; everything is read again")
        try:
            self._resync()
        except OSError as exc:
            _log.error("net.not-followed", reason=str(exc))

    def _apply(self, message: Any) -> None:
        kind = message["header"]["type"]
        if kind == _NEWLINK:
            self._apply_link(message)
        elif kind == _DELLINK:
            self._all.pop(message["index"], None)
        elif kind in (_NEWADDR, _DELADDR):
            self._apply_address(message, present=kind == _NEWADDR)

    def _apply_link(self, message: Any) -> None:
        index, flags = message["index"], message["flags"]
        name, mtu = message.get("ifname"), message.get("mtu")
        if name is None or mtu is None:
            return  # a bridge port's notice about itself, not about the link
        old = self._all.get(index)
        self._all[index] = Interface(
            index,
            name,
            bool(flags & _IFF_UP),
            bool(flags & _IFF_LOOPBACK),
            mtu,
            old.addresses if old is not None else (),
        )

    def _apply_address(self, message: Any, *, present: bool) -> None:
        index = message["index"]
        found = self._all.get(index)
        local = message.get("local") or message.get("address")
        if found is None or local is None:
            return
        address = IPv4Interface(f"{local}/{message['prefixlen']}")
        others = tuple(known for known in found.addresses if known != address)
        flags = message.get("flags") or 0
        self._secondary.discard((index, address))
        if present:
            if flags & _IFA_F_SECONDARY:
                self._secondary.add((index, address))
            others = (*others, address)
        ordered = sorted(others, key=lambda known: (index, known) in self._secondary)
        self._all[index] = replace(found, addresses=tuple(ordered))

    def _select(self, wanted: tuple[str, ...]) -> dict[int, Interface]:
        return {
            index: found
            for index, found in self._all.items()
            if found.up
            and found.addresses
            and (found.name in wanted if wanted else not found.loopback)
        }

    def _changed(self) -> None:
        old = self._served
        self._wanted = None
        everything = self._all.values()
        self._indices = {found.name: found.index for found in everything}
        self._ours = frozenset(own.ip.packed for found in everything for own in found.addresses)
        if self.served() == old:
            return
        for index in old.keys() - self._served.keys():
            _log.info("net.interface-left", interface=old[index].name)
        for index, found in self._served.items():
            if old.get(index) != found:
                _log.info(
                    "net.interface",
                    interface=found.name,
                    addresses=[str(address) for address in found.addresses],
                    mtu=found.mtu,
                )
        for listener in self._listeners:
            listener()

    def _warn_of_missing(self) -> None:
        names = {found.name for found in self.served().values()}
        for name in self._current.registry.settings.interfaces:
            if name not in names:
                _log.warning(
                    "net.interface-missing",
                    interface=name,
                    reason="not there, down, or without an IPv4 address; served once it has one",
                )

    def _ask_neighbour(self, index: int, address: IPv4Address) -> Mac | None:
        """RTM_GETNEIGH for one entry (Linux 5.0): the kernel answers within the call."""
        if self._questions is None:
            return None
        body = _NDMSG.pack(socket.AF_INET, index, 0, 0, 0)
        body += _RTATTR.pack(8, _NDA_DST) + address.packed
        header = _NLMSG.pack(_NLMSG.size + len(body), _GETNEIGH, _NLM_F_REQUEST, 1, 0)
        try:
            self._questions.send(header + body)
            reply = self._questions.recv(_RECEIVE_SIZE)
        except OSError:
            return None
        return read_neighbour(reply)


def _netlink(groups: int) -> socket.socket:
    sock = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    )
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _EVENT_BUFFER)
    sock.bind((0, groups))
    if not groups:
        sock.connect((0, 0))
    return sock


def read_neighbour(reply: bytes) -> Mac | None:
    """The link-layer address of an RTM_NEWNEIGH whose entry is valid."""
    if len(reply) < _NLMSG.size + _NDMSG.size:
        return None
    size, kind, *_ = _NLMSG.unpack_from(reply)
    if kind != _NEWNEIGH:
        return None
    _, _, state, _, _ = _NDMSG.unpack_from(reply, _NLMSG.size)
    if not state & _NUD_VALID:
        return None
    at = _NLMSG.size + _NDMSG.size
    while at + _RTATTR.size <= min(size, len(reply)):
        length, attribute = _RTATTR.unpack_from(reply, at)
        if length < _RTATTR.size:
            return None
        if attribute == _NDA_LLADDR:
            return mac_from_bytes(reply[at + _RTATTR.size : at + length])
        at += (length + 3) & ~3
    return None
