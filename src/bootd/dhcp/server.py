"""The DHCP shell: datagrams in, one decision each, replies out of the interface they came in on.

Receiving goes before answering: each time the loop wakes us the kernel's queue is emptied into ours
(2 us a datagram) before anything is decided, so a burst of a whole rack is not lost where the
system allows a small receive buffer only. Ours is bounded too; past it the kernel drops, and says
how many.

A decision is a pure function, so what a node was answered is kept and given again when it sends the
same packet with another transaction id, as firmware does until it hears us, and what the first
machine of a model was answered serves the others (`dhcp.rack`).
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Final

import structlog

from bootd import metrics
from bootd.boots.timeline import Boot, Boots, Stage
from bootd.boots.unknown import Unknown, Waiting, readable
from bootd.dhcp.channel import Channel, Datagram, UdpChannel
from bootd.dhcp.client import Client, machine_uuid, relay_information
from bootd.dhcp.guard import LOOP_WINDOW, Sender, Senders
from bootd.dhcp.packet import PacketChannel
from bootd.dhcp.policy import Ignore, Offer, decide, requested_address
from bootd.dhcp.rack import Rack
from bootd.dhcp.report import Report, kind_of
from bootd.dhcp.wire import Message, WireError, decode
from bootd.model import DhcpMode, Mac, Node, ServerAddress, StartError
from bootd.net import Interfaces
from bootd.ports import holders
from bootd.registry import Current, Registry

_log = structlog.get_logger()

_RECEIVE_BATCH: Final = 512
_ANSWER_BATCH: Final = 32
"""Answers of one turn of the loop: a millisecond, so that transfers go on in between."""
_LINES_IDLE, _BEGUN_IDLE = 8, 4
"""Log lines, and boots told to `on_boot`, of one turn while nobody waits."""
_PUT_OFF: Final = 0.5
_BUSY_PACE: Final = 0.01
"""Seconds that both are put off while packets wait; then there is one of each in so many."""
_LINES_AT_END: Final = 1000
_QUEUE: Final = 8192
_STRANGERS: Final = 12288
"""Packets that wait: of nodes, and of those that no node names. Nodes go first, so that a flood of
invented machines does not keep them waiting."""
_STRANGERS_BYTES: Final = 4 * 1024 * 1024
"""Bytes of the latter at most: real ones have 300 to 420 each, invented ones up to 1,500."""
_ROUTES: Final = 1024
_KEPT_REQUEST: Final = 600
"""Bytes of a known node's request that is kept with its answer; real ones have 300 to 420."""

_ROUTINE: Final = frozenset({"request", "release", "other-server"})
_OF_LEASES: Final = frozenset({"decline", "wrong-network", "no-address-asked"})
"""Refusals worth a line although the machine does not boot: its operator gave it an address."""

OnBoot = Callable[[Registry, Node, ServerAddress], None]


class _Route:
    """One way in: port, interface, sender and our address; and the models answered there."""

    __slots__ = ("rack", "us")

    def __init__(self, us: ServerAddress) -> None:
        self.us = us
        self.rack = Rack()


class DhcpServer:
    """Answers boot clients on ``dhcp.port`` and ``dhcp.pxe_port``.

    `on_boot` is called when a boot of a known node has begun, to warm what it will ask for: soon,
    but not before those that wait are answered. `unknown` is told of machines that no node names.
    """

    def __init__(
        self,
        *,
        current: Current,
        boots: Boots,
        net: Interfaces,
        on_boot: OnBoot | None = None,
        unknown: Unknown | None = None,
    ) -> None:
        self._current = current
        self._boots = boots
        self._net = net
        self._on_boot = on_boot
        self._unknown = unknown
        self._channels: list[Channel] = []
        self._queue: deque[tuple[Channel, Datagram, Mac]] = deque()
        self._strangers: deque[tuple[Channel, Datagram, Mac]] = deque()
        self._strangers_bytes = 0
        self._scheduled = False
        self._afterwards_at = 0.0
        self._begun: deque[tuple[Registry, Node, ServerAddress]] = deque(maxlen=_QUEUE)
        self._senders = Senders()
        self._report = Report()
        self._routes: dict[tuple[int, int, tuple[str, int], bytes], _Route] = {}
        self._decided_in = current.registry
        net.on_change(self._forget_answers)

    # ---- life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the ports. Raises `StartError` with what to do."""
        settings = self._current.registry.settings.dhcp
        if settings.mode is DhcpMode.OFF:
            _log.info("dhcp.off")
            return
        try:
            for port in (settings.port, settings.pxe_port):
                self._channels.append(_open(port, self._net))
        except StartError:
            self._close()
            raise
        self._loop = asyncio.get_running_loop()
        for channel in self._channels:
            self._loop.add_reader(channel.fileno(), self._readable, channel)
            _log.info("dhcp.listening", port=channel.port, socket=channel.description)

    async def run(self) -> None:
        """Until cancelled; datagrams are handled as the loop hears of them."""
        await asyncio.Event().wait()

    async def stop(self, deadline: float = 0.0) -> None:  # noqa: ARG002 -- nothing to drain
        """Close the ports. What is queued is not answered: clients ask again."""
        for channel in self._channels:
            self._loop.remove_reader(channel.fileno())
        self._close()

    def _close(self) -> None:
        self._queue.clear()
        self._strangers.clear()
        self._strangers_bytes = 0
        self._begun.clear()
        self._report.write(_LINES_AT_END)
        while self._channels:
            self._channels.pop().close()

    # ---- in -------------------------------------------------------------------------------------

    def _readable(self, channel: Channel) -> None:
        nodes = self._current.registry.by_mac
        receive = channel.receive
        try:
            for _ in range(min(_RECEIVE_BATCH, _QUEUE - len(self._queue))):
                datagram = receive()
                if datagram is None:
                    break
                mac = Mac(datagram.data[28:34].hex(":"))
                if mac in nodes:
                    self._queue.append((channel, datagram, mac))
                elif len(self._strangers) < _STRANGERS and self._strangers_bytes < _STRANGERS_BYTES:
                    self._strangers.append((channel, datagram, mac))
                    self._strangers_bytes += len(datagram.data)
                else:
                    metrics.DHCP_IGNORED.inc("overloaded")
        except OSError as exc:
            self._report.fault("receive", exc)
        self._report.drops(sum(channel.drops for channel in self._channels))
        if not self._scheduled:
            self._answer()

    def _answer(self) -> None:
        self._scheduled = False
        queue, strangers = self._queue, self._strangers
        now = self._loop.time()
        count = min(_ANSWER_BATCH, len(queue) + len(strangers))
        for _ in range(count):
            if queue:
                channel, datagram, mac = queue.popleft()
            else:
                channel, datagram, mac = strangers.popleft()
                self._strangers_bytes -= len(datagram.data)
            try:
                self._handle(channel, datagram, mac, now)
            except Exception as exc:  # one packet never costs more than itself
                self._report.fault("packet", exc, datagram.data)
        if self._afterwards(now, busy=count > 0) or queue or strangers:
            self._scheduled = True
            self._loop.call_soon(self._answer)

    def _afterwards(self, now: float, *, busy: bool) -> bool:
        """What no machine waits for, in turns of the loop that found nobody to answer: some log
        lines, and warming what some boots will ask for. True where there is more of it."""
        begun = self._begun
        if not busy:
            self._afterwards_at = now + _PUT_OFF
            lines, boots = _LINES_IDLE, _BEGUN_IDLE
        elif now >= self._afterwards_at:
            self._afterwards_at = now + _BUSY_PACE
            lines = boots = 1
        else:
            lines = boots = 0
        more = self._report.write(lines)
        for _ in range(min(len(begun), boots)):
            try:
                assert self._on_boot is not None
                self._on_boot(*begun.popleft())
            except Exception as exc:  # a boot goes on without being warmed
                self._report.fault("begin", exc)
        return more or bool(begun)

    def _handle(self, channel: Channel, datagram: Datagram, mac: Mac, now: float) -> None:
        """One packet; `mac` is what stands in its header, which need not be an address."""
        registry = self._current.registry
        if registry is not self._decided_in:
            self._forget_answers()
            self._decided_in = registry
        route = self._route(channel, datagram, registry)
        if route is None:
            metrics.DHCP_IGNORED.inc("interface-not-served")
            return
        data = datagram.data
        request = data[:4] + data[10:]  # all but transaction id and the seconds since it began
        sender = self._senders.known(mac)
        if sender is not None and sender.way is route and sender.request == request:
            offer = sender.answer
        else:
            offer = route.rack.answer(data, registry.by_mac)
            if offer is None:
                offer = self._decide(channel, datagram, registry, route, now)
            if offer is None or offer.client.mac is None:
                return
            mac = offer.client.mac
            sender = self._senders.of(mac, now)
            if mac in registry.by_mac and len(request) <= _KEPT_REQUEST:
                sender.way, sender.request, sender.answer = route, request, offer
        assert offer is not None
        self._reply(offer, mac, sender, channel, datagram, registry, route.us, now)

    def _decide(
        self, channel: Channel, datagram: Datagram, registry: Registry, route: _Route, now: float
    ) -> Offer | None:
        """A packet that was not answered before; None where it is not answered now."""
        try:
            message = decode(datagram.data)
        except WireError as exc:
            metrics.DHCP_IGNORED.inc(exc.reason)
            return None
        answer = decide(
            message,
            registry,
            route.us,
            port=channel.port,
            source=datagram.source,
            size=len(datagram.data),
        )
        if isinstance(answer, Ignore):
            self._silent(answer, message, datagram, registry, now)
            return None
        if registry.settings.dhcp.mode is DhcpMode.PROXY and answer.client.mac in registry.by_mac:
            route.rack.learn(datagram.data, answer)
        return answer

    def _route(self, channel: Channel, datagram: Datagram, registry: Registry) -> _Route | None:
        """Our address as this sender reaches it, the one it wrote to or else the interface's, and
        what was answered that way."""
        key = (channel.port, datagram.interface, datagram.source, datagram.local)
        route = self._routes.get(key)
        if route is None:
            address = self._net.server_address(datagram.interface)
            if address is None:
                return None
            if datagram.local:
                address = IPv4Address(datagram.local)
            if len(self._routes) >= _ROUTES:
                self._forget_answers()
            us = ServerAddress(address, registry.settings.http.port)
            route = self._routes[key] = _Route(us)
        return route

    def _forget_answers(self) -> None:
        self._routes.clear()

    # ---- out ------------------------------------------------------------------------------------

    def _reply(
        self,
        offer: Offer,
        mac: Mac,
        sender: Sender,
        channel: Channel,
        datagram: Datagram,
        registry: Registry,
        us: ServerAddress,
        now: float,
    ) -> None:
        self._senders.hear(mac, sender, now)
        if not sender.allowed(now):
            metrics.DHCP_IGNORED.inc("rate-limited")
            return
        transaction = datagram.data[4:8]
        data = b"".join((offer.data[:4], transaction, offer.data[8:]))
        interface = 0 if offer.routed else datagram.interface
        try:
            channel.send(data, offer.to, interface, us.ip.packed)
        except OSError as exc:
            metrics.DHCP_IGNORED.inc("send-failed")
            self._report.fault("send", exc)
            return
        metrics.DHCP_OFFERS.inc(kind_of(offer.client) or "none", offer.kind)
        boot = self._follow(offer, mac, sender, datagram, registry, us, now)
        if sender.news((boot.id if boot is not None else "", offer.kind, offer.file), now):
            interface_name = self._net.name(datagram.interface)
            self._report.offer(offer, boot, interface_name, now, known=mac in registry.by_mac)

    def _follow(
        self,
        offer: Offer,
        mac: Mac,
        sender: Sender,
        datagram: Datagram,
        registry: Registry,
        us: ServerAddress,
        now: float,
    ) -> Boot | None:
        """Tell the boots, and whoever waits for one to begin, what this machine was given."""
        known = registry.by_mac.get(mac)
        before = boot = self._boots.of(mac)
        if offer.opens and offer.client.kind is not None:
            name = known.name if known is not None else None
            boot = self._boots.discover(mac, name, offer.client.kind, offer.arch, now)
        if boot is None:
            return None
        if offer.lease is not None and offer.kind == "ack":
            boot.address = offer.lease
        self._boots.note(mac, Stage.DHCP, now, detail=offer.file)
        if boot is not before and known is not None and self._on_boot is not None:
            self._begun.append((registry, known, us))
        if known is None and self._unknown is not None:
            _introduce(self._unknown.heard(mac, now), offer.client, decode(datagram.data))
        if offer.first_stage:
            transaction = int.from_bytes(datagram.data[4:8], "big")
            if sender.first_stage(transaction, now):
                self._circles(boot, offer.file, now)
        return boot

    def _circles(self, boot: Boot, file: str, now: float) -> None:
        """Too many offers of a first stage: said, unless a script was fetched in between."""
        lately = [b for b in self._boots.history(boot.mac) if b.seen >= now - LOOP_WINDOW]
        if not any(b.reached(Stage.SCRIPT) for b in lately):
            fetched = any(b.reached(Stage.LOADER) for b in lately)
            self._report.loop(boot, file, now, fetched=fetched)

    def _silent(
        self,
        ignore: Ignore,
        message: Message,
        datagram: Datagram,
        registry: Registry,
        now: float,
    ) -> None:
        metrics.DHCP_IGNORED.inc(ignore.reason)
        client = ignore.client
        if ignore.reason == "relay-not-listed":
            self._report.relay(message.giaddr, datagram.source[0], now)
        if client is None or client.mac is None:
            return
        if datagram.source[1] == registry.settings.dhcp.client_port:
            self._observe_address(message, client.mac)
        if ignore.reason in _ROUTINE or (client.kind is None and ignore.reason not in _OF_LEASES):
            return
        if self._senders.of(client.mac, now).news(ignore.reason, now):
            known = registry.by_mac.get(client.mac)
            name = known.name if known is not None else None
            self._report.refusal(ignore, name, self._net.name(datagram.interface), now)

    def _observe_address(self, message: Message, mac: Mac) -> None:
        """A machine that boots asked a DHCP server for its address: now we know it."""
        boot = self._boots.of(mac)
        if boot is None:
            return
        address = requested_address(message)
        if address is not None:
            boot.address = address


def _open(port: int, net: Interfaces) -> Channel:
    """The port, by UDP, or beside the process that has it. Raises `StartError`."""
    try:
        return UdpChannel(port)
    except PermissionError as exc:
        raise StartError(
            f"DHCP cannot listen on UDP port {port}: {exc.strerror}; "
            "run as root, give CAP_NET_BIND_SERVICE, or set dhcp.port above 1023 for a trial"
        ) from exc
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            raise StartError(f"DHCP cannot listen on UDP port {port}: {exc.strerror}") from exc
    names = " and ".join(holders("udp", port)) or "another program"
    why = f"UDP port {port} is held by {names}"
    try:
        return PacketChannel(port, index_of=net.index, ours=net.is_ours, why=why)
    except OSError as exc:
        raise StartError(
            f"DHCP cannot listen: {why}, and the packet socket that works beside it cannot be "
            f"opened ({exc.strerror}); give bootd CAP_NET_RAW, or stop the other server"
        ) from exc


def _introduce(machine: Waiting, client: Client, message: Message) -> None:
    """Write down what a DISCOVER tells of a machine that nobody knows."""
    machine.kind, machine.arch = client.kind, client.arch
    machine.vendor_class = readable(client.vendor_class)
    uuid = machine_uuid(message)
    machine.uuid = str(uuid) if uuid is not None else machine.uuid
    if message.giaddr != bytes(4):
        machine.relay = str(IPv4Address(message.giaddr))
    circuit, remote = relay_information(message)
    machine.circuit = readable(circuit) or machine.circuit
    machine.remote = readable(remote) or machine.remote
