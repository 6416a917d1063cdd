"""Other people's TFTP clients read from bootd: tftp-hpa, atftp and curl, from Debian."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from random import Random

import pytest

from tests.test_tftp_server import Bench, bench

pytestmark = pytest.mark.integration

Command = Callable[[int, str, Path], list[str]]
"""From port, name and where to, the words of a command line."""

SIZES = {"empty": 0, "byte": 1, "blocks": 512 * 20, "loader.efi": 1_000_003}
PACKAGES = {"tftp": "tftp-hpa", "atftp": "atftp", "curl": "curl"}


def tftp_hpa(port: int, name: str, to: Path) -> list[str]:
    return ["tftp", "-m", "binary", "127.0.0.1", str(port), "-c", "get", name, str(to)]


def atftp(*options: str) -> Command:
    def command(port: int, name: str, to: Path) -> list[str]:
        chosen = [word for option in options for word in ("--option", option)]
        return ["atftp", *chosen, "-g", "-r", name, "-l", str(to), "127.0.0.1", str(port)]

    return command


def curl(*options: str) -> Command:
    def command(port: int, name: str, to: Path) -> list[str]:
        return ["curl", "-sS", "-f", *options, "-o", str(to), f"tftp://127.0.0.1:{port}/{name}"]

    return command


CLIENTS: dict[str, Command] = {
    "tftp-hpa": tftp_hpa,
    "atftp": atftp(),
    "atftp in windows": atftp("blksize 1468", "windowsize 16", "tsize"),
    "atftp in the largest windows": atftp("blksize 8192", "windowsize 64"),
    "curl": curl(),
    "curl without options": curl("--tftp-no-options"),
    "curl in larger blocks": curl("--tftp-blksize", "1428"),
}


@pytest.fixture(params=[False, True], ids=["own port", "single port"])
async def served(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with bench(tmp_path / "tftp", single_port=request.param) as made:
        yield made


async def run(command: Sequence[str]) -> tuple[int, str]:
    if shutil.which(command[0]) is None:
        pytest.fail(f"{command[0]} is not installed: apt-get install {PACKAGES[command[0]]}")
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(60):
            output, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace")


@pytest.mark.parametrize("client", CLIENTS)
async def test_every_file_arrives_whole(served: Bench, tmp_path: Path, client: str) -> None:
    for name, size in SIZES.items():
        if size == 0 and client in ("curl", "curl in larger blocks"):
            continue  # curl 7.88 takes "tsize 0" for an error, of any server
        content = Random(size).randbytes(size)
        (served.root / name).write_bytes(content)
        to = tmp_path / f"got-{name}"
        to.touch()  # curl makes no file of nothing
        status, output = await run(CLIENTS[client](served.server.port, name, to))
        assert status == 0, output
        assert to.read_bytes() == content


async def test_a_file_of_more_than_65535_blocks_arrives_whole(
    served: Bench, tmp_path: Path
) -> None:
    content = Random(0).randbytes(512 * 65_600 + 7)
    (served.root / "initramfs").write_bytes(content)
    command = ["atftp", "--option", "windowsize 16", "-g", "-r", "initramfs"]
    to = tmp_path / "got"
    status, output = await run([*command, "-l", str(to), "127.0.0.1", str(served.server.port)])
    assert status == 0, output
    assert to.read_bytes() == content


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_missing_file_is_told(served: Bench, tmp_path: Path, client: str) -> None:
    command = CLIENTS[client](served.server.port, "nothing.efi", tmp_path / "got")
    status, output = await run(command)
    # curl 7.88 hides the server's words behind its own fault; its status is CURLE_TFTP_NOTFOUND.
    assert status == 68 if command[0] == "curl" else "not found" in output


async def test_writing_is_refused(served: Bench, tmp_path: Path) -> None:
    (tmp_path / "evil").write_bytes(b"evil")
    port = str(served.server.port)
    for command in (
        ["tftp", "-m", "binary", "127.0.0.1", port, "-c", "put", str(tmp_path / "evil"), "evil"],
        ["atftp", "-p", "-l", str(tmp_path / "evil"), "-r", "evil", "127.0.0.1", port],
        ["curl", "-sS", "-T", str(tmp_path / "evil"), f"tftp://127.0.0.1:{port}/evil"],
    ):
        status, output = await run(command)
        assert status != 0 or "read only" in output
    assert [path.name for path in served.root.iterdir()] == ["snponly.efi"]
