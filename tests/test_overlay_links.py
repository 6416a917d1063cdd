"""A node's network devices, resolved and checked before any node boots."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd.model import Node
from bootd.overlay.links import Link, Route, TemplateValueError, links
from tests.overlay_nodes import BARE, BONDED, DUAL, FABRIC, NOTHING, PLAIN, device, mac, node


def of(given: Node) -> dict[str, Link]:
    return {link.id: link for link in links(given.network)}


def one(**values: Any) -> Link:
    """The link of a node's only device."""
    (link,) = links(node("n", device("boot", "eth0", **{"mac": mac(1), **values})).network)
    return link


def fault(*devices: Any) -> str:
    with pytest.raises(TemplateValueError) as caught:
        links(node("n", *devices).network)
    return str(caught.value)


def test_a_fixed_address_is_taken_without_dhcp() -> None:
    (link,) = links(PLAIN.network)

    assert (link.id, link.addresses, link.dhcp) == ("eth0", ("10.0.0.11/24",), False)
    assert link.routes == (Route("default", "10.0.0.1"),)
    assert (link.dns4, link.dns6) == (("10.0.0.2",), ("2001:db8::53",))


def test_a_device_without_any_address_asks_dhcp() -> None:
    (link,) = links(BARE.network)

    assert (link.device, link.id, link.dhcp, link.dhcp6) == ("", "boot", True, False)


def test_a_node_without_devices_has_no_links() -> None:
    assert links(NOTHING.network) == ()


def test_members_of_a_bond_know_it_and_have_nothing_of_their_own() -> None:
    found = of(BONDED)

    assert found["bond0"].members == ("eno1", "eno2")  # one by its name here, one by the kernel's
    for member in ("eno1", "eno2"):
        assert (found[member].master, found[member].master_type) == ("bond0", "bond")
        assert not found[member].dhcp
    assert found["bond0"].parameters == {
        "miimon": 100,
        "lacp_rate": "fast",
        "xmit_hash_policy": "layer3+4",
    }


def test_a_vlan_and_the_device_below_it_know_each_other() -> None:
    found = of(BONDED)

    assert (found["bond0.100"].parent, found["bond0.100"].vlan_id) == ("bond0", 100)
    assert found["bond0"].vlans == ("bond0.100",)


def test_a_member_that_nothing_else_describes_is_described() -> None:
    found = of(DUAL)

    assert (found["eth1"].device, found["eth1"].master) == ("eth1", "br0")


def test_a_gateway_outside_of_the_network_is_reached_on_the_link() -> None:
    found = of(FABRIC)

    assert found["eth0"].routes == (Route("default", "10.0.9.1", 100, on_link=True),)


def test_routes_of_both_families_are_told_apart() -> None:
    link = of(DUAL)["eth0"]

    assert [route.destination for route in link.routes6] == ["::/0", "2001:db8:1::/48"]
    assert [(route.destination, route.next_hop, route.table) for route in link.routes4] == [
        ("0.0.0.0/0", "10.0.0.1", None),
        ("10.9.0.0/16", "0.0.0.0", None),
        ("0.0.0.0/0", "10.0.0.254", 7),
    ]
    assert not any(route.on_link for route in link.routes)  # fe80::1 is on every link


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"type": "token-ring"}, "network.boot: type 'token-ring' is not one of ethernet"),
        ({"options": {"rutes": []}}, "option 'rutes' is not one of routes, dhcp"),
        ({"options": {"members": []}}, "option 'members' is not one of"),
        ({"options": {"dhcp": "yes"}}, "dhcp 'yes' is not true or false"),
        ({"options": {"metric": -1}}, "metric -1 is not a number from 0"),
        ({"options": {"metric": True}}, "metric True is not a number"),
        ({"options": {"routes": "default"}}, "is not a list of routes"),
        ({"options": {"routes": [{"too": "x"}]}}, "is not a map of to, via, metric, table"),
        ({"options": {"routes": [{"to": "10.0.0.1/8"}]}}, "has host bits set"),
        ({"options": {"routes": [{"to": "10.0.0.0/8", "via": "x"}]}}, "'x' is not an IP address"),
        ({"options": {"routes": [{"to": "10.0.0.0/8", "table": "x"}]}}, "'x' is not a number"),
        ({"options": {"routes": [{"to": "default"}]}}, "via is missing"),
        ({"dns": ("x",)}, "dns: 'x' is not an IP address"),
        ({"type": "bond"}, "members is not a list of devices"),
        ({"type": "bond", "options": {"members": ["a b"]}}, "is not the name of an interface"),
        ({"type": "bond", "options": {"members": ["a"], "mode": "fast"}}, "is not one of balance"),
        ({"type": "bond", "options": {"members": ["a"], "lacp_rate": "a b"}}, "is not a word"),
        ({"type": "vlan", "options": {"link": "eth1"}}, "id is missing"),
        ({"type": "vlan", "options": {"link": "eth1", "id": 4095}}, "from 1 to 4094"),
        ({"type": "vlan", "options": {"id": 1}}, "link is missing"),
        ({"type": "infiniband", "options": {"mode": "x"}}, "is not one of datagram, connected"),
    ],
)
def test_mistakes_name_the_device_and_what_is_possible(values: dict[str, Any], says: str) -> None:
    assert says in fault(device("boot", "eth0", **{"mac": mac(1), **values}))


def test_a_card_that_nothing_tells_is_a_fault() -> None:
    assert "has neither device nor mac" in fault(device("boot", ""))


def test_a_name_that_no_interface_can_have_is_a_fault() -> None:
    assert "is not the name of an interface" in fault(device("boot", "a/b", mac=mac(1)))
    assert "is not the name of an interface" in fault(device("x" * 16, "", mac=mac(1)))


def test_a_card_in_two_bonds_is_a_fault() -> None:
    bonds = [
        device(f"bond{n}", f"bond{n}", type="bond", options={"members": ["eth0"]}) for n in (0, 1)
    ]

    assert "network.bond1: member eth0 is also in bond0" in fault(*bonds)


def test_a_member_with_an_address_is_a_fault() -> None:
    card = device("boot", "eth0", mac=mac(1), ip="10.0.0.1/24")
    bond = device("bond0", "bond0", type="bond", options={"members": ["eth0"]})

    assert "has an address of its own: give it to bond0" in fault(card, bond)


def test_dhcp_and_router_advertisements_can_be_asked_for() -> None:
    link = one(ip="10.0.0.1/24", options={"dhcp": True, "dhcp6": True, "accept_ra": True})

    assert (link.dhcp, link.dhcp6, link.accept_ra) == (True, True, True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5000) | st.sampled_from(["eth0", "x y", "default"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["to", "via", "table"]), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = st.sampled_from(
    ["routes", "dhcp", "members", "mode", "id", "link", "stp", "metric", "miimon", "lacp_rate"]
)


@given(
    st.sampled_from(["ethernet", "infiniband", "bond", "bridge", "vlan"]),
    st.dictionaries(KEYS, JSON, max_size=4),
)
def test_any_options_are_links_or_the_one_error(kind: str, options: dict[str, Any]) -> None:
    devices = node("n", device("boot", "eth0", mac=mac(1), type=kind, options=options)).network
    try:
        found = links(devices)
    except TemplateValueError:
        return
    assert found[0].id == "eth0"
