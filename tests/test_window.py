from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from bootd.boots.timeline import Boot, Boots
from bootd.boots.tokens import Claims
from bootd.boots.window import SENTENCES, Owner, admit, grant, identity, owner
from bootd.model import ClientKind, Mac, NetDev, Node, Settings
from bootd.registry import Registry

MAC, SECOND, OTHER, STRANGER = (Mac(f"52:54:00:00:00:0{i}") for i in range(1, 5))
PEER, ELSEWHERE = IPv4Address("10.0.0.11"), IPv4Address("10.0.0.12")


def boot(address: IPv4Address | None = PEER, *, outcome: str = "", window: float = 100) -> Boot:
    return Boot("b1", MAC, "n001", 0, 0, address=address, outcome=outcome, window=window)


def claims(boot_id: str = "b1", address: IPv4Address = PEER) -> Claims:
    return Claims(MAC, boot_id, address, 2_000_000_000)


def registry() -> Registry:
    second = NetDev("eth1", "eth1", mac=SECOND)
    nodes = {
        "n001": Node("n001", mac=MAC, network={"eth1": second}),
        "n002": Node("n002", mac=OTHER),
    }
    return Registry(Settings(), nodes, {}, {}, {})


@pytest.mark.parametrize(
    ("neighbour", "who"),
    [
        (MAC, Owner.SELF),
        (SECOND, Owner.SELF),
        (OTHER, Owner.OTHER),
        (STRANGER, Owner.STRANGER),
        (None, Owner.UNKNOWN),
    ],
)
def test_who_has_an_address(neighbour: Mac | None, who: Owner) -> None:
    assert owner(registry(), MAC, neighbour) is who


def test_two_machines_that_no_node_names_are_not_the_same() -> None:
    assert owner(registry(), STRANGER, Mac("52:54:00:00:00:09")) is Owner.STRANGER


@pytest.mark.parametrize(
    ("given", "on_link", "now", "reason"),
    [
        (boot(), Owner.SELF, 0, ""),
        (boot(), Owner.UNKNOWN, 0, ""),
        (boot(None), Owner.SELF, 0, ""),
        (boot(ELSEWHERE), Owner.SELF, 0, ""),
        (boot(None), Owner.UNKNOWN, 0, "no-address"),
        (boot(ELSEWHERE), Owner.UNKNOWN, 0, "wrong-address"),
        (boot(), Owner.OTHER, 0, "wrong-address"),
        (boot(), Owner.STRANGER, 0, "wrong-address"),
        (boot(), Owner.SELF, 100, ""),
        (boot(), Owner.SELF, 101, "window-closed"),
        (boot(outcome="up"), Owner.SELF, 0, "up"),
        (boot(outcome="failed"), Owner.SELF, 0, ""),
        (None, Owner.SELF, 0, "no-boot"),
    ],
)
def test_who_is_given_a_token(given: Boot | None, on_link: Owner, now: float, reason: str) -> None:
    assert grant(given, PEER, lambda: on_link, now) == reason


@pytest.mark.parametrize(
    ("given", "token", "on_link", "now", "reason"),
    [
        (boot(), claims(), Owner.SELF, 0, ""),
        (boot(), claims(), Owner.UNKNOWN, 0, ""),
        (boot(), claims(), Owner.STRANGER, 0, ""),
        (boot(), claims(), Owner.OTHER, 0, "wrong-address"),
        (boot(), claims(address=ELSEWHERE), Owner.SELF, 0, ""),
        (boot(), claims(address=ELSEWHERE), Owner.UNKNOWN, 0, "wrong-address"),
        (boot(), claims(address=ELSEWHERE), Owner.STRANGER, 0, "wrong-address"),
        (boot(), claims("b0"), Owner.SELF, 0, "other-boot"),
        (boot(outcome="up"), claims(), Owner.SELF, 0, "up"),
        (boot(), claims(), Owner.SELF, 101, "window-closed"),
    ],
)
def test_what_a_token_still_opens(
    given: Boot, token: Claims, on_link: Owner, now: float, reason: str
) -> None:
    assert admit(given, token, PEER, lambda: on_link, now) == reason


def test_up_closes_the_window_and_the_next_boot_opens_it() -> None:
    boots = Boots(new_id=iter(["b1", "b2"]).__next__)
    first = boots.discover(MAC, "n001", ClientKind.IPXE, 7, 0)
    first.address = PEER
    boots.up(first, 10)
    assert grant(boots.of(MAC), PEER, lambda: Owner.SELF, 11) == "up"

    second = boots.discover(MAC, "n001", ClientKind.IPXE, 7, 20)

    assert grant(second, PEER, lambda: Owner.SELF, 21) == ""
    assert admit(second, claims("b1"), PEER, lambda: Owner.SELF, 21) == "other-boot"


def test_every_reason_can_be_said() -> None:
    said = {"no-boot", "up", "window-closed", "no-address", "wrong-address", "other-boot"}

    assert said | {"malformed", "forged", "expired"} <= SENTENCES.keys()


UUID = "4c4c4544-0051-3910-8052-b9c04f4e3332"


@pytest.mark.parametrize(
    "said",
    [
        UUID,
        UUID.upper(),
        "4C4C45440051391080" + "52B9C04F4E3332",
        "{" + UUID + "}",
        "urn:uuid:" + UUID,
        " " + UUID + "\n",
        "44454c4c-5100-1039-8052-b9c04f4e3332",  # its first three fields little-endian
    ],
)
def test_a_uuid_is_the_same_however_a_vendor_writes_it(said: str) -> None:
    node = Node("n001", uuid=UUID)

    assert identity(node, uuid=said, serial="", asset_key="", required=False) == ""


@pytest.mark.parametrize(
    "said", ["", "0" * 32, UUID[:-1], UUID + "0", "4c4c4544-0051-1039-8052-b9c04f4e3332", "é" * 32]
)
def test_another_uuid_is_another_machine(said: str) -> None:
    node = Node("n001", uuid=UUID)

    assert identity(node, uuid=said, serial="", asset_key="", required=False) == "wrong-uuid"


@pytest.mark.parametrize(
    ("wanted", "said", "reason"),
    [
        ("CZ3230 XYZ", "CZ3230 XYZ", ""),
        ("CZ3230XYZ", "CZ3230XYZ      ", ""),
        ("CZ3230XYZ ", "CZ3230XYZ", ""),
        ("/7Q2ND42/CN7475133Q0241/", "/7Q2ND42/CN7475133Q0241/", ""),
        ("CZ3230XYZ", "cz3230xyz", "wrong-serial"),
        ("CZ3230XYZ", "CZ3230 XYZ", "wrong-serial"),
        ("CZ3230XYZ", "", "wrong-serial"),
        ("Straße", "Straße", ""),
    ],
)
def test_a_serial_number_may_have_spaces_and_be_padded(wanted: str, said: str, reason: str) -> None:
    node = Node("n001", serial=wanted)

    assert identity(node, uuid="", serial=said, asset_key="", required=False) == reason


@pytest.mark.parametrize(
    ("wanted", "said", "required", "reason"),
    [
        ("key", "key", False, ""),
        ("key", "key", True, ""),
        ("key", "kez", True, "wrong-asset-key"),
        ("key", "", False, "wrong-asset-key"),
        (None, "anything", False, ""),
        (None, "anything", True, "no-asset-key"),
        ("", "", True, "no-asset-key"),
        ("  ", "", False, "wrong-asset-key"),
        ("  ", "  ", True, ""),
    ],
)
def test_an_asset_key_is_said_or_nothing_is_given(
    wanted: str | None, said: str, required: bool, reason: str
) -> None:
    node = Node("n001", asset_key=wanted)

    assert identity(node, uuid="", serial="", asset_key=said, required=required) == reason
