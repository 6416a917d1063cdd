"""The TFTP shell: requests in, admitted, looked up, and one session each.

Nothing that is no request is ever answered at the listening port, nor anything from a port below
1024: two servers that answer each other's answers never end (CVE-2024-2169).
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Final, Protocol

import structlog

from bootd import metrics
from bootd.boots.gate import Gate
from bootd.boots.timeline import Boots, Stage
from bootd.files import LoaderFiles
from bootd.model import Mac, ServerAddress, StartError, TftpSettings
from bootd.overlay.cache import OverlayCache
from bootd.registry import Current, Registry
from bootd.tftp import wire
from bootd.tftp.admission import Full, Places
from bootd.tftp.content import Content, Contents, Missing, Request, images_folder
from bootd.tftp.frames import Burst, FrameStore
from bootd.tftp.session import FIRST_PORT, Session
from bootd.tftp.sockets import Arrival, Listener, OwnChannel, SharedChannel, Strangers
from bootd.tftp.terms import Limits, negotiate
from bootd.tftp.timers import Timers
from bootd.tftp.transfer import Outcome, Transfer
from bootd.tftp.wire import ReadRequest, WireError
from bootd.throttle import Throttle

_log = structlog.get_logger()

_BATCH: Final = 16
"""Requests taken in one turn of the loop: a millisecond or two, so that DHCP and others have
theirs."""
_IP_UDP_TFTP: Final = 20 + 8 + 4
_REFUSALS: Final = (5.0, 50)
"""Lines a second, and at once, about what was refused or nobody acknowledged."""
_REPEAT: Final = 1.0
"""Seconds: the same request again, after progress that recent, is the network's duplicate."""


class Network(Protocol):
    """What TFTP needs to know of the interfaces (`net.Interfaces`)."""

    @property
    def addresses(self) -> Mapping[int, tuple[IPv4Interface, ...]]:
        """Of each served interface by index, its addresses."""

    def server_address(self, index: int) -> IPv4Address | None:
        """Our address on that interface; None where bootd does not serve it."""

    def mtu(self, index: int) -> int:
        """The interface's MTU in bytes."""

    def neighbour(self, address: IPv4Address) -> Mac | None:
        """The MAC address that the neighbour table has for `address`."""


class TftpServer:
    """Serves reads on ``tftp.port``; `now` reads the monotonic clock, in seconds.

    `keys` sign boot tokens and `node_secrets` give nodes their keys, the newest of each first, for
    loaders that know no HTTP; without `overlays` these get none.
    """

    def __init__(
        self,
        *,
        current: Current,
        boots: Boots,
        files: LoaderFiles,
        net: Network,
        keys: Sequence[bytes],
        node_secrets: Sequence[bytes] = (),
        overlays: OverlayCache | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._current = current
        self._boots = boots
        self._net = net
        self._images = LoaderFiles([Path(images_folder(current.registry))])
        self._contents = Contents(
            files, self._images, Gate(boots, keys, net.neighbour), overlays, node_secrets
        )
        self._now = now
        self._listener: Listener | None = None
        self._group: asyncio.TaskGroup | None = None
        self._places: Places[Session] = Places()
        self._frames = FrameStore()
        self._timers = Timers(now)
        self._strangers: Strangers | None = None
        self._lines = Throttle(*_REFUSALS)
        self._draining = False
        self._idle = asyncio.Event()
        self._loopback = 0

    @property
    def port(self) -> int:
        """The port that is listened on; 0 before `start`, or where TFTP is off."""
        return self._listener.port if self._listener is not None else 0

    # ---- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the port. Raises `StartError`."""
        settings = self._settings
        if not settings.enabled:
            _log.info("tftp.off")
            return
        try:
            self._listener = Listener(settings.port)
        except OSError as exc:
            raise StartError(
                f"UDP port {settings.port} (tftp.port) cannot be opened: {exc.strerror}"
            ) from exc
        self._strangers = Strangers()
        with suppress(OSError):
            self._loopback = socket.if_nametoindex("lo")
        _log.info("tftp.listening", port=self.port, single_port=settings.single_port)

    async def run(self) -> None:
        """Serve until cancelled."""
        if self._listener is None:
            await asyncio.Event().wait()
            return
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as self._group:
            loop.add_reader(self._listener.fileno(), self._readable)
            try:
                await asyncio.Event().wait()
            finally:
                self._group = None
                if self._listener is not None:
                    loop.remove_reader(self._listener.fileno())

    async def stop(self, deadline: float = 0.0) -> None:
        """Take no more requests, let transfers end until `deadline` (loop time), end the rest."""
        self._draining = True
        if len(self._places):
            self._idle.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._idle.wait()
        for session in self._places:
            session.abort(Outcome.STOPPED)
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
        if self._strangers is not None:
            self._strangers.close()
            self._strangers = None
        self._images.close()

    @property
    def _settings(self) -> TftpSettings:
        return self._current.registry.settings.tftp

    # ---- requests --------------------------------------------------------------------------------

    def _readable(self) -> None:
        for _ in range(_BATCH):
            arrival = self._listener.receive() if self._listener is not None else None
            if arrival is None:
                return
            try:
                self._arrived(arrival)
            except Exception:
                metrics.EXCEPTIONS.labels("tftp").inc()
                _log.exception("tftp.fault", client=arrival.peer[0], bytes=len(arrival.data))

    def _arrived(self, arrival: Arrival) -> None:
        if arrival.peer[1] < FIRST_PORT:
            self._ignore("low-port")
            return
        if not self._serves(arrival):
            self._ignore("interface")
            return
        session = self._places.get(arrival.peer)
        try:
            request = wire.parse_request(arrival.data)
        except WireError as fault:
            if session is not None and session.shared and fault.code is None:
                session.receive(arrival.data)
            else:
                self._ignore(fault.reason)
                if fault.code is not None:
                    self._answer(arrival, wire.error(fault.code, str(fault)))
            return
        if self._draining or self._group is None:
            self._ignore("stopping")
        elif session is None or not self._is_repeat(session, request):
            self._admit(arrival, request)

    def _serves(self, arrival: Arrival) -> bool:
        if self._net.server_address(arrival.interface) is not None:
            return True
        return arrival.interface == self._loopback and any(
            arrival.local == own.ip for owns in self._net.addresses.values() for own in owns
        )

    def _is_repeat(self, session: Session, request: ReadRequest) -> bool:
        """The same request from the same port goes to the transfer that exists; a new one, as of a
        PXE ROM that always uses port 2070, ends that."""
        fresh = session.verified and self._now() - session.stalled_since >= _REPEAT
        if session.request == request and not fresh:
            session.repeated()
            return True
        session.abort(Outcome.SUPERSEDED)
        return False

    def _admit(self, arrival: Arrival, request: ReadRequest) -> None:
        settings, peer = self._settings, arrival.peer
        try:
            victim = self._places.room(
                peer[0],
                self._now(),
                limit=settings.max_transfers,
                per_client=settings.max_per_client,
            )
        except Full as full:
            self._ignore(full.reason)  # and silence: the client asks again, and waits its turn
            self._tell("tftp.refused", reason=full.reason, client=peer[0])
            return
        if victim is not None:
            victim.abort(Outcome.EVICTED)
        session = Session(
            request,
            peer,
            arrival.local,
            arrival.interface,
            keeper=self,
            timers=self._timers,
            now=self._now,
        )
        self._places.add(peer, session)
        metrics.TRANSFERS.labels("tftp").inc()
        assert self._group is not None
        self._group.create_task(self._serve(session))

    async def _serve(self, session: Session) -> None:
        """From request to first datagram; one guard for whatever goes wrong with it."""
        try:
            registry = self._current.registry
            server = ServerAddress(session.local, registry.settings.http.port)
            content = await self._contents.find(
                Request(
                    session.request.filename,
                    registry,
                    IPv4Address(session.peer[0]),
                    server,
                    self._now(),
                )
            )
            if not session.closed:
                self._begin(session, content, registry)
        except Missing as missing:
            self._refuse(session, missing)
        except OSError as exc:  # no descriptor, or the address has gone meanwhile
            self._ignore("no-socket")
            self._tell("tftp.refused", reason="no-socket", client=session.peer[0], error=str(exc))
            session.end()
        except Exception:
            self.failed(session)

    def _begin(self, session: Session, content: Content, registry: Registry) -> None:
        settings = registry.settings.tftp
        session.name, session.stage = content.name, content.stage
        session.mac = content.mac or self._machine(session.peer[0])
        blksize = settings.max_blksize or self._net.mtu(session.interface) - _IP_UDP_TFTP
        limits = Limits(
            blksize=min(max(blksize, wire.MIN_BLKSIZE), wire.MAX_BLKSIZE),
            windowsize=settings.max_windowsize,
        )
        terms = negotiate(session.request.options, len(content.data), limits)
        frames = self._frames.get(content.data, terms.blksize)
        transfer = Transfer(frames, terms, self._now())
        if self._listener is None or self._strangers is None:
            session.end()
        elif settings.single_port:
            session.shared = True
            session.begin(transfer, SharedChannel(self._listener, session.peer, session.local))
        else:
            segment = terms.blksize + 4 if terms.windowsize > 1 else None
            peer, local = session.peer, session.local
            session.begin(transfer, OwnChannel(session, peer, local, self._strangers, segment))

    def _machine(self, client: str) -> Mac | None:
        """Whose address it is: as configured, or as the neighbour table says."""
        address = IPv4Address(client)
        node = self._current.registry.by_ip.get(address)
        return node.mac if node is not None else self._net.neighbour(address)

    def _refuse(self, session: Session, missing: Missing) -> None:
        session.end()
        self._ignore(missing.reason)
        if self._listener is not None and missing.code is not None:
            packet = wire.error(missing.code, missing.text)
            self._listener.send(Burst(packet, len(packet)), session.peer, session.local)
        facts = {
            "reason": missing.reason,
            "file": missing.name,
            "client": session.peer[0],
            **self._whose(missing.mac or self._machine(session.peer[0])),
        }
        if missing.optional:
            _log.debug("tftp.refused", **facts)
            return
        self._tell("tftp.refused", **facts)
        if missing.mac is not None:
            detail = f"tftp {missing.name}"
            self._boots.note(
                missing.mac, Stage.LOADER, self._now(), detail=detail, outcome=missing.reason
            )

    def _answer(self, arrival: Arrival, packet: bytes) -> None:
        if self._listener is not None:
            self._listener.send(Burst(packet, len(packet)), arrival.peer, arrival.local)

    # ---- what sessions tell ----------------------------------------------------------------------

    def verified(self, session: Session) -> None:
        """The client has acknowledged something; once."""
        self._places.verified(session.peer)
        if session.mac is None or session.transfer is None or session.stage is None:
            return
        if session.stage is Stage.SCRIPT:
            self._scripted(session.mac)
        session.step = self._boots.begin(
            session.mac,
            session.stage,
            self._now(),
            detail=f"tftp {session.name}",
            size=len(session.transfer.frames.data),
        )

    def _scripted(self, mac: Mac) -> None:
        """The machine has its boot loader's configuration, which is its script."""
        boot = self._boots.of(mac)
        if boot is None:
            return
        if not boot.reached(Stage.SCRIPT):
            seconds = self._now() - boot.started
            metrics.BOOT_SECONDS.labels(Stage.SCRIPT.value).observe(seconds)
        self._boots.retrying(boot)

    def ended(self, session: Session) -> None:
        """It is over; once."""
        self._places.remove(session.peer)
        metrics.TRANSFERS.labels("tftp").dec()
        if not len(self._places):
            self._idle.set()
        transfer = session.transfer
        if transfer is not None and transfer.outcome is not None:
            self._report(session, transfer, transfer.outcome)

    def failed(self, session: Session) -> None:
        """An exception is being handled: our fault, told with what led to it."""
        metrics.EXCEPTIONS.labels("tftp").inc()
        _log.exception("tftp.fault", client=session.peer[0], file=session.name)
        session.end()

    def _report(self, session: Session, transfer: Transfer, outcome: Outcome) -> None:
        metrics.TFTP_TRANSFERS.labels(outcome.value).inc()
        metrics.TFTP_BYTES.inc(transfer.acknowledged)
        metrics.TFTP_RETRANSMITS.inc(transfer.retransmits)
        now = self._now()
        if session.step is not None:
            session.step.sent = transfer.acknowledged
            self._boots.finish(session.step, now, outcome.value)
        facts: dict[str, object] = {
            "outcome": outcome.value,
            "file": session.name,
            "client": session.peer[0],
            "bytes": transfer.acknowledged,
            "seconds": round(now - session.began, 3),
            "retransmits": transfer.retransmits,
            "blksize": transfer.terms.blksize,
            "windowsize": transfer.terms.windowsize,
            **self._whose(session.mac),
        }
        if transfer.error is not None:
            facts["error"] = f"{transfer.error.code} {transfer.error.text}"
        if outcome is Outcome.PROBE:
            _log.debug("tftp.transfer", **facts)
        elif transfer.verified:
            _log.info("tftp.transfer", **facts)
        else:
            self._tell("tftp.transfer", **facts)

    def _whose(self, mac: Mac | None) -> dict[str, object]:
        if mac is None:
            return {}
        node = self._current.registry.by_mac.get(mac)
        boot = self._boots.of(mac)
        return {
            "node": node.name if node is not None else None,
            "mac": mac,
            "boot": boot.id if boot is not None else None,
        }

    def _ignore(self, reason: str) -> None:
        metrics.TFTP_IGNORED.labels(reason).inc()

    def _tell(self, event: str, **facts: object) -> None:
        """A line that anyone on the network can cause: a few a second, the rest counted."""
        if self._lines.take(self._now()):
            held_back = self._lines.take_held_back()
            _log.warning(event, **facts, **({"held_back": held_back} if held_back else {}))
