"""What belongs to one boot of a node, in front of the archive of its overlays. Pure.

Not on the kernel's command line, which every user of the node can read.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import Final

from bootd.boots import nodekeys
from bootd.boots.timeline import Boot
from bootd.model import Node, ServerAddress, dashed
from bootd.overlay import cpio

ENV_FILE: Final = "etc/bootd/boot.env"
"""Where a node's init finds its boot."""
KEY_FILE: Final = "etc/bootd/node.key"
"""Where the node finds the key with which it refreshes its runtime overlay (`boots.nodekeys`)."""
CA_FILE: Final = "etc/bootd/ca.pem"
"""Where the node finds by what it knows this server over TLS, where there is TLS."""


def own_files(
    server: ServerAddress,
    secure: ServerAddress,
    token: str,
    node: Node,
    boot: Boot,
    secrets: Sequence[bytes],
    authority: bytes = b"",
) -> bytes:
    """The head of a newc archive, without a trailer: `boot`'s URL behind `token`, where the runtime
    overlay is (`secure`), the node's key by the newest of `secrets`, where there is one, and the
    certificates in PEM by which it knows us."""
    values = {
        "URL": f"{server.base}/b/{token}",
        "BOOT": boot.id,
        "NODE": node.name,
        "MAC": boot.mac,
        "RUNTIME": f"{secure.base}/runtime/{dashed(boot.mac)}",
    }
    env = "".join(f"BOOTD_{name}={value}\n" for name, value in values.items())
    files = {ENV_FILE: env.encode()}
    if secrets:
        files[KEY_FILE] = f"{nodekeys.derive(secrets[0], node.name, boot.mac)}\n".encode()
    if authority:
        files[CA_FILE] = authority
    entries = [cpio.Entry(path, stat.S_IFREG | 0o600, data) for path, data in files.items()]
    return cpio.archive(entries, trailer=False)
