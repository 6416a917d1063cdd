"""Method squashfs: what makes an image's own initramfs fetch its root and put the overlay over it.

The scripts under ``data/hooks`` come to the node in its second initrd, so that nothing of bootd has
to be in an image. What must stay secret from the node's users comes the same way, in files that
only root reads, and not on the kernel's command line.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Final

from bootd.model import Artefact
from bootd.overlay import cpio

SYSTEM: Final = "bootd/system.cpio"
"""Where the hooks find the node's overlay, an archive in the archive: unpacked by the kernel it
would mix with the initramfs, and its files could not be told from it."""

_SCRIPTS: Final = (
    # Where it comes from, where initramfs-tools or dracut look for it.
    ("root.sh", "bootd/root.sh"),
    ("initramfs-tools.sh", "scripts/bootd"),
    ("dracut.sh", "usr/lib/dracut/hooks/cmdline/28-bootd.sh"),
)


@cache
def _scripts() -> bytes:
    folder = files("bootd") / "data" / "hooks"
    return cpio.archive(
        [
            cpio.Entry(path, stat.S_IFREG | 0o755, (folder / name).read_bytes())
            for name, path in _SCRIPTS
        ],
        trailer=False,
    )


def wrap(own: bytes, squashfs: Artefact, system: Sequence[bytes]) -> tuple[bytes, ...]:
    """The second initrd of a node whose root is `squashfs`.

    `own` are entries of this boot, without a trailer; `system` is what the node's system overlay is
    made of, one newc archive with its trailer.
    """
    about = f"BOOTD_SIZE={squashfs.size}\nBOOTD_SHA256={squashfs.sha256}\n"
    entry = cpio.Entry("bootd/squashfs.env", stat.S_IFREG | 0o644, about.encode())
    before, after = cpio.around(SYSTEM, stat.S_IFREG | 0o600, sum(map(len, system)))
    end = after + cpio.archive([])
    return (own, _scripts(), cpio.archive([entry], trailer=False), before, *system, end)
