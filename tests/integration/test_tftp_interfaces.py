"""TFTP of the whole daemon on a server with two networks, over real (virtual) wires."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import IPv4Network
from pathlib import Path
from random import Random

import pytest

from tests.lab.netns import Network
from tests.lab.run import LabError, run
from tests.lab.server import Server

pytestmark = pytest.mark.integration

LOADER = Random(1).randbytes(700_001)


class Wires:
    """Two networks that one bootd serves, and a host in each: the router."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first = Network()
        self.second = Network(IPv4Network("10.78.0.0/24"), beside=self.first)
        self.server = Server(self.first, folder)

    def configure(self, *interfaces: str, **tftp: object) -> None:
        self.server.configure(
            {}, interfaces=list(interfaces), dhcp={"mode": "off"}, tftp={"port": 69, **tftp}
        )
        self.server.nodes_file.write_text("nodes: {}\n")

    def read(self, network: Network, name: str, *options: str) -> bytes:
        """What curl reads from bootd's address in that network."""
        to = self.folder / "got"
        url = f"tftp://{network.server_ip}/{name}"
        run("ip", "netns", "exec", network.dhcp,
            "curl", "-sS", "--max-time", "20", *options, "-o", str(to), url)  # fmt: skip
        return to.read_bytes()


@pytest.fixture
async def wires(tmp_path: Path) -> AsyncIterator[Wires]:
    made = Wires(tmp_path)
    try:
        made.first.up()
        made.second.up()
        (tmp_path / "state" / "tftp").mkdir(parents=True)
        tmp_path.chmod(0o755)
        (tmp_path / "state" / "tftp" / "loader.efi").write_bytes(LOADER)
        made.configure()
        yield made
        await made.server.stop()
    finally:
        made.second.down()
        made.first.down()


async def test_each_network_is_answered_from_the_address_it_asked(wires: Wires) -> None:
    await wires.server.start()
    for network in (wires.first, wires.second):
        assert wires.read(network, "loader.efi", "--tftp-blksize", "1468") == LOADER
        script = wires.read(network, "52-54-00-12-34-56/autoexec.ipxe").decode()
        assert f"http://{network.server_ip}:9873/ipxe/52-54-00-12-34-56" in script


async def test_blocks_fit_the_interface(wires: Wires) -> None:
    run("ip", "-n", wires.first.boot, "link", "set", "eth1", "mtu", "1300")
    await wires.server.start()
    for network, blksize in ((wires.first, 1468), (wires.second, 1268)):
        assert wires.read(network, "loader.efi", "--tftp-blksize", "1468") == LOADER
        await wires.server.wait_for("tftp.transfer", 10, file="loader.efi", blksize=blksize)


@pytest.mark.parametrize("single_port", [False, True])
async def test_blocks_that_the_operator_wants_larger_than_the_way_go_in_fragments(
    wires: Wires, single_port: bool
) -> None:
    """The kernel cuts no window into datagrams that it would have to cut again."""
    wires.configure(max_blksize=8192, single_port=single_port)
    await wires.server.start()
    to = wires.folder / "got"
    run("ip", "netns", "exec", wires.first.dhcp, "atftp", "--option", "blksize 8192",
        "--option", "windowsize 4", "-g", "-r", "loader.efi", "-l", str(to),
        str(wires.first.server_ip), "69")  # fmt: skip
    assert to.read_bytes() == LOADER
    done = await wires.server.wait_for("tftp.transfer", 10, blksize=8192, windowsize=4)
    assert done.keys["retransmits"] == 0


async def test_our_own_address_is_answered_on_the_server_itself(wires: Wires) -> None:
    await wires.server.start()
    to = wires.folder / "here"
    run("ip", "netns", "exec", wires.first.boot, "curl", "-sS", "--max-time", "20",
        "-o", str(to), f"tftp://{wires.first.server_ip}/loader.efi")  # fmt: skip
    assert to.read_bytes() == LOADER


async def test_a_network_that_is_not_served_gets_no_answer(wires: Wires) -> None:
    wires.configure("eth0")
    await wires.server.start()
    with pytest.raises(LabError, match="tim"):
        wires.read(wires.second, "loader.efi", "--max-time", "2")
    assert wires.read(wires.first, "loader.efi") == LOADER
