"""Files: loaders and the names beside them, an image's files by node or by content."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Final

from bootd import configs, files, loaders, scripts
from bootd.boots.timeline import Boot, Stage
from bootd.http import recode
from bootd.http.answer import (
    BINARY,
    IMMUTABLE,
    REVALIDATE,
    Answer,
    Asked,
    Denied,
    NotFound,
    OpenFile,
    Refusal,
    asked_form,
    content_type,
    not_now,
)
from bootd.http.handlers.identity import admit_booting, refuse_wrong_key
from bootd.http.ranges import http_date
from bootd.http.routes import Public
from bootd.http.site import Site, node_of
from bootd.model import Arch, Artefact, Image, Mac, Node
from bootd.warewulf import switched

STAGES: Final[Mapping[str, Stage]] = MappingProxyType(
    {
        "kernel": Stage.KERNEL,
        "initramfs": Stage.INITRAMFS,
        "image": Stage.IMAGE,
        "squashfs": Stage.IMAGE,
    }
)


async def artefact(
    site: Site, asked: Asked, image: Image | None, role: str, node: Node, boot: Boot | None
) -> Answer:
    """The file of `image` that is its `role`; counted to `boot`. Raises `Refusal`."""
    found = image.artefacts.get(role) if image is not None else None
    if image is None:
        raise NotFound(f"node {node.name} has no image", "no-image")
    if found is None:
        what = "archive of a root file system" if role == "image" else role
        raise NotFound(f"image {image.name} has no {what}", "no-image")
    form = asked_form(asked)
    try:
        opened = await _opened(site, asked, found, node, boot)
        answer = await _in_form(site, asked, opened, form) if form else opened
    except Refusal as refusal:
        if boot is not None and refusal.status == 503 and asked.method != "HEAD":
            detail = "told to ask again"
            site.boots.note(
                boot.mac, STAGES[role], asked.now, detail=detail, outcome=refusal.reason
            )
        raise
    answer.node = node.name
    if boot is not None and asked.method != "HEAD":
        answer.boot = boot.id
        answer.step = site.boots.begin(
            boot.mac,
            STAGES[role],
            asked.now,
            detail=f"{image.name} {image.generation}",
            size=answer.size or None,
        )
    return answer


async def _in_form(site: Site, asked: Asked, answer: Answer, form: str) -> Answer:
    """`answer` in that compression: as it is where it has that, else made while it is sent, of
    unknown length. Raises `Refusal`; then the answer holds nothing any more."""
    if not isinstance(answer.body, OpenFile):
        return answer
    answer.holds = opened = answer.body
    loop = asyncio.get_running_loop()
    try:
        stored = await loop.run_in_executor(site.disk, recode.form_of, opened)
    except BaseException as exc:
        answer.close()
        if answer.ticket is not None:
            site.admission.leave(answer.ticket, asked.now)
        if isinstance(exc, OSError):
            raise Refusal(500, "io-error", f"the {opened.name} cannot be read") from exc
        raise
    if stored != form:
        answer.body = recode.recoded(opened, form, site.disk, site.packing)
        answer.etag = answer.modified = ""
    return answer


async def _opened(
    site: Site, asked: Asked, found: Artefact, node: Node | None = None, boot: Boot | None = None
) -> Answer:
    etag = f'"{found.sha256}"'
    if asked.headers.get("If-None-Match") == etag:
        return Answer(body=(), type=BINARY, etag=etag, cache=REVALIDATE)  # a 304: nothing to open
    opened = await site.open(found)
    try:
        ticket = site.place(asked, found, node, boot)
    except Refusal:
        opened.close()
        raise
    return Answer(
        body=opened,
        type=BINARY,
        etag=etag,
        modified=opened.modified,
        cache=REVALIDATE,
        ticket=ticket,
    )


async def public(site: Site, asked: Asked, route: Public) -> Answer:
    """``/kernel/{mac}`` and its like, for whoever asks; nothing of a secret image."""
    node = node_of(asked.registry, route.mac)
    if node is None:
        raise NotFound("no node has this MAC address", "unknown-node")
    refuse_wrong_key(asked, node)
    boot = site.followed(asked, route.mac)
    image = site.image_of(asked.registry, node, boot)
    if image is not None and image.secret and switched(node):
        admit_booting(site, asked, node, route.mac)
    elif image is not None and image.secret:
        raise Denied("secret-image", "this image is only given to a node that boots")
    answer = await artefact(site, asked, image, route.role, node, boot)
    answer.mac = route.mac
    return answer


async def blob(site: Site, asked: Asked, digest: str) -> Answer:
    """A public file of an image by what is in it: what a cache may keep for ever."""
    found = site.blob(asked.registry, digest)
    if found is None:
        raise NotFound("no image that is active has a file with this digest")
    answer = await _opened(site, asked, found)
    answer.cache = IMMUTABLE
    return answer


async def shared(site: Site, asked: Asked, target: loaders.Target) -> Answer:
    """A name that TFTP serves as well."""
    match target:
        case loaders.Loader(name, mac):
            if loaders.leaves_arch_open(name):
                name = loaders.for_arch(name, _arch(site, asked))
            return await _loader(site, asked, name, mac)
        case loaders.Static(path):
            return await loaded(site, asked, (path,), None)
        case loaders.Autoexec(mac):
            text = scripts.autoexec(asked.registry.settings.http.for_scripts(asked.server), mac)
            return Answer(body=(text.encode(),), mac=mac)
        case _:
            raise NotFound("there is no such file")


async def _loader(site: Site, asked: Asked, name: str, mac: Mac | None) -> Answer:
    """The site's own file, else the one of the node's image, else a package's."""
    own = configs.of_the_image(site.gate, asked.registry, name, mac, asked.peer)
    names = loaders.candidates(name)
    if own is None:
        return await loaded(site, asked, names, mac)
    with suppress(files.NotFound, files.Refused):
        if site.files.is_own(await site.files.get(*names)):
            return await loaded(site, asked, names, mac)
    answer = await _opened(site, asked, own)
    answer.type = content_type(name)
    _count(site, asked, answer, name, mac)
    return answer


def _arch(site: Site, asked: Asked) -> int:
    """The architecture of the client's machine, as its DHCP packet said; x64 where none did."""
    mac = site.gate.machine(asked.registry, asked.peer)
    boot = site.boots.of(mac) if mac is not None else None
    return boot.arch if boot is not None and boot.arch is not None else Arch.EFI_X64


async def loaded(site: Site, asked: Asked, names: tuple[str, ...], mac: Mac | None) -> Answer:
    """The first of these boot loaders that there is. Raises `Refusal`."""
    try:
        file = await site.files.get(*names)
    except files.NotFound:
        tried = loaders.optional(names[0])
        if mac is not None and not tried and site.followed(asked, mac) is not None:
            detail = f"http {names[0]}"
            site.boots.note(mac, Stage.LOADER, asked.now, detail=detail, outcome="not-found")
        raise NotFound("there is no such file", quiet=tried) from None
    except files.Refused as refused:
        sentence = f"this file is not served ({refused.reason}): {refused.sentence}"
        if refused.transient:
            raise not_now(refused.reason, f"{sentence}; ask again") from None
        raise Denied(refused.reason, sentence) from None
    answer = Answer(
        body=(file.data,),
        type=content_type(names[0]),
        etag=file.etag,
        modified=http_date(file.mtime),
        cache=REVALIDATE,
    )
    _count(site, asked, answer, names[0], mac)
    return answer


def _count(site: Site, asked: Asked, answer: Answer, name: str, mac: Mac | None) -> None:
    """A loader that goes out is a step of its machine's boot."""
    boot = site.followed(asked, mac) if mac is not None else None
    if boot is not None:
        answer.step = site.boots.begin(
            boot.mac, Stage.LOADER, asked.now, detail=f"http {name}", size=answer.size
        )
        answer.mac, answer.node, answer.boot = boot.mac, boot.node, boot.id
