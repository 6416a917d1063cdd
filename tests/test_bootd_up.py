"""``bootd-up`` of overlay base: a node says that it is up, by whatever its image can ask with."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import bootd

SCRIPT = Path(bootd.__file__).parent / "data/overlays/base/rootfs/usr/sbin/bootd-up"
TOOLS = ("sh", "sed", "sleep", "timeout", "cat")


class Bootd(HTTPServer):
    """Answers with the next of `statuses`, then with the last of them again."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.statuses = [200]
        self.asked: list[str] = []


class Answer(BaseHTTPRequestHandler):
    server: Bootd

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        left = self.server.statuses
        status = left.pop(0) if len(left) > 1 else left[0]
        self.send_response(status)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Bootd]:
    with Bootd() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def report(
    folder: Path, server: Bootd, *tools: str, scheme: str = "http", tries: int = 3
) -> subprocess.CompletedProcess[str]:
    """Run it where there is nothing but `TOOLS` and `tools`."""
    programs, etc = folder / "bin", folder / "etc" / "bootd"
    programs.mkdir()
    etc.mkdir(parents=True)
    for name in (*TOOLS, *tools):
        found = shutil.which(name)
        assert found is not None, f"{name} is not installed"
        (programs / name).symlink_to(found)
    url = f"{scheme}://127.0.0.1:{server.server_port}/b/TOKEN"
    (etc / "boot.env").write_text(f"BOOTD_URL={url}\n")
    return subprocess.run(
        [programs / "sh", SCRIPT],
        env={"PATH": str(programs), "BOOTD_ROOT": str(folder), "BOOTD_TRIES": str(tries)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("tool", ["curl", "bash"])
def test_it_reports_with_what_there_is_until_it_is_heard(
    tmp_path: Path, server: Bootd, tool: str
) -> None:
    server.statuses = [500, 200]

    done = report(tmp_path, server, tool)

    assert (done.returncode, done.stderr) == (0, "")
    assert server.asked == ["/b/TOKEN/up"] * 2


@pytest.mark.parametrize("tool", ["curl", "bash"])
def test_a_boot_that_is_over_is_not_reported_again(
    tmp_path: Path, server: Bootd, tool: str
) -> None:
    server.statuses = [403]

    done = report(tmp_path, server, tool)

    assert done.returncode == 1
    assert "this boot is over, or reported already" in done.stderr
    assert len(server.asked) == 1


def test_without_curl_a_server_by_https_is_out_of_reach_and_that_is_said(
    tmp_path: Path, server: Bootd
) -> None:
    done = report(tmp_path, server, "bash", scheme="https", tries=1)

    assert done.returncode == 1
    assert "it takes curl to reach https://127.0.0.1" in done.stderr
    assert "TOKEN" not in done.stderr
