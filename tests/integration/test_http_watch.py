"""What an administrator sees of boots: metrics, the status page, timelines after a restart."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.daemon import ROOT
from tests.integration.dhcp_site import Site, wait_for
from tests.integration.test_http_boots import MAC, SERVER, Network

pytestmark = pytest.mark.integration


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    with Site() as site, Network(site, tmp_path / "bootd") as made:
        yield made


def boot(network: Network) -> str:
    """A whole boot; its token."""
    network.power_on()
    token = network.token()
    for part in ("kernel", "initramfs", "system", "up"):
        assert network.get(f"/b/{token}/{part}")[0] == 200
    return token


def tftp(network: Network, name: str) -> bytes:
    """The first packet that a read of this file gets."""
    with contextlib.closing(network.site.udp("node", "eth0", 0)) as sock:
        sock.settimeout(10)
        sock.sendto(b"\0\1" + name.encode() + b"\0octet\0", (SERVER, 69))
        return sock.recv(2048)


def families(network: Network) -> dict[str, Metric]:
    with network.site.inside("boot"):
        sock = socket.create_connection(("127.0.0.1", 9873), 10)
    with contextlib.closing(sock):
        sock.sendall(b"GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(1 << 20), b"")).decode()
    text = answer.partition("\r\n\r\n")[2]
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_prometheus_reads_every_metric_that_is_documented(network: Network) -> None:
    token = boot(network)
    assert network.get(f"/b/{token}/system")[0] == 403
    assert tftp(network, "no-such-file")[:2] == b"\0\5"
    network.daemon.nodes_file.write_text("nodes: {n001: {mac: zz}}")
    assert network.daemon.command("reload", check=False).returncode == 2

    found = families(network)

    def value(name: str, sample: str = "", **labels: str) -> float:
        return sum(
            each.value
            for each in found[name].samples
            if each.name == (sample or each.name) and labels.items() <= each.labels.items()
        )

    documented = (ROOT / "docs" / "monitoring.md").read_text().partition("## Metrics")[2]
    names = re.findall(r"`(bootd_\w+)`", documented.partition("Worth an alert")[0])
    assert {name.removesuffix("_total") for name in names} == found.keys()
    assert value("bootd_dhcp_offers", "bootd_dhcp_offers_total", message="offer") == 1
    assert value("bootd_boot_seconds", "bootd_boot_seconds_count", stage="script") == 1
    assert value("bootd_boot_seconds", "bootd_boot_seconds_count", stage="up") == 1
    assert value("bootd_http_sent_bytes", "bootd_http_sent_bytes_total") > 24 << 20
    assert value("bootd_http_refused", "bootd_http_refused_total", reason="up") == 1
    assert value("bootd_reloads", "bootd_reloads_total", result="rejected") == 1
    assert value("bootd_nodes") == 2
    assert 0 < value("bootd_registry_age_seconds") < 600
    assert value("bootd_exceptions", "bootd_exceptions_total") == 0


def test_a_transfer_that_the_client_leaves_is_not_counted_as_sent(network: Network) -> None:
    network.power_on()
    token = network.token()
    with network.site.inside("node"):
        sock = socket.create_connection((SERVER, 9873), 10)
    sock.sendall(f"GET /b/{token}/initramfs HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    sock.recv(4096)
    sock.close()
    network.daemon.event("http.request", route="initramfs", outcome="aborted")

    [seen] = network.daemon.ask("timeline", "n001")["boots"]

    step = seen["steps"][-1]
    assert (step["stage"], step["outcome"]) == ("initramfs", "aborted")
    assert step["bytes"] < step["size"]
    [row, _] = network.daemon.ask("status")["nodes"]
    assert row["percent"] < 100


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_last_boots_are_known_after_a_restart(network: Network, number: signal.Signals) -> None:
    boot(network)
    kept = network.daemon.folder / "state" / "boots.jsonl"
    if number is signal.SIGKILL:  # a stop writes them down, a kill only has what was written
        wait_for(lambda: b'"outcome":"up"' in read(kept), "the boot to be written down")
    [before] = network.daemon.ask("timeline", "n001")["boots"]
    network.daemon.signal(number)
    network.daemon.wait()

    network.restart()

    [after] = network.daemon.ask("timeline", str(MAC))["boots"]
    assert {key: after[key] for key in ("boot", "outcome", "stage", "address", "firmware")} == {
        key: before[key] for key in ("boot", "outcome", "stage", "address", "firmware")
    }
    assert after["started"] == pytest.approx(before["started"], abs=1.0)
    assert [step["stage"] for step in after["steps"]] == [step["stage"] for step in before["steps"]]
    assert json.loads(kept.read_bytes().splitlines()[0])["node"] == "n001"


def read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
