"""``/grub/{mac}``, ``/grub/grub.cfg`` and their like: the configurations of GRUB and PXELINUX."""

from __future__ import annotations

import structlog

from bootd import configs, metrics
from bootd.boots.timeline import Stage
from bootd.http.answer import Answer, Asked, NotFound, Refusal
from bootd.http.handlers.files import loaded
from bootd.http.site import Site
from bootd.templating import ScriptError

log = structlog.get_logger()


async def config(site: Site, asked: Asked, target: configs.Target) -> Answer:
    """The site's own file where there is one, for the machine or for all; else ours, for whoever
    the path or the client's address names. Raises `Refusal`."""
    try:
        return await loaded(site, asked, configs.of_the_site(target), target.mac)
    except NotFound:
        pass
    said = configs.Said(asked.said("uuid"), asked.said("serial"), asked.said("assetkey"))
    asker = configs.Asker(asked.peer, asked.server, asked.now, said)
    try:
        made = configs.configuration(site.gate, asked.registry, target, asker)
    except ScriptError as error:
        log.error("script.failed", mac=target.mac, reason=str(error))
        raise Refusal(500, "template", f"the configuration does not render: {error}") from None
    node = made.node.name if made.node is not None else None
    if made.fault:
        log.error("script.failed", node=node, mac=made.mac, reason=made.fault)
    if made.mac is None:
        return Answer(body=(made.text.encode(),), quiet=True)
    boot = site.followed(asked, made.mac)
    if boot is not None:
        if not boot.reached(Stage.SCRIPT):
            metrics.BOOT_SECONDS.labels(Stage.SCRIPT.value).observe(asked.now - boot.started)
        site.boots.retrying(boot)
        size = len(made.text)
        site.boots.note(made.mac, Stage.SCRIPT, asked.now, detail=made.detail, size=size)
    return Answer(
        body=(made.text.encode(),),
        node=node,
        mac=made.mac,
        boot=boot.id if boot is not None else None,
        quiet=made.node is None,
    )
