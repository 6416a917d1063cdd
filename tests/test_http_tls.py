from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import ssl
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, MutableMapping
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bootd.boots.nodekeys import derive
from bootd.explain import Question, explain
from bootd.http import server
from bootd.model import HttpSettings, ServerAddress, StartError, TlsSettings
from tests.http_site import (
    INITRAMFS,
    KERNEL,
    MAC,
    NODE_SECRET,
    SECRET,
    Reply,
    Service,
    make_registry,
    read_reply,
    serving,
    until,
)

LOOPS = ("uvloop",)


def make_certificate(folder: Path, name: str) -> TlsSettings:
    folder.mkdir(exist_ok=True)
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
         "-out", certificate, "-keyout", key],
        check=True, capture_output=True,
    )  # fmt: skip
    return TlsSettings(0, str(certificate), str(key))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> list[TlsSettings]:
    folder = tmp_path_factory.mktemp("tls")
    return [make_certificate(folder / name, name) for name in ("first", "second")]


@pytest.fixture
async def service(tmp_path: Path, certificates: list[TlsSettings]) -> AsyncIterator[Service]:
    http = HttpSettings(port=0, tls=certificates[0])
    async with serving(tmp_path, http=http) as running:
        yield running


def client(trusted: TlsSettings, **limits: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=trusted.certificate)
    for name, version in limits.items():
        setattr(context, name, version)
    return context


async def get(service: Service, path: str, context: ssl.SSLContext) -> Reply:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", service.server.tls_port, ssl=context
    )
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    try:
        return await read_reply(reader)
    finally:
        writer.transport.abort()


async def test_a_whole_boot_over_tls_stays_on_tls(
    service: Service, certificates: list[TlsSettings]
) -> None:
    service.discover()
    context = client(certificates[0])

    script = (await get(service, "/ipxe/52-54-00-12-34-56", context)).text

    assert "http://" not in script
    base = f"https://127.0.0.1:{service.server.tls_port}/b/"
    token = script.split(base)[1].split("/")[0]
    assert (await get(service, f"/b/{token}/kernel", context)).body == KERNEL
    assert (await get(service, f"/b/{token}/initramfs", context)).body == INITRAMFS
    system = (await get(service, f"/b/{token}/system", context)).body
    assert SECRET in system
    # By this the node knows us when it refreshes its overlay.
    assert b"etc/bootd/ca.pem\0" in system
    assert Path(certificates[0].certificate).read_bytes() in system


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_1_2_and_1_3(
    service: Service, certificates: list[TlsSettings], version: ssl.TLSVersion
) -> None:
    context = client(certificates[0], minimum_version=version, maximum_version=version)

    assert (await get(service, "/healthz", context)).body == b"ok\n"


@pytest.mark.parametrize(
    "suite", ["ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-GCM-SHA384", "AES256-SHA256"]
)
async def test_the_suites_that_ipxe_has(
    service: Service, certificates: list[TlsSettings], suite: str
) -> None:
    context = client(certificates[0], maximum_version=ssl.TLSVersion.TLSv1_2)
    context.set_ciphers(suite)

    assert (await get(service, "/healthz", context)).body == b"ok\n"


async def test_older_tls_is_refused(service: Service) -> None:
    process = await asyncio.create_subprocess_exec(
        "curl", "-sk", "--tls-max", "1.1", f"https://127.0.0.1:{service.server.tls_port}/healthz",
        stdout=subprocess.DEVNULL,
    )  # fmt: skip

    assert await process.wait() == 35  # the handshake failed


async def test_a_truncated_file_is_no_whole_answer_over_tls_either(
    service: Service, certificates: list[TlsSettings]
) -> None:
    size = 32 << 20
    kernel = service.registry.images["debian"].artefacts["kernel"]
    Path(kernel.path).write_bytes(bytes(size))
    object.__setattr__(kernel, "size", size)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", service.server.tls_port, ssl=client(certificates[0]), limit=65536
    )
    writer.write(b"GET /kernel/52-54-00-12-34-56 HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")

    # In a thread: who truncates waits until the loop has given the lease back.
    await asyncio.to_thread(Path(kernel.path).write_bytes, b"")

    with pytest.raises((asyncio.IncompleteReadError, ConnectionError, ssl.SSLError)):
        await asyncio.wait_for(reader.readexactly(size), 10)
    writer.transport.abort()


class Tls:
    """A client whose records are in our hands, so that they can be sent when we want."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")

    async def connect(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Shake hands."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=65536)
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                writer.write(self._outgoing.read())
                self._incoming.write(await asyncio.wait_for(reader.read(65536), 10))
            else:
                writer.write(self._outgoing.read())
                return reader, writer

    def asks(self, path: str) -> bytes:
        """The records of a request."""
        self._tls.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return self._outgoing.read()

    def ends(self) -> bytes:
        """The record that says that nothing more comes."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        return self._outgoing.read()


async def test_who_ends_tls_while_an_answer_is_made_is_no_news(
    service: Service, certificates: list[TlsSettings], caplog: pytest.LogCaptureFixture
) -> None:
    """uvloop closes then whatever it is told; it would warn each time that it is told otherwise."""
    tls = Tls(client(certificates[0]))
    _, writer = await tls.connect(service.server.tls_port)

    with capture_logs() as lines:
        # In one piece: the request is not answered yet.
        writer.write(tls.asks("/kernel/52-54-00-12-34-56") + tls.ends())
        await until(lambda: bool(requests(lines)))

    assert caplog.messages == []
    assert [line["outcome"] for line in requests(lines)] == ["aborted"]
    writer.close()


async def test_who_ends_tls_in_a_download_has_not_got_the_whole_file(
    service: Service, certificates: list[TlsSettings], caplog: pytest.LogCaptureFixture
) -> None:
    """What is written then is dropped, without an error."""
    size = 32 << 20
    kernel = service.registry.images["debian"].artefacts["kernel"]
    Path(kernel.path).write_bytes(bytes(size))
    object.__setattr__(kernel, "size", size)
    tls = Tls(client(certificates[0]))
    reader, writer = await tls.connect(service.server.tls_port)
    with capture_logs() as lines:
        writer.write(tls.asks("/kernel/52-54-00-12-34-56"))
        await asyncio.wait_for(reader.readexactly(65536), 10)
        writer.write(tls.ends())
        got = 65536 + len(await asyncio.wait_for(reader.read(), 10))
        await until(lambda: bool(requests(lines)))

    assert [line["outcome"] for line in requests(lines)] == ["aborted"]
    assert requests(lines)[0]["bytes"] <= got < size
    assert caplog.messages == []
    writer.close()


async def test_an_idle_client_that_gives_way_to_another_is_not_waited_for(
    service: Service, certificates: list[TlsSettings]
) -> None:
    """Its descriptor is what the other one needs."""
    service.server._connections.limit = 1
    context = client(certificates[0])
    reader, writer = await Tls(context).connect(service.server.tls_port)
    service.writers.append(writer)
    await until(lambda: len(service.server._connections.open) == 1)

    assert (await get(service, "/healthz", context)).body == b"ok\n"

    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), 10)  # says nothing to the server's last word


async def test_what_waits_to_be_encrypted_has_not_arrived(
    service: Service, certificates: list[TlsSettings]
) -> None:
    """Half a megabyte may, of a client that reads nothing; the rest is a socket's buffer."""
    kernel = service.registry.images["debian"].artefacts["kernel"]
    Path(kernel.path).write_bytes(bytes(32 << 20))
    object.__setattr__(kernel, "size", 32 << 20)
    boot, context = service.discover(), client(certificates[0])

    def ask() -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", service.server.tls_port), 10)
        encrypted = context.wrap_socket(plain, server_hostname="127.0.0.1")
        encrypted.sendall(b"GET /kernel/52-54-00-12-34-56 HTTP/1.1\r\nHost: x\r\n\r\n")
        return encrypted

    with await asyncio.to_thread(ask) as sock:
        (connection,) = service.server._connections.open
        await until(lambda: connection.writing_paused)
        assert service.server._sender.active == 1  # bootd_transfers_in_flight
        told = boot.steps[-1].sent
        has = int.from_bytes(fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)

    assert told - has < 192 << 10
    await until(lambda: service.server._sender.active == 0)


async def subject(service: Service) -> str:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", service.server.tls_port, ssl=context)
    raw = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return "second" if b"second" in raw else "first"


def swap(service: Service, tls: TlsSettings) -> None:
    """As a reload that names other files."""
    http = replace(service.registry.settings.http, tls=tls)
    settings = replace(service.registry.settings, http=http)
    service.current.swap(replace(service.registry, settings=settings))


async def test_a_reload_brings_a_new_certificate_and_open_connections_stay(
    service: Service, certificates: list[TlsSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "TICK", 0.01)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", service.server.tls_port, ssl=client(certificates[0])
    )
    assert await subject(service) == "first"
    async with service.running():
        with capture_logs() as lines:
            swap(service, certificates[1])
            await until(lambda: any(line["event"] == "tls.certificate" for line in lines))

    assert await subject(service) == "second"
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await read_reply(reader)).body == b"ok\n"
    writer.transport.abort()


async def test_a_certificate_that_cannot_be_read_leaves_the_old_one(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "TICK", 0.01)
    async with service.running():
        with capture_logs() as lines:
            swap(service, TlsSettings(0, "/nonexistent", "/nonexistent"))
            await until(lambda: any(line["event"] == "tls.certificate-rejected" for line in lines))

    assert await subject(service) == "first"


async def test_no_certificate_no_start(tmp_path: Path) -> None:
    tls = TlsSettings(0, str(tmp_path / "no.pem"), str(tmp_path / "no.key"))

    with pytest.raises(StartError, match=r"no\.pem.*no certificate for HTTPS"):
        async with serving(tmp_path / "x", http=HttpSettings(port=0, tls=tls)):
            pass


async def fetch(
    service: Service, path: str, headers: dict[str, str], context: ssl.SSLContext | None
) -> Reply:
    port = service.server.tls_port if context is not None else service.server.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    lines = [f"GET {path} HTTP/1.1", "Host: x", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
    writer.write("\r\n".join(lines).encode())
    try:
        return await read_reply(reader)
    finally:
        writer.transport.abort()


async def test_a_runtime_overlay_is_given_over_tls_only(
    service: Service, certificates: list[TlsSettings]
) -> None:
    """To the node's key, to a boot's token, and by Warewulf's rules."""
    service.change(overlays_runtime=("keys",))
    service.discover()
    token = await service.token()
    key = {"Authorization": f"Bearer {derive(NODE_SECRET, 'n001', MAC)}"}
    runtime = "/runtime/52-54-00-12-34-56"
    context = client(certificates[0])

    for path in (runtime, f"{runtime}/report?result=ok", f"/b/{token}/runtime"):
        plain = await fetch(service, path, key, None)
        assert (plain.status, "only given over HTTPS" in plain.line) == (403, True), path
        assert SECRET not in plain.body
        assert (await fetch(service, path, key, context)).status == 200, path
    service.change(security="warewulf")
    assert (await fetch(service, runtime, {}, None)).status == 403


async def test_the_node_is_told_where_its_runtime_overlay_is(
    service: Service, certificates: list[TlsSettings]
) -> None:
    service.discover()
    token = await service.token()
    http = replace(service.registry.settings.http, tls=replace(certificates[0], port=4443))
    settings = replace(service.registry.settings, http=http)
    service.current.swap(replace(service.registry, settings=settings))

    plain = (await fetch(service, f"/b/{token}/system", {}, None)).body

    assert b"BOOTD_RUNTIME=https://127.0.0.1:4443/runtime/52-54-00-12-34-56\n" in plain


async def test_where_scripts_go_by_https_only_the_plain_port_leads_there_without_a_token(
    tmp_path: Path, certificates: list[TlsSettings]
) -> None:
    tls = replace(certificates[0], scripts=True)
    path, led_to = "/ipxe/52-54-00-12-34-56", "chain --replace --autofree https://127.0.0.1:"
    async with serving(tmp_path, http=HttpSettings(port=0, tls=tls)) as running:
        running.discover()

        plain = (await running.get(path)).text
        beside = (await running.get("/52-54-00-12-34-56/autoexec.ipxe")).text
        unknown = (await running.get("/ipxe/52-54-00-00-00-77")).text
        script = (await get(running, path, client(certificates[0]))).text

        for text in (plain, beside, unknown):
            assert text.startswith("#!ipxe\n")
            assert led_to in text
            assert "/b/" not in text
            assert "http://" not in text
        assert plain == beside
        assert "/b/" in script


def test_explain_shows_where_machines_are_led_for_their_scripts(tmp_path: Path) -> None:
    tls = TlsSettings(9874, "cert.pem", "key.pem", scripts=True)
    registry = make_registry(tmp_path / "state", http=HttpSettings(tls=tls))
    questions = [Question(MAC), Question(MAC, user_class="iPXE")]

    us = ServerAddress(IPv4Address("10.0.0.1"))
    answer = explain(registry, registry.nodes["n001"], us, questions)

    firmware, loader = (each["boot_file"] for each in answer["dhcp"])
    assert firmware == "52-54-00-12-34-56/snponly.efi"
    assert loader == "https://10.0.0.1:9874/ipxe/52-54-00-12-34-56"
    assert "https://10.0.0.1:9874/b/TOKEN/kernel" in answer["script"]["text"]
    assert "http://" not in answer["script"]["text"]


async def test_the_access_log_says_what_went_over_tls(
    service: Service, certificates: list[TlsSettings]
) -> None:
    service.discover()
    path = "/ipxe/52-54-00-12-34-56"

    with capture_logs() as lines:
        await get(service, path, client(certificates[0]))
        await service.get(path)
        await until(lambda: len(requests(lines)) == 2)

    assert [line["tls"] for line in requests(lines)] == [True, None]


def requests(lines: list[MutableMapping[str, Any]]) -> list[MutableMapping[str, Any]]:
    return [line for line in lines if line["event"] == "http.request"]
