"""An image made for Warewulf boots from bootd unchanged: its clients, request by request.

The node's side is what Warewulf 4 puts into an image: the dracut module ``wwinit``, which pipes
``curl`` through ``gzip -d | cpio``, and the daemon ``wwclient``, which asks for the runtime overlay
from port 987 each minute. Both run on a host of their own, with its card, address and ports.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import pytest

from bootd.image.manifest import File, decode
from bootd.overlay import cpio
from bootd.overlay.compress import compress
from tests.integration.dhcp_site import Site
from tests.integration.test_http_boots import (
    MAC,
    NODE_IP,
    OTHER,
    SERVER,
    Network,
    initramfs,
    kernel,
)

pytestmark = pytest.mark.integration

KEY: Final = "R2 & left/7"
UUID: Final = "4C4C4544-0051-3910-8052-B9C04F4E3332"
NODES: Final = f"""\
profiles:
  default:
    image: demo
    kernel: {{args: [quiet, "root=wwinit:tmpfs"]}}
    overlays: {{system: [base], runtime: [hosts]}}
nodes:
  n001: {{mac: "{MAC}", security: warewulf, asset_key: "{KEY}", uuid: {UUID}, ip: {NODE_IP}/24}}
  n002: {{mac: "{OTHER}", asset_key: "{KEY}"}}
"""
WWINIT: Final = r"""
set -u
wwid=$(sed -n 's/.*\bwwid=\([^ ]*\).*/\1/p' cmdline)
server=$(sed -n 's/.*\bwwinit.server=\([^ ]*\).*/\1/p' cmdline)
uri=$(sed -n 's/.*\bwwinit.uri=\([^ ]*\).*/\1/p' cmdline)
# (--fail is not wwinit's: it lets this test see which request went wrong.)
fetch() {
    where=$1; shift
    curl --location --silent --get --retry 60 --retry-connrefused --retry-delay 1 "$@" \
        --data-urlencode "assetkey=$(cat chassis-asset-tag)" \
        --data-urlencode "uuid=$(cat system-uuid)" --data-urlencode "compress=gz" \
        >"$where.gz" && gzip -d <"$where.gz" | (mkdir -p "$where" && cpio -iumD "$where" --quiet)
}
"""
"""What all of wwinit's hooks share."""


class Warewulf(Network):
    """A node that is switched to Warewulf's rules, one that is not, and an image with a root."""

    def __init__(self, site: Site, folder: Path) -> None:
        super().__init__(site, folder, NODES)
        self._add_root()

    def _add_root(self) -> None:
        """As an import of a root does it: the archive, and its line in the manifest."""
        (manifest,) = (self.daemon.folder / "state" / "images").glob("demo/2*/manifest.json")
        data = compress([cpio.archive([cpio.Entry("etc/os-release", 0o100644, b"ID=x\n")])], "zst")
        (manifest.parent / "image.cpio.zst").write_bytes(data)
        made = decode(manifest.read_bytes())
        root = File("image.cpio.zst", len(data), hashlib.sha256(data).hexdigest())
        made = replace(made, artefacts={**made.artefacts, "image": root})
        manifest.write_bytes(made.encode())

    def outcome(self) -> str:
        """Of the node's boot, as an operator sees it."""
        return str(self.daemon.ask("timeline", "n001")["boots"][-1]["outcome"])


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Warewulf]:
    with Site() as site, Warewulf(site, tmp_path / "bootd") as made:
        yield made


def ipxe(network: Network) -> str:
    """Power on; what iPXE fetches. Returns the kernel's command line."""
    network.power_on()
    said = f"assethex={KEY.encode().hex()}&uuid={UUID.lower()}"
    mac = MAC.replace(":", "-")
    asking = network.get(f"/ipxe/{mac}")[1].decode()
    assert "assethex=${asset:hexraw}" in asking
    script = network.get(f"/ipxe/{mac}?{said}")[1].decode()
    urls = re.findall(r"^(?:kernel|initrd) --name \S+ http://[^/]+(\S+)", script, re.MULTILINE)
    assert [network.get(url)[1] for url in urls] == [kernel(), initramfs()]
    line = re.search(r"^kernel --name \S+ \S+ (.*?) initrd=", script, re.MULTILINE)
    assert line is not None
    return line[1]


def dracut(
    network: Network, folder: Path, line: str, script: str, *, host: str = "node", key: str = KEY
) -> subprocess.CompletedProcess[str]:
    """Run hooks of wwinit on a host that was booted with `line`, and whose chassis has `key`."""
    folder.mkdir(exist_ok=True)
    for name, text in (("cmdline", line), ("chassis-asset-tag", key), ("system-uuid", UUID)):
        (folder / name).write_text(f"{text}\n")
    with network.site.inside(host):
        return subprocess.run(
            ["bash", "-c", WWINIT + script],
            cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


def wwclient(network: Network, *, port: int = 987, key: str = KEY, host: str = "node") -> int:
    """One round of wwclient; the status that it gets."""
    query = urlencode({"assetkey": key, "uuid": UUID, "compress": "gz"})
    with network.site.inside(host):
        client = http.client.HTTPConnection(SERVER, 9873, 10, source_address=("", port))
        client.connect()
    with contextlib.closing(client):
        headers = {"User-Agent": "Go-http-client/1.1"}
        client.request("GET", f"/runtime/{MAC}?{query}", headers=headers)
        answer = client.getresponse()
        answer.read()
        return answer.status


def test_both_stages_by_the_routes_of_warewulf(network: Warewulf, tmp_path: Path) -> None:
    line = ipxe(network)
    assert f"wwid={MAC}" in line.split()
    assert f"wwinit.server=http://{SERVER}:9873" in line.split()
    assert f"wwinit.uri=http://{SERVER}:9873/provision/{MAC}" in line.split()
    assert {"init=/warewulf/run-init", "rd.neednet=1", "quiet"} <= set(line.split())

    # pre-mount: the system overlay for the disks; then into the root: image, system, runtime
    done = dracut(
        network, tmp_path / "node", line,
        """
        fetch wwinit "$server/system/$wwid" || exit 1
        fetch root "$server/image/$wwid" || exit 2
        fetch root "$server/system/$wwid" || exit 3
        fetch root --local-port 1-1023 "$server/runtime/$wwid" || exit 4
        """,
    )  # fmt: skip

    assert done.returncode == 0, done
    root = tmp_path / "node" / "root"
    assert (tmp_path / "node" / "wwinit" / "etc" / "hostname").read_text() == "n001\n"
    assert (root / "etc" / "hostname").read_text() == "n001\n"
    assert (root / "etc" / "os-release").read_text() == "ID=x\n"
    assert "n001" in (root / "etc" / "hosts").read_text()
    assert network.outcome() == "booting"

    assert wwclient(network) == 200  # the operating system is up, and asks each minute
    assert network.outcome() == "up"
    assert wwclient(network, port=988) == 200


def test_older_modules_ask_provision_for_stages(network: Warewulf, tmp_path: Path) -> None:
    done = dracut(
        network, tmp_path / "node", ipxe(network),
        """
        fetch root --data-urlencode stage=container "$uri" && exit 9
        fetch root --data-urlencode stage=image "$uri" || exit 1
        fetch root --data-urlencode stage=system "$uri" || exit 2
        fetch root --local-port 1-1023 --data-urlencode stage=runtime "$uri" || exit 3
        """,
    )  # fmt: skip

    assert done.returncode == 0, done
    root = tmp_path / "node" / "root" / "etc"
    assert {"hostname", "os-release", "hosts"} <= {path.name for path in root.iterdir()}


def refused(done: subprocess.CompletedProcess[str], folder: Path, said: str) -> bool:
    return done.returncode == 1 and said in (folder / "got.gz").read_text()


FETCH_RUNTIME: Final = 'fetch got --local-port 1-1023 "$server/runtime/$wwid" || exit 1'


def test_each_missing_credential_alone_is_refused(network: Warewulf, tmp_path: Path) -> None:
    line = ipxe(network)
    node = tmp_path / "node"

    high = dracut(network, node, line, 'fetch got "$server/runtime/$wwid" || exit 1')
    assert refused(high, node, "source port below 1024")
    wrong = dracut(network, node, line, FETCH_RUNTIME, key="guess")
    assert refused(wrong, node, "asset key is not the one")
    none = dracut(network, node, line, FETCH_RUNTIME, key="")
    assert refused(none, node, "asset key is not the one")
    neighbour = dracut(network, node, line, FETCH_RUNTIME, host="other")
    assert refused(neighbour, node, "an address that is not this machine's")
    system = dracut(network, node, line, 'fetch got "$server/system/$wwid" || exit 1', host="other")
    assert refused(system, node, "an address that is not this machine's")
    its_own = dracut(network, node, line.replace(MAC, OTHER), FETCH_RUNTIME, host="other")
    assert refused(its_own, node, "a node shows its key here")  # it is not switched
    assert dracut(network, node, line, FETCH_RUNTIME).returncode == 0


def test_a_user_on_the_node_gets_nothing_by_warewulfs_rules(
    network: Warewulf, tmp_path: Path
) -> None:
    """The boot is over. The user has the address, the card, and even the asset key."""
    ipxe(network)
    assert wwclient(network) == 200
    attack = (
        f"curl -s -o /dev/null -w '%{{http_code}} ' -G --data-urlencode 'assetkey={KEY}' "
        f"-d uuid={UUID} http://{SERVER}:9873"
    )
    with network.site.inside("node"):
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all",
             "bash", "-c",
             f"{attack}/runtime/{MAC}; {attack}/system/{MAC}; "
             f"{attack}/runtime/{MAC} --local-port 987 || echo no"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert done.stdout.split() == ["401", "401", "000", "no"]
