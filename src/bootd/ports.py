"""Who holds a port: for the sentence that an operator reads when bootd cannot bind one."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path


def holders(protocol: str, port: int, proc: Path = Path("/proc")) -> list[str]:
    """Programs that have `port` (``udp`` or ``tcp``) open in this network namespace, for people:
    ``dnsmasq (pid 812)``, or the user's name where the process may not be looked at.

    Reads /proc/net/{udp,tcp}[6] for the sockets' inodes, then /proc/PID/fd for who has them.
    """
    sockets = dict(_sockets(protocol, port, proc))
    names: list[str] = []
    for inode, uid in sockets.items():
        owner = _owner(inode, proc)
        if owner is None:
            owner = f"a process of user {_user(uid)}"
        if owner not in names and not owner.endswith(f"(pid {os.getpid()})"):
            names.append(owner)
    return names


def _sockets(protocol: str, port: int, proc: Path) -> Iterator[tuple[str, int]]:
    """(inode, uid) of each socket bound to `port`; for TCP only those that listen."""
    for family in (protocol, f"{protocol}6"):
        try:
            lines = (proc / "self/net" / family).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            local, state = words[1], words[3]
            if int(local.rpartition(":")[2], 16) == port and (protocol == "udp" or state == "0A"):
                yield words[9], int(words[7])


def _owner(inode: str, proc: Path) -> str | None:
    wanted = f"socket:[{inode}]"
    for process in proc.iterdir():
        if not process.name.isdigit():
            continue
        try:
            if any(str(fd.readlink()) == wanted for fd in (process / "fd").iterdir()):
                name = (process / "comm").read_text().strip()
                return f"{name} (pid {process.name})"
        except OSError:
            continue  # it ended meanwhile, or belongs to someone else
    return None


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
