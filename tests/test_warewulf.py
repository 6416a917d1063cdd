"""Images made for Warewulf: what boots them, and the kernel arguments of WAREWULF.md 1.9."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface

import pytest

from bootd.boots.warewulf import admit, identity
from bootd.boots.window import Owner
from bootd.model import Artefact, Image, Kernel, Mac, Method, NetDev, Node, ServerAddress, Settings
from bootd.registry import Registry
from bootd.scripts import ScriptError, plan, render_ipxe
from tests.http_site import templates

MAC = Mac("52:54:00:12:34:56")
SERVER = ServerAddress(IPv4Address("10.0.0.1"))
PEER = IPv4Address("10.0.0.11")
FILE = Artefact("/x", 1, "0" * 64)
DRACUT = Kernel("5.14", FILE, FILE, features=frozenset({"warewulf"}))
ARTEFACTS = {"kernel": FILE, "initramfs": FILE, "image": FILE}


def registry(node: Node, kernel: Kernel = DRACUT) -> Registry:
    image = Image("rocky", "1", ARTEFACTS, kernels=(kernel,))
    return Registry(Settings(), {"n1": node}, {"rocky": image}, {}, templates())


def switched(**values: object) -> Node:
    return Node("n1", mac=MAC, image="rocky", security="warewulf", **values)  # type: ignore[arg-type]


def test_two_stages_have_warewulfs_arguments_and_only_its_initramfs() -> None:
    node = switched(kernel_args=("quiet",), overlays_system=("hosts",))

    made = plan(registry(node), node, MAC, SERVER, token="A" * 52)

    assert [initrd.url.rpartition("/")[2] for initrd in made.initrds] == ["initramfs"]
    assert made.args[:8] == (
        "root=wwinit:tmpfs",
        "wwinit.server=http://10.0.0.1:9873",
        "wwinit.uri=http://10.0.0.1:9873/provision/52:54:00:12:34:56",
        "init=/warewulf/run-init",
        "rd.neednet=1",
        "ip=dhcp",
        "wwid=52:54:00:12:34:56",
        "quiet",
    )
    script = render_ipxe(made, registry(node).templates["default.ipxe.j2"])
    assert "wwid=52:54:00:12:34:56 quiet" in script
    assert "initrd --name overlay" not in script


def test_a_card_that_has_a_name_keeps_it() -> None:
    node = switched(network={"boot": NetDev("boot", "eth7", mac=MAC)})

    args = plan(registry(node), node, MAC, SERVER).args

    assert {"ifname=eth7:52:54:00:12:34:56", "ip=eth7:dhcp"} <= set(args)


def test_what_the_node_says_is_not_said_twice() -> None:
    node = switched(kernel_args=("root=wwinit:/dev/sda1", "ip=10.0.0.11::::n1:eth0:off"))

    args = plan(registry(node, Kernel("5.14", FILE, FILE)), node, MAC, SERVER).args

    assert [a for a in args if a.startswith(("root=", "ip="))] == list(node.kernel_args)
    assert "init=/warewulf/run-init" in args


def test_one_stage_unpacks_image_and_overlay_and_runs_the_overlays_init() -> None:
    node = switched(overlays_system=("wwinit", "hosts"))

    made = plan(registry(node, Kernel("5.14", FILE)), node, MAC, SERVER, token="A" * 52)

    assert [initrd.url.rpartition("/")[2] for initrd in made.initrds] == ["image", "system"]
    assert made.args[0] == "wwid=52:54:00:12:34:56"
    assert not any(argument.startswith("rdinit=") for argument in made.args)


def test_a_node_that_is_not_switched_knows_nothing_of_it() -> None:
    node = Node("n1", mac=MAC, image="rocky", kernel_args=("root=wwinit",))

    made = plan(registry(node), node, MAC, SERVER, token="A" * 52)

    assert made.method is Method.INITRAMFS
    assert not any(argument.startswith(("wwid", "wwinit.")) for argument in made.args)


def test_two_stages_without_an_initramfs_are_a_fault_that_says_so() -> None:
    node = switched(kernel_args=("root=wwinit",))

    with pytest.raises(ScriptError, match="no initramfs for kernel 5"):
        plan(registry(node, Kernel("5.14", FILE)), node, MAC, SERVER)


# ---- the rules -----------------------------------------------------------------------------------

KEYED = switched(asset_key="key", ip=IPv4Interface("10.0.0.11/24"))
OPEN = switched(ip=IPv4Interface("10.0.0.11/24"))
OTHER = IPv4Address("10.0.0.99")


@pytest.mark.parametrize(
    ("node", "port", "peer", "on_link", "reason"),
    [
        (KEYED, 1, PEER, Owner.SELF, ""),
        (KEYED, 1023, PEER, Owner.UNKNOWN, ""),
        (KEYED, 1024, PEER, Owner.SELF, "unprivileged-port"),
        (KEYED, 65535, PEER, Owner.UNKNOWN, "unprivileged-port"),
        (KEYED, 987, PEER, Owner.OTHER, "wrong-address"),
        (KEYED, 987, OTHER, Owner.STRANGER, ""),
        (OPEN, 987, OTHER, Owner.SELF, ""),
        (OPEN, 987, OTHER, Owner.UNKNOWN, ""),
        (OPEN, 987, PEER, Owner.STRANGER, ""),
        (OPEN, 987, OTHER, Owner.STRANGER, "wrong-address"),
    ],
)
def test_who_is_admitted(
    node: Node, port: int, peer: IPv4Address, on_link: Owner, reason: str
) -> None:
    assert admit(node, port, peer, lambda: on_link) == reason


@pytest.mark.parametrize(
    ("node", "key", "uuid", "required", "reason"),
    [
        (KEYED, "key", "", False, ""),
        (KEYED, " key ", "", False, ""),
        (KEYED, "KEY", "", False, "wrong-asset-key"),
        (KEYED, "", "", False, "wrong-asset-key"),
        (OPEN, "", "", False, ""),
        (OPEN, "key", "", True, "no-asset-key"),
        (switched(uuid="01020304-0506-0708-090a-0b0c0d0e0f10"), "", "", False, "wrong-uuid"),
    ],
)
def test_what_a_machine_has_to_say(
    node: Node, key: str, uuid: str, required: bool, reason: str
) -> None:
    assert identity(node, asset_key=key, uuid=uuid, required=required) == reason
