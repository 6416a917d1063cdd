"""What the DHCP shell says: log lines and counters, so many and no more.

A line costs more than an answer, so one is written for each boot stage of a machine, not for each
packet, and while machines wait lines wait too. Machines that no node names share a small allowance,
as anyone can invent them.
"""

from __future__ import annotations

import errno
from collections import deque
from ipaddress import IPv4Address
from typing import Final, NamedTuple

import structlog

from bootd import metrics
from bootd.boots.timeline import Boot
from bootd.dhcp.client import Client
from bootd.dhcp.policy import Ignore, Offer
from bootd.throttle import Throttle

_log = structlog.get_logger()

_STRANGERS: Final = (5.0, 50)
"""Lines a second, and at once, about machines that no node names and about refusals."""
_PENDING: Final = 16384
_RELAYS: Final = 256
_FAULTS: Final = 64


class _Line(NamedTuple):
    offer: Offer
    boot: str | None
    interface: str


class Report:
    """The log lines of one DHCP server."""

    def __init__(self) -> None:
        self._pending: deque[_Line] = deque()
        self._strangers = Throttle(*_STRANGERS)
        self._relays: set[bytes] = set()
        self._faults: set[tuple[str, str]] = set()
        self._drops = 0

    # ---- offers ---------------------------------------------------------------------------------

    def offer(
        self, offer: Offer, boot: Boot | None, interface: str, now: float, *, known: bool
    ) -> None:
        """Have a line written about this answer, when there is time (`write`). Not `known` is also
        whoever boots what profile ``default`` says."""
        if not known and not self._strangers.take(now):
            return
        if len(self._pending) < _PENDING:
            self._pending.append(_Line(offer, boot.id if boot is not None else None, interface))

    def write(self, limit: int) -> bool:
        """Write at most `limit` of the lines that wait; True where more do."""
        for _ in range(min(limit, len(self._pending))):
            offer, boot, interface = self._pending.popleft()
            client = offer.client
            _log.info(
                "dhcp.offer",
                node=offer.node.name if offer.node is not None else None,
                mac=client.mac,
                boot=boot,
                kind=kind_of(client),
                arch=offer.arch,
                file=offer.file,
                answer=offer.kind,
                address=str(offer.lease) if offer.lease is not None else None,
                interface=interface,
                to=offer.to[0],
            )
        return bool(self._pending)

    def loop(self, boot: Boot, file: str, now: float, *, fetched: bool) -> None:
        """A machine goes round in circles."""
        if boot.node is None and not self._strangers.take(now):
            return
        _log.warning(
            "dhcp.chainload-loop",
            node=boot.node,
            mac=boot.mac,
            boot=boot.id,
            file=file,
            reason="the loader runs and fetches no script: is HTTP blocked, or not in this iPXE?"
            if fetched
            else "the loader is offered again and again, never fetched: is TFTP or HTTP blocked?",
        )

    # ---- refusals -------------------------------------------------------------------------------

    def refusal(self, ignore: Ignore, node: str | None, interface: str, now: float) -> None:
        """A machine that boots is not answered, for a reason that was not yet said of it."""
        client = ignore.client
        if client is None or not self._strangers.take(now):
            return
        _log.info(
            "dhcp.ignore",
            node=node,
            mac=client.mac,
            reason=ignore.reason,
            kind=kind_of(client),
            archs=list(client.archs[:8]),
            interface=interface,
            held_back=self._strangers.take_held_back() or None,
        )

    def relay(self, giaddr: bytes, source: str, now: float) -> None:
        """A relay agent that the settings do not name asks: said once for each."""
        if giaddr in self._relays or len(self._relays) >= _RELAYS:
            return
        if not self._strangers.take(now):
            return
        self._relays.add(giaddr)
        _log.warning(
            "dhcp.relay-not-listed",
            relay=str(IPv4Address(giaddr)),
            source=source,
            reason="relays are answered only where dhcp.relays in bootd.yaml names them",
        )

    # ---- faults ---------------------------------------------------------------------------------

    def fault(self, where: str, exc: Exception, data: bytes = b"") -> None:
        """Count a fault of ours or the system's, and write the first of each kind to the log."""
        metrics.EXCEPTIONS.labels(f"dhcp-{where}").inc()
        key = (where, _kind_of_fault(exc))
        if key in self._faults or len(self._faults) >= _FAULTS:
            return
        self._faults.add(key)
        if isinstance(exc, OSError):
            _log.warning(f"dhcp.{where}-failed", reason=str(exc))
        else:
            _log.error("dhcp.fault", packet=data.hex(), exc_info=exc)

    def drops(self, drops: int) -> None:
        """The kernel has dropped this many datagrams in all."""
        if drops == self._drops:
            return
        if not self._drops:
            _log.warning(
                "dhcp.kernel-drops",
                dropped=drops,
                reason="more packets than could be queued: raise net.core.rmem_max",
            )
        self._drops = drops
        metrics.DHCP_KERNEL_DROPS.set(drops)


def kind_of(client: Client) -> str | None:
    """The client's kind as a word."""
    return client.kind.value if client.kind is not None else None


def _kind_of_fault(exc: Exception) -> str:
    """The error number, or the exception's type and the line that raised it."""
    if isinstance(exc, OSError) and exc.errno is not None:
        return errno.errorcode.get(exc.errno, str(exc.errno))
    at = exc.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return f"{type(exc).__name__}:{at.tb_lineno if at is not None else 0}"
