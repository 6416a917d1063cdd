"""IP and UDP by hand: what the packet socket reads and writes, against scapy and anything."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from bootd.dhcp.channel import Datagram
from bootd.dhcp.packet import internet_checksum, read_datagram, write_datagram

HERE, THERE = socket.inet_aton("10.0.0.1"), socket.inet_aton("10.0.0.2")


def packet(**changes: object) -> bytes:
    fields: dict[str, Any] = {"src": "10.0.0.2", "dst": "10.0.0.1"} | changes
    return bytes(IP(**fields) / UDP(sport=68, dport=67) / Raw(b"payload"))


@given(st.binary(max_size=600), st.integers(1, 65535), st.integers(1, 65535))
def test_scapy_reads_what_is_written(data: bytes, port: int, to: int) -> None:
    written = write_datagram(data, HERE, port, THERE, to)
    read = IP(written)
    again = IP(
        bytes(IP(src="10.0.0.1", dst="10.0.0.2", tos=0xC0) / UDP(sport=port, dport=to) / data)
    )

    assert (read.src, read.dst, read[UDP].sport, read[UDP].dport) == (
        "10.0.0.1",
        "10.0.0.2",
        port,
        to,
    )
    assert bytes(read[UDP].payload) == data
    assert read[UDP].chksum == again[UDP].chksum


@given(st.binary(max_size=300))
def test_what_was_written_is_read_back(data: bytes) -> None:
    written = bytearray(write_datagram(data, HERE, 68, THERE, 67))
    written[2:4] = len(written).to_bytes(2, "big")  # the kernel's part

    assert read_datagram(bytes(written), 67, 3) == Datagram(data, 3, ("10.0.0.1", 68), THERE)


def test_a_packet_with_ip_options_and_padding_is_read() -> None:
    data = packet(options=[b"\x94\x04\0\0"]) + bytes(20)
    found = read_datagram(data, 67, 1)

    assert found == Datagram(b"payload", 1, ("10.0.0.2", 68), HERE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        packet()[:19],
        packet()[:27],
        packet(version=6),
        packet(ihl=4),
        packet(proto=6),
        packet(flags="MF"),
        packet(frag=1),
        packet(len=27),
        packet().replace(b"\0\x44\0\x43", b"\0\x44\0\x44"),  # another port
    ],
)
def test_what_is_no_whole_datagram_to_the_port_is_left_alone(data: bytes) -> None:
    assert read_datagram(data, 67, 1) is None


@given(st.binary(max_size=100))
def test_any_bytes_are_a_datagram_or_none(data: bytes) -> None:
    found = read_datagram(b"\x45" + data, 67, 1)

    assert found is None or len(found.data) <= len(data)


def test_the_checksum_is_the_one_of_rfc_1071() -> None:
    assert internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2
    assert internet_checksum(b"\x01") == 0xFEFF
