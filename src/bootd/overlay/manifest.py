"""Which files of an archive differ from those of another: what is kept of one is four bytes a file.

Pure. The sums are for people who ask what changed, never for deciding that something did: that is
the archive's SHA-256.
"""

from __future__ import annotations

import stat
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from bootd.overlay.cpio import Entry


@dataclass(frozen=True, slots=True)
class Manifest:
    """Paths of an archive but for its directories, and the CRC-32 of what each one is."""

    paths: tuple[str, ...]
    sums: bytes

    def items(self) -> dict[str, bytes]:
        """Each path with its sum."""
        return {path: self.sums[4 * n : 4 * n + 4] for n, path in enumerate(self.paths)}


def manifest(entries: Iterable[Entry]) -> Manifest:
    """What to remember of these entries."""
    files = [entry for entry in entries if not stat.S_ISDIR(entry.mode)]
    sums = b"".join(_sum(entry).to_bytes(4, "big") for entry in files)
    return Manifest(tuple(entry.path for entry in files), sums)


def _sum(entry: Entry) -> int:
    head = f"{entry.mode} {entry.uid} {entry.gid} {entry.rdev}".encode()
    return zlib.crc32(entry.content, zlib.crc32(head))


def differing(before: Manifest, after: Manifest) -> dict[str, str]:
    """Paths that are ``added``, ``removed`` or ``changed`` from one to the other, in order."""
    old, new = before.items(), after.items()
    found = {path: "removed" for path in old.keys() - new.keys()}
    found |= {
        path: "added" if path not in old else "changed"
        for path, total in new.items()
        if old.get(path) != total
    }
    return dict(sorted(found.items()))
