"""What hostile or broken clients do to a connection, and that others do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import random
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from bootd.http import protocol
from bootd.http.send import unacknowledged
from tests.http_site import KERNEL, LOADER, Service, read_reply, serving, until

LOOPS = ("uvloop",)
KERNEL_PATH = "/kernel/52-54-00-12-34-56"
GOOD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(tmp_path) as running:
        yield running


async def everything(service: Service, *parts: bytes) -> bytes:
    """All that the server says to these bytes until it closes."""
    reader, writer = await service.connect()
    try:
        for part in parts:
            writer.write(part)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
        said = b""
        with contextlib.suppress(ConnectionError):
            while chunk := await asyncio.wait_for(reader.read(65536), 10):
                said += chunk
        return said
    finally:
        writer.close()


def statuses(said: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/\d\.\d (\d{3}) ", said)]


async def test_the_service_goes_on(service: Service) -> None:
    assert (await service.get("/healthz")).body == b"ok\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET\r\n\r\n",
        b"GET /healthz\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n",
        b"G\x00T /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PROXY TCP4 10.0.0.9 10.0.0.1 1 2\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\r\n\r\r\n\n\x01\x02\x03\xff",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_is_no_http_gets_a_400_and_a_closed_connection(
    service: Service, request_bytes: bytes
) -> None:
    with capture_logs() as lines:
        said = await everything(service, request_bytes)

    assert statuses(said) == [400]
    assert not [line for line in lines if line["log_level"] in ("error", "critical")]


@pytest.mark.parametrize(
    "smuggling",
    [
        b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(GOOD) + GOOD,
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(GOOD) + GOOD,
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GOOD,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n" + GOOD,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 37\r\n\r\n" + GOOD,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n"
        + GOOD,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\x0bchunked\r\n\r\n" + GOOD,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n" + GOOD,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x5\r\n\r\n" + GOOD,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1_0\r\n\r\n" + GOOD,
        b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2;x\nab\r\n0\r\n\r\n"
        + GOOD,
    ],
)
async def test_a_request_inside_a_body_is_never_answered(
    service: Service, smuggling: bytes
) -> None:
    said = await everything(service, smuggling)

    assert len(statuses(said)) == 1
    assert 400 <= statuses(said)[0] < 500
    assert b"ok\n" not in said


async def test_a_body_is_refused_not_read(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LINGER", 0.05)  # nothing comes that would be read in it
    reader, writer = await service.connect()
    writer.write(
        b"POST /b/x/up HTTP/1.1\r\nHost: x\r\nContent-Length: 67108864\r\n"
        b"Expect: 100-continue\r\nContent-Encoding: gzip\r\n\r\n"
    )

    reply = await read_reply(reader)

    assert (reply.status, reply.line) == (413, "a request has no body here")
    assert reply.headers["Connection"] == "close"
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


@pytest.mark.parametrize("turns", range(7))
async def test_a_large_body_is_told_what_it_is_whenever_it_comes(
    service: Service, turns: int
) -> None:
    reader, writer = await service.connect()
    writer.write(b"POST /b/x/fail HTTP/1.1\r\nHost: x\r\nContent-Length: 67108864\r\n\r\n")
    for _ in range(turns):
        await asyncio.sleep(0)
    writer.write(bytes(200_000))

    assert (await read_reply(reader)).status == 413
    writer.close()
    await service.server.stop(0.0)  # or it would wait a second for the rest of the body


async def test_an_empty_body_is_none(service: Service) -> None:
    service.discover()
    token = await service.token()

    reply = await service.get(f"/b/{token}/up", method="POST", headers={"Content-Length": "0"})

    assert reply.status == 200


async def test_header_bombs_are_cut(service: Service) -> None:
    line = b"X-%d: " + b"a" * 4000 + b"\r\n"
    many = b"".join(b"X-%d: a\r\n" % number for number in range(200))
    start = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"

    too_many = await everything(service, start + many + b"\r\n")
    too_long = await everything(service, start + b"X: " + b"a" * 9000 + b"\r\n\r\n")
    too_large = await everything(service, start, *(line % n for n in range(60)))
    at_once = await everything(service, start + b"".join(line % n for n in range(60)) + b"\r\n")
    long_target = await everything(service, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n")

    assert statuses(too_many) == [400]
    assert statuses(too_long) == [400]
    assert statuses(too_large) in ([431], [])  # its sender may see the reset before the answer
    assert statuses(at_once) in ([431], [])
    assert statuses(long_target) == [400]


async def test_a_header_that_never_ends_is_cut_at_its_deadline(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEADER_DEADLINE", 0.2)
    reader, writer = await service.connect()

    async def drip() -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
            while True:
                writer.write(b"X: y\r\n")
                await writer.drain()
                await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as group:
        dripping = group.create_task(drip())
        reply = await read_reply(reader)
        dripping.cancel()

    assert (reply.status, reply.line) == (408, "the header took too long")
    writer.close()


async def test_silence_is_cut_at_the_deadline(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEADER_DEADLINE", 0.1)
    reader, writer = await service.connect()

    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_second_header_has_its_deadline_too(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = await service.connect()
    writer.write(GOOD)
    assert (await read_reply(reader)).status == 200
    monkeypatch.setattr(protocol, "HEADER_DEADLINE", 0.1)

    writer.write(b"GET /healthz HTTP/1.1\r\nHo")

    assert (await read_reply(reader)).status == 408
    writer.close()


async def test_the_deadline_is_for_headers_not_for_slow_downloads(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEADER_DEADLINE", 0.1)
    large_kernel(service, 8 << 20)
    reader, writer = await service.connect()
    writer.write(f"GET {KERNEL_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    await asyncio.sleep(0.3)  # longer than the deadline, while the body waits for us

    assert len(await reader.readexactly(8 << 20)) == 8 << 20
    writer.close()


@cache
def expected(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def large_kernel(service: Service, size: int) -> Path:
    """Make the kernel larger than any socket's buffers."""
    kernel = service.registry.images["debian"].artefacts["kernel"]
    path = Path(kernel.path)
    path.write_bytes(expected(size))
    object.__setattr__(kernel, "size", size)
    return path


async def begin_download(
    service: Service,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
    """A download that has begun and then stops reading; returns its promised length."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", service.server.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=65536)
    service.writers.append(writer)
    writer.write(f"GET {KERNEL_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode() + GOOD)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
    return reader, writer, length


async def test_without_a_descriptor_to_wait_by_one_transfer_ends_and_not_all(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    large_kernel(service, 32 << 20)
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr("bootd.http.send.select.epoll", none_left)
        reader, writer, length = await begin_download(service)
        assert len(await rest(reader)) < length
        writer.close()

    assert [line["outcome"] for line in logs] == ["io-error"]
    reader, writer, length = await begin_download(service)
    assert await reader.readexactly(length) == expected(length)
    writer.close()


async def test_a_file_that_is_replaced_or_deleted_is_sent_as_it_was(service: Service) -> None:
    size = 32 << 20
    path = large_kernel(service, size)
    reader, writer, length = await begin_download(service)

    new = path.with_suffix(".new")
    new.write_bytes(b"new" * 1000)
    new.rename(path)
    path.unlink()

    assert length == size
    assert await reader.readexactly(size) == expected(size)
    assert (await read_reply(reader)).body == b"ok\n"
    writer.close()


async def test_a_file_that_is_truncated_ends_the_connection_and_nothing_else_follows(
    service: Service,
) -> None:
    """At a place that waits in a socket: the kernel zeroes the rest of its page there."""
    size = 32 << 20
    path = large_kernel(service, size)
    reader, writer, length = await begin_download(service)
    await until(lambda: waiting(service) > 2 << 20)

    with capture_logs() as logs:
        await asyncio.to_thread(os.truncate, path, (1 << 20) + 100)
        got = await rest(reader)

    assert len(got) < length
    assert expected(size).startswith(got)
    assert b"ok\n" not in got[-10:]
    assert [line["outcome"] for line in logs] == ["file-changed"]
    assert logs[0]["bytes"] <= len(got)
    assert (await service.get("/healthz")).status == 200
    writer.close()


def waiting(service: Service) -> int:
    """Bytes in the server's sockets that no client has acknowledged."""
    transports = [connection.transport for connection in service.server._connections.open]
    sockets = [t.get_extra_info("socket") for t in transports if t is not None]
    return sum(unacknowledged(sock) for sock in sockets)


async def rest(reader: asyncio.StreamReader) -> bytes:
    """What still comes until the connection ends."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while chunk := await asyncio.wait_for(reader.read(1 << 20), 10):
            got += chunk
    return got


async def test_who_opens_a_file_to_write_into_it_waits_until_no_socket_holds_it(
    service: Service,
) -> None:
    size = 32 << 20
    path = large_kernel(service, size)
    downloads = [await begin_download(service) for _ in range(3)]

    def overwrite() -> None:
        with path.open("r+b") as file:
            file.write(b"new" * (size // 3))

    await asyncio.to_thread(overwrite)

    for reader, writer, _ in downloads:
        got = await rest(reader)
        assert len(got) < size
        assert expected(size).startswith(got)
        writer.close()


@pytest.mark.parametrize("change", ["truncate", "overwrite", "leave"])
async def test_a_file_that_someone_has_open_for_writing_is_copied(
    service: Service, change: str
) -> None:
    """It cannot be leased."""
    size = 16 << 20
    path = large_kernel(service, size)
    with path.open("r+b") as file:
        reader, writer, _ = await begin_download(service)
        await until(lambda: waiting(service) > 1 << 20)
        if change == "truncate":
            file.truncate((1 << 20) + 100)
        elif change == "overwrite":
            file.seek(2 << 20)
            file.write(b"new" * 1000)
            file.flush()

        got = await (reader.readexactly(size) if change == "leave" else rest(reader))

    assert expected(size).startswith(got)
    assert (len(got) == size) is (change == "leave")
    writer.close()


async def test_an_operator_is_told_once_of_a_disk_without_leases(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, command: int, argument: int = 0) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    size = 1 << 20
    large_kernel(service, size)

    with capture_logs() as logs:
        for _ in range(2):
            assert (await service.get(KERNEL_PATH)).body == expected(size)

    told = [line for line in logs if line["event"] == "http.no-lease"]
    assert [line["reason"] for line in told] == ["this file system has no leases"]


async def test_a_file_is_free_again_when_nobody_is_sent_it(service: Service) -> None:
    path = large_kernel(service, 8 << 20)
    _, writer, _ = await begin_download(service)
    assert leased(path)

    writer.transport.abort()

    await until(lambda: not leased(path))


def leased(path: Path) -> bool:
    """As the kernel has it (proc_locks(5))."""
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    inode = str(path.stat().st_ino)
    return any(lock[1] == "LEASE" and lock[5].endswith(f":{inode}") for lock in locks)


async def test_a_reader_that_takes_nothing_is_let_go(service: Service) -> None:
    service.server._sender.stall = 0.2
    large_kernel(service, 32 << 20)
    reader, writer, length = await begin_download(service)
    await asyncio.sleep(0)

    await until(lambda: service.server._sender.active == 0)

    with contextlib.suppress(ConnectionError):
        assert len(await reader.read(length)) < length
    writer.close()


async def test_a_slow_reader_that_goes_on_is_never_cut(service: Service) -> None:
    service.server._sender.stall = 0.5
    size = 4 << 20
    large_kernel(service, size)
    reader, writer, _ = await begin_download(service)

    got = b""
    while len(got) < size:
        got += await reader.readexactly(min(256 << 10, size - len(got)))
        await asyncio.sleep(0.06)  # in all twice the stall time

    assert got == expected(size)
    writer.close()


async def test_what_waits_in_the_socket_of_a_client_that_left_was_not_sent(
    service: Service,
) -> None:
    """All of it fits into the socket buffers, and the client reads none of it."""
    size = 600 << 10
    large_kernel(service, size)
    boot = service.discover()
    _, writer, _ = await begin_download(service)
    await until(lambda: bool(boot.steps) and boot.steps[-1].sent > 0)

    writer.transport.abort()

    await until(lambda: boot.steps[-1].ended is not None)
    step = boot.steps[-1]
    assert (step.outcome, step.size) == ("aborted", size)
    assert step.sent < size


async def test_what_a_slow_reader_has_is_seen_while_its_socket_is_full(service: Service) -> None:
    size = 32 << 20
    large_kernel(service, size)
    boot = service.discover()
    reader, writer, _ = await begin_download(service)
    await until(lambda: waiting(service) > 3 << 20)
    before = boot.steps[-1].sent

    def sent() -> int:
        service.server._sender.look()  # as once a second
        return boot.steps[-1].sent - before

    await reader.readexactly(200 << 10)  # too little for room that the server would be told of
    await until(lambda: sent() > 50 << 10)

    assert boot.steps[-1].sent < size / 2
    writer.close()


async def test_a_small_file_is_whole_when_its_client_has_it(service: Service) -> None:
    boot = service.discover()

    reply = await service.get("/kernel/52-54-00-12-34-56")

    await until(lambda: boot.steps[-1].ended is not None)
    assert (boot.steps[-1].outcome, boot.steps[-1].sent) == ("ok", len(reply.body))


async def test_a_reader_so_slow_that_its_socket_has_no_room_is_not_let_go(
    service: Service,
) -> None:
    service.server._sender.stall = 0.4
    size = 8 << 20
    large_kernel(service, size)
    reader, writer, _ = await begin_download(service)

    got = b""
    while len(got) < 1 << 20:
        got += await reader.readexactly(32 << 10)
        await asyncio.sleep(0.05)  # in all four times the stall time
    got += await reader.readexactly(size - len(got))

    assert got == expected(size)
    writer.close()


async def test_resets_in_the_middle_of_downloads_are_ordinary(service: Service) -> None:
    large_kernel(service, 16 << 20)
    rng = random.Random(1)
    with capture_logs() as lines:
        for _ in range(20):
            _, writer, _ = await begin_download(service)
            sock = writer.get_extra_info("socket")
            if rng.random() < 0.5:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        await until(lambda: service.server._sender.active == 0)

    assert not [line for line in lines if line["log_level"] in ("error", "critical")]
    assert (await service.get("/healthz")).status == 200


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_descriptors_come_back(service: Service) -> None:
    large_kernel(service, 16 << 20)

    async def give_up() -> None:
        _, writer, _ = await begin_download(service)
        writer.transport.abort()

    await give_up()  # what all downloads share is opened by the first one
    await until(lambda: service.server._sender.active == 0)
    before = descriptors()
    for _ in range(10):
        await give_up()

    await until(lambda: descriptors() <= before)


async def test_the_end_of_an_idle_connection_is_not_told_for_minutes(service: Service) -> None:
    """A client that was switched off does not hear it: the kernel would go on for as long as in a
    download that stalls."""
    reader, writer = await service.connect()
    await until(lambda: len(service.server._connections.open) == 1)
    (connection,) = service.server._connections.open
    assert connection.transport is not None
    theirs = connection.transport.get_extra_info("socket").fileno()
    with socket.socket(fileno=os.dup(theirs)) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 150_000
        connection.drop()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == protocol.LAST_WORD
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


def cap(service: Service, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """As with so few descriptors that this is what they have room for."""
    monkeypatch.setattr("bootd.http.server.max_connections", lambda: limit)
    service.server._connections.resize(limit)


async def test_at_the_cap_the_longest_idle_connection_gives_way(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    cap(service, monkeypatch, 3)
    idle = [await service.connect() for _ in range(3)]
    for reader, writer in idle:
        writer.write(GOOD)
        await read_reply(reader)

    assert (await service.get("/healthz")).status == 200

    assert await asyncio.wait_for(idle[0][0].read(), 5) == b""
    idle[2][1].write(GOOD)
    assert (await read_reply(idle[2][0])).status == 200
    for _, writer in idle:
        writer.close()


async def test_a_cap_that_is_lowered_lets_the_longest_idle_ones_go(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = [await service.connect() for _ in range(4)]
    for reader, writer in idle:
        writer.write(GOOD)
        await read_reply(reader)

    cap(service, monkeypatch, 2)

    for reader, _ in idle[:2]:
        assert await asyncio.wait_for(reader.read(), 5) == b""
    idle[3][1].write(GOOD)
    assert (await read_reply(idle[3][0])).status == 200
    for _, writer in idle:
        writer.close()


async def test_at_the_cap_with_all_at_work_one_more_is_told_so(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    cap(service, monkeypatch, 2)
    large_kernel(service, 32 << 20)
    busy = [await begin_download(service) for _ in range(2)]

    reply = await service.get("/healthz")

    assert (reply.status, reply.line) == (503, "too many connections")
    for _, writer, _ in busy:
        writer.close()


async def test_two_hundred_stalled_downloads_leave_the_service_to_others(
    service: Service,
) -> None:
    large_kernel(service, 16 << 20)
    stalled = [await begin_download(service) for _ in range(200)]

    for _ in range(20):
        assert (await service.get("/boot/snponly.efi")).body == LOADER

    for _, writer, _ in stalled:
        writer.transport.abort()


async def test_a_thousand_pipelined_requests_are_answered_in_order(service: Service) -> None:
    reader, writer = await service.connect()
    requests = [GOOD, f"GET {KERNEL_PATH} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-9\r\n\r\n".encode()]

    async def ask() -> None:
        for number in range(1000):
            writer.write(requests[number % 2])
            await writer.drain()

    async with asyncio.TaskGroup() as group:
        group.create_task(ask())
        for number in range(1000):
            assert (await read_reply(reader)).body == (KERNEL[:10] if number % 2 else b"ok\n")
    writer.close()


async def test_many_requests_in_one_piece_do_not_keep_others_waiting(service: Service) -> None:
    many, other, count = await service.connect(), await service.connect(), 1000
    book, asked = service.server._connections, 0
    serve = book.serve

    def counted(*request: Any) -> Any:
        nonlocal asked
        asked += 1
        return serve(*request)

    book.serve = counted

    many[1].write(GOOD * count)  # one read of the server's takes them all
    other[1].write(GOOD)
    assert (await read_reply(other[0])).body == b"ok\n"

    assert asked < count / 2
    for _ in range(count):
        assert (await read_reply(many[0])).body == b"ok\n"
    many[1].close()
    other[1].close()


async def test_an_upgrade_is_declined_and_the_connection_closed(service: Service) -> None:
    said = await everything(
        service,
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    )

    assert statuses(said) == [200]
    assert said.endswith(b"ok\n")


async def test_connect_is_no_proxy(service: Service) -> None:
    said = await everything(service, b"CONNECT evil:80 HTTP/1.1\r\nHost: evil:80\r\n\r\n")

    assert statuses(said) in ([400], [405])


async def test_stop_lets_a_download_end(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        size = 16 << 20
        large_kernel(service, size)
        reader, writer, _ = await begin_download(service)
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            group.create_task(service.server.stop(loop.time() + 20))
            assert await reader.readexactly(size) == expected(size)
        writer.close()


@pytest.mark.parametrize("left", [-1.0, 0.0, 1.0])
async def test_stop_does_not_wait_longer_for_a_stalled_download_than_it_may(
    tmp_path: Path, left: float
) -> None:
    async with serving(tmp_path) as service:
        large_kernel(service, 16 << 20)
        _, writer, _ = await begin_download(service)
        loop = asyncio.get_running_loop()
        began = loop.time()

        async with asyncio.timeout(20):
            await service.server.stop(began + left)

        assert loop.time() - began < 1.9  # twice what it may would be more
        writer.close()


async def test_a_connection_has_the_listener_s_keepalive(service: Service) -> None:
    """Machines are switched off in the middle; their connections must end by themselves."""
    connections = service.server._connections.open
    with socket.create_connection(("127.0.0.1", service.server.port)):
        await until(lambda: bool(connections))
        (connection,) = connections
        assert connection.transport is not None
        sock = connection.transport.get_extra_info("socket")

        for level, name, value in protocol.KEEPALIVE:
            assert sock.getsockopt(level, name) == value


@pytest.mark.parametrize("before", [b"", f"GET {KERNEL_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode()])
async def test_many_requests_at_once_are_all_answered_in_their_order(
    service: Service, before: bytes
) -> None:
    """More than are parsed ahead, behind nothing and behind a download."""
    large_kernel(service, 4 << 20)
    names = [("/healthz", 200), ("/nothing", 404)] * 60
    asked = b"".join(f"GET {n} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for n, _ in names)
    reader, writer = await service.connect()

    writer.write(before + asked)

    if before:
        assert (await read_reply(reader)).body == expected(4 << 20)
    assert [(await read_reply(reader)).status for _ in names] == [status for _, status in names]
    writer.close()


async def test_a_client_that_closed_its_side_during_a_download_is_let_go_after_it(
    service: Service,
) -> None:
    size = 8 << 20
    large_kernel(service, size)
    reader, writer = await service.connect()
    writer.write(f"GET {KERNEL_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")

    writer.write_eof()

    assert await asyncio.wait_for(reader.read(-1), 10) == expected(size)
    writer.close()


async def test_a_client_that_asks_and_reads_nothing_is_let_go(service: Service) -> None:
    service.server._sender.stall = 0.2
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", service.server.port))
    _, writer = await asyncio.open_connection(sock=sock, limit=1024)
    connections = service.server._connections.open
    await until(lambda: len(connections) == 1)

    writer.write(b"GET /ipxe/52-54-00-12-34-56 HTTP/1.1\r\nHost: x\r\n\r\n" * 6000)

    await until(lambda: not connections)
    writer.close()


@pytest.mark.parametrize("host", ["xn--a", "xn--", "[::1]:1", "..", "h%00"])
async def test_the_host_in_an_absolute_target_is_nothing_to_us(service: Service, host: str) -> None:
    """Also where it is none that could be decoded: for a file, which goes out by a task."""
    said = await everything(
        service, f"GET http://{host}{KERNEL_PATH} HTTP/1.0\r\nHost: x\r\n\r\n".encode()
    )

    assert statuses(said) == [200]
    assert said.endswith(KERNEL)


async def test_a_fault_of_ours_is_told_and_ends_its_connection_only(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, capture_logs() as lines:
        patch.setattr(service.server, "_closes", None)
        said = await everything(service, GOOD)

    assert statuses(said) == [500]
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["http.fault"]
    assert (await service.get("/healthz")).status == 200


@dataclass
class Clock:
    """As much of a loop as timers need."""

    now: float = 0.0
    set: list[Timer] = field(default_factory=list)

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> Timer:
        timer = Timer(self, when, lambda: callback(*args))
        self.set.append(timer)
        return timer

    def pass_time(self) -> None:
        """To the next timer, which is called."""
        (timer,) = self.set
        timer.cancel()
        self.now = timer.when
        timer.call()


@dataclass(eq=False)
class Timer:
    clock: Clock
    when: float
    call: Callable[[], object]

    def cancel(self) -> None:
        self.clock.set.remove(self)


def test_one_timer_serves_all_that_wait_for_as_long() -> None:
    clock, late = Clock(), list[str]()
    waiting: Any = protocol.Waiting(cast(Any, late.append))  # anything can wait
    for name in ("a", "b", "c"):
        waiting.begin(name, clock, 10.0)
        clock.now += 1
    waiting.begin("a", clock, 10.0)  # it waits already
    waiting.end("b")

    clock.pass_time()
    assert (clock.now, late) == (10.0, ["a"])
    clock.pass_time()
    assert (clock.now, late) == (12.0, ["a", "c"])
    assert clock.set == []


def test_a_shorter_wait_moves_the_timer_forward() -> None:
    clock, late = Clock(), list[str]()
    waiting: Any = protocol.Waiting(cast(Any, late.append))
    waiting.begin("gone", clock, 90.0)
    waiting.end("gone")

    waiting.begin("a", clock, 5.0)

    clock.pass_time()
    assert (clock.now, late) == (5.0, ["a"])
    waiting.begin("b", clock, 5.0)
    waiting.close()
    assert clock.set == []
