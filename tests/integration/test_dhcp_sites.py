"""bootd beside real DHCP servers and relays, in networks of namespaces."""

from __future__ import annotations

import itertools
import socket
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from bootd.boots.unknown import MAX_HEARD
from bootd.dhcp.wire import encode
from tests.dhcp_clients import KINDS, Booted, NothingToBoot
from tests.dhcp_messages import message
from tests.integration.daemon import Daemon
from tests.integration.dhcp_site import DHCP_SERVERS, Site, dnsmasq, relay, run, wait_for

pytestmark = pytest.mark.integration

MAC = "52:54:00:99:00:00"
DASHED = MAC.replace(":", "-")
NODES = f"""\
profiles:
  default: {{}}
nodes:
  n001: {{mac: "{MAC}", ip: 10.9.0.11/24, profiles: [default]}}
"""
BOOTD = "10.9.0.2"
FILES = {
    "edk2": f"{DASHED}/snponly.efi",
    "edk2-arm64": f"{DASHED}/snponly-arm64.efi",
    "edk2-http": f"http://{{}}:9873/{DASHED}/snponly.efi",
    "pxe-rom": f"{DASHED}/undionly.kpxe",
    "ipxe": f"http://{{}}:9873/ipxe/{DASHED}",
    "u-boot": f"{DASHED}/snponly-arm64.efi",
}


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as made:
        yield made


def bootd(site: Site, folder: Path, host: str = "boot", nodes: str = NODES, **dhcp: Any) -> Daemon:
    """bootd on a host, on the real ports; not yet started."""
    (folder / "bootd").mkdir()
    with site.inside(host):
        return Daemon(
            folder / "bootd",
            nodes=nodes,
            settings={
                "interfaces": [],
                "dhcp": dhcp,
                "tftp": {"port": 69},
                "http": {"port": 9873},
            },
        )


class Started:
    """bootd running on a host of the site."""

    def __init__(self, site: Site, daemon: Daemon, host: str = "boot") -> None:
        self._site, self.daemon, self._host = site, daemon, host

    def __enter__(self) -> Daemon:
        with self._site.inside(self._host):
            self.daemon.launch()
        try:
            self.daemon.ready()
        except BaseException:
            self.daemon.end()
            raise
        return self.daemon

    def __exit__(self, *_: object) -> None:
        self.daemon.end()


def boot(site: Site, kind: str, host: str = "client", mac: str = MAC, gateway: str = "") -> Booted:
    """Power on: a machine of this kind on a host whose interface is eth0."""
    site.ip(host, "addr flush dev eth0")

    def set_address(address: IPv4Address, prefix: int) -> None:
        site.ip(host, f"addr replace {address}/{prefix} dev eth0")
        if gateway:
            site.ip(host, f"route replace default via {gateway}")

    return KINDS[kind](mac, lambda port: site.udp(host, "eth0", port), set_address).boot()


def lan(site: Site) -> None:
    """One network 10.9.0.0/24: a DHCP server's host, bootd's, and a client's."""
    for host in ("dhcp", "boot", "client"):
        site.host(host)
    site.switch("lan", "dhcp:eth0", "boot:eth0", "client:eth0")
    site.ip("dhcp", "addr add 10.9.0.1/24 dev eth0")
    site.ip("boot", f"addr add {BOOTD}/24 dev eth0")


# ---- beside a DHCP server ------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["dhcp", "boot"], ids=["other-host", "same-host"])
@pytest.mark.parametrize("server", DHCP_SERVERS)
def test_every_kind_of_firmware_boots_beside_a_dhcp_server(
    site: Site, tmp_path: Path, server: str, place: str
) -> None:
    lan(site)
    DHCP_SERVERS[server](site, place, "eth0", "10.9.0", tmp_path)
    with Started(site, bootd(site, tmp_path)) as daemon:
        said = daemon.event("dhcp.listening", port=67)["socket"]
        if place == "boot":
            assert "packet socket" in said
            assert server in said
        else:
            assert said == "UDP port 67"

        for kind, file in FILES.items():
            booted = boot(site, kind)

            assert (booted.server, booted.file) == (IPv4Address(BOOTD), file.format(BOOTD)), kind
            assert booted.address in {IPv4Address(f"10.9.0.{n}") for n in range(100, 151)}
            assert not booted.pxe_port

        offer = daemon.event("dhcp.offer", node="n001", kind="pxe")
        assert (offer["mac"], offer["interface"]) == (MAC, "eth0")


@pytest.mark.parametrize("place", ["dhcp", "boot"], ids=["other-host", "same-host"])
def test_the_quirk_binl_boots_by_way_of_port_4011(site: Site, tmp_path: Path, place: str) -> None:
    lan(site)
    dnsmasq(site, place, "eth0", "10.9.0", tmp_path)
    nodes = NODES.replace("profiles: [default]}", "quirks: [binl]}")
    with Started(site, bootd(site, tmp_path, nodes=nodes)):
        for kind in ("edk2", "pxe-rom"):
            booted = boot(site, kind)

            assert booted.pxe_port
            assert booted.file == FILES[kind]


def test_the_address_that_the_server_gave_is_known(site: Site, tmp_path: Path) -> None:
    lan(site)
    dnsmasq(site, "dhcp", "eth0", "10.9.0", tmp_path)
    with Started(site, bootd(site, tmp_path)) as daemon:
        booted = boot(site, "edk2")

        def known() -> bool:
            (node,) = [row for row in daemon.ask("status")["nodes"] if row["node"] == "n001"]
            return bool(node.get("address") == str(booted.address))

        wait_for(known, "the address in `bootd status`")


def test_an_unknown_machine_is_held_and_listed(site: Site, tmp_path: Path) -> None:
    lan(site)
    dnsmasq(site, "dhcp", "eth0", "10.9.0", tmp_path)
    with Started(site, bootd(site, tmp_path)) as daemon:
        booted = boot(site, "ipxe", mac="52:54:00:99:00:77")

        assert booted.file == f"http://{BOOTD}:9873/ipxe/52-54-00-99-00-77"
        assert "52:54:00:99:00:77" in daemon.command("unknown", "--json").stdout


def test_unknown_machines_are_left_alone_where_the_settings_say_so(
    site: Site, tmp_path: Path
) -> None:
    lan(site)
    dnsmasq(site, "dhcp", "eth0", "10.9.0", tmp_path)
    with Started(site, bootd(site, tmp_path, unknown="ignore")) as daemon:
        with site.udp("client", "eth0", 68):
            pass
        with pytest.raises(NothingToBoot):
            boot(site, "ipxe", mac="52:54:00:99:00:77")

        daemon.event("dhcp.ignore", mac="52:54:00:99:00:77", reason="unknown-node")


# ---- relays --------------------------------------------------------------------------------------


def routed(site: Site) -> None:
    """Clients on 10.8.0.0/24 behind a router that relays; servers on 10.9.0.0/24."""
    for host in ("dhcp", "boot", "router", "client"):
        site.host(host)
    site.switch("lan", "dhcp:eth0", "boot:eth0", "router:north")
    site.wire("router:south", "client:eth0")
    for host, address, link in (
        ("dhcp", "10.9.0.1", "eth0"),
        ("boot", BOOTD, "eth0"),
        ("router", "10.9.0.254", "north"),
        ("router", "10.8.0.1", "south"),
    ):
        site.ip(host, f"addr add {address}/24 dev {link}")
    for host in ("dhcp", "boot"):
        site.ip(host, "route add 10.8.0.0/24 via 10.9.0.254")
    run("ip", "netns", "exec", site.name("router"), "sysctl", "-qw", "net.ipv4.ip_forward=1")


@pytest.mark.parametrize("place", ["dhcp", "boot"], ids=["other-host", "same-host"])
def test_firmware_boots_through_a_relay(site: Site, tmp_path: Path, place: str) -> None:
    """dnsmasq has the lease, bootd the file; the relay asks both."""
    routed(site)
    dnsmasq(site, place, "eth0", "10.8.0", tmp_path)
    servers = dict.fromkeys(("10.9.0.1" if place == "dhcp" else BOOTD, BOOTD))
    relay(site, "router", "south", "north", *servers, folder=tmp_path)
    with Started(site, bootd(site, tmp_path, relays=["10.8.0.1"])) as daemon:
        for kind, file in FILES.items():
            booted = boot(site, kind, gateway="10.8.0.1")

            assert (booted.server, booted.file) == (IPv4Address(BOOTD), file.format(BOOTD)), kind
            assert booted.address in {IPv4Address(f"10.8.0.{n}") for n in range(100, 151)}

        assert daemon.event("dhcp.offer", node="n001")["to"] == "10.8.0.1"
        boot(site, "ipxe", mac="52:54:00:99:00:77", gateway="10.8.0.1")
        (machine,) = daemon.ask("unknown")
        assert machine["relay"] == "10.8.0.1"
        assert machine["circuit"] == "south"


def test_port_4011_is_reached_through_the_router(site: Site, tmp_path: Path) -> None:
    routed(site)
    dnsmasq(site, "dhcp", "eth0", "10.8.0", tmp_path)
    relay(site, "router", "south", "north", "10.9.0.1", BOOTD, folder=tmp_path)
    nodes = NODES.replace("profiles: [default]}", "quirks: [binl]}")
    with Started(site, bootd(site, tmp_path, nodes=nodes, relays=["10.8.0.0/24"])):
        booted = boot(site, "edk2", gateway="10.8.0.1")

        assert booted.pxe_port
        assert booted.file == FILES["edk2"]


def test_a_relay_that_is_not_listed_is_named_and_gets_nothing(site: Site, tmp_path: Path) -> None:
    routed(site)
    dnsmasq(site, "dhcp", "eth0", "10.8.0", tmp_path)
    relay(site, "router", "south", "north", "10.9.0.1", BOOTD, folder=tmp_path)
    with Started(site, bootd(site, tmp_path)) as daemon:
        with pytest.raises(NothingToBoot):
            boot(site, "ipxe", gateway="10.8.0.1")

        assert daemon.event("dhcp.relay-not-listed")["relay"] == "10.8.0.1"


# ---- a flood -------------------------------------------------------------------------------------


def test_a_flood_of_invented_machines_keeps_no_node_from_booting(
    site: Site, tmp_path: Path
) -> None:
    lan(site)
    site.host("flood")
    site.wire("lan:extra", "flood:eth0")
    site.ip("lan", "link set extra master br0")
    stop = threading.Event()
    packet = encode(message(chaddr=b"\x02".ljust(16, b"\0")))

    def flood(sock: socket.socket) -> None:
        for number in itertools.count():
            data = packet[:31] + (number & 0xFFFFFF).to_bytes(3, "big") + packet[34:]
            sock.sendto(data, ("255.255.255.255", 67))
            if stop.is_set():
                return

    with (
        Started(site, bootd(site, tmp_path, mode="reservation")) as daemon,
        site.udp("flood", "eth0", 68) as sock,
    ):
        thread = threading.Thread(target=flood, args=(sock,))
        thread.start()
        try:
            for kind in ("edk2", "ipxe"):
                assert boot(site, kind).address == IPv4Address("10.9.0.11")
        finally:
            stop.set()
            thread.join()
        assert daemon.alive()
        assert len(daemon.ask("unknown")) <= MAX_HEARD


# ---- interfaces ----------------------------------------------------------------------------------


def test_each_network_is_answered_with_its_own_address(site: Site, tmp_path: Path) -> None:
    """Two cards, a bridge, and a VLAN (a macvlan where the kernel knows no VLANs): the address is
    that of the layer-3 interface, not of what carries it."""
    for host in ("boot", "a", "b", "c", "d"):
        site.host(host)
    site.wire("boot:one", "a:eth0")
    site.wire("boot:two", "b:eth0")
    site.wire("boot:port", "d:eth0")
    upper(site)
    site.ip("boot", "link add br0 type bridge forward_delay 0")
    site.ip("boot", "link set port master br0")
    addresses = {"one": "10.1.0.1", "two": "10.2.0.1", "upper": "10.3.0.1", "br0": "10.4.0.1"}
    for link, address in addresses.items():
        site.ip("boot", f"link set {link} up")
        site.ip("boot", f"addr add {address}/24 dev {link}")
    nodes = "profiles: {default: {}}\nnodes:\n" + "".join(
        f'  n{number}: {{mac: "02:00:00:00:00:0{number}", ip: 10.{number}.0.11/24}}\n'
        for number in range(1, 5)
    )
    with Started(site, bootd(site, tmp_path, nodes=nodes, mode="reservation")) as daemon:
        for number, host in enumerate("abcd", 1):
            booted = boot(site, "edk2", host, mac=f"02:00:00:00:00:0{number}")

            assert booted.server == IPv4Address(f"10.{number}.0.1")
            assert booted.address == IPv4Address(f"10.{number}.0.11")
        assert daemon.event("dhcp.offer", node="n3")["interface"] == "upper"
        assert daemon.event("dhcp.offer", node="n4")["interface"] == "br0"


def upper(site: Site) -> None:
    """Interface ``upper`` of ``boot`` on a card of its own, and its other end at ``c``."""
    site.wire("boot:trunk", "c:trunk")
    if site.can("boot", "link add upper link trunk type vlan id 7"):
        site.ip("c", "link add eth0 link trunk type vlan id 7")
    else:
        site.ip("boot", "link add upper link trunk type macvlan mode bridge")
        site.ip("c", "link set trunk down")
        site.ip("c", "link set trunk name eth0")
    site.ip("c", "link set eth0 up")


def test_addresses_and_interfaces_that_change_are_followed(site: Site, tmp_path: Path) -> None:
    lan(site)
    dnsmasq(site, "dhcp", "eth0", "10.9.0", tmp_path)
    with Started(site, bootd(site, tmp_path)) as daemon:
        assert boot(site, "edk2").server == IPv4Address(BOOTD)

        site.ip("boot", f"addr del {BOOTD}/24 dev eth0")
        site.ip("boot", "addr add 10.9.0.3/24 dev eth0")
        wait_for_addresses(daemon, ["10.9.0.3/24"])
        booted = boot(site, "edk2-http")
        assert booted.server == IPv4Address("10.9.0.3")
        assert booted.file == FILES["edk2-http"].format("10.9.0.3")

        site.ip("boot", "link set eth0 down")
        daemon.event("net.interface-left", interface="eth0")
        site.ip("boot", "link set eth0 up")
        wait_for_addresses(daemon, ["10.9.0.3/24"])
        assert boot(site, "edk2").server == IPv4Address("10.9.0.3")

        site.ip("boot", "link del eth0")
        daemon.event("net.interface-left", interface="eth0")
        site.wire("boot:eth0", "lan:again")
        site.ip("lan", "link set again master br0")
        site.ip("boot", "addr add 10.9.0.4/24 dev eth0")
        wait_for_addresses(daemon, ["10.9.0.4/24"])
        assert boot(site, "edk2").server == IPv4Address("10.9.0.4")


def wait_for_addresses(daemon: Daemon, addresses: list[str]) -> None:
    """Wait until bootd says that eth0 has exactly these."""
    while True:
        found = daemon.event("net.interface", interface="eth0")["addresses"]
        if found in (addresses, ",".join(addresses)):
            return


# ---- reservation mode ----------------------------------------------------------------------------


def test_bootd_alone_gives_addresses_and_boots_every_kind(site: Site, tmp_path: Path) -> None:
    for host in ("boot", "client"):
        site.host(host)
    site.wire("boot:eth0", "client:eth0")
    site.ip("boot", f"addr add {BOOTD}/24 dev eth0")
    with Started(site, bootd(site, tmp_path, mode="reservation")):
        for kind, file in FILES.items():
            booted = boot(site, kind)

            assert booted.address == IPv4Address("10.9.0.11")
            assert (booted.server, booted.file) == (IPv4Address(BOOTD), file.format(BOOTD)), kind

        with pytest.raises(NothingToBoot, match="E16"):
            boot(site, "edk2", mac="52:54:00:99:00:77")


def test_a_running_linux_gets_and_renews_its_address(site: Site, tmp_path: Path) -> None:
    """busybox udhcpc, a client that nobody here wrote."""
    for host in ("boot", "client"):
        site.host(host)
    site.wire("boot:eth0", "client:eth0")
    site.ip("boot", f"addr add {BOOTD}/24 dev eth0")
    site.ip("client", f"link set eth0 address {MAC}")
    nodes = (
        "profiles: {default: {}}\nnodes:\n"
        "  n001: {network: {boot: {device: eth0, "
        f'mac: "{MAC}", ip: 10.9.0.11/24, gateway: 10.9.0.254, mtu: 1400, dns: [10.9.0.3]}}}}}}\n'
    )
    script = tmp_path / "script"
    script.write_text(
        "#!/bin/sh\n"
        'case "$1" in bound|renew)\n'
        f'  echo "$1 $ip/$mask $router $dns $mtu $hostname $lease" >> {tmp_path}/lease\n'
        "  ip addr replace $ip/$mask dev $interface;;\nesac\n"
    )
    script.chmod(0o755)
    lease = tmp_path / "lease"
    lease.touch()
    with Started(site, bootd(site, tmp_path, nodes=nodes, mode="reservation", lease_time="2m")):
        words = ["busybox", "udhcpc", "-f", "-i", "eth0", "-O", "mtu", "-O", "hostname", "-s"]
        client = site.start("client", *words, str(script), log=tmp_path / "udhcpc.log")
        expected = "10.9.0.11/24 10.9.0.254 10.9.0.3 1400 n001 120"
        wait_for(lambda: f"bound {expected}" in lease.read_text(), "a lease")
        client.send_signal(10)  # SIGUSR1: renew now, by unicast
        wait_for(lambda: f"renew {expected}" in lease.read_text(), "a renewed lease")
        assert isinstance(client, subprocess.Popen)
