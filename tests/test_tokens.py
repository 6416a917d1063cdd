from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd.boots.tokens import TOKEN_LENGTH, Claims, TokenError, check, mint
from bootd.model import Mac, mac_from_bytes

KEY = bytes(range(32))
OLD_KEY = bytes(range(32, 64))
CLAIMS = Claims(
    Mac("52:54:00:12:34:56"), "0123456789abcdef", IPv4Address("10.0.0.11"), 1_800_000_000
)
NOW = 1_799_999_000.0

macs = st.binary(min_size=6, max_size=6).map(mac_from_bytes).filter(lambda mac: mac is not None)
claims = st.builds(
    Claims,
    macs,
    st.binary(min_size=8, max_size=8).map(bytes.hex),
    st.ip_addresses(v=4),
    st.integers(1, 0xFFFF_FFFF),
)


def reason(token: str, *, keys: tuple[bytes, ...] = (KEY,), now: float = NOW) -> str:
    with pytest.raises(TokenError) as caught:
        check(keys, token, now_wall=now)
    return caught.value.reason


@given(claims)
def test_a_token_says_what_was_put_into_it(given_claims: Claims) -> None:
    assert check([KEY], mint(KEY, given_claims), now_wall=0) == given_claims


def test_a_boot_url_fits_old_firmware() -> None:
    token = mint(KEY, CLAIMS)

    assert len(token) == TOKEN_LENGTH
    assert len(f"http://255.255.255.255:65535/b/{token}/initramfs") < 128


def test_a_token_signed_before_a_rotation_is_still_good() -> None:
    assert check([KEY, OLD_KEY], mint(OLD_KEY, CLAIMS), now_wall=NOW) == CLAIMS


def test_a_token_of_a_key_that_is_gone_is_forged() -> None:
    assert reason(mint(OLD_KEY, CLAIMS)) == "forged"


def test_no_key_opens_nothing() -> None:
    assert reason(mint(KEY, CLAIMS), keys=()) == "forged"


def test_a_token_expires_at_its_second() -> None:
    token = mint(KEY, CLAIMS)

    check([KEY], token, now_wall=CLAIMS.expires - 0.001)
    assert reason(token, now=float(CLAIMS.expires)) == "expired"


def test_every_changed_character_makes_it_forged() -> None:
    token = mint(KEY, CLAIMS)
    for place, char in enumerate(token):
        other = "A" if char != "A" else "B"
        assert reason(token[:place] + other + token[place + 1 :]) == "forged"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A" * 51,
        "A" * 53,
        "+" * 52,
        "/" * 52,
        "ä" * 52,
        "=" * 52,
        "A" * 51 + "=",
        "A" * 51 + "\n",
    ],
)
def test_what_is_no_token_is_malformed(text: str) -> None:
    assert reason(text) == "malformed"


@given(st.text(max_size=80))
def test_any_text_gives_claims_or_a_token_error(text: str) -> None:
    with pytest.raises(TokenError):
        check([KEY], text, now_wall=NOW)


def test_a_short_key_signs_nothing() -> None:
    with pytest.raises(ValueError, match="at least 32 bytes"):
        mint(b"short", CLAIMS)
