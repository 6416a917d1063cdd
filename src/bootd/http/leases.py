"""Read leases on files while they are sent (fcntl(2), F_SETLEASE), so that nobody changes them.

sendfile(2) queues pages of the page cache, not copies. Where a file is truncated, the kernel zeroes
the rest of the page in which it now ends (up to megabytes of it, where the file system has large
folios), also where that page waits in a socket; who writes into the file changes what waits. With a
lease, whoever wants to truncate it or to open it for writing is held up by the kernel until we,
told by a signal, have reset the connections whose sockets hold its pages and given the lease back:
a turn of the event loop. Replacing a file by another one breaks no lease, and hurts no transfer.

A lease is had by the file's owner and with CAP_LEASE, on local file systems, and while nobody has
the file open for writing. What cannot be leased has to be copied (`sources.CopySource`).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
from collections.abc import Callable
from typing import Final

import structlog

log = structlog.get_logger()

SIGNAL: Final = signal.SIGURG
"""By which the kernel tells that somebody wants a file: one that nobody handles is ignored."""
_WHY: Final = {
    errno.EACCES: "the file is another user's, and bootd has no CAP_LEASE",
    errno.EPERM: "a container or security module forbids it",
    errno.EINVAL: "this file system has no leases",
    errno.ENOTSUP: "this file system has no leases",
}


class Hold:
    """One transfer's share in a lease. `over` is true when somebody else wanted the file, and the
    transfer was cut."""

    __slots__ = ("_cut", "_lease", "over")

    def __init__(self, lease: _Lease, cut: Callable[[], None]) -> None:
        self._lease = lease
        self._cut = cut
        self.over = False

    def release(self) -> None:
        """No socket holds a page of the file any more for this transfer."""
        self._lease.leave(self)

    def cut(self) -> None:
        """Let the socket go of all pages, now."""
        self.over = True
        self._cut()


class Leases:
    """The leases that there are, by file. Every call is the event loop's."""

    def __init__(self) -> None:
        self._by_file: dict[tuple[int, int], _Lease] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told_of: set[int] = set()

    def hold(self, fd: int, cut: Callable[[], None]) -> Hold | None:
        """See to it that the open file stays as it is until the hold is released; None where that
        cannot be had. Does not wait.

        `cut` is called when somebody is about to change the file. It has to make the transfer's
        socket let go of every page there and then.
        """
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino)
        lease = self._by_file.get(key)
        if lease is None:
            try:
                self._listen()
                lease = _Lease(fd, lambda: self._by_file.pop(key))
            except OSError as exc:
                self._tell(status.st_dev, exc)
                return None
            self._by_file[key] = lease
        return lease.join(cut)

    def close(self) -> None:
        """When no transfer is left."""
        for lease in list(self._by_file.values()):
            lease.end()
        if self._loop is not None:
            self._loop.remove_signal_handler(SIGNAL)
            self._loop = None

    def _listen(self) -> None:
        if self._loop is None:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(SIGNAL, self._wanted)
            self._loop = loop

    def _wanted(self) -> None:
        """Somebody wants a file of ours: signals do not say which, and several become one."""
        for lease in list(self._by_file.values()):
            if lease.is_wanted():
                lease.end()

    def _tell(self, device: int, exc: OSError) -> None:
        # EAGAIN: someone writes it now. EMFILE: the log is no place for it.
        why = _WHY.get(exc.errno or 0)
        if why is not None and device not in self._told_of:
            self._told_of.add(device)
            log.warning(
                "http.no-lease",
                device=f"{os.major(device)}:{os.minor(device)}",
                reason=why,
                hint="files of this disk are copied while they are sent, for more processor time",
            )


class _Lease:
    """A lease on one file, while anybody holds it. Raises `OSError` where it cannot be had."""

    def __init__(self, fd: int, gone: Callable[[], object]) -> None:
        self._gone = gone
        self._holds: set[Hold] = set()
        self._fd = os.dup(fd)  # a lease is as old as its descriptor; the transfer closes its own
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETSIG, SIGNAL)
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError:
            os.close(self._fd)
            raise

    def join(self, cut: Callable[[], None]) -> Hold:
        """One more transfer."""
        hold = Hold(self, cut)
        self._holds.add(hold)
        return hold

    def leave(self, hold: Hold) -> None:
        """One transfer less; the last one ends the lease."""
        if hold in self._holds:
            self._holds.remove(hold)
            if not self._holds:
                self.end()

    def is_wanted(self) -> bool:
        """Whether somebody waits in the kernel: then the lease says what it is to become."""
        return fcntl.fcntl(self._fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK

    def end(self) -> None:
        """Cut who still holds it, and give it back."""
        self._gone()
        holds, self._holds = self._holds, set()
        for hold in holds:
            hold.cut()
        # Not by closing alone: a descriptor that was inherited or duplicated would keep it.
        fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(self._fd)
