from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bootd.ipxe import FINGERPRINT, IPXE_ORG, Unusable, arch, same_but_trust, trusting
from bootd.model import Arch
from tests.ipxe_programs import ARM64, HTTPS, X64, program

OURS, OLDER = bytes(range(32)), bytes(range(32, 64))
fingerprints = st.binary(min_size=FINGERPRINT, max_size=FINGERPRINT)


@given(before=st.binary(), behind=st.binary(), fingerprint=fingerprints)
def test_a_copy_differs_in_the_32_bytes_alone(
    before: bytes, behind: bytes, fingerprint: bytes
) -> None:
    original = program(HTTPS + before + IPXE_ORG + behind)
    assume(original.count(IPXE_ORG) == 1 and fingerprint not in original)

    copy = trusting(original, fingerprint)

    at = original.index(IPXE_ORG)
    assert copy[at : at + 32] == fingerprint
    assert copy[:at] + IPXE_ORG + copy[at + 32 :] == original


@given(before=st.binary(), behind=st.binary(), fingerprint=fingerprints)
def test_a_copy_of_a_copy_is_the_same(before: bytes, behind: bytes, fingerprint: bytes) -> None:
    original = program(HTTPS + before + IPXE_ORG + behind)
    assume(original.count(IPXE_ORG) == 1)

    copy = trusting(original, fingerprint)

    assert trusting(copy, fingerprint) == copy


@given(between=st.binary(), more=st.integers(1, 3))
def test_more_places_than_one_are_refused(between: bytes, more: int) -> None:
    original = program(HTTPS + IPXE_ORG + (between + IPXE_ORG) * more)

    with pytest.raises(Unusable, match=rf"in {1 + more} places"):
        trusting(original, OURS)


def test_another_authoritys_copy_is_refused() -> None:
    with pytest.raises(Unusable, match="trusts another authority"):
        trusting(trusting(program(), OLDER), OURS)


@pytest.mark.parametrize("directories", [5, 8, 16])
@pytest.mark.parametrize("magic", [0x10B, 0x20B])
def test_a_signed_one_is_refused(directories: int, magic: int) -> None:
    signed = program(signature=1, directories=directories, magic=magic)

    with pytest.raises(Unusable, match="signed"):
        trusting(signed, OURS)


@pytest.mark.parametrize("directories", [0, 4, 5, 16])
@pytest.mark.parametrize("magic", [0x10B, 0x20B])
def test_one_that_is_not_signed_is_taken(directories: int, magic: int) -> None:
    original = program(directories=directories, magic=magic)

    assert OURS in trusting(original, OURS)


def test_a_signed_one_that_was_built_for_the_authority_stays_as_it_is() -> None:
    built = program(HTTPS + OURS, signature=1)

    assert trusting(built, OURS) == built


def test_one_without_https_is_refused_whatever_it_trusts() -> None:
    for content in (b"iPXE\0http\0", b"iPXE\0http\0" + IPXE_ORG, b"iPXE\0http\0" + OURS):
        with pytest.raises(Unusable, match="no HTTPS"):
            trusting(program(content), OURS)


def test_another_program_is_refused() -> None:
    with pytest.raises(Unusable, match="not iPXE"):
        trusting(program(b"GRUB https\0" + IPXE_ORG), OURS)


@given(st.binary(max_size=200) | st.builds(lambda n: program()[:n], st.integers(0, 0x80 + 24)))
def test_what_is_no_efi_program_is_refused(data: bytes) -> None:
    with pytest.raises(Unusable, match="no EFI program"):
        arch(data)
    with pytest.raises(Unusable, match="no EFI program"):
        trusting(data, OURS)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (0x014C, Arch.EFI_IA32),
        (0x01C2, Arch.EFI_ARM32),
        (0x5064, Arch.EFI_RISCV64),
        (0x6264, Arch.EFI_LOONGARCH64),
        (X64, Arch.EFI_X64),
        (ARM64, Arch.EFI_ARM64),
    ],
)
def test_its_machine_is_read(machine: int, expected: Arch) -> None:
    assert arch(program(machine=machine)) is expected


def test_a_processor_that_nobody_knows_is_refused() -> None:
    with pytest.raises(Unusable, match="0x0200"):
        arch(program(machine=0x0200))


@pytest.mark.parametrize("length", [0, 20, 31, 33])
def test_another_digest_than_sha_256_is_a_mistake(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        trusting(program(), bytes(length))


@given(before=st.binary(), behind=st.binary())
def test_an_earlier_copy_and_the_original_are_the_same_but_for_whom_they_trust(
    before: bytes, behind: bytes
) -> None:
    original = program(HTTPS + before + IPXE_ORG + behind)
    assume(not {OURS, OLDER} & {original[n : n + 32] for n in range(len(original))})
    assume(original.count(IPXE_ORG) == 1)
    copy = trusting(original, OURS)

    for other in (original, trusting(original, OLDER), copy):
        assert same_but_trust(other, copy, OURS)


@given(st.data())
def test_whatever_differs_elsewhere_is_another_program(data: st.DataObject) -> None:
    copy = trusting(program(HTTPS + b"xy" + IPXE_ORG + data.draw(st.binary(max_size=3))), OURS)
    at = copy.index(OURS)
    place = data.draw(st.integers(0, len(copy) - 1).filter(lambda n: not at <= n < at + 32))
    changed = copy[:place] + bytes([copy[place] ^ 1]) + copy[place + 1 :]
    length = data.draw(st.integers(0, len(copy) - 1))

    assert not same_but_trust(changed, copy, OURS)
    assert not same_but_trust(copy[:length], copy, OURS)
    assert not same_but_trust(copy + b"\0", copy, OURS)
