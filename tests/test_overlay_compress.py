"""What belongs to one boot, before a compressed archive: one member, one frame, one archive."""

from __future__ import annotations

import subprocess
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bootd.overlay import cpio
from bootd.overlay.compress import ENCODINGS, MAX_PREFIX, combined, compress, prefixed

TOOLS = {"gz": "gzip", "zst": "zstd"}


def unpacked(data: bytes, encoding: str) -> bytes:
    """The content of exactly one member or frame."""
    if encoding == "gz":
        member = zlib.decompressobj(31)
        content = member.decompress(data)
        assert member.eof
        assert member.unused_data == b""
        return content
    frame = zstandard.ZstdDecompressor().decompressobj()
    content = frame.decompress(data)
    assert frame.eof
    assert frame.unused_data == b""
    return content


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(
    prefix=st.binary(max_size=600),
    content=st.binary(min_size=1, max_size=5000),
    repeat=st.integers(1, 40),
)
def test_a_prefix_and_an_archive_are_one_stream(
    encoding: str, prefix: bytes, content: bytes, repeat: int
) -> None:
    small = compress([content] * repeat, encoding)

    assert unpacked(b"".join(prefixed(prefix, small, encoding)), encoding) == (
        prefix + content * repeat
    )


@given(st.binary(), st.binary())
def test_checksums_combine_as_if_both_parts_had_been_read(first: bytes, second: bytes) -> None:
    whole = combined(zlib.crc32(first), zlib.crc32(second), len(second))

    assert whole == zlib.crc32(first + second)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_longest_prefix_fits_and_one_byte_more_does_not(encoding: str) -> None:
    small = compress([b"x" * 300_000], encoding)
    longest = bytes(range(251)) * 262

    whole = prefixed(longest[:MAX_PREFIX], small, encoding)
    assert unpacked(b"".join(whole), encoding) == longest[:MAX_PREFIX] + b"x" * 300_000
    with pytest.raises(ValueError, match="65536 bytes do not go before"):
        prefixed(longest[: MAX_PREFIX + 1], small, encoding)
    with pytest.raises(ValueError, match="'br' is not one of gz, zst"):
        prefixed(b"", small, "br")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("reader", [["cpio"], ["busybox", "cpio"]])
def test_cpio_reads_all_of_an_archive_in_two_parts(
    encoding: str, reader: list[str], tmp_path: Path
) -> None:
    own = cpio.archive([cpio.Entry("etc/boot.env", 0o100600, b"BOOT=1\n")], trailer=False)
    kept = cpio.archive([cpio.Entry("etc/key", 0o100600, b"secret" * 9999)])
    whole = b"".join(prefixed(own, compress([kept], encoding), encoding))

    plain = subprocess.run(
        [TOOLS[encoding], "-dc"], input=whole, capture_output=True, check=True
    ).stdout
    subprocess.run([*reader, "-idm"], input=plain, cwd=tmp_path, capture_output=True, check=True)

    assert (tmp_path / "etc/boot.env").read_bytes() == b"BOOT=1\n"
    assert (tmp_path / "etc/key").read_bytes() == b"secret" * 9999
    assert plain.count(b"TRAILER!!!") == 1
