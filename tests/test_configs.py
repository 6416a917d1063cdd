from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from itertools import count

import pytest

from bootd import configs
from bootd.boots.gate import Gate, Shut
from bootd.boots.timeline import Boot, Boots
from bootd.configs import Asker, Config, Said
from bootd.explain import boot_script
from bootd.loaders import GrubConfig, PxelinuxConfig
from bootd.model import (
    BootTarget,
    ClientKind,
    DhcpMode,
    DhcpSettings,
    Mac,
    Node,
    SecuritySettings,
    ServerAddress,
    Settings,
    UnknownPolicy,
)
from bootd.registry import Registry
from tests.test_grub import MAC, NODE, registry

KEY = bytes(range(32))
OTHER = Mac("52:54:00:12:34:57")
STRANGER = Mac("52:54:00:99:99:99")
HERE, ELSEWHERE = IPv4Address("10.0.0.11"), IPv4Address("10.0.0.66")
SERVER = ServerAddress(IPv4Address("10.0.0.1"))
NOW = 1000.0


class Bench:
    def __init__(self, node: Node = NODE, **settings: object) -> None:
        ids = count(1)
        self.boots = Boots(new_id=lambda: f"{next(ids):016x}", window=600, offset=1e9)
        self.link: dict[IPv4Address, Mac] = {}
        self.gate = Gate(self.boots, (KEY,), self.link.get)
        other = replace(NODE, name="n002", mac=OTHER)
        made = registry(node, other)
        self.registry: Registry = replace(made, settings=Settings(**settings))  # type: ignore[arg-type]

    def discover(self, mac: Mac = MAC, address: IPv4Address | None = HERE) -> Boot:
        boot = self.boots.discover(mac, "n001", ClientKind.PXE, 7, NOW)
        boot.address = address
        return boot

    def ask(
        self,
        target: configs.Target | None = None,
        peer: IPv4Address = HERE,
        *,
        now: float = NOW,
        said: Said | None = None,
    ) -> Config:
        asker = Asker(peer, SERVER, now, said or Said())
        return configs.configuration(self.gate, self.registry, target or GrubConfig(), asker)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def token_of(text: str) -> str:
    return text.partition("/b/")[2].partition("/")[0]


@pytest.mark.parametrize("target", [GrubConfig(MAC), PxelinuxConfig(MAC)])
def test_a_machine_in_its_boot_window_gets_a_token_that_opens_its_boot(
    bench: Bench, target: configs.Target
) -> None:
    boot = bench.discover()

    made = bench.ask(target)

    assert (made.mac, made.detail, made.fault) == (MAC, made.kind, "")
    node, opened = bench.gate.enter(bench.registry, token_of(made.text), HERE, NOW)
    assert (node.name, opened) == ("n001", boot)
    assert boot.image is bench.registry.images["debian-12"]


def test_who_asks_without_a_name_is_known_by_the_link(bench: Bench) -> None:
    bench.discover(address=None)
    bench.link[HERE] = MAC

    made = bench.ask(GrubConfig())

    assert made.mac == MAC
    assert "/b/" in made.text


def test_behind_a_router_the_dhcp_exchange_tells_who_asks(bench: Bench) -> None:
    bench.discover()

    assert "/b/" in bench.ask(GrubConfig()).text
    assert bench.ask(GrubConfig(), ELSEWHERE).mac is None


def test_an_address_from_nodes_yaml_names_the_node_and_opens_nothing() -> None:
    bench = Bench(replace(NODE, ip=IPv4Interface("10.0.0.11/24")))

    made = bench.ask()

    assert made.mac == MAC
    assert "/b/" not in made.text
    assert made.detail == "grub no-boot"


@pytest.mark.parametrize("target", [GrubConfig(MAC), PxelinuxConfig(MAC)])
def test_naming_another_machine_gives_no_token(bench: Bench, target: configs.Target) -> None:
    bench.discover()
    bench.link[ELSEWHERE] = OTHER

    for peer in (ELSEWHERE, IPv4Address("10.0.0.77")):
        made = bench.ask(target, peer)
        assert "/b/" not in made.text
        assert made.detail.endswith("wrong-address")
        assert "the request comes from an address" in made.text


def test_after_the_node_is_up_there_is_no_token(bench: Bench) -> None:
    boot = bench.discover()
    bench.boots.up(boot, NOW)

    made = bench.ask(GrubConfig(MAC))

    assert "/b/" not in made.text
    assert made.detail == "grub up"


def test_after_the_window_there_is_no_token_and_the_machine_starts_again(bench: Bench) -> None:
    bench.discover()

    made = bench.ask(GrubConfig(MAC), now=NOW + 601)

    assert "/b/" not in made.text
    assert made.detail == "grub window-closed"
    assert "reboot\n" in made.text


def test_it_does_not_start_again_where_that_would_change_nothing() -> None:
    bench = Bench(dhcp=DhcpSettings(mode=DhcpMode.OFF))

    assert "reboot\n" not in bench.ask(GrubConfig(MAC)).text


def test_a_node_with_an_asset_key_must_say_it() -> None:
    bench = Bench(replace(NODE, asset_key="horse", uuid="01020304-0506-0708-090a-0b0c0d0e0f10"))
    bench.discover()
    uuid = "01020304-0506-0708-090a-0b0c0d0e0f10"

    assert "/b/" not in bench.ask().text
    assert "/b/" not in bench.ask(said=Said(asset_key="horse")).text
    assert "/b/" not in bench.ask(said=Said(uuid, "", "guess")).text
    assert "/b/" in bench.ask(said=Said(uuid, "", "horse")).text


def test_where_asset_keys_are_required_a_node_without_one_gets_nothing() -> None:
    bench = Bench(security=SecuritySettings(asset_key="required"))
    bench.discover()

    assert "/b/" not in bench.ask(GrubConfig(MAC)).text


@pytest.mark.parametrize("target", [GrubConfig(STRANGER), PxelinuxConfig(STRANGER)])
def test_a_machine_that_no_node_names_waits(bench: Bench, target: configs.Target) -> None:
    bench.discover(STRANGER)

    made = bench.ask(target)

    assert made.node is None
    assert made.detail == "hold"
    assert "no node has its MAC address" in made.text
    assert "/b/" not in made.text


def test_it_boots_where_profile_default_is_for_everyone() -> None:
    bench = Bench(dhcp=DhcpSettings(unknown=UnknownPolicy.DEFAULT))
    bench.registry = replace(bench.registry, default=replace(NODE, name="default", mac=None))

    made = bench.ask(GrubConfig(STRANGER))

    assert made.node is not None
    assert "/kernel/52-54-00-99-99-99" in made.text


@pytest.mark.parametrize("target", [GrubConfig(MAC), PxelinuxConfig(MAC)])
def test_a_node_without_an_image_waits_and_says_why(target: configs.Target) -> None:
    bench = Bench(replace(NODE, image=None))

    made = bench.ask(target)

    assert "no image is set" in made.fault
    assert "no image is set" in made.text


@pytest.mark.parametrize(
    ("target", "last"), [(GrubConfig(MAC), "exit"), (PxelinuxConfig(MAC), "LOCALBOOT 0")]
)
def test_a_local_node_is_sent_to_its_disk(target: configs.Target, last: str) -> None:
    bench = Bench(replace(NODE, boot=BootTarget.LOCAL))
    bench.discover()

    made = bench.ask(target)

    assert made.text.rstrip().endswith(last)
    assert "/b/" not in made.text


def test_a_boot_keeps_the_generation_that_its_configuration_named(bench: Bench) -> None:
    boot = bench.discover()
    bench.ask()
    old = bench.registry.images["debian-12"]
    newer = replace(bench.registry, images={"debian-12": replace(old, generation="2")})

    assert boot.image_of(newer, NODE) is old
    assert boot.image_of(newer, replace(NODE, image="other")) is None


def test_a_secret_image_is_named_only_in_a_boot(bench: Bench) -> None:
    secret = replace(bench.registry.images["debian-12"], secret=True)
    bench.registry = replace(bench.registry, images={"debian-12": secret})

    made = bench.ask(GrubConfig(MAC))

    assert made.fault == ""
    assert "no DHCP packet of this machine has been seen" in made.text
    assert "/kernel/" not in made.text
    bench.discover()
    assert "/kernel'" in bench.ask(GrubConfig(MAC)).text


def test_a_token_of_another_boot_opens_nothing(bench: Bench) -> None:
    bench.discover()
    token = token_of(bench.ask().text)
    bench.boots.up(bench.discover(), NOW)
    bench.discover()

    with pytest.raises(Shut) as caught:
        bench.gate.enter(bench.registry, token, HERE, NOW)
    assert caught.value.reason == "other-boot"


def test_a_site_may_put_its_own_file_in_place() -> None:
    assert configs.of_the_site(GrubConfig()) == ("grub/grub.cfg",)
    assert configs.of_the_site(GrubConfig(MAC)) == (
        "grub/grub.cfg-01-52-54-00-12-34-56",
        "grub/grub.cfg",
    )
    assert configs.of_the_site(PxelinuxConfig(MAC)) == ("pxelinux.cfg/01-52-54-00-12-34-56",)


@pytest.mark.parametrize(
    ("loader", "language", "begins", "template"),
    [
        ("shim", "grub", "echo\necho bootd: node n001", "grub.cfg.j2"),
        ("efi/shimx64.efi", "grub", "echo\necho bootd: node n001", "grub.cfg.j2"),
        ("lpxelinux.0", "pxelinux", "DEFAULT bootd", "pxelinux.cfg.j2"),
        ("auto", "ipxe", "#!ipxe", "default.ipxe.j2"),
    ],
)
def test_explain_shows_the_script_in_the_language_of_the_nodes_loader(
    loader: str, language: str, begins: str, template: str
) -> None:
    node = replace(NODE, loader=loader)

    shown = boot_script(Bench(node).registry, node, MAC, SERVER)

    assert (shown["language"], shown["kind"]) == (language, "boot")
    assert shown["template"] == template
    assert shown["text"].startswith(begins)
    assert "/b/TOKEN/kernel" in shown["text"]
