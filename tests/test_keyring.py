"""Keys of boot tokens: exchanged in time, good over restarts and on replicas."""

from __future__ import annotations

import asyncio
import os
import stat
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bootd import keyring
from bootd.boots.tokens import Claims, TokenError, check, mint
from bootd.keyring import EVERY, KEEP, SETTLE, TokenKeys
from bootd.model import Mac, StartError
from bootd.state import KEY_BYTES

DAY = 86400.0
NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def put(state: Path, name: str, age: float, size: int = KEY_BYTES) -> bytes:
    """A key's file of that age."""
    file = state / "keys" / f"{name}.key"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(name[:1].encode() * size)
    os.utime(file, (NOW - age, NOW - age))
    return file.read_bytes()


def token(keys: list[bytes], expires: float) -> str:
    claims = Claims(
        Mac("52:54:00:12:34:56"), "0123456789abcdef", IPv4Address("10.0.0.1"), int(expires)
    )
    return mint(keys[0], claims)


def test_the_first_key_is_made_for_its_owner_alone_and_found_again(
    tmp_path: Path, clock: Clock
) -> None:
    first = TokenKeys(str(tmp_path), clock).current

    assert TokenKeys(str(tmp_path), clock).current == first
    assert len(first[0]) == KEY_BYTES
    (file,) = (tmp_path / "keys").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_after_a_week_there_is_a_new_key_and_the_old_one_signs_until_all_know_it(
    tmp_path: Path, clock: Clock
) -> None:
    old = put(tmp_path, "old", EVERY + 1)

    keys = TokenKeys(str(tmp_path), clock).current
    clock.now += SETTLE - 1
    assert TokenKeys(str(tmp_path), clock).current[0] == old
    assert len(keys) == 2
    clock.now += 1
    settled = TokenKeys(str(tmp_path), clock).current

    assert (settled[0] != old, settled[1]) == (True, old)


def test_a_key_is_no_older_than_it_may_be(tmp_path: Path, clock: Clock) -> None:
    put(tmp_path, "old", EVERY)

    assert len(TokenKeys(str(tmp_path), clock).current) == 1


def test_a_token_signed_before_an_exchange_is_good_for_its_window(
    tmp_path: Path, clock: Clock
) -> None:
    put(tmp_path, "old", EVERY - 1)
    keys = TokenKeys(str(tmp_path), clock)
    signed = token(keys.current, clock.now + DAY)  # the longest boot_window
    clock.now += 2
    TokenKeys(str(tmp_path), clock)
    clock.now += DAY - 60

    assert check(TokenKeys(str(tmp_path), clock).current, signed, now_wall=clock.now)


def test_a_key_goes_when_no_token_of_its_can_be_good(tmp_path: Path, clock: Clock) -> None:
    new = put(tmp_path, "new", SETTLE + KEEP)
    put(tmp_path, "old", EVERY)
    assert len(TokenKeys(str(tmp_path), clock).current) == 2

    clock.now += 1

    assert TokenKeys(str(tmp_path), clock).current == [new]
    assert [file.name for file in (tmp_path / "keys").iterdir()] == ["new.key"]


def test_a_replica_takes_a_key_before_the_other_signs_with_it(tmp_path: Path, clock: Clock) -> None:
    """Both have the same folder; one of them makes the new key."""
    put(tmp_path, "old", EVERY + 1)
    one = TokenKeys(str(tmp_path), clock)
    other = TokenKeys(str(tmp_path), clock)
    assert sorted(one.current) == sorted(other.current)

    clock.now += SETTLE
    signed = token(TokenKeys(str(tmp_path), clock).current, clock.now + 600)

    assert check(other.current, signed, now_wall=clock.now)


def test_what_is_too_short_is_no_key_and_none_is_forged_with_it(
    tmp_path: Path, clock: Clock
) -> None:
    put(tmp_path, "cut", 0, size=KEY_BYTES - 1)

    (only,) = TokenKeys(str(tmp_path), clock).current

    assert len(only) == KEY_BYTES
    with pytest.raises(TokenError, match="forged"):
        check([only], token([b"c" * KEY_BYTES], NOW + 60), now_wall=NOW)


def test_a_folder_that_cannot_be_had_is_named(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "keys").write_text("")

    with pytest.raises(StartError, match="keys: the keys for boot tokens"):
        TokenKeys(str(tmp_path), clock)


async def test_a_running_daemon_exchanges_its_keys_in_place_and_outlives_a_full_disk(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "LOOK", 0.001)
    old = put(tmp_path, "old", EVERY + 1)
    put(tmp_path, "new", SETTLE - 5)
    keys = TokenKeys(str(tmp_path), clock)
    held = keys.current
    assert held[0] == old

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async def until(event: str) -> None:
        with capture_logs() as lines:
            async with asyncio.timeout(10):
                while not any(line["event"] == event for line in lines):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(keys.run())
        clock.now += 10
        await until("keys.exchanged")
        assert held[0] == b"n" * KEY_BYTES
        monkeypatch.setattr(keyring, "write_atomic", full)
        clock.now += EVERY
        await until("keys.not-exchanged")
        assert held[0] == b"n" * KEY_BYTES
        task.cancel()
