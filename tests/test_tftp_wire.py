from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd.tftp import wire
from bootd.tftp.wire import ErrorCode, PeerError, ReadRequest, WireError

CAPTURES = Path(__file__).parent / "captures"


def captured_requests() -> list[tuple[str, bytes]]:
    found = []
    for path in sorted(CAPTURES.glob("*.hex")):
        kind, data = "", ""
        for line in [*path.read_text().splitlines(), "## end"]:
            if line.startswith("## "):
                if kind.startswith("tftp-"):
                    found.append((f"{path.stem} {kind}", bytes.fromhex(data)))
                kind, data = line.split()[1], ""
            elif not line.startswith("#"):
                data += line
    return found


@pytest.mark.parametrize(("name", "datagram"), captured_requests())
def test_real_firmwares_requests_are_read(name: str, datagram: bytes) -> None:
    request = wire.parse_request(datagram)
    assert wire.request(request.filename, request.options) == datagram
    assert all(wire.number(value) is not None for _, value in request.options)


def test_there_are_captured_requests_of_edk2_ipxe_shim_and_grub() -> None:
    seen = json.loads((CAPTURES / "index.json").read_text())
    assert len(captured_requests()) == sum(row["kind"].startswith("tftp-") for row in seen) > 30


def test_an_edk2_probe_reads_as_sent() -> None:
    datagram = (
        b"\0\1snponly.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0"  # EDK2's order
    )
    assert wire.parse_request(datagram) == ReadRequest(
        b"snponly.efi", ((b"tsize", b"0"), (b"blksize", b"1468"), (b"windowsize", b"4"))
    )


def test_netascii_in_any_case_is_served_as_octets() -> None:
    assert wire.parse_request(b"\0\1x\0NetASCII\0") == ReadRequest(b"x")


def test_an_option_counts_once_and_what_is_cut_off_not_at_all() -> None:
    datagram = b"\0\1x\0octet\0blksize\x00512\0BLKSIZE\x0099\0tsize\x000\0window"
    assert wire.parse_request(datagram).options == ((b"blksize", b"512"), (b"tsize", b"0"))
    assert wire.parse_request(b"\0\1x\0octet\0tsize\0").options == ()


@pytest.mark.parametrize(
    ("datagram", "reason", "code"),
    [
        (b"", "truncated", None),
        (b"\0", "truncated", None),
        (b"\0\2x\0octet\0", "write", ErrorCode.ACCESS_VIOLATION),
        (b"\0\2", "write", ErrorCode.ACCESS_VIOLATION),
        (b"\0\3\0\1data", "not-a-request", None),
        (b"\0\4\0\0", "not-a-request", None),
        (b"\0\5\0\0text\0", "not-a-request", None),
        (b"\0\6tsize\x000\0", "not-a-request", None),
        (b"\0\0x\0octet\0", "not-a-request", None),
        (b"\1\0x\0octet\0", "not-a-request", None),
        (b"\0\1", "truncated", ErrorCode.ILLEGAL_OPERATION),
        (b"\0\1x", "truncated", ErrorCode.ILLEGAL_OPERATION),
        (b"\0\1x\0octet", "truncated", ErrorCode.ILLEGAL_OPERATION),
        (b"\0\1\0octet\0", "no-filename", ErrorCode.ILLEGAL_OPERATION),
        (b"\0\1x\0mail\0", "mode", ErrorCode.ILLEGAL_OPERATION),
        (b"\0\1x\0\0", "mode", ErrorCode.ILLEGAL_OPERATION),
    ],
)
def test_what_is_no_read_is_refused_and_answers_are_never_answered(
    datagram: bytes, reason: str, code: ErrorCode | None
) -> None:
    with pytest.raises(WireError) as refusal:
        wire.parse_request(datagram)
    assert (refusal.value.reason, refusal.value.code) == (reason, code)


def test_the_size_limit_of_a_request_holds_at_and_past_it() -> None:
    longest = wire.request(b"x" * (512 - 9))
    assert len(longest) == 512
    assert wire.parse_request(longest).filename == b"x" * 503
    with pytest.raises(WireError) as refusal:
        wire.parse_request(wire.request(b"x" * 504))
    assert refusal.value.reason == "too-long"


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        (b"0", 0),
        (b"1468", 1468),
        (b"007", 7),
        (b"9999999999", 9999999999),
        (b"99999999999", None),
        (b"", None),
        (b"-1", None),
        (b"+1", None),
        (b" 1", None),
        (b"1_0", None),
        (b"0x10", None),
        ("\u0661".encode(), None),
    ],
)
def test_option_values_are_ascii_digits(value: bytes, meaning: int | None) -> None:
    assert wire.number(value) == meaning


def test_replies_are_acks_or_errors() -> None:
    assert wire.parse_reply(b"\0\4\xff\xff") == 65535
    assert wire.parse_reply(wire.ack(65536)) == 0
    assert wire.parse_reply(b"\0\4\0\1padding") == 1
    assert wire.parse_reply(b"\0\5\0\x08User aborted\0junk") == PeerError(8, "User aborted")
    assert wire.parse_reply(b"\0\5\0\x63no end") == PeerError(99, "no end")


@pytest.mark.parametrize("datagram", [b"", b"\0\4", b"\0\4\0", b"\0\3\0\1", b"\0\1x\0octet\0"])
def test_other_packets_in_a_transfer_are_refused(datagram: bytes) -> None:
    with pytest.raises(WireError):
        wire.parse_reply(datagram)


def test_an_error_is_short_and_printable_whatever_its_text() -> None:
    assert wire.error(ErrorCode.NOT_FOUND, "not found: x") == b"\0\5\0\1not found: x\0"
    hostile = wire.error(ErrorCode.NOT_FOUND, "a\x1b[2J\0\n\u202e" * 100)
    assert len(hostile) == 4 + wire.MAX_TEXT + 1 <= 128
    assert hostile[4:-1].decode("ascii").isprintable()


def test_an_oack_has_the_options_in_order_and_ends_in_a_nul() -> None:
    assert wire.oack([(b"tsize", 173792), (b"blksize", 1468)]) == (
        b"\0\6tsize\x00173792\0blksize\x001468\0"
    )


@given(st.binary(max_size=600))
def test_any_bytes_are_a_request_or_a_wire_error(datagram: bytes) -> None:
    try:
        request = wire.parse_request(datagram)
    except WireError:
        return
    assert request.filename
    assert b"\0" not in request.filename


@given(st.binary(max_size=600))
def test_any_bytes_are_a_reply_or_a_wire_error(datagram: bytes) -> None:
    try:
        reply = wire.parse_reply(datagram)
    except WireError:
        return
    assert isinstance(reply, PeerError) or 0 <= reply <= 65535


NAME = st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name)


@given(NAME, st.lists(st.tuples(NAME, NAME), max_size=5, unique_by=lambda pair: pair[0].lower()))
def test_a_request_reads_back_as_written(
    filename: bytes, options: list[tuple[bytes, bytes]]
) -> None:
    assert wire.parse_request(wire.request(filename, options)) == ReadRequest(
        filename, tuple(options)
    )
