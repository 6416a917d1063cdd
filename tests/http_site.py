"""A whole HTTP service on loopback for tests: a small registry, real files, a fake link."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files as resources
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path
from typing import Any

from bootd.boots.timeline import Boot, Boots
from bootd.boots.unknown import Unknown
from bootd.files import LoaderFiles
from bootd.http.server import HttpServer
from bootd.model import (
    Artefact,
    ClientKind,
    HttpSettings,
    Image,
    Mac,
    Node,
    Overlay,
    OverlayEntry,
    Settings,
    Template,
)
from bootd.overlay.cache import OverlayCache
from bootd.registry import Current, Registry

MAC = Mac("52:54:00:12:34:56")
OTHER = Mac("52:54:00:12:34:57")
STRANGER = Mac("52:54:00:99:99:99")
HERE = IPv4Address("127.0.0.1")
KEY = bytes(range(32))
NODE_SECRET = bytes(range(1, 33))
KERNEL = bytes(range(256)) * 1000
INITRAMFS = b"\x1f\x8b" + b"initramfs" * 30_000
LOADER = b"MZ" + b"loader" * 20_000
SECRET = b"the host key of "
HOUR = 3600.0
WALL = 1_800_000_000.0


def artefact(folder: Path, name: str, data: bytes) -> Artefact:
    path = folder / name
    path.write_bytes(data)
    return Artefact(str(path), len(data), digest(data))


@cache
def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def templates() -> dict[str, Template]:
    folder = resources("bootd") / "data" / "templates"
    found = [entry for entry in folder.iterdir() if entry.name.endswith(".j2")]
    return {entry.name: Template(entry.name, entry.read_text(), entry.name) for entry in found}


def make_registry(folder: Path, **settings: Any) -> Registry:
    folder.mkdir(exist_ok=True)
    image = Image(
        "debian",
        "1",
        {
            "kernel": artefact(folder, "kernel", KERNEL),
            "initramfs": artefact(folder, "initramfs", INITRAMFS),
        },
    )
    key = OverlayEntry("etc/key", "template", 0o600, SECRET + b"{{ node.name }}", source="key.j2")
    nodes = [
        Node(
            name,
            mac=mac,
            image="debian",
            overlays_system=("keys",),
            overlays_runtime=("keys",),
        )
        for name, mac in (("n001", MAC), ("n002", OTHER))
    ]
    return Registry(
        settings=Settings(
            **{
                "config_file": str(folder / "bootd.yaml"),
                "http": HttpSettings(port=0),
                **settings,
            }
        ),
        nodes={node.name: node for node in nodes},
        images={"debian": image},
        overlays={"keys": Overlay("keys", (key,), "d1")},
        templates=templates(),
    )


@dataclass
class Link:
    """A neighbour table that says what the test put into it."""

    known: dict[IPv4Address, Mac] = field(default_factory=dict)

    def neighbour(self, address: IPv4Address) -> Mac | None:
        return self.known.get(address)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes
    head: bytes = b""

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def line(self) -> str:
        """The one line of a refusal."""
        assert self.body.endswith(b"\n")
        assert self.body.count(b"\n") == 1
        return self.text.rstrip("\n")


@dataclass
class Service:
    server: HttpServer
    current: Current
    boots: Boots
    unknown: Unknown
    link: Link
    folder: Path
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    """Clients' sides, closed at the end also after a failure: uvloop would end in EBUSY."""

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def registry(self) -> Registry:
        return self.current.registry

    def change(self, name: str = "n001", **values: Any) -> None:
        """As a reload that changes one node."""
        nodes = dict(self.registry.nodes)
        nodes[name] = replace(nodes[name], **values)
        self.current.swap(replace(self.registry, nodes=nodes))

    def discover(self, mac: Mac = MAC, address: IPv4Address | None = HERE) -> Boot:
        """As a DISCOVER from that machine, which then has `address`."""
        now = asyncio.get_running_loop().time()
        node = self.registry.by_mac.get(mac)
        boot = self.boots.discover(mac, node.name if node else None, ClientKind.IPXE, 7, now)
        boot.address = address
        return boot

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """With the server's own task, as in the daemon."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.server.run())
            try:
                yield
            finally:
                task.cancel()

    async def token(self, mac: Mac = MAC) -> str:
        """The token that the script of `mac` carries."""
        script = (await self.get(f"/ipxe/{mac.replace(':', '-')}")).text
        assert "/b/" in script, script
        return script.split("/b/")[1].split("/")[0]

    async def connect(
        self, source: str | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.server.port, local_addr=(source, 0) if source else None
        )
        self.writers.append(writer)
        return reader, writer

    async def get(
        self,
        target: str,
        *,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        source: str | None = None,
    ) -> Reply:
        """One request as plain bytes on a connection of its own, read to its length."""
        fields = {"Host": "127.0.0.1", **(headers or {})}
        lines = [f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items()), "", ""]
        return await self.raw("\r\n".join(lines).encode("latin-1"), method=method, source=source)

    async def raw(self, data: bytes, *, method: str = "GET", source: str | None = None) -> Reply:
        reader, writer = await self.connect(source)
        try:
            writer.write(data)
            return await read_reply(reader, method=method)
        finally:
            writer.close()


async def read_reply(reader: asyncio.StreamReader, *, method: str = "GET") -> Reply:
    """One response off a connection; the body by Content-Length or in chunks."""
    # Not `wait_for`, whose task comes a turn later: by then a reset may have taken what was sent.
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    status = int(first.split()[1])
    body = b""
    if method != "HEAD" and status != 304:
        if headers.get("Transfer-Encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        else:
            async with asyncio.timeout(30):
                body = await reader.readexactly(int(headers["Content-Length"]))
    return Reply(status, headers, body, head)


async def until(holds: Callable[[], bool]) -> None:
    """Wait, at most ten seconds, for what the server does after its client is gone."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 -- nothing tells it, so it is looked for
            await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> AsyncIterator[Service]:
    """The service, started; stopped at the end."""
    current = Current(make_registry(folder, **settings))
    ids = count(1)
    loop = asyncio.get_running_loop()
    boots = Boots(new_id=lambda: f"{next(ids):016x}", window=600, offset=WALL - loop.time())
    loaders = folder / "tftp"
    loaders.mkdir()
    (loaders / "snponly.efi").write_bytes(LOADER)
    files, overlays, unknown, link = LoaderFiles([loaders]), OverlayCache(), Unknown(), Link()
    server = HttpServer(
        current=current,
        boots=boots,
        files=files,
        overlays=overlays,
        net=link,
        keys=(KEY,),
        node_secrets=(NODE_SECRET,),
        unknown=unknown,
        host="127.0.0.1",
    )
    service = Service(server, current, boots, unknown, link, folder)
    try:
        await server.start()
        yield service
    finally:
        for writer in service.writers:
            writer.transport.abort()
        await server.stop(loop.time() + 5)
        files.close()
        overlays.close()
