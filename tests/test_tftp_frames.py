from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd.tftp.frames import MAX_SEGMENTS, MAX_SEND, Frames, FrameStore
from bootd.tftp.wire import data_header


def datagrams(frames: Frames, first: int, count: int) -> list[bytes]:
    return [bytes(d) for burst in frames.window(first, count).bursts for d in burst.datagrams()]


@pytest.mark.parametrize(
    ("size", "blksize", "blocks"),
    [(0, 512, 1), (1, 512, 1), (511, 512, 1), (512, 512, 2), (1024, 512, 3), (10, 8, 2)],
)
def test_the_last_block_is_short_even_if_it_is_empty(size: int, blksize: int, blocks: int) -> None:
    frames = Frames(b"x" * size, blksize)
    assert frames.blocks == blocks
    last = datagrams(frames, blocks, 1)[0]
    assert len(last) - 4 == size - (blocks - 1) * blksize < blksize


@given(
    st.integers(0, 40_000),
    st.sampled_from([8, 100, 512, 1024, 1428, 1468, 8192, 65464]),
    st.data(),
)
def test_any_window_is_those_blocks_with_their_numbers(
    size: int, blksize: int, data: st.DataObject
) -> None:
    content = bytes(i * 7 & 255 for i in range(size))
    frames = Frames(content, blksize)
    first = data.draw(st.integers(1, frames.blocks))
    count = data.draw(st.integers(1, min(64, frames.blocks - first + 1)))

    expected = [
        data_header(n) + content[(n - 1) * blksize : n * blksize]
        for n in range(first, first + count)
    ]
    assert datagrams(frames, first, count) == expected
    for burst in frames.window(first, count).bursts:
        assert len(burst.payload) <= MAX_SEND
        assert len(burst.payload) <= burst.size * MAX_SEGMENTS


def test_a_usual_window_is_one_send() -> None:
    frames = Frames(b"x" * 1_000_000, 1468)
    for window in (1, 4, 16, 32):
        for first in range(1, 600, window):
            assert len(list(frames.window(first, window).bursts)) == 1
    assert len(list(frames.window(1, 64).bursts)) == 2, "94 KB are more than one packet may carry"


@pytest.mark.parametrize("blksize", [512, 64])
def test_numbers_roll_over_to_zero(blksize: int) -> None:
    frames = Frames(b"x" * (65540 * blksize), blksize)
    heads = [d[:4] for d in datagrams(frames, 65534, 4)]
    assert heads == [b"\0\3\xff\xfe", b"\0\3\xff\xff", b"\0\3\0\0", b"\0\3\0\1"]


def test_a_small_file_is_framed_once_and_a_large_one_as_it_goes() -> None:
    small, large = Frames(b"x" * 100_000, 1468), Frames(b"x" * 5_000_000, 1468)
    first = small.window(1, 4).bursts[0].payload
    assert isinstance(first, memoryview)
    again = small.window(1, 4).bursts[0].payload
    assert isinstance(again, memoryview)
    assert again.obj is first.obj
    assert small.kept
    assert not large.kept
    assert isinstance(large.window(1, 4).bursts[0].payload, bytes)


def test_transfers_of_one_version_and_block_size_share_their_frames() -> None:
    store = FrameStore()
    old, new = b"a" * 3000, b"b" * 3000
    assert store.get(old, 512) is store.get(old, 512)
    assert store.get(old, 512) is not store.get(old, 1024)
    assert store.get(old, 512) is not store.get(new, 512)


def test_kept_frames_are_bounded_and_the_longest_unused_goes_first() -> None:
    store = FrameStore(kept=2500)
    contents = [bytes([n]) * 1000 for n in range(3)]
    seen = [weakref.ref(store.get(content, 512)) for content in contents[:2]]
    store.get(contents[0], 512)
    store.get(contents[2], 512)
    gc.collect()
    assert [frames() is not None for frames in seen] == [True, False]


def test_frames_of_a_large_file_are_shared_while_in_use_only() -> None:
    store = FrameStore()
    content = b"x" * 5_000_000
    frames = store.get(content, 1468)
    assert store.get(content, 1468) is frames
    assert store._kept_bytes == 0
