"""The status page: one HTML document that needs nothing else, with its table already in it.

Pure. What comes from machines is escaped, and the Content-Security-Policy names the page's own
style and script by their hashes, so that nothing that slips through would run. Without JavaScript
it is a table with a form; with it, the table follows ``/events``.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from html import escape
from types import MappingProxyType
from typing import Any, Final

from bootd.boots.timeline import Stage
from bootd.text import duration, size, unfold

SHOWN: Final = 500
"""Rows in the page; the form narrows them down."""
UNKNOWN_SHOWN: Final = 100
_GROUPS: Final = (
    "failed",
    *(s.value for s in Stage if s not in (Stage.UP, Stage.FAIL)),
    "up",
    "never",
)
_RANKS: Final[Mapping[str | None, int]] = MappingProxyType({"failed": 0, "booting": 1, "up": 2})
_COLOURS: Final[Mapping[str | None, str]] = MappingProxyType(
    {"failed": "fail", "booting": "busy", "up": "up"}
)

Row = Mapping[str, Any]


def policy(page: str) -> str:
    """The Content-Security-Policy of a page that brings its style and script along."""
    style, script = (
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in (_inside(page, "style"), _inside(page, "script"))
    )
    return (
        f"default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


def _inside(page: str, tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return found[1] if found is not None else ""


def render(page: str, status: Mapping[str, Any], *, node: str = "", stage: str = "") -> str:
    """`page` with what `status` says (the JSON of ``/status``), of the nodes that the form's two
    fields choose."""
    rows: list[Row] = status["nodes"]
    fits = _chooser(node)
    shown = [row for row in rows if stage in ("", group(row)) and fits(row["node"])]
    shown.sort(key=lambda row: _RANKS.get(row["outcome"], 3))
    transfers = status["transfers"]
    values = {
        "about": f"{len(rows)} nodes, registry generation {status['generation']}; "
        f"{transfers['active']} of at most {transfers['limit']} large transfers",
        "chips": _chips(rows, stage),
        "node": escape(node),
        "options": _options(stage),
        "rows": "".join(map(_row, shown[:SHOWN])),
        "more": f"{SHOWN} of {len(shown)} nodes shown" if len(shown) > SHOWN else "",
        "unknown": _unknown(status["unknown"]),
    }
    return re.sub(r"<!--(\w+)-->", lambda found: values[found[1]], page)


def group(row: Row) -> str:
    """What a row is counted as: the stage of a boot that goes on, or how it ended."""
    if row["stage"] is None:
        return "never"
    return str(row["stage"] if row["outcome"] == "booting" else row["outcome"])


def _chooser(text: str) -> Callable[[str], bool]:
    words = text.split()
    names: set[str] = set()
    for word in words:
        if "[" in word:
            try:
                names.update(unfold(word))
            except ValueError:
                continue
    parts = [word for word in words if "[" not in word]
    return lambda name: not words or name in names or any(part in name for part in parts)


def _chips(rows: Iterable[Row], stage: str) -> str:
    counts = Counter(map(group, rows))
    chips = []
    for name in _GROUPS:
        if counts[name]:
            kinds = {"up": "up", "failed": "fail"}.get(name, "") + (" on" if name == stage else "")
            link = f'class="{kinds}" href="/?stage={"" if name == stage else name}"'
            chips.append(f"<li><a {link}><b>{counts[name]}</b> {name}</a></li>")
    return "".join(chips)


def _options(stage: str) -> str:
    chosen = {name: " selected" if name == stage else "" for name in ("", *_GROUPS)}
    return "".join(
        f'<option value="{name}"{mark}>{name or "every stage"}</option>'
        for name, mark in chosen.items()
    )


def _row(row: Row) -> str:
    percent = row["percent"]
    moved = ""
    if percent is not None and row["outcome"] == "booting":
        moved = f'<progress max="100" value="{percent}"></progress>{percent:.0f} %'
    elif row["bytes"]:
        moved = size(row["bytes"])
    stale = row.get("stale")
    said = row["error"] or (f"a reboot would change {', '.join(stale)}" if stale else "")
    cells = (
        ("", escape(row["node"])),
        (_COLOURS.get(row["outcome"], "soft"), group(row) + ", waits" * row["waits"]),
        ("", moved),
        ("n d", f"{size(row['rate'])}/s" if row["rate"] else ""),
        ("n d", duration(row["seconds"]) if row["seconds"] is not None else ""),
        ("n", f"{duration(row['age'])} ago" if row["age"] is not None else ""),
        ("d", escape(row["address"] or "")),
        ("e", escape(said)),
    )
    return f"<tr>{_cells(cells)}</tr>"


def _cells(cells: Iterable[tuple[str, str]]) -> str:
    return "".join(
        f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>" for kind, text in cells
    )


def _unknown(machines: list[Row]) -> str:
    if not machines:
        return ""
    lines = [
        _cells(
            (
                ("", escape(machine["mac"])),
                ("", escape(machine["vendor"] or "")),
                ("", escape(machine["serial"] or "")),
                ("n", f"{duration(machine['age'])} ago"),
                ("soft d", f"bootd claim {escape(machine['mac'])} NODE"),
            )
        )
        for machine in machines[:UNKNOWN_SHOWN]
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<h2>{len(machines)} machines that no node names</h2><table>{body}</table>"
