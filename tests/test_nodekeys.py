"""Node keys: what opens a node's runtime overlay, and what does not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootd.boots.nodekeys import KEY_LENGTH, bearer, derive, fits
from bootd.model import Mac

OLD, NEW = bytes(range(32)), bytes(range(1, 33))
MAC, OTHER = Mac("52:54:00:12:34:56"), Mac("52:54:00:12:34:57")


def test_a_key_is_the_same_each_time_and_fits_its_node_alone() -> None:
    key = derive(OLD, "n001", MAC)

    assert len(key) == KEY_LENGTH
    assert key == derive(OLD, "n001", MAC)
    assert fits([OLD], key, "n001", MAC)
    assert not fits([OLD], key, "n002", MAC)
    assert not fits([OLD], key, "n001", OTHER)
    assert not fits([NEW], key, "n001", MAC)
    assert not fits([], key, "n001", MAC)


def test_while_secrets_change_keys_of_both_fit() -> None:
    for secret in (OLD, NEW):
        assert fits([NEW, OLD], derive(secret, "n001", MAC), "n001", MAC)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32 bytes"):
        derive(b"short", "n001", MAC)


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Bearer", ""),
        ("Bearer ", ""),
        ("Bearer a b", ""),
        ("Basic abc", ""),
        ("", ""),
        ("Bearer \x00", ""),
        ("Bearer " + "a" * 257, ""),
    ],
)
def test_the_header_is_read_as_rfc_6750_writes_it(header: str, key: str) -> None:
    assert bearer(header) == key


@given(st.text())
@settings(deadline=None)
def test_no_text_opens_anything_or_raises(text: str) -> None:
    assert not fits([OLD], text, "n001", MAC)
    assert not fits([OLD], bearer(f"Bearer {text}"), "n001", MAC)
