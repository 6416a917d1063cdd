"""Overlays are edited and reloaded every second while two hundred nodes boot: what a node gets is
whole, and of one snapshot."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

import pytest

from bootd.boots.nodekeys import derive
from bootd.boots.tokens import Claims, mint
from bootd.keyring import TokenKeys
from bootd.model import Mac
from bootd.state import load_node_secrets
from tests.integration.daemon import Daemon

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

NODES: Final = 200
EDITS: Final = 8
CLIENTS: Final = 4
PAUSE: Final = 0.02
"""Seconds between two machines of one client: enough of them for a busy computer."""
FILES: Final = 12


def mac(number: int) -> Mac:
    return Mac(f"52:54:00:78:{number >> 8:02x}:{number & 255:02x}")


def nodes(edit: int) -> str:
    """nodes.yaml: every node's tag says which edit it is of."""
    overlays = {"system": ["hosts", "site"], "runtime": ["site"]}
    profile = {"overlays": overlays, "tags": {"edit": f"{edit}"}}
    made = {f"n{n:03}": {"mac": mac(n), "profiles": ["default"]} for n in range(NODES)}
    return json.dumps({"profiles": {"default": profile}, "nodes": made})


def write(folder: Path, edit: int) -> None:
    """The whole site's edit of that number: plain files, a template, overlay.yaml, the nodes."""
    rootfs = folder / "etc/overlays/site/rootfs/etc/site"
    rootfs.mkdir(parents=True, exist_ok=True)
    for number in range(FILES):
        (rootfs / f"plain{number}").write_text(f"edit={edit};\n" * (200 + number * edit))
    (rootfs / "rendered.j2").write_text(f"edit={edit}; tag edit={{{{ tags.edit }}}};\n")
    rules = f"symlinks: {{etc/site/link: 'edit={edit};'}}\n"
    (folder / "etc/overlays/site/overlay.yaml").write_text(rules)
    (folder / "etc/nodes.yaml").write_text(nodes(edit))


def entries(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a newc archive; fails where it is not whole."""
    place = 0
    while True:
        head = archive[place : place + 110]
        assert head[:6] == b"070701", f"no entry at {place} of {len(archive)}"
        size, length = int(head[54:62], 16), int(head[94:102], 16)
        name = archive[place + 110 : place + 110 + length - 1].decode()
        if name == "TRAILER!!!":
            assert not archive[place + 124 :].strip(b"\0")
            return
        start = place + (110 + length + 3) // 4 * 4
        yield name, archive[start : start + size]
        place = start + (size + 3) // 4 * 4


def edit_of(archive: bytes) -> int:
    """The one edit that everything in the archive is of."""
    found = dict(entries(archive))
    ours = {name: text for name, text in found.items() if name.startswith("etc/site/")}
    assert len(ours) == FILES + 2
    seen = {
        number for text in ours.values() for number in re.findall(r"edit=(\d+);", text.decode())
    }
    assert len(seen) == 1, f"one archive with {seen}"
    (number,) = seen
    for name, text in ours.items():
        if name.startswith("etc/site/plain"):
            lines = 200 + int(name.removeprefix("etc/site/plain")) * int(number)
            assert text.count(b"\n") == lines, f"{name} is not whole"
    return int(number)


class Clients:
    """Machines that boot and refresh, one after the other, until they are told to end."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        state = str(daemon.folder / "state")
        self._key = TokenKeys(state, time.time).current[0]  # noqa: TID251 -- as the daemon does
        self._secret = load_node_secrets(state)[0]
        self.ended = threading.Event()
        self.seen: list[int] = []

    def boot(self, first: int) -> None:
        number = first
        while not self.ended.wait(PAUSE):
            self._boot(number % NODES)
            number += CLIENTS

    def _boot(self, number: int) -> None:
        expires = int(time.time()) + 60  # noqa: TID251 -- as above
        here = IPv4Address("127.0.0.1")
        claims = Claims(mac(number), f"{number:016x}", here, expires)
        status, body = self._daemon.get(f"/b/{mint(self._key, claims)}/system")
        assert status == 200, body
        self.seen.append(edit_of(body))
        key = derive(self._secret, f"n{number:03}", mac(number))
        status, body = self._daemon.get(
            f"/runtime/{mac(number)}", headers={"Authorization": f"Bearer {key}"}
        )
        assert status == 200, body
        self.seen.append(edit_of(body))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    folder = tmp_path / "bootd"
    folder.mkdir()
    log = {"level": "warning", "format": "json"}
    settings: dict[str, Any] = {"overlays": ["overlays"], "log": log}
    made = Daemon(folder, nodes=nodes(1), settings=settings)
    write(folder, 1)
    with made:
        yield made


def test_every_archive_is_one_snapshot_s_and_whole(daemon: Daemon) -> None:
    clients = Clients(daemon)
    with ThreadPoolExecutor(CLIENTS) as pool:
        booting = [pool.submit(clients.boot, first) for first in range(CLIENTS)]
        try:
            for edit in range(2, EDITS + 2):
                # All clients have been served of this snapshot before the next one comes.
                enough = len(clients.seen) + 4 * CLIENTS
                deadline = time.monotonic() + 1.0
                while time.monotonic() < deadline or len(clients.seen) < enough:
                    assert not any(each.done() for each in booting)
                    time.sleep(0.01)
                write(daemon.folder, edit)
                daemon.signal(signal.SIGHUP)
                # Not by the log: one that is not read fast enough loses lines.
                while f"generation {edit}" not in daemon.notification("STATUS"):
                    pass
        finally:
            clients.ended.set()
        for each in booting:
            each.result()

    assert set(clients.seen) >= set(range(1, EDITS + 1))
    assert len(clients.seen) > NODES
    daemon.end()
    assert not [each for each in daemon.rest() if each["event"] == "http.fault"]
