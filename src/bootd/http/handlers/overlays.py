"""What every route that gives an overlay has in common: its form, its tag, who must use TLS."""

from __future__ import annotations

import hashlib

import structlog

from bootd.http.answer import BINARY, Answer, Asked, Denied, Refusal, asked_form
from bootd.http.site import Site
from bootd.model import Node, ServerAddress
from bootd.overlay.compress import prefixed
from bootd.overlay.render import Which
from bootd.overlay.template import RenderError

log = structlog.get_logger()


def tag(etag: str, form: str) -> str:
    """The validator of an archive in that encoding: another one than of the archive as it is."""
    return f'"{etag}-{form}"' if form else f'"{etag}"'


def secure(asked: Asked) -> ServerAddress:
    """Where this client finds what is only given over TLS; as it came, where there is no TLS."""
    return asked.registry.settings.http.over_tls(asked.server)


def refuse_plain(asked: Asked) -> None:
    """A runtime overlay goes out over TLS only, where there is TLS. Raises `Denied`."""
    if asked.registry.settings.http.tls is not None and asked.server.scheme != "https":
        raise Denied(
            "tls-only",
            "the runtime overlay is only given over HTTPS, since http.tls is set: "
            f"ask {secure(asked).base}",
        )


async def digest(site: Site, asked: Asked, node: Node, which: Which) -> str:
    """The digest of the archive that `overlay` would give, mostly without making it. Raises
    `Refusal`."""
    try:
        return await site.overlays.digest(asked.registry, node, which, asked.server)
    except RenderError as error:
        raise _fails(node, which, error) from None


def _fails(node: Node, which: Which, error: RenderError) -> Refusal:
    log.error("overlay.failed", node=node.name, which=which, reason=str(error))
    return Refusal(500, "overlay", f"the overlay does not render: {error}")


async def overlay(
    site: Site, asked: Asked, node: Node, which: Which, own: bytes = b""
) -> tuple[Answer, str]:
    """The archive of `node`, in the form that was asked for, and the digest of what is in it.

    `own` are entries of this boot that go before it, without a trailer. Raises `Refusal`.
    """
    form = asked_form(asked)
    try:
        plain = await site.overlays.get(asked.registry, node, which, asked.server)
        pieces = plain.segments
        if form:
            small = await site.overlays.compressed(asked.registry, node, which, asked.server, form)
            pieces = prefixed(own, small.data, form) if own else small.segments
        elif own:
            pieces = (own, *pieces)
    except RenderError as error:
        raise _fails(node, which, error) from None
    content = hashlib.sha256(own + plain.etag.encode()).hexdigest() if own else plain.etag
    return Answer(body=pieces, type=BINARY, etag=tag(content, form), node=node.name), plain.etag
