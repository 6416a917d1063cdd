"""The DHCP codec against real packets, scapy, and anything at all."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP

from bootd.dhcp.wire import (
    COOKIE,
    MAX_FILE,
    MAX_SIZE,
    MAX_SNAME,
    MIN_SIZE,
    PADDED_SIZE,
    Message,
    WireError,
    decode,
    encode,
)
from tests.dhcp_messages import Captured, dhcp_captures, message

uint8 = st.integers(0, 255)
address = st.binary(min_size=4, max_size=4)
text = st.binary(max_size=MAX_SNAME).filter(lambda value: b"\0" not in value)
codes = st.integers(1, 254).filter(lambda code: code != 52)

messages = st.builds(
    Message,
    op=uint8,
    htype=uint8,
    hlen=st.integers(0, 16),
    hops=uint8,
    xid=st.integers(0, 2**32 - 1),
    secs=st.integers(0, 2**16 - 1),
    flags=st.integers(0, 2**16 - 1),
    ciaddr=address,
    yiaddr=address,
    siaddr=address,
    giaddr=address,
    chaddr=st.binary(min_size=16, max_size=16),
    sname=text,
    file=text,
    options=st.dictionaries(codes, st.binary(max_size=300), max_size=4),
)


def refused(data: bytes) -> str:
    with pytest.raises(WireError) as caught:
        decode(data)
    return caught.value.reason


def options(raw: bytes) -> bytes:
    """A DISCOVER's header with these bytes for options."""
    return encode(message(options={}))[:MIN_SIZE] + raw


@given(st.binary(max_size=MAX_SIZE + 10))
@example(bytes(MIN_SIZE))
def test_any_bytes_are_a_message_or_a_wire_error(data: bytes) -> None:
    with suppress(WireError):
        assert isinstance(decode(data), Message)


@given(st.binary(max_size=400))
def test_any_bytes_behind_the_cookie_are_a_message_or_a_wire_error(raw: bytes) -> None:
    with suppress(WireError):
        found = decode(options(raw))
        assert sum(len(value) for value in found.options.values()) <= len(raw)


@given(messages)
def test_what_was_encoded_is_decoded_equal(original: Message) -> None:
    data = encode(original)
    if len(data) <= MAX_SIZE:
        assert decode(data) == original
    else:
        assert refused(data) == "long"


@given(messages)
def test_options_keep_their_order(original: Message) -> None:
    data = encode(original)
    if len(data) <= MAX_SIZE:
        assert list(decode(data).options) == list(original.options)


@pytest.mark.parametrize(
    "packet",
    dhcp_captures("firmware", "ipxe", "udhcpc", "os", "answer"),
    ids=lambda packet: f"{packet.file}:{packet.kind}",
)
def test_real_packets_are_read_as_scapy_reads_them(packet: Captured) -> None:
    found, theirs = decode(packet.data), BOOTP(packet.data)

    assert (found.op, found.htype, found.hlen, found.hops) == (
        theirs.op,
        theirs.htype,
        theirs.hlen,
        theirs.hops,
    )
    assert (found.xid, found.secs, found.flags) == (theirs.xid, theirs.secs, int(theirs.flags))
    assert found.chaddr == theirs.chaddr
    assert found.file == theirs.file.rstrip(b"\0")
    read = [option for option in theirs.payload.options if isinstance(option, tuple)]
    assert ("message-type", found.options[53][0]) in read


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "short"),
        (bytes(MIN_SIZE - 1), "short"),
        (bytes(MIN_SIZE), "no-cookie"),
        (bytes(MAX_SIZE), "no-cookie"),
        (bytes(MAX_SIZE + 1), "long"),
        (b"\x01\x01\x11".ljust(MIN_SIZE - 4, b"\0") + COOKIE, "bad-hlen"),
        (options(b"\x35"), "truncated-option"),
        (options(b"\x35\x02\x01"), "truncated-option"),
        (options(b"\x35\xff"), "truncated-option"),
    ],
)
def test_what_is_no_dhcp_message_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    assert refused(data) == reason


def test_a_header_alone_is_a_message_without_options() -> None:
    assert decode(b"\x01\x01\x10".ljust(MIN_SIZE - 4, b"\0") + COOKIE).options == {}


def test_a_missing_end_and_padding_between_options_are_forgiven() -> None:
    assert decode(options(b"\0\0\x35\x01\x01\0\0\x3c\x01a")).options == {53: b"\x01", 60: b"a"}


def test_nothing_behind_the_end_is_read() -> None:
    assert decode(options(b"\x35\x01\x01\xff\x3c\x01a")).options == {53: b"\x01"}


def test_an_option_sent_in_parts_is_joined() -> None:
    """RFC 3396."""
    raw = b"\x0c\x02ab" + b"\x35\x01\x01" + b"\x0c\x01c"

    assert decode(options(raw)).options == {12: b"abc", 53: b"\x01"}


def test_a_long_option_is_written_in_parts() -> None:
    long = bytes(300)
    data = encode(message(options={12: long}))

    assert data.count(b"\x0c\xff" + bytes(255)) == 1
    assert decode(data).options[12] == long


def test_options_overflow_into_file_and_then_sname() -> None:
    """RFC 2131, 4.1."""
    data = bytearray(options(b"\x34\x01\x03\x0c\x01a\xff"))
    data[108 : 108 + 4] = b"\x0c\x01b\xff"
    data[44 : 44 + 4] = b"\x0c\x01c\xff"
    found = decode(bytes(data))

    assert found.options == {12: b"abc"}
    assert (found.file, found.sname) == (b"", b"")


@pytest.mark.parametrize("overload", [b"\x34\x00", b"\x34\x02\x01\x01", b"\x34\x01\x00"])
def test_a_nonsensical_overload_leaves_the_fields_alone(overload: bytes) -> None:
    data = bytearray(options(overload + b"\xff"))
    data[108 : 108 + 4] = b"boot"

    assert decode(bytes(data)).file == b"boot"


def test_a_broken_option_in_an_overloaded_field_is_refused() -> None:
    data = bytearray(options(b"\x34\x01\x01\xff"))
    data[108:236] = b"\x0c\x7f".ljust(128, b"\0")

    assert refused(bytes(data)) == "truncated-option"


def test_a_short_message_is_padded_to_what_old_roms_take() -> None:
    data = encode(message(options={94: b"", 93: b"", 60: b"", 57: b""}))

    assert len(data) == PADDED_SIZE
    assert data[MIN_SIZE : MIN_SIZE + 4] == b"\x35\x01\x01\xff"
    assert not any(data[MIN_SIZE + 4 :])


@pytest.mark.parametrize(
    "field",
    [
        {"sname": b"x" * (MAX_SNAME + 1)},
        {"file": b"x" * (MAX_FILE + 1)},
        {"file": b"a\0b"},
        {"sname": b"a\0b"},
        {"chaddr": bytes(15)},
        {"hlen": 17},
        {"xid": 1 << 32},
        {"op": -1},
    ],
)
def test_a_value_that_does_not_fit_its_field_is_not_written(field: dict[str, Any]) -> None:
    with pytest.raises(WireError, match="bad-field"):
        encode(message(**field))


@pytest.mark.parametrize("code", [0, 52, 255, 256, -1])
def test_an_option_that_would_change_the_reading_is_not_written(code: int) -> None:
    with pytest.raises(WireError, match="bad-option"):
        encode(message(options={code: b"\x01"}))


def test_the_longest_file_and_name_fit() -> None:
    found = decode(encode(message(sname=b"s" * MAX_SNAME, file=b"f" * MAX_FILE)))

    assert (found.sname, found.file) == (b"s" * MAX_SNAME, b"f" * MAX_FILE)
