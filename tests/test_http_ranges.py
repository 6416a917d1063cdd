from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd.http.ranges import Decision, Failed, NotModified, Span, decide, http_date

ETAG = '"abc"'
MODIFIED = http_date(1_700_000_000)
EARLIER, LATER = http_date(1_600_000_000), http_date(1_800_000_000)


def asked(size: int = 100, method: str = "GET", **headers: str) -> Decision:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return decide(method, named, size=size, etag=ETAG, modified=MODIFIED)


@pytest.mark.parametrize(
    ("value", "start", "length"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=10-19", 10, 10),
        ("bytes=10-", 10, 90),
        ("bytes=99-", 99, 1),
        ("bytes=90-1000", 90, 10),
        ("bytes=-10", 90, 10),
        ("bytes=-1000", 0, 100),
        (f"bytes=10-{'9' * 8000}", 10, 90),
        (f"bytes=-{'9' * 8000}", 0, 100),
        ("Bytes= 10-19 ", 10, 10),
    ],
)
def test_one_range_is_given(value: str, start: int, length: int) -> None:
    assert asked(Range=value) == Span(206, start, length)


@pytest.mark.parametrize(
    "value",
    ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=9999999999999-", f"bytes={'9' * 8000}-"],
)
def test_a_range_behind_the_end_cannot_be_given(value: str) -> None:
    assert asked(Range=value) == Failed(416)


def test_nothing_can_be_given_of_an_empty_file() -> None:
    assert asked(0, Range="bytes=0-") == Failed(416)
    assert asked(0, Range="bytes=-5") == Failed(416)


@pytest.mark.parametrize(
    "value",
    [
        "bytes=0-9,20-29",
        "bytes=" + ",".join("0-" for _ in range(1000)),
        "bytes=-",
        "bytes=5-4",
        "bytes=a-b",
        "bytes=+1-2",
        "bytes=1-2-3",
        "lines=1-2",
        "",
        "bytes",
        "bytes=\u0661-",
    ],
)
def test_what_is_not_one_range_is_ignored(value: str) -> None:
    assert asked(Range=value) == Span(200, 0, 100)


def test_only_get_has_ranges() -> None:
    assert asked(method="HEAD", Range="bytes=1-2") == Span(200, 0, 100)


@pytest.mark.parametrize(
    ("if_range", "status"),
    [(ETAG, 206), (MODIFIED, 206), ('W/"abc"', 200), ('"old"', 200), (EARLIER, 200), (LATER, 200)],
)
def test_if_range_holds_for_the_very_same_version(if_range: str, status: int) -> None:
    span = asked(Range="bytes=5-", If_Range=if_range)

    assert isinstance(span, Span)
    assert span.status == status


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("If_None_Match", ETAG, NotModified()),
        ("If_None_Match", '"x", W/"abc"', NotModified()),
        ("If_None_Match", "*", NotModified()),
        ("If_None_Match", '"x"', Span(200, 0, 100)),
        ("If_Modified_Since", MODIFIED, NotModified()),
        ("If_Modified_Since", LATER, NotModified()),
        ("If_Modified_Since", EARLIER, Span(200, 0, 100)),
        ("If_Modified_Since", "yesterday", Span(200, 0, 100)),
        ("If_Match", ETAG, Span(200, 0, 100)),
        ("If_Match", "*", Span(200, 0, 100)),
        ("If_Match", 'W/"abc"', Failed(412)),
        ("If_Match", '"x"', Failed(412)),
        ("If_Unmodified_Since", MODIFIED, Span(200, 0, 100)),
        ("If_Unmodified_Since", EARLIER, Failed(412)),
        ("If_Unmodified_Since", "Thu, 99 Foo 9999999 00:00:00 GMT", Span(200, 0, 100)),
    ],
)
def test_conditions(name: str, value: str, got: Decision) -> None:
    headers = {name.replace("_", "-"): value}

    assert decide("GET", headers, size=100, etag=ETAG, modified=MODIFIED) == got


def test_edk2_resumes_with_if_match() -> None:
    assert asked(Range="bytes=50-", If_Match=ETAG) == Span(206, 50, 50)
    assert asked(Range="bytes=50-", If_Match='"old"') == Failed(412)


@given(st.text(max_size=80), st.integers(0, 1 << 70))
def test_any_range_stays_within_the_file(value: str, size: int) -> None:
    got = asked(size, Range=value)

    if isinstance(got, Span):
        assert got.start >= 0
        assert got.start + got.length <= size


@given(
    st.dictionaries(
        st.sampled_from(
            ["If-Match", "If-None-Match", "If-Range", "If-Modified-Since", "If-Unmodified-Since"]
        ),
        st.text(max_size=60),
    )
)
def test_any_condition_gives_a_decision(headers: dict[str, str]) -> None:
    decide("GET", headers | {"Range": "bytes=1-"}, size=9, etag=ETAG, modified=MODIFIED)
