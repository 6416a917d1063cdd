"""Manifests and kernel headers: any bytes give a value or the one error."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd.image import kernel
from bootd.image.manifest import (
    MAX_MANIFEST,
    File,
    KernelFiles,
    Manifest,
    ManifestError,
    decode,
)
from bootd.image.users import MAX_NAMED, numbers
from bootd.model import safe_name

GOOD = Manifest(
    name="debian",
    generation="20261122-171500-ab12",
    created="2026-11-22T17:15:00+00:00",
    source="here",
    artefacts={"kernel": File("kernel", 7, "a" * 64)},
    kernel_version="6.1.0-31-amd64",
    secret=True,
    bootd="0.1",
)


BUILT = Manifest(
    name="debian",
    generation="20261122-171500-ab12",
    created="2026-11-22T17:15:00+00:00",
    source="suite bookworm",
    artefacts={"image": File("image.cpio.zst", 9, "b" * 64)},
    kernels=(
        KernelFiles(
            "6.1.0-31-amd64",
            File("kernels/6.1.0-31-amd64/kernel", 7, "a" * 64),
            File("kernels/6.1.0-31-amd64/initramfs", 8, "c" * 64),
            features=("live-boot",),
        ),
        KernelFiles("6.1.0-31-debug", File("kernels/6.1.0-31-debug/kernel", 7, "a" * 64)),
    ),
    unpacked=300_000_000,
    files=12_345,
    init="/sbin/init",
    os="debian-12",
    warnings=("it has ssh host keys",),
    tools={"mksquashfs": "4.5.1"},
    excludes=("var/cache/*",),
    users={"munge": 64},
    groups={"munge": 65},
)


def changed(**changes: object) -> bytes:
    return json.dumps({**json.loads(GOOD.encode()), **changes}).encode()


def with_kernel(**changes: object) -> bytes:
    raw = json.loads(BUILT.encode())
    raw["kernels"][0].update(changes)
    return json.dumps(raw).encode()


@pytest.mark.parametrize("manifest", [GOOD, BUILT])
def test_a_manifest_comes_back_as_it_was(manifest: Manifest) -> None:
    assert decode(manifest.encode()) == manifest


def test_as_many_users_as_are_remembered_fit_into_a_manifest() -> None:
    named = numbers("".join(f"{n:028}\\\\\\\\:x:{4294960000 + n}:\n" for n in range(MAX_NAMED)))
    whole = replace(BUILT, users=named, groups=named)

    assert len(named) == MAX_NAMED
    assert decode(whole.encode()) == whole


def test_a_manifest_from_before_users_were_noted_is_read() -> None:
    raw = json.loads(GOOD.encode())
    del raw["users"], raw["groups"]

    assert decode(json.dumps(raw).encode()) == GOOD


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "not a JSON object"),
        (changed(name="../etc"), "is not a name"),
        (changed(generation=7), "generation is missing"),
        (changed(created=None), "created is missing"),
        (changed(artefacts=[]), "no artefacts"),
        (changed(artefacts={"../x": {}}), "no artefact's role"),
        (changed(artefacts={"kernel": 1}), "is not an object"),
        (changed(artefacts={"kernel": {"size": True}}), "size is not"),
        (changed(artefacts={"kernel": {"size": -1}}), "size is not"),
        (changed(artefacts={"kernel": {"size": 1, "sha256": "A" * 64}}), "64 hex digits"),
        (changed(kernel_version=6), "kernel_version"),
        (b" " * (MAX_MANIFEST + 1), "more than"),
        (changed(kernels={}), "kernels is not a list"),
        (changed(kernels=[1]), "a kernel is not an object"),
        (changed(unpacked=-1), "unpacked is not a number"),
        (changed(warnings=[1]), "warnings is not a list of texts"),
        (changed(tools={"mksquashfs": 4}), "tools is not"),
        (changed(users={"munge": "64"}), "users is not a map of numbers"),
        (changed(groups={"munge": 0xFFFF_FFFF}), "groups is not a map of numbers"),
        (with_kernel(version="../.."), "is not a name"),
        (with_kernel(kernel=None), "is not an object"),
        (with_kernel(initramfs={"file": "a/../b", "size": 1, "sha256": "0" * 64}), "not a name"),
        (with_kernel(initramfs={"file": "a/b/c/d", "size": 1, "sha256": "0" * 64}), "components"),
    ],
)
def test_what_a_manifest_must_not_say_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(ManifestError, match=says):
        decode(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.binary(max_size=64)
    | st.dictionaries(st.sampled_from([*json.loads(GOOD.encode())]), JSON).map(
        lambda changes: changed(**changes)
    )
    | st.dictionaries(
        st.sampled_from(["version", "kernel", "initramfs", "debug", "features"]), JSON
    ).map(lambda changes: with_kernel(**changes))
)
def test_any_bytes_are_a_manifest_with_safe_names_or_an_error(data: bytes) -> None:
    try:
        manifest = decode(data)
    except ManifestError:
        return
    for name in (
        manifest.name,
        manifest.generation,
        *(part for f in manifest.all_files() for part in f.file.split("/")),
    ):
        assert safe_name(name, "") == name


def bzimage(release: bytes, pointer: int = 0x3000) -> bytes:
    data = bytearray(0x4000)
    data[0x202:0x206] = b"HdrS"
    data[0x20E:0x210] = pointer.to_bytes(2, "little")
    data[pointer + 0x200 : pointer + 0x200 + len(release)] = release
    return bytes(data)


def test_the_release_is_read_from_a_bzimage() -> None:
    head = bzimage(b"6.1.0-31-amd64 (debian-kernel@lists.debian.org) #1 SMP\0")

    assert kernel.version(head) == "6.1.0-31-amd64"
    assert kernel.is_kernel(head)


@pytest.mark.parametrize(
    "head", [b"", b"MZ" * 600, bzimage(b"6.1", pointer=0), bzimage(b"no number here")]
)
def test_no_release_is_made_up(head: bytes) -> None:
    assert kernel.version(head) is None


@given(st.binary(max_size=0x300), st.integers(0, 0xFFFF))
def test_any_bytes_are_looked_at_without_an_error(tail: bytes, pointer: int) -> None:
    head = bzimage(b"", pointer)[: 0x210 + len(tail)] + tail

    kernel.version(head)
    kernel.is_kernel(head)
    kernel.is_initramfs(head)
