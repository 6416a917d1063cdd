from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd import loaders
from bootd.http.routes import (
    MAX_TARGET,
    Bad,
    Blob,
    BootPart,
    File,
    Fixed,
    Public,
    Script,
    route,
)
from bootd.model import Mac

MAC = Mac("52:54:00:12:34:56")
TOKEN = "A" * 52


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        ("/ipxe/52-54-00-12-34-56", Script(MAC)),
        ("/ipxe/zz", Script(None)),
        ("/ipxe/ff:ff:ff:ff:ff:ff", Script(None)),
        ("/ipxe/52:54:00:12:34:56?uuid=1", Script(MAC)),
        ("/ipxe/525400123456", Script(MAC)),
        (f"/b/{TOKEN}/kernel", BootPart(TOKEN, "kernel")),
        (f"/b/{TOKEN}/system", BootPart(TOKEN, "system")),
        (f"/b/{TOKEN}/up", BootPart(TOKEN, "up")),
        ("/kernel/52-54-00-12-34-56", Public("kernel", MAC)),
        ("/initramfs/52-54-00-12-34-56", Public("initramfs", MAC)),
        (f"/blob/sha256/{'0' * 64}", Blob("0" * 64)),
        ("/boot/snponly.efi", File(loaders.Loader("snponly.efi"))),
        ("/52-54-00-12-34-56/snponly.efi", File(loaders.Loader("snponly.efi", MAC))),
        ("/52-54-00-12-34-56/autoexec.ipxe", File(loaders.Autoexec(MAC))),
        ("/grub/grub.cfg", File(loaders.GrubConfig())),
        ("/healthz", Fixed("healthz")),
        ("/", Fixed("index")),
        ("http://evil:80/healthz", Fixed("healthz")),
        ("HTTPS://evil", Fixed("index")),
    ],
)
def test_the_table(target: str, asked: object) -> None:
    assert route(target) == asked


@pytest.mark.parametrize(
    ("target", "status", "reason"),
    [
        ("/kernel/zz", 400, "not-a-mac"),
        ("/runtime/ff:ff:ff:ff:ff:ff", 400, "not-a-mac"),
        ("/kernel/{{7*191}}", 400, "not-a-mac"),
        ("/zz-zz-zz-zz-zz-zz/snponly.efi", 400, "not-a-mac"),
        (f"/b/{TOKEN}/secrets", 404, "not-found"),
        (f"/b/{TOKEN}/kernel/x", 404, "not-found"),
        ("/b", 404, "not-found"),
        ("/blob/sha256/abc", 404, "not-found"),
        (f"/blob/md5/{'0' * 64}", 404, "not-found"),
        ("/../etc/passwd", 400, "dot-dot"),
        ("/boot/../../etc/passwd", 400, "dot-dot"),
        ("/boot/%2e%2e/%2E./etc/passwd", 400, "dot-dot"),
        ("/boot/..%2f..%2fetc/passwd", 400, "dot-dot"),
        ("/boot/..\\..\\etc\\passwd", 400, "backslash"),
        ("/boot/..%5c..%5cetc", 400, "backslash"),
        ("/boot/a%00.efi", 400, "control-character"),
        ("/boot/a%0d%0aSet-Cookie:x", 400, "control-character"),
        ("/boot/%c0%ae%c0%ae/etc/passwd", 400, "malformed"),
        ("/boot/%", 400, "malformed"),
        ("/boot/%zz", 400, "malformed"),
        ("/boot/a#b", 400, "malformed"),
        ("boot/snponly.efi", 400, "malformed"),
        ("*", 400, "malformed"),
        ("ftp://host/boot/snponly.efi", 400, "malformed"),
        ("/" + "a" * 300, 400, "too-long"),
        ("/" + "a" * MAX_TARGET, 414, "too-long"),
    ],
)
def test_what_is_refused_and_why(target: str, status: int, reason: str) -> None:
    bad = route(target)

    assert isinstance(bad, Bad)
    assert (bad.status, bad.reason) == (status, reason)


@pytest.mark.parametrize("target", ["/boot/%252e%252e/%252e%252e/etc/passwd", "/boot/%25zz"])
def test_nothing_is_decoded_twice(target: str) -> None:
    found = route(target)

    assert isinstance(found, File)
    assert isinstance(found.target, loaders.Static)
    assert "%" in found.target.path


@pytest.mark.parametrize(
    "target",
    ["//b//T/system", "/b/T/system/", "/%62/T/s%79stem", "/./b/T/./system", "/b%2fT/system"],
)
def test_every_spelling_of_a_secret_is_the_same_question(target: str) -> None:
    assert route(target) == BootPart("T", "system")


@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=300))
def test_any_target_is_a_route_or_is_refused(target: str) -> None:
    found = route(target)

    assert isinstance(found, Script | BootPart | Public | Blob | File | Fixed | Bad)


@given(
    st.lists(st.sampled_from(["..", ".", "", "boot", "etc", "passwd", "%2e%2e", "a"]), max_size=8)
)
def test_no_file_route_leads_upwards(parts: list[str]) -> None:
    found = route("/" + "/".join(parts))

    if isinstance(found, File) and isinstance(found.target, loaders.Static):
        assert ".." not in found.target.path.split("/")


@given(st.text(min_size=1, max_size=60))
def test_an_escaped_path_is_the_plain_one(text: str) -> None:
    assert route("/boot/" + quote(text, safe="")) == route("/boot/" + quote(text, safe="/"))
