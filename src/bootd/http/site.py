"""What all handlers share: the boots, files, overlays, neighbours and keys that they ask."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final, Protocol

from bootd import methods
from bootd.boots.gate import Gate
from bootd.boots.timeline import Boot, Boots
from bootd.boots.unknown import Unknown
from bootd.boots.window import Owner, owner
from bootd.files import LoaderFiles
from bootd.http.admission import LARGE, Admission, Ticket, Wait
from bootd.http.answer import Asked, NotFound, OpenFile, Refusal, not_now
from bootd.http.events import Events
from bootd.http.tls import Certificate
from bootd.model import Artefact, Image, Mac, Node, UnknownPolicy
from bootd.overlay.cache import OverlayCache
from bootd.registry import Registry

_PATIENT: Final = ("iPXE/", "curl/", "bootd/")
_SHORT_OF: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
PACKERS: Final = 2
"""Threads, of those that wait for a disk, that may be compressing what was asked for in another
form: anybody may ask."""
_OPEN: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW


class Neighbours(Protocol):
    """What is asked of `net.Interfaces`."""

    def neighbour(self, address: IPv4Address) -> Mac | None:
        """Who has that address on a link of ours."""
        ...


@dataclass(slots=True)
class Site:
    """The daemon's parts, as the handlers know them. `disk` runs what may wait for a disk."""

    boots: Boots
    files: LoaderFiles
    overlays: OverlayCache
    net: Neighbours
    keys: Sequence[bytes]
    node_secrets: Sequence[bytes]
    unknown: Unknown
    disk: Executor
    admission: Admission
    events: Events
    own_files: LoaderFiles
    """The site's own files, for its nodes only."""
    gate: Gate = field(init=False)
    """Tokens and addresses, by the same rules as TFTP's."""
    certificate: Certificate | None = None
    """What this server shows over TLS."""
    packing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PACKERS))
    _blobs: tuple[Registry, dict[str, Artefact]] | None = None

    def __post_init__(self) -> None:
        self.gate = Gate(self.boots, self.keys, self.net.neighbour)

    def owner_of(self, asked: Asked, mac: Mac) -> Owner:
        """Who has the client's address on the link, as seen from `mac`."""
        return owner(asked.registry, mac, self.net.neighbour(asked.peer))

    def followed(self, asked: Asked, mac: Mac) -> Boot | None:
        """The boot that a request without a token may be counted to: of this MAC, and from its
        address as far as that is known. Others cannot write into its timeline."""
        boot = self.boots.of(mac)
        if boot is None or asked.method == "HEAD" or boot.address not in (None, asked.peer):
            return None
        return boot

    def image_of(self, registry: Registry, node: Node, boot: Boot | None) -> Image | None:
        """The image that `node` gets, in this boot where there is one."""
        if boot is not None:
            return boot.image_of(registry, node)
        image = registry.images.get(node.image) if node.image is not None else None
        return methods.files_for(node, image) if image is not None else None

    def blob(self, registry: Registry, digest: str) -> Artefact | None:
        """The public artefact with that SHA-256, of an active image."""
        if self._blobs is None or self._blobs[0] is not registry:
            public = (image for image in registry.images.values() if not image.secret)
            found = {a.sha256: a for image in public for a in image.files()}
            self._blobs = (registry, found)
        return self._blobs[1].get(digest)

    def place(
        self, asked: Asked, artefact: Artefact, node: Node | None, boot: Boot | None
    ) -> Ticket | None:
        """A place among the large transfers, for a file that is one. Raises `Refusal`: 503 with
        ``Retry-After``, which iPXE follows for ever (WIRE.md 3.2) and ``curl --retry`` as well."""
        if artefact.size < LARGE or asked.method != "GET":
            return None
        patient = asked.headers.get("User-Agent", "").startswith(_PATIENT)
        rack = node.tags.get("rack", "") if node is not None else ""
        got = self.admission.ask(
            str(asked.peer),
            rack,
            patient=patient,
            now=asked.now,
            since=boot.started if boot is not None else None,
        )
        if isinstance(got, Wait):
            sentence = f"{self.admission.active} large transfers are under way: ask again"
            raise not_now("busy", sentence, got.seconds)
        return got

    async def open(self, artefact: Artefact) -> OpenFile:
        """Open an artefact for sending. Raises `Refusal` where it is not what it was."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.disk, _open, artefact)


def node_of(registry: Registry, mac: Mac) -> Node | None:
    """The node that a MAC address boots as; profile ``default`` where that is for everyone."""
    node = registry.by_mac.get(mac)
    if node is None and registry.settings.dhcp.unknown is UnknownPolicy.DEFAULT:
        return registry.default
    return node


def _open(artefact: Artefact) -> OpenFile:
    """In a thread. Files of an image are ours, but a disk is not to be believed."""
    name = artefact.path.rpartition("/")[2]
    try:
        fd = os.open(artefact.path, _OPEN)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR):
            raise NotFound(f"the {name} of this image is gone from the server") from exc
        if exc.errno in _SHORT_OF:
            raise not_now("busy", "the server has too many files open: ask again") from exc
        raise Refusal(500, "io-error", f"the {name} of this image cannot be read") from exc
    try:
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        opened = OpenFile(fd, name)
    except OSError as exc:
        os.close(fd)
        raise Refusal(500, "io-error", f"the {name} of this image cannot be read") from exc
    if not regular or opened.size != artefact.size:
        opened.close()
        raise Refusal(500, "damaged", f"the {name} of this image is not the one that was imported")
    return opened
