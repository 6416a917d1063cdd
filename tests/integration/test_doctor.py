"""``bootd doctor`` on a wire, beside a DHCP server that is in order and one that is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.daemon import Daemon
from tests.integration.dhcp_site import Site, says

pytestmark = pytest.mark.integration


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as made:
        made.host("boot")
        made.host("dhcp")
        made.wire("boot:eth0", "dhcp:eth0")
        made.ip("boot", "addr add 10.9.0.2/24 dev eth0")
        made.ip("dhcp", "addr add 10.9.0.1/24 dev eth0")
        yield made


def serve_addresses(site: Site, folder: Path, *more: str) -> None:
    log = folder / "dnsmasq.log"
    site.start(
        "dhcp",
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--port=0",
        "--user=root",
        "--pid-file=",
        f"--dhcp-leasefile={folder / 'leases'}",
        "--dhcp-range=10.9.0.100,10.9.0.150,255.255.255.0,1h",
        "--interface=eth0",
        "--dhcp-authoritative",
        "--no-ping",
        "--log-facility=-",
        *more,
        log=log,
    )
    says(log, "DHCP, IP range")


def ask(site: Site, folder: Path) -> dict[str, str]:
    """Levels by what was said of the wire."""
    (folder / "bootd").mkdir()
    settings = {"interfaces": ["eth0"], "dhcp": {}, "tftp": {"port": 69}, "http": {"port": 9873}}
    with site.inside("boot"):
        daemon = Daemon(folder / "bootd", settings=settings)
        with daemon:
            answer = json.loads(daemon.command("doctor", "--json", check=False).stdout)
    return {f["what"]: f["level"] for f in answer["findings"] if "eth0" in f["about"]}


def test_it_sees_who_gives_addresses_and_that_bootd_answers(site: Site, tmp_path: Path) -> None:
    serve_addresses(site, tmp_path)

    said = ask(site, tmp_path)

    assert set(said.values()) == {"ok"}
    assert any("10.9.0.1 gives addresses" in what for what in said)
    assert any("snponly.efi" in what for what in said)
    assert "TFTP answers" in said
    assert "HTTP answers 200" in said


def test_it_sees_a_dhcp_server_that_keeps_firmware_from_asking_bootd(
    site: Site, tmp_path: Path
) -> None:
    serve_addresses(site, tmp_path, "--dhcp-option-force=60,PXEClient", "--dhcp-boot=pxelinux.0")

    said = ask(site, tmp_path)

    assert [what for what, level in said.items() if level == "fail" and "option 60" in what]
