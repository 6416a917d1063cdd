from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd.model import (
    Artefact,
    Image,
    Kernel,
    Mac,
    NetDev,
    Node,
    dashed,
    mac_from_bytes,
    parse_mac,
)


@pytest.mark.parametrize(
    "text",
    ["52:54:00:AB:cd:ef", "52-54-00-ab-cd-ef", "5254.00ab.cdef", "525400abcdef"],
)
def test_a_mac_is_read_in_every_usual_form(text: str) -> None:
    assert parse_mac(text) == "52:54:00:ab:cd:ef"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "zz",
        "52:54:00:ab:cd",
        "52:54:00:ab:cd:ef:00",
        "52:54-00:ab:cd:ef",
        "52:54:00:ab:cd:eg",
        " 52:54:00:ab:cd:ef",
        "52:54:00:ab:cd:ef\n",
        "5२:54:00:ab:cd:ef",
        "00:00:00:00:00:00",
        "ff:ff:ff:ff:ff:ff",
        "01:00:5e:00:00:01",
    ],
)
def test_what_is_no_cards_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"MAC address|group address"):
        parse_mac(text)


@given(st.text(max_size=40))
def test_any_text_is_a_mac_or_a_value_error(text: str) -> None:
    try:
        mac = parse_mac(text)
    except ValueError:
        return
    assert parse_mac(mac) == mac
    assert parse_mac(dashed(mac)) == mac


@given(st.binary(max_size=8))
def test_bytes_off_the_wire_agree_with_the_text_form(raw: bytes) -> None:
    mac = mac_from_bytes(raw)
    if mac is not None:
        assert parse_mac(raw.hex()) == mac


def test_a_node_boots_from_any_of_its_devices_but_the_primary_comes_first() -> None:
    node = Node(
        "n1",
        mac=Mac("52:54:00:00:00:02"),
        network={
            "a": NetDev("a", "eth0", mac=Mac("52:54:00:00:00:01")),
            "b": NetDev("b", "eth1", mac=Mac("52:54:00:00:00:02")),
            "c": NetDev("c", "ib0"),
        },
    )

    assert node.macs == ("52:54:00:00:00:02", "52:54:00:00:00:01")


def image_with(*versions: str) -> Image:
    kernels = tuple(Kernel(v, Artefact(f"/{v}", 1, "0" * 64)) for v in versions)
    return Image("debian", "1", {}, kernels=kernels)


@pytest.mark.parametrize(
    ("asked", "gets"),
    [
        (None, "6.12.9"),
        ("", "6.12.9"),
        ("6.1.0-30-amd64", "6.1.0-30-amd64"),
        ("6.1", "6.1.0-31-amd64"),
        ("6.1.0-3", None),
        ("6.1.", "6.1.0-31-amd64"),
        ("6", "6.12.9"),
        ("5", None),
    ],
)
def test_a_node_names_a_kernel_by_its_version_or_how_that_begins(
    asked: str | None, gets: str | None
) -> None:
    image = image_with("6.12.9", "6.1.0-31-amd64", "6.1.0-30-amd64")

    found = image.kernel_for(asked)

    assert (found.version if found else None) == gets


def test_an_image_without_a_kernel_has_none_to_name() -> None:
    assert image_with().kernel_for(None) is None
    assert image_with().kernel_for("6.1") is None


def test_an_images_files_are_each_there_once() -> None:
    kernel, own, other = (Artefact(f"/{n}", 1, n * 64) for n in "abc")
    image = Image(
        "debian",
        "1",
        {"kernel": kernel, "squashfs": other},
        kernels=(Kernel("6.1", kernel, own),),
    )

    assert image.files() == (kernel, other, own)
    assert (image.squashfs, image.archive) == (other, None)
