"""A broken edit breaks nothing: whatever is wrong with a file, the old registry serves on.

One daemon for all cases: after each it must still answer what it answered before, and a good file
must be taken at once (SECURITY.md R1, R2, R8).
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from bootd.cli.client import Client
from tests.integration.daemon import NODES, Daemon

pytestmark = pytest.mark.integration

Break = Callable[[Path], None]


def text(content: str | bytes, file: str = "etc/nodes.yaml") -> Break:
    """Write `content` over a file of the daemon's folder."""

    def edit(folder: Path) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return edit


def replaced(old: str, new: str) -> Break:
    """nodes.yaml with one edit."""
    assert old in NODES
    return text(NODES.replace(old, new))


def instead(make: Callable[[Path], None], file: str = "etc/nodes.yaml") -> Break:
    """Something that is no regular file, where a file was."""

    def edit(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        make(folder / file)

    return edit


def site(file: str, content: str) -> Break:
    """A file of a site folder that the settings name."""
    return text(content, f"etc/{file}")


def setting(line: str) -> Break:
    """One more line in bootd.yaml, which is otherwise as it was."""

    def edit(folder: Path) -> None:
        path = folder / "etc/bootd.yaml"
        path.write_text(path.read_text().rstrip().removesuffix("}") + f", {line}}}")

    return edit


def loop(path: Path) -> None:
    path.symlink_to(path.name)


BOMB: Final = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)

BROKEN: Final[dict[str, Break]] = {
    "empty": text(""),
    "gone": instead(lambda path: None),
    "a folder": instead(Path.mkdir),
    "a fifo": instead(os.mkfifo),
    "a link to itself": instead(loop),
    "a link to nothing": instead(lambda path: path.symlink_to("nothing")),
    "a link to /dev/zero": instead(lambda path: path.symlink_to("/dev/zero")),
    "a link to /dev/tty": instead(lambda path: path.symlink_to("/dev/tty")),
    "five megabytes": text("# " + "x" * 5_000_000),
    "cut in the middle of a line": text(NODES[: NODES.index("10.0.0.11") + 4]),
    "cut in a quoted word": text('nodes:\n  "n001'),
    "NUL bytes": text(b"\0" * 100),
    "not UTF-8": text(b"nodes:\n  n001: {comment: \xff\xfe}\n"),
    "a tab for indentation": text("nodes:\n\tn001: {}\n"),
    "a list": text("- n001\n- n002\n"),
    "a word": text("hello\n"),
    "two documents": text("nodes: {}\n---\nnodes: {}\n"),
    "an alias bomb": text(BOMB),
    "an alias": text("nodes:\n  n001: &x {}\n  n002: *x\n"),
    "nested deep": text("[" * 10_000),
    "nested deep in maps": text("".join(" " * n + "a:\n" for n in range(2000))),
    "a Python object": text("nodes: !!python/object/apply:os.system ['touch pwned']\n"),
    "an unknown tag": text("nodes: !secret x\n"),
    "a key twice": replaced("  n002:", "  n001:"),
    "an unknown key": replaced("tags: {rack: r1}", "tag: {rack: r1}"),
    "an unknown section": text(NODES + "node: {}\n"),
    "no MAC address": replaced("52:54:00:12:34:57", "52:54:00:12:34"),
    "a group address": replaced("52:54:00:12:34:57", "01:00:5e:00:00:01"),
    "one MAC address twice": replaced("52:54:00:12:34:57", "52:54:00:12:34:56"),
    "no IP address": replaced("10.0.0.11/24", "10.0.0.311/24"),
    "an IP address without its network": replaced("10.0.0.11/24", "ten"),
    "a profile that is not there": replaced("{mac: 52:54:00:12:34:57}", "{profiles: [gpu]}"),
    "profiles in a circle": replaced("profiles:\n", "profiles:\n  a: {profiles: [a]}\n"),
    "an image that is not there": replaced("{mac: 52:54:00:12:34:57}", "{image: gone}"),
    "an overlay that is not there": replaced("[base]", "[base, gone]"),
    "a boot that is none": replaced("{mac: 52:54:00:12:34:57}", "{boot: sometimes}"),
    "a node set that is none": text("nodes:\n  'n[001-': {}\n"),
    "a node set of a billion": text("nodes:\n  'n[0-999999999]': {}\n"),
    "a control character in an argument": replaced("quiet", '"quiet\\nchain x"'),
    "a template that is not closed": site("templates/hold.ipxe.j2", "#!ipxe\n{% if node %}\n"),
    "a template with an undefined name": site("templates/hold.ipxe.j2", "#!ipxe\n{{ nobody }}\n"),
    "a template that is no script": site("templates/hold.ipxe.j2", "hello\n"),
    "a template that divides by zero": site("templates/hold.ipxe.j2", "#!ipxe\n{{ 1 / 0 }}\n"),
    "an overlay file that does not render": site("overlays/base/rootfs/etc/x.j2", "{{ nobody }}"),
    "an overlay file that is not closed": site("overlays/base/rootfs/etc/x.j2", "{% for %}"),
    "settings that are empty": text("", "etc/bootd.yaml"),
    "settings that are no map": text("[]", "etc/bootd.yaml"),
    "settings that are gone": instead(lambda path: None, "etc/bootd.yaml"),
    "settings that are a fifo": instead(os.mkfifo, "etc/bootd.yaml"),
    "a port that is none": site("bootd.yaml", "http: {port: 70000}"),
    "a certificate that is not there": site("bootd.yaml", "http: {tls: {certificate: no.pem}}"),
    "an unknown setting": setting('"htp": {}'),
    "a time that is none": setting('"security": {"boot_window": "soon"}'),
    "a setting twice": setting('"templates": 5'),
    "claims that are broken": text("claims: [", "state/claims.yaml"),
}


class Restored:
    """A running daemon, and its folder as it was."""

    def __init__(self, folder: Path) -> None:
        self.daemon = Daemon(
            folder, settings={"templates": ["templates"], "overlays": ["overlays"]}
        )
        self.daemon.launch().ready()
        self.client = Client(str(folder / "run" / "control.sock"))
        self._settings = self.daemon.config.read_bytes()

    def restore(self) -> None:
        etc = self.daemon.folder / "etc"
        for path in sorted(etc.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        self.daemon.config.write_bytes(self._settings)
        self.daemon.nodes_file.write_text(NODES)
        (self.daemon.folder / "state/claims.yaml").unlink(missing_ok=True)

    def generation(self) -> int:
        return int(self.client.get("version")["generation"])

    def answers(self) -> tuple[object, ...]:
        status, script = self.daemon.get("/ipxe/52-54-00-12-34-57")
        return status, script, self.client.get("nodes")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restored]:
    made = Restored(tmp_path_factory.mktemp("broken"))
    yield made
    made.daemon.end()


@pytest.mark.parametrize("case", BROKEN)
def test_the_old_registry_serves_on_and_a_good_file_is_taken_at_once(
    server: Restored, case: str
) -> None:
    server.restore()
    server.client.post("reload")
    before, generation = server.answers(), server.generation()

    BROKEN[case](server.daemon.folder)
    status, outcome = server.client.post("reload")

    assert (status, outcome["ok"]) == (422, False)
    assert outcome["faults"]
    assert all(":" in fault for fault in outcome["faults"])
    assert server.answers() == before
    assert server.generation() == generation

    server.restore()
    status, outcome = server.client.post("reload")

    assert (status, outcome["ok"]) == (200, True)
    assert server.generation() == generation + 1


def test_the_same_by_signal_is_in_the_log_with_its_place(server: Restored) -> None:
    server.restore()
    server.client.post("reload")
    BROKEN["an unknown key"](server.daemon.folder)

    server.daemon.signal(signal.SIGHUP)

    event = server.daemon.event("registry.rejected", kept=server.generation())
    assert event["fault"].startswith("nodes.yaml:6:")


def test_fifty_broken_files_cost_no_memory(server: Restored) -> None:
    size = int(Path(f"/proc/{server.daemon.pid}/statm").read_text().split()[1])

    assert size * resource.getpagesize() < 200_000_000
