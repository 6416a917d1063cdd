"""The server's users in an image: numbers, additions, clashes."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd.image.users import MAX_NAMED, UsersError, merge, numbers, parse, with_groups

SERVER = (
    "root:x:0:0:root:/root:/bin/bash\nmunge:x:64:64::/:/bin/false\nann:x:1000:100::/home/ann:\n"
)
IMAGE = "root:x:0:0:root:/root:/bin/sh\nmunge:x:105:110::/var:/bin/false\nlocal:x:900:900::/:\n"


def users(text: str) -> list[object]:
    return list(parse(text, "passwd", 7))


def test_who_is_on_both_gets_the_servers_number_and_who_is_missing_is_added() -> None:
    table = merge(parse(SERVER, "s", 7), parse(IMAGE, "i", 7), "user")

    assert table.text.splitlines() == [
        "root:x:0:0:root:/root:/bin/sh",
        "munge:x:64:110::/var:/bin/false",
        "local:x:900:900::/:",
        "ann:x:1000:100::/home/ann:",
    ]
    assert table.moved == {105: 64}
    assert table.added == ("ann",)


def test_primary_groups_follow_the_groups_of_the_image_but_not_of_lines_that_were_added() -> None:
    table = merge(parse(SERVER, "s", 7), parse(IMAGE, "i", 7), "user")
    groups = merge(
        parse("munge:x:64:\n", "s", 4), parse("munge:x:110:\nstaff:x:100:\n", "i", 4), "group"
    )

    lines = with_groups(table, groups).splitlines()

    assert lines[1] == "munge:x:64:64::/var:/bin/false"
    assert lines[3] == "ann:x:1000:100::/home/ann:"


def test_a_number_that_is_somebody_elses_on_the_server_is_refused_with_both_names() -> None:
    with pytest.raises(UsersError, match=r"user local of the image has number 900.*srv on the"):
        merge(parse("srv:x:900:1:::\n", "s", 7), parse(IMAGE, "i", 7), "user")


def test_a_password_of_the_server_does_not_go_into_the_image() -> None:
    table = merge(parse("ann:$6$hash:1000:100:::\n", "s", 7), parse(IMAGE, "i", 7), "user")

    assert "$6$" not in table.text


@pytest.mark.parametrize("line", ["a:b", "a:x:b:0:::", ":x:1:1:::", "a:x:-1:1:::", "a:x:٣:1:::"])
def test_a_line_that_is_none_is_refused_with_its_number(line: str) -> None:
    with pytest.raises(UsersError, match="passwd:2"):
        users(f"root:x:0:0:::\n{line}\n")


@given(st.text(max_size=60))
def test_any_text_is_users_or_the_one_error(text: str) -> None:
    with contextlib.suppress(UsersError):
        parse(text, "passwd", 7)


def test_numbers_are_read_as_libc_does_and_no_line_stops_an_import() -> None:
    text = "slurm:x:64030:64030::/:\nmunge:x:64:\n# x\n+::::\n:x:1:\nbad\nmunge:x:7:\n"
    text += f"none:x:4294967295:\nb\u00f6se:x:5:\n{'n' * 33}:x:6:\n"

    assert numbers(text) == {"munge": 64, "slurm": 64030}


def test_the_lowest_numbers_are_remembered_where_there_are_too_many() -> None:
    text = "".join(f"u{number}:x:{number}:\n" for number in reversed(range(MAX_NAMED + 5)))

    assert list(numbers(text).values()) == list(range(MAX_NAMED))
