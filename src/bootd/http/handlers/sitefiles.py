"""``/files/{path}``: files of the site's own, from ``files/`` beside bootd.yaml, for running nodes.

Warewulf's route. A node may read all of them, and must show what it shows for its runtime overlay.
"""

from __future__ import annotations

from bootd import files
from bootd.http.answer import Answer, Asked, Denied, NotFound, Refusal, content_type, not_now
from bootd.http.handlers.overlays import refuse_plain
from bootd.http.handlers.runtime import admitted
from bootd.http.handlers.warewulf import named
from bootd.http.ranges import http_date
from bootd.http.site import Site


async def site_file(site: Site, asked: Asked, path: str) -> Answer:
    """The file, for a node that ``?wwid=`` or the neighbour table names. Raises `Refusal`."""
    if asked.said("render"):
        raise Refusal(400, "render", "files are given as they are: what is rendered is an overlay")
    refuse_plain(asked)
    mac = named(site, asked)
    node = admitted(site, asked, mac)
    try:
        found = await site.own_files.get(path)
    except files.NotFound:
        raise NotFound("there is no such file") from None
    except files.Refused as refused:
        sentence = f"this file is not served ({refused.reason}): {refused.sentence}"
        if refused.transient:
            raise not_now(refused.reason, f"{sentence}; ask again") from None
        raise Denied(refused.reason, sentence) from None
    return Answer(
        body=(found.data,),
        type=content_type(path),
        etag=found.etag,
        modified=http_date(found.mtime),
        node=node.name,
        mac=mac,
    )
