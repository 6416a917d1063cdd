"""``/b/{token}/…``: what one boot of one node may have, and what it reports."""

from __future__ import annotations

import structlog

from bootd import grub, hooks, metrics
from bootd.boots import window
from bootd.boots.gate import Shut
from bootd.boots.ownfiles import own_files
from bootd.boots.timeline import Boot, Stage
from bootd.http.answer import BINARY, TEXT, Answer, Asked, Denied, NotFound
from bootd.http.handlers.files import artefact
from bootd.http.handlers.overlays import overlay, refuse_plain, secure
from bootd.http.routes import BootPart
from bootd.http.site import Site
from bootd.model import Node

log = structlog.get_logger()


async def part(site: Site, asked: Asked, route: BootPart) -> Answer:
    """Check the token, then answer. Raises `Denied`, `NotFound` or another `Refusal`."""
    node, boot = opened(site, asked, route.token)
    if route.part == "up":
        answer = _up(site, asked, node, boot)
    elif route.part == "fail":
        answer = _fail(site, asked, node, boot)
    elif route.part == "system":
        answer = await _system(site, asked, route.token, node, boot)
    elif route.part == "hook":
        answer = await _hook(site, asked, route.token, node, boot)
    elif route.part == "runtime":
        answer = await _runtime(site, asked, node, boot)
    elif route.part == "ready":
        answer = await _ready(site, asked, node, boot)
    else:
        image = site.image_of(asked.registry, node, boot)
        answer = await artefact(site, asked, image, route.part, node, boot)
    answer.node, answer.mac, answer.boot = node.name, boot.mac, boot.id
    return answer


def opened(site: Site, asked: Asked, token: str) -> tuple[Node, Boot]:
    """The node and boot that a token opens for this client, now. Raises `Denied`."""
    try:
        return site.gate.enter(asked.registry, token, asked.peer, asked.now)
    except Shut as shut:
        denied = Denied(shut.reason, window.SENTENCES[shut.reason])
        denied.mac = shut.mac
        raise denied from None


async def _system(site: Site, asked: Asked, token: str, node: Node, boot: Boot) -> Answer:
    """One newc stream: this boot's own files, then the node's archive with the trailer."""
    own = _own_files(site, asked, token, node, boot)
    answer, digest = await overlay(site, asked, node, "system", own)
    if asked.method == "GET":
        boot.server, boot.given["system"] = asked.server.base, digest
        answer.step = site.boots.begin(boot.mac, Stage.OVERLAY, asked.now, size=answer.size)
    return answer


async def _hook(site: Site, asked: Asked, token: str, node: Node, boot: Boot) -> Answer:
    """The second initrd of method squashfs: what fetches the root, and the overlay inside."""
    image = site.image_of(asked.registry, node, boot)
    squashfs = image.squashfs if image is not None else None
    if squashfs is None:
        raise NotFound("this node's image has no squashfs", "no-image")
    own = _own_files(site, asked, token, node, boot)
    system, digest = await overlay(site, asked, node, "system", own)
    assert isinstance(system.body, tuple)
    answer = Answer(body=hooks.wrap(own, squashfs, system.body), type=BINARY)
    if asked.method == "GET":
        boot.server, boot.given["system"] = asked.server.base, digest
        detail = f"overlay and what fetches {image.name} {image.generation}" if image else ""
        answer.step = site.boots.begin(
            boot.mac, Stage.INITRAMFS, asked.now, detail=detail, size=answer.size
        )
    return answer


async def _ready(site: Site, asked: Asked, node: Node, boot: Boot) -> Answer:
    """A line of GRUB's, where the initrds of this boot would be given now. Raises `Refusal`.

    GRUB takes the body of a refusal for the file that it asked for: this it cannot mistake.
    """
    image = site.image_of(asked.registry, node, boot)
    root = image.archive or image.artefacts.get("initramfs") if image is not None else None
    if root is not None:
        (await site.open(root)).close()
    await overlay(site, asked, node, "system")
    return Answer(body=(grub.READY.encode(),), type=TEXT)


async def _runtime(site: Site, asked: Asked, node: Node, boot: Boot) -> Answer:
    refuse_plain(asked)
    answer, digest = await overlay(site, asked, node, "runtime")
    if asked.method == "GET":
        boot.given["runtime"] = digest
        answer.step = site.boots.begin(boot.mac, Stage.RUNTIME, asked.now, size=answer.size)
    return answer


def _own_files(site: Site, asked: Asked, token: str, node: Node, boot: Boot) -> bytes:
    chain = site.certificate.chain if site.certificate is not None else b""
    return own_files(asked.server, secure(asked), token, node, boot, site.node_secrets, chain)


def _up(site: Site, asked: Asked, node: Node, boot: Boot) -> Answer:
    is_up(site, asked, node, boot)
    return Answer(body=(f"{node.name} is up\n".encode(),), type=TEXT)


def is_up(site: Site, asked: Asked, node: Node, boot: Boot) -> None:
    """A node told that it is up: its boot ends, and its window closes."""
    site.boots.up(boot, asked.now)
    seconds = asked.now - boot.started
    metrics.BOOT_SECONDS.labels(Stage.UP.value).observe(seconds)
    log.info("boot.up", node=node.name, mac=boot.mac, boot=boot.id, seconds=round(seconds, 3))


def _fail(site: Site, asked: Asked, node: Node, boot: Boot) -> Answer:
    step, code = asked.said("step") or "unknown step", asked.said("errno")
    error = f"{step}: error {code}" if code else step
    site.boots.fail(boot, asked.now, error)
    log.warning(
        "boot.failed", node=node.name, mac=boot.mac, boot=boot.id, step=step, errno=code or None
    )
    return Answer(body=(b"noted\n",), type=TEXT)
