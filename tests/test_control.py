"""The control socket, asked through the command line's own client."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import click
import pytest

from bootd.boots.timeline import Boots, Stage
from bootd.boots.unknown import Unknown
from bootd.claiming import Claiming
from bootd.cli.client import Client
from bootd.cli.common import WrongInput
from bootd.control import ControlServer, describe_process, listen
from bootd.drift import Drift
from bootd.model import ClientKind, Node, Settings, StartError, parse_mac
from bootd.overlay.cache import OverlayCache
from bootd.registry import Changes, Current, Registry
from bootd.reload import Outcome

MAC = parse_mac("52:54:00:12:34:56")
STRANGER = parse_mac("52:54:00:00:00:99")


@contextmanager
def private_umask() -> Iterator[None]:
    """As the daemon has it."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


class Daemon:
    """What stands behind the socket, with behaviour of its own."""

    def __init__(self, folder: Path) -> None:
        self.current = Current(
            Registry(
                settings=Settings(state_dir=str(folder), run_dir=str(folder)),
                nodes={"n001": Node("n001", mac=MAC), "n002": Node("n002"), "n003": Node("n003")},
                images={},
                overlays={},
                templates={},
            )
        )
        numbers = iter(range(100))
        self.boots = Boots(new_id=lambda: f"b{next(numbers)}", offset=1000.0)
        self.unknown = Unknown()
        self.overlays = OverlayCache()
        self.faults: tuple[str, ...] = ()
        self.path = str(folder / "control.sock")

    async def reload(self) -> Outcome:
        return Outcome(2, self.faults, Changes(("n009",), (), (), ()), seconds=0.5)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Daemon]:
    daemon = Daemon(folder)
    server = ControlServer(
        current=daemon.current,
        boots=daemon.boots,
        unknown=daemon.unknown,
        path=daemon.path,
        reload=daemon.reload,
        drift=Drift(current=daemon.current, boots=daemon.boots, overlays=daemon.overlays),
        claiming=Claiming(current=daemon.current, unknown=daemon.unknown, reload=daemon.reload),
        info=lambda: describe_process(5.0, daemon.current.registry),
    )
    with private_umask():
        await server.start()
    yield daemon
    await server.stop(0.0)
    daemon.overlays.close()


async def ask(call: Callable[..., Any], *parts: str, **rest: Any) -> Any:
    return await asyncio.to_thread(call, *parts, **rest)


async def test_what_a_reboot_would_change_is_told_of_nodes_that_are_up(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        client = Client(daemon.path)
        now = asyncio.get_running_loop().time()
        boot = daemon.boots.discover(MAC, "n001", ClientKind.PXE, 7, now)
        assert await ask(client.get, "drift", "n001") == {
            "node": "n001",
            "boot": None,
            "differs": [],
        }

        daemon.boots.up(boot, now)
        boot.server, boot.given["system"] = "http://10.0.0.1:9873", "ab" * 32
        answer = await ask(client.get, "drift", "n001")
        assert answer["boot"] == boot.id
        (differs,) = answer["differs"]
        assert (differs["what"], differs["before"], differs["files"]) == ("system", "ab" * 32, None)

        with pytest.raises(WrongInput, match="nobody: there is no such node"):
            await ask(client.get, "drift", "nobody")


async def test_the_status_has_every_node_and_who_is_unknown(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        now = asyncio.get_running_loop().time()
        daemon.boots.discover(MAC, "n001", ClientKind.PXE, 7, now)
        step = daemon.boots.begin(MAC, Stage.KERNEL, now - 2, size=1000)
        assert step is not None
        step.sent, step.moved = 250, now + 5
        daemon.boots.discover(STRANGER, None, ClientKind.PXE, 7, now)

        status = await ask(Client(daemon.path).get, "status")

    first, second, _third = status["nodes"]
    assert (first["node"], first["mac"], first["stage"]) == ("n001", MAC, "kernel")
    assert (first["bytes"], first["size"], first["percent"]) == (250, 1000, 25.0)
    assert 0 < first["rate"] <= 125
    assert first["age"] == 0  # its transfer moves
    assert first["outcome"] == "booting"
    assert (second["node"], second["stage"], second["outcome"]) == ("n002", None, None)
    assert [row["mac"] for row in status["unknown"]] == [STRANGER]
    assert status["server"]["pid"] == os.getpid()


async def test_the_timeline_is_found_by_name_and_by_any_form_of_the_mac(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        now = asyncio.get_running_loop().time()
        boot = daemon.boots.discover(MAC, "n001", ClientKind.PXE, 7, now)
        client = Client(daemon.path)

        by_name = await ask(client.get, "timeline", "n001")
        by_mac = await ask(client.get, "timeline", "5254.0012.3456")

    assert by_name == by_mac or by_name["boots"][0]["boot"] == by_mac["boots"][0]["boot"]
    assert by_name["boots"][0]["boot"] == boot.id


@pytest.mark.parametrize("who", ["nobody", "52:54:00:00:00:01", "../status", "%2e", "n001/x"])
async def test_a_timeline_of_nobody_is_wrong_input_with_a_sentence(
    tmp_path: Path, who: str
) -> None:
    async with serving(tmp_path) as daemon:
        with pytest.raises(click.ClickException) as caught:
            await ask(Client(daemon.path).get, "timeline", who)

    assert caught.value.exit_code == 2
    assert caught.value.message


async def test_a_reload_answers_with_what_changed(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        status, answer = await ask(Client(daemon.path).post, "reload")

    assert status == 200
    assert answer["ok"] is True
    assert answer["changes"]["added"] == ["n009"]


async def test_a_reload_that_is_rejected_answers_with_every_fault(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        daemon.faults = ("nodes.yaml:1:1: a: b", "nodes.yaml:2:1: c: d")

        status, answer = await ask(Client(daemon.path).post, "reload")

    assert status == 422
    assert answer["faults"] == list(daemon.faults)


async def test_a_claim_is_written_down_before_it_counts(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        status, answer = await ask(
            Client(daemon.path).post, "claim", body={"mac": str(STRANGER), "nodes": "n002"}
        )

    assert status == 200
    assert answer["claimed"] == [{"mac": STRANGER, "node": "n002"}]
    assert f"n002: {{mac: {STRANGER}" in (tmp_path / "claims.yaml").read_text()


async def test_the_next_machines_in_order_of_arrival_get_the_free_names_of_a_set(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as daemon:
        second, first = parse_mac("52:54:00:00:00:02"), parse_mac("52:54:00:00:00:01")
        for number, mac in enumerate((second, first)):
            daemon.unknown.heard(mac, float(number))

        _, answer = await ask(Client(daemon.path).post, "claim", body={"nodes": "n[001-003]"})

    assert answer["claimed"] == [
        {"mac": second, "node": "n002"},
        {"mac": first, "node": "n003"},
    ]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"mac": "zz", "nodes": "n002"}, 409, "is not a MAC address"),
        ({"mac": str(STRANGER), "nodes": "n01"}, 409, "did you mean 'n001'"),
        ({"mac": str(STRANGER), "nodes": "n001"}, 409, "has MAC address"),
        ({"mac": str(MAC), "nodes": "n002"}, 409, "is n001's already"),
        ({"mac": str(STRANGER), "nodes": "n[002-003]"}, 409, "one MAC address"),
        ({"nodes": "n[002-003]"}, 409, "nothing to claim"),
        ({"nodes": str(STRANGER)}, 409, f"which node is it? bootd claim {STRANGER} NODE"),
        ({"nodes": "n[002-"}, 409, "node set"),
        ({}, 400, "a claim is"),
        ([], 400, "a claim is"),
        (None, 400, "a claim is"),
    ],
)
async def test_a_claim_that_cannot_be_changes_nothing(
    tmp_path: Path, body: object, status: int, words: str
) -> None:
    async with serving(tmp_path) as daemon:
        got, answer = await ask(Client(daemon.path).post, "claim", body=body)

    assert got == status
    assert words in answer["error"]
    assert not (tmp_path / "claims.yaml").exists()


async def test_unknown_machines_are_listed_with_what_they_said(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        daemon.unknown.held(STRANGER, 1.0, serial="ABC123")

        (row,) = await ask(Client(daemon.path).get, "unknown")

    assert (row["mac"], row["serial"]) == (STRANGER, "ABC123")


async def test_the_socket_is_for_its_owner_and_group_only(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        mode = Path(daemon.path).stat().st_mode

    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660


async def test_the_socket_is_gone_when_the_daemon_ends(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        pass

    assert not Path(daemon.path).exists()


def test_a_dead_daemons_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)

    with listen(path) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        assert listener.fileno() >= 0


def test_a_living_daemons_socket_is_not_taken_away(tmp_path: Path) -> None:
    path = str(tmp_path / "control.sock")
    with listen(path):
        with pytest.raises(StartError, match="another bootd"):
            listen(path)
        assert Path(path).exists()


def test_a_file_in_the_way_is_named_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("precious")

    with pytest.raises(StartError, match="in the way"):
        listen(str(path))

    assert path.read_text() == "precious"


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="run_dir"):
        listen(str(tmp_path / "gone" / "control.sock"))


def test_a_daemon_that_does_not_run_is_a_sentence_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException) as caught:
        Client(str(tmp_path / "control.sock")).get("status")

    assert caught.value.exit_code == 1
    assert "not running" in caught.value.message
    assert "systemctl status bootd" in caught.value.message


def test_another_program_on_the_socket_is_told_apart(tmp_path: Path) -> None:
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def talk() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"220 smtp ready\r\n")

        program = threading.Thread(target=talk)
        program.start()
        with pytest.raises(click.ClickException) as caught:
            Client(path).get("status")
        program.join()

    assert "not as bootd does" in caught.value.message


async def test_any_body_is_answered_with_json_and_a_sentence(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        for target in (b"GET /nothing", b"DELETE /status", b"POST /claim"):
            reader, writer = await asyncio.open_unix_connection(daemon.path)
            body = b"\xff\xfe{"
            head = b" HTTP/1.1\r\nHost: bootd\r\nConnection: close\r\nContent-Length: 3\r\n\r\n"
            writer.write(target + head + body)
            answer = await reader.read()
            writer.close()

            assert b" 4" in answer.split(b"\r\n")[0]
            assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]
