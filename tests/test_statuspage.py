"""The status page: self-contained, escaped, a table without JavaScript."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from bootd.boots.timeline import Stage
from bootd.http import statuspage
from bootd.model import Mac
from tests.http_site import MAC, serving

PAGE = files("bootd").joinpath("data/status.html").read_text("utf-8")
LOOPS = ("uvloop",)


def row(name: str, **values: Any) -> dict[str, Any]:
    defaults = dict.fromkeys(
        (
            "mac",
            "boot",
            "stage",
            "outcome",
            "bytes",
            "size",
            "percent",
            "rate",
            "address",
            "seconds",
        )
    )
    return {
        **defaults,
        "node": name,
        "age": None,
        "error": "",
        "stale": None,
        "waits": False,
        **values,
    }


def status(*rows: dict[str, Any], unknown: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    transfers = {"active": 2, "limit": 64, "waiting": 0}
    return {"nodes": list(rows), "unknown": list(unknown), "generation": 7, "transfers": transfers}


class Document(HTMLParser):
    """What a browser would make of it: tags with attributes, and the table's text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


BOOTING = row("n002", stage="kernel", outcome="booting", percent=40.0, bytes=4000, rate=99_000,
              seconds=3.0, age=0.4, address="10.0.0.12")  # fmt: skip
UP = row("n001", stage="up", outcome="up", seconds=21.0, age=60.0, stale=["kernel"])
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\" ' &"
FAILED = row("n003", stage="fail", outcome="failed", seconds=9.0, age=1.0, error=HOSTILE)


def test_the_page_needs_nothing_but_itself() -> None:
    for tag, attributes in Document(PAGE).tags:
        assert tag not in ("link", "img", "iframe", "object")
        assert "src" not in attributes
        assert "style" not in attributes  # the policy would not allow it
        assert not [name for name in attributes if name.startswith("on")]
    assert "http:" not in PAGE
    assert "https:" not in PAGE
    assert "innerHTML" not in PAGE
    assert len(PAGE) < 20_000


def test_the_policy_names_the_pages_own_style_and_script() -> None:
    found = statuspage.policy(PAGE)

    for tag in ("style", "script"):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in found
    assert found.startswith("default-src 'none'; ")
    assert "unsafe" not in found


def test_rendering_leaves_style_and_script_as_the_policy_names_them() -> None:
    text = statuspage.render(PAGE, status(FAILED), node=HOSTILE)

    assert statuspage.policy(text) == statuspage.policy(PAGE)


def test_what_machines_say_is_text() -> None:
    stranger = {"mac": "52:54:00:00:00:99", "vendor": HOSTILE, "serial": HOSTILE, "age": 5.0}
    text = statuspage.render(PAGE, status(FAILED, unknown=(stranger,)), node=HOSTILE, stage=HOSTILE)

    everything = statuspage.render(PAGE, status(FAILED, unknown=(stranger,)))
    assert [tag for tag, _ in Document(text).tags].count("script") == 1
    assert [tag for tag, _ in Document(everything).tags].count("script") == 1
    assert "img" not in [tag for tag, _ in Document(everything).tags]
    assert HOSTILE in Document(everything).cells


def test_without_javascript_it_is_a_table_with_those_first_who_need_a_look() -> None:
    document = Document(statuspage.render(PAGE, status(UP, BOOTING, FAILED, row("n004"))))

    lines = [document.cells[at : at + 8] for at in range(0, 32, 8)]
    assert [line[:2] for line in lines] == [
        ["n003", "failed"],
        ["n002", "kernel"],
        ["n001", "up"],
        ["n004", "never"],
    ]
    assert lines[1][2:7] == ["40 %", "99.0 kB/s", "3.0 s", "0.4 s ago", "10.0.0.12"]
    assert lines[2][7] == "a reboot would change kernel"


@pytest.mark.parametrize(
    ("node", "stage", "shown"),
    [
        ("", "", ["n003", "n002", "n001"]),
        ("n[001-002]", "", ["n002", "n001"]),
        ("2 n003", "", ["n003", "n002"]),
        ("n[", "", []),
        ("", "kernel", ["n002"]),
        ("", "failed", ["n003"]),
        ("n001", "kernel", []),
    ],
)
def test_the_form_chooses_nodes_and_stages(node: str, stage: str, shown: list[str]) -> None:
    text = statuspage.render(PAGE, status(UP, BOOTING, FAILED), node=node, stage=stage)

    assert re.findall(r"<tr><td>(n\d+)</td>", text) == shown


def test_ten_thousand_nodes_make_a_page_that_a_browser_shows() -> None:
    text = statuspage.render(PAGE, status(*(row(f"n{n:05d}") for n in range(10_000))))

    assert len(text) < 200_000
    assert "500 of 10000 nodes shown" in text


async def test_the_page_is_served_to_administrators(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        service.discover()
        service.boots.note(MAC, Stage.KERNEL, 0.0)
        service.unknown.heard(Mac("52:54:00:00:00:99"), 0.0)

        reply = await service.get("/?node=n001")

        assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
        assert reply.headers["Content-Security-Policy"] == statuspage.policy(reply.text)
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["Cache-Control"] == "no-store"
        assert "<td>n001</td>" in reply.text
        assert "52:54:00:00:00:99" in reply.text

        http = replace(service.registry.settings.http, admin_networks=(IPv4Network("10.0.0.0/8"),))
        settings = replace(service.registry.settings, http=http)
        service.current.swap(replace(service.registry, settings=settings))
        assert (await service.get("/")).status == 403
