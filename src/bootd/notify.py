"""The service manager's notification socket, without a library: sd_notify(3).

A datagram of ``KEY=value`` lines to ``NOTIFY_SOCKET``, a path or (with ``@``) an abstract name.
Without that variable every call does nothing, so the daemon runs the same from a shell. A lost
notification must never hurt the boots that are served, so sending never raises and never blocks.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Notifier:
    """Tells systemd what the daemon does. `address` is NOTIFY_SOCKET's value, or None.

    `watchdog` is the service's time limit in seconds (WATCHDOG_USEC), or None where there is none
    or it is meant for another process (WATCHDOG_PID).
    """

    def __init__(self, address: str | None, watchdog: float | None = None) -> None:
        self.watchdog = watchdog
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address
        self._socket: socket.socket | None = None
        if self._address:
            kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            self._socket = socket.socket(socket.AF_UNIX, kind)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Notifier:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID; nonsense there counts as absent."""
        watchdog = None
        microseconds = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        if ours and microseconds.isascii() and microseconds.isdigit() and int(microseconds) > 0:
            watchdog = int(microseconds) / 1e6
        return cls(environ.get("NOTIFY_SOCKET"), watchdog)

    def send(self, **fields: str | int) -> bool:
        """Send ``KEY=value`` lines; True where the service manager took them."""
        if self._socket is None or self._address is None:
            return False
        lines = [f"{key}={str(value).replace(chr(10), ' ')}" for key, value in fields.items()]
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            return False
        return True

    def ready(self, status: str) -> None:
        """Start-up, or a reload, is complete."""
        self.send(READY=1, STATUS=status)

    def reloading(self, monotonic: float) -> None:
        """A reload begins; `monotonic` seconds of CLOCK_MONOTONIC, as ``Type=notify-reload``
        (systemd 253) wants it. Older ones ignore the field."""
        self.send(RELOADING=1, MONOTONIC_USEC=int(monotonic * 1e6), STATUS="Reloading")

    def stopping(self) -> None:
        """The daemon ends itself: transfers drain."""
        self.send(STOPPING=1, STATUS="Draining transfers")

    def alive(self) -> None:
        """One watchdog ping."""
        self.send(WATCHDOG=1)

    def close(self) -> None:
        """Close the socket; later calls do nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
