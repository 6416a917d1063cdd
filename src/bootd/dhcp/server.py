"""The DHCP shell: datagrams in, one decision each, replies out of the interface they came in on.

Receiving goes before answering: each time the loop wakes us the kernel's queue is emptied into ours
(2 us a datagram) before anything is decided (30 us), so a burst of a whole rack is not lost where
the system allows a small receive buffer only. Ours is bounded too; past it the kernel drops, and
says how many.
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
from bootd.dhcp.guard import Lines, Sender, Senders
from bootd.dhcp.policy import Ignore, Offer, decide, requested_address
from bootd.dhcp.wire import Message, WireError, decode
from bootd.model import DhcpMode, Mac, Node, ServerAddress, StartError
from bootd.net import Interfaces
from bootd.registry import Current, Registry

_log = structlog.get_logger()

_RECEIVE_BATCH: Final = 512
_ANSWER_BATCH: Final = 32
"""Answers of one turn of the loop: a millisecond, so that transfers go on in between."""
_QUEUE: Final = 8192
_REFUSALS: Final = (5.0, 50)
"""Lines a second, and at once, about machines that are refused."""
_RELAYS: Final = 256
_FAULTS: Final = 64

OnBoot = Callable[[Registry, Node, ServerAddress], None]


class DhcpServer:
    """Answers boot clients on ``dhcp.port`` and ``dhcp.pxe_port``.

    `on_boot` is called when a boot of a known node begins, to warm what it will ask for. `unknown`
    is told of machines that no node names.
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
        self._queue: deque[tuple[Channel, Datagram]] = deque()
        self._scheduled = False
        self._senders = Senders()
        self._refusals = Lines(*_REFUSALS)
        self._relays: set[bytes] = set()
        self._faults: set[tuple[str, str]] = set()
        self._addresses: dict[tuple[IPv4Address, int], ServerAddress] = {}
        self._drops = 0

    # ---- life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the ports. Raises `StartError` with what to do."""
        settings = self._current.registry.settings.dhcp
        if settings.mode is DhcpMode.OFF:
            _log.info("dhcp.off")
            return
        try:
            for port in (settings.port, settings.pxe_port):
                self._channels.append(_open(port))
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
        while self._channels:
            self._channels.pop().close()

    # ---- in -------------------------------------------------------------------------------------

    def _readable(self, channel: Channel) -> None:
        queue = self._queue
        try:
            for _ in range(_RECEIVE_BATCH):
                if len(queue) >= _QUEUE:
                    break
                datagram = channel.receive()
                if datagram is None:
                    break
                queue.append((channel, datagram))
        except OSError as exc:
            self._fault("receive", exc)
        self._count_drops()
        if not self._scheduled:
            self._answer()

    def _answer(self) -> None:
        self._scheduled = False
        queue = self._queue
        now = self._loop.time()
        for _ in range(min(_ANSWER_BATCH, len(queue))):
            channel, datagram = queue.popleft()
            try:
                self._handle(channel, datagram, now)
            except Exception as exc:  # one packet never costs more than itself
                self._fault("packet", exc, datagram.data)
        if queue:
            self._scheduled = True
            self._loop.call_soon(self._answer)

    def _handle(self, channel: Channel, datagram: Datagram, now: float) -> None:
        registry = self._current.registry
        us = self._us(datagram, registry)
        if us is None:
            _ignored("interface-not-served")
            return
        try:
            message = decode(datagram.data)
        except WireError as exc:
            _ignored(exc.reason)
            return
        answer = decide(
            message,
            registry,
            us,
            port=channel.port,
            source=datagram.source,
            size=len(datagram.data),
        )
        if isinstance(answer, Ignore):
            self._silent(answer, message, datagram, registry, now)
        else:
            self._reply(answer, channel, datagram, message, registry, us, now)

    def _us(self, datagram: Datagram, registry: Registry) -> ServerAddress | None:
        """Our address as this sender reaches it: the one it wrote to, else the interface's."""
        address = self._net.server_address(datagram.interface)
        if address is None:
            return None
        key = (datagram.local or address, registry.settings.http.port)
        us = self._addresses.get(key)
        if us is None:
            if len(self._addresses) > _FAULTS:
                self._addresses.clear()
            us = self._addresses[key] = ServerAddress(*key)
        return us

    # ---- out ------------------------------------------------------------------------------------

    def _reply(
        self,
        offer: Offer,
        channel: Channel,
        datagram: Datagram,
        message: Message,
        registry: Registry,
        us: ServerAddress,
        now: float,
    ) -> None:
        mac = offer.client.mac
        assert mac is not None
        sender = self._senders.of(mac)
        if not sender.allowed(now):
            _ignored("rate-limited")
            return
        relayed = offer.to[0] != datagram.source[0] and message.giaddr != bytes(4)
        try:
            channel.send(offer.data, offer.to, 0 if relayed else datagram.interface, us.ip.packed)
        except OSError as exc:
            _ignored("send-failed")
            self._fault("send", exc)
            return
        _offered(offer)
        boot = self._follow(offer, mac, sender, message, registry, us, now)
        if sender.news((boot.id if boot is not None else "", offer.kind, offer.file)):
            _log.info(
                "dhcp.offer",
                node=offer.node.name if offer.node is not None else None,
                mac=mac,
                boot=boot.id if boot is not None else None,
                kind=offer.client.kind.value if offer.client.kind is not None else None,
                arch=offer.arch,
                file=offer.file,
                answer=offer.kind,
                interface=self._net.name(datagram.interface),
                to=offer.to[0],
            )

    def _follow(
        self,
        offer: Offer,
        mac: Mac,
        sender: Sender,
        message: Message,
        registry: Registry,
        us: ServerAddress,
        now: float,
    ) -> Boot | None:
        """Tell the boots, and whoever waits for one to begin, what this machine was given."""
        known = registry.by_mac.get(mac)
        before = self._boots.of(mac)
        boot = before
        if offer.opens and offer.client.kind is not None:
            name = known.name if known is not None else None
            boot = self._boots.discover(mac, name, offer.client.kind, offer.arch, now)
        if boot is None:
            return None
        if offer.lease is not None and offer.kind == "ack":
            boot.address = offer.lease
        self._boots.note(mac, Stage.DHCP, now, detail=offer.file)
        if boot is not before and known is not None and self._on_boot is not None:
            self._on_boot(registry, known, us)
        if known is None and self._unknown is not None:
            _introduce(self._unknown.heard(mac, now), offer.client, message)
        if boot.reached(Stage.SCRIPT):
            sender.script_fetched()
        elif offer.first_stage and sender.first_stage(message.xid, now):
            self._report_loop(boot, offer)
        return boot

    def _report_loop(self, boot: Boot, offer: Offer) -> None:
        started = boot.reached(Stage.LOADER) or any(
            earlier.reached(Stage.LOADER) for earlier in self._boots.history(boot.mac)
        )
        _log.warning(
            "dhcp.chainload-loop",
            node=boot.node,
            mac=boot.mac,
            boot=boot.id,
            file=offer.file,
            reason="the loader is fetched but asks for no script: is it an iPXE with HTTP?"
            if started
            else "the loader is offered again and again but never fetched: is TFTP blocked?",
        )

    def _silent(
        self,
        ignore: Ignore,
        message: Message,
        datagram: Datagram,
        registry: Registry,
        now: float,
    ) -> None:
        _ignored(ignore.reason)
        client = ignore.client
        if ignore.reason == "relay-not-listed":
            self._name_relay(message, datagram)
        if client is None or client.mac is None:
            return
        if datagram.source[1] == registry.settings.dhcp.client_port:
            self._observe_address(message, client.mac)
        if client.kind is None or ignore.reason == "request":
            return
        sender = self._senders.of(client.mac)
        if sender.news(ignore.reason) and self._refusals.take(now):
            known = registry.by_mac.get(client.mac)
            _log.info(
                "dhcp.ignore",
                node=known.name if known is not None else None,
                mac=client.mac,
                reason=ignore.reason,
                kind=client.kind.value,
                archs=list(client.archs[:8]),
                interface=self._net.name(datagram.interface),
                held_back=self._refusals.take_held_back(),
            )

    def _observe_address(self, message: Message, mac: Mac) -> None:
        """A machine that boots asked a DHCP server for its address: now we know it."""
        boot = self._boots.of(mac)
        if boot is None:
            return
        address = requested_address(message)
        if address is not None:
            boot.address = address

    def _name_relay(self, message: Message, datagram: Datagram) -> None:
        if message.giaddr in self._relays or len(self._relays) >= _RELAYS:
            return
        self._relays.add(message.giaddr)
        _log.warning(
            "dhcp.relay-not-listed",
            relay=str(IPv4Address(message.giaddr)),
            source=datagram.source[0],
            reason="relays are answered only where dhcp.relays names them",
        )

    # ---- faults ---------------------------------------------------------------------------------

    def _fault(self, where: str, exc: Exception, data: bytes = b"") -> None:
        """Count a fault of ours or the system's, and write the first of each kind to the log."""
        metrics.EXCEPTIONS.labels(f"dhcp-{where}").inc()
        at = exc.__traceback__
        while at is not None and at.tb_next is not None:
            at = at.tb_next
        name = errno.errorcode.get(exc.errno or 0, "") if isinstance(exc, OSError) else ""
        key = (where, name or f"{type(exc).__name__}:{at.tb_lineno if at is not None else 0}")
        if key in self._faults or len(self._faults) >= _FAULTS:
            return
        self._faults.add(key)
        if isinstance(exc, OSError):
            _log.warning(f"dhcp.{where}-failed", reason=str(exc))
        else:
            _log.error("dhcp.fault", packet=data.hex(), exc_info=exc)

    def _count_drops(self) -> None:
        drops = sum(channel.drops for channel in self._channels)
        if drops == self._drops:
            return
        if not self._drops:
            _log.warning(
                "dhcp.kernel-drops",
                dropped=drops,
                reason="more packets than were fetched: raise net.core.rmem_max",
            )
        self._drops = drops
        metrics.DHCP_KERNEL_DROPS.set(drops)


def _open(port: int) -> Channel:
    try:
        return UdpChannel(port)
    except PermissionError as exc:
        raise StartError(
            f"DHCP cannot listen on UDP port {port}: {exc.strerror}; "
            "run as root, give CAP_NET_BIND_SERVICE, or set dhcp.port above 1023 for a trial"
        ) from exc
    except OSError as exc:
        raise StartError(f"DHCP cannot listen on UDP port {port}: {exc.strerror}") from exc


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


def _ignored(reason: str) -> None:
    metrics.DHCP_IGNORED.labels(reason).inc()


def _offered(offer: Offer) -> None:
    kind = offer.client.kind
    metrics.DHCP_OFFERS.labels(kind.value if kind is not None else "none", offer.kind).inc()
