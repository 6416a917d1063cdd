"""What a file name asks for: a loader from disk, a text for the machine, or a part of its boot.

Parts of a boot are what HTTP is for. Loaders that have none get them here, under the same rules.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import structlog

from bootd import configs, files, grub, hooks, loaders, scripts
from bootd.boots.gate import Gate, Shut
from bootd.boots.ownfiles import own_files
from bootd.boots.timeline import Boot, Stage
from bootd.files import LoaderFiles
from bootd.loaders import (
    Autoexec,
    BootFile,
    GrubConfig,
    ImageFile,
    Loader,
    PxelinuxConfig,
    Static,
)
from bootd.model import Artefact, Image, Mac, Node, ServerAddress, TlsSettings
from bootd.overlay.cache import OverlayCache
from bootd.overlay.template import RenderError
from bootd.registry import Registry
from bootd.templating import ScriptError
from bootd.tftp.wire import ErrorCode

log = structlog.get_logger()

_DENIED: Final = ErrorCode.ACCESS_VIOLATION
_STAGES: Final[Mapping[str, Stage]] = {
    "kernel": Stage.KERNEL,
    "initramfs": Stage.INITRAMFS,
    "image": Stage.IMAGE,
    "squashfs": Stage.IMAGE,
}
"""The files of an image that TFTP gives, and what they are to the timeline."""


@dataclass(frozen=True, slots=True)
class Content:
    """What to send: `name` is for the log and never holds a token; `mac` is the machine's, where
    the path or its token named it.

    `stage` is what it is of a boot. None, no step of one: iPXE's ``autoexec.ipxe`` is three lines
    on the way from the loader to the script, and neither.
    """

    name: str
    data: bytes = field(repr=False)
    mac: Mac | None = None
    stage: Stage | None = Stage.LOADER


class Missing(Exception):
    """Nothing to send. `reason` is one word; `text` goes to the client's screen.

    `code` None means silence, so that the client asks again. `optional` is true for what firmware
    only tries.
    """

    def __init__(
        self, reason: str, name: str, code: ErrorCode | None, mac: Mac | None, *, optional: bool
    ) -> None:
        name = _TOKEN.sub("...", name)
        shown = name.rpartition("/")[2] if reason == "not-found" else reason
        self.text = f"{'not found' if reason == 'not-found' else 'refused'}: {shown}"
        super().__init__(self.text)
        self.reason = reason
        self.name = name
        self.code = code
        self.mac = mac
        self.optional = optional


_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{40,}")
"""What may be a token or a key, in a name that goes into the log."""


@dataclass(frozen=True, slots=True)
class Request:
    """A file name as it was sent, and by whom: the registry that was current then, the client's
    address, ours as the client reaches it, and the time (monotonic seconds)."""

    filename: bytes = field(repr=False)
    registry: Registry
    peer: IPv4Address
    server: ServerAddress
    now: float


@dataclass(frozen=True, slots=True)
class Contents:
    """All that may be sent: `files` are loaders, `images` the folder that holds the images' files,
    `gate` says who may have what of a boot, `overlays` (None: none are given) makes archives, and
    `secrets` give each node its own key, the newest of them first."""

    files: LoaderFiles
    images: LoaderFiles
    gate: Gate
    overlays: OverlayCache | None = None
    secrets: Sequence[bytes] = ()

    async def find(self, request: Request) -> Content:
        """The content that a request asks for. Raises `Missing`."""
        path = loaders.firmware_path(request.filename)
        part = loaders.boot_file(path)
        if part is not None:
            return await self._part(request, part)
        target = loaders.route(path)
        match target:
            case Autoexec(mac):
                text = scripts.autoexec(
                    request.registry.settings.http.for_scripts(request.server), mac
                )
                return Content("autoexec.ipxe", text.encode(), mac, None)
            case Loader(name, mac):
                return await self._loader(request, name, mac)
            case Static(name):
                return await _load(self.files, (name,), None)
            case PxelinuxConfig() | GrubConfig():
                return await self._config(request, target)
        raise Missing(target.reason, path, ErrorCode.ACCESS_VIOLATION, None, optional=False)

    async def _loader(self, request: Request, name: str, mac: Mac | None) -> Content:
        """The site's own file, else the one of the node's image, else a package's."""
        own = configs.of_the_image(self.gate, request.registry, name, mac, request.peer)
        if own is None:
            return await _load(self.files, loaders.candidates(name), mac)
        with suppress(files.NotFound, files.Refused):
            loaded = await self.files.get(*loaders.candidates(name))
            if self.files.is_own(loaded):
                return Content(name, loaded.data, mac)
        return await self._of_image(request.registry, own, name, mac, Stage.LOADER)

    async def _config(self, request: Request, target: configs.Target) -> Content:
        """The site's own file where there is one, for the machine or for all; else ours."""
        with suppress(Missing):
            return await _load(self.files, configs.of_the_site(target), target.mac)
        asker = configs.Asker(request.peer, request.server, request.now)
        try:
            made = configs.configuration(self.gate, request.registry, target, asker)
        except ScriptError as error:
            log.error("script.failed", kind="grub", mac=target.mac, reason=str(error))
            raise Missing(
                "template", "grub.cfg", ErrorCode.UNDEFINED, None, optional=False
            ) from None
        if made.fault and made.node is not None:
            log.error("script.failed", node=made.node.name, mac=made.mac, reason=made.fault)
        return Content(made.detail, made.text.encode(), made.mac, Stage.SCRIPT)

    async def _part(self, request: Request, part: BootFile | ImageFile) -> Content:
        registry = request.registry
        if isinstance(part, ImageFile):
            node = registry.by_mac.get(part.mac)
            image = registry.images.get(node.image or "") if node is not None else None
            if image is None or image.secret:
                reason = "unknown-node" if node is None else "secret-image" if image else "no-image"
                raise Missing(reason, part.role, _DENIED, part.mac, optional=False)
            return await self._artefact(registry, image, part.role, part.mac)
        try:
            node, boot = self.gate.enter(registry, part.token, request.peer, request.now)
        except Shut as shut:
            raise Missing(shut.reason, _shown(part.part), _DENIED, None, optional=False) from None
        if part.part == "ready":
            return Content("ready", grub.READY.encode(), boot.mac, None)
        image = boot.image_of(registry, node)
        if part.part == "hook" and image is not None and image.squashfs is not None:
            own, system = await self._system(request, part.token, node, boot)
            data = b"".join(hooks.wrap(own, image.squashfs, system))
            return Content("hook", data, boot.mac, Stage.INITRAMFS)
        if part.part == "system":
            _, system = await self._system(request, part.token, node, boot)
            return Content("system", b"".join(system), boot.mac, Stage.OVERLAY)
        return await self._artefact(registry, image, part.part, boot.mac)

    async def _artefact(
        self, registry: Registry, image: Image | None, role: str, mac: Mac
    ) -> Content:
        found = image.artefacts.get(role) if image is not None else None
        stage = _STAGES.get(role)
        if found is None or stage is None:
            raise Missing("not-found", _shown(role), ErrorCode.NOT_FOUND, mac, optional=False)
        return await self._of_image(registry, found, role, mac, stage)

    async def _of_image(
        self, registry: Registry, found: Artefact, name: str, mac: Mac | None, stage: Stage
    ) -> Content:
        path = found.path.removeprefix(f"{images_folder(registry)}/")
        try:
            loaded = await _load(self.images, (path,), mac)
        except Missing as missing:
            raise Missing(missing.reason, name, missing.code, mac, optional=False) from None
        if len(loaded.data) != found.size:
            raise Missing("damaged", name, ErrorCode.UNDEFINED, mac, optional=False)
        return Content(name, loaded.data, mac, stage)

    async def _system(
        self, request: Request, token: str, node: Node, boot: Boot
    ) -> tuple[bytes, tuple[bytes, ...]]:
        """What is this boot's own, without a trailer; and the archive, which begins with it."""
        if self.overlays is None:
            raise Missing("not-found", "system", ErrorCode.NOT_FOUND, boot.mac, optional=False)
        server, http = request.server, request.registry.settings.http
        try:
            archive = await self.overlays.get(request.registry, node, "system", server)
        except RenderError as error:
            log.error("overlay.failed", node=node.name, which="system", reason=str(error))
            raise Missing(
                "overlay", "system", ErrorCode.UNDEFINED, boot.mac, optional=False
            ) from None
        chain = await _certificates(http.tls)
        own = own_files(server, http.over_tls(server), token, node, boot, self.secrets, chain)
        boot.server, boot.given["system"] = server.base, archive.etag
        return own, (own, *archive.segments)


async def _certificates(tls: TlsSettings | None) -> bytes:
    """By what a node knows us over TLS, where there is TLS."""
    if tls is None:
        return b""
    try:
        return await asyncio.to_thread(Path(tls.certificate).read_bytes)
    except OSError as error:
        log.error("tls.certificate-rejected", file=tls.certificate, reason=str(error))
        return b""


def images_folder(registry: Registry) -> str:
    """Where the files of images are."""
    return f"{registry.settings.state_dir}/images"


def _shown(part: str) -> str:
    """A part of a boot as the log shows it: it came off the wire, beside a token."""
    return part if part in _STAGES or part in ("system", "hook") else "part"


async def _load(store: LoaderFiles, names: tuple[str, ...], mac: Mac | None) -> Content:
    name, optional = names[0], loaders.optional(names[0])
    try:
        loaded = await store.get(*names)
    except files.NotFound:
        raise Missing("not-found", name, ErrorCode.NOT_FOUND, mac, optional=optional) from None
    except files.Refused as refused:
        code = None if refused.transient else ErrorCode.ACCESS_VIOLATION
        raise Missing(refused.reason, name, code, mac, optional=optional) from None
    return Content(name, loaded.data, mac)
