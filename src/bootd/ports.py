"""Who holds a port: for the sentence that an operator reads when bootd cannot bind one."""

from __future__ import annotations

import errno
import os
import pwd
import re
from collections.abc import Iterator
from pathlib import Path

from bootd.model import Settings, StartError


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


def explain(error: StartError, settings: Settings) -> list[str]:
    """Sentences about who has the port that `error` names, where it comes from one that is taken.

    Only that one: DHCP works beside another server on its port.
    """
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "errno", None) != errno.EADDRINUSE:
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return []
    ours = [("tcp", settings.http.port)]
    ours += [("udp", settings.tftp.port)] if settings.tftp.enabled else []
    ours += [("udp", settings.dhcp.port), ("udp", settings.dhcp.pxe_port)]
    return [
        f"{protocol.upper()} port {port} is held by {' and '.join(names)}: stop it, or give bootd "
        f"another port in bootd.yaml."
        for protocol, port in ours
        if re.search(rf"\b{port}\b", str(error)) and (names := holders(protocol, port))
    ]


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
