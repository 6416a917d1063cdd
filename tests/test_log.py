"""Logging: what the network writes must stay one harmless line, and nothing may raise or block."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from bootd import log as logs
from bootd.log import Sink, clean, redact
from bootd.model import LogSettings
from bootd.sinks import MAX_LINE, MAX_LONG, Journal, Lines, console_line, human, json_line
from bootd.text import escape


class Kept:
    """An output that keeps events, or loses them while `broken`."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.broken = False

    def __call__(self, event: Mapping[str, Any]) -> bool:
        if not self.broken:
            self.events.append(dict(event))
        return not self.broken


@pytest.fixture
def kept() -> Iterator[Kept]:
    """The whole pipeline as the daemon configures it, ending in a list."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    output = Kept()
    logs.configure(LogSettings(level="info"), {}, output=output)
    yield output
    structlog.reset_defaults()
    root.handlers[:], root.level = before
    sys.excepthook = sys.__excepthook__
    logging.raiseExceptions = True


def test_an_event_is_its_name_and_its_facts(kept: Kept) -> None:
    structlog.get_logger().info("boot.up", node="n001", seconds=21.3)

    assert kept.events == [{"event": "boot.up", "level": "info", "node": "n001", "seconds": 21.3}]


def test_people_read_node_mac_and_boot_first() -> None:
    event = {"event": "tftp.transfer", "outcome": "ok", "boot": "b1", "node": "n001", "size": 7}

    assert human(event) == "tftp.transfer node=n001 boot=b1 outcome=ok size=7"


def test_a_value_with_spaces_is_quoted_so_that_it_cannot_pretend_to_be_two_facts() -> None:
    assert human({"event": "a.b", "name": "x node=n001"}) == 'a.b name="x node=n001"'


def test_a_level_below_the_threshold_is_not_written_and_a_reload_can_change_that(
    kept: Kept,
) -> None:
    log = structlog.get_logger()

    log.debug("dhcp.ignore")
    logs.set_level("debug")
    log.debug("dhcp.offer")
    logs.set_level("error")
    log.warning("tftp.error")

    assert [event["event"] for event in kept.events] == ["dhcp.offer"]


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("a\nb", "a\\x0ab"),
        ("\x1b[2Jboo", "\\x1b[2Jboo"),
        ("\x7f\x85", "\\x7f\\x85"),
        ("\u2028x\u202e", "\\u2028x\\u202e"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
        ("grün", "grün"),
    ],
)
def test_what_a_terminal_would_act_on_is_shown_as_an_escape(hostile: str, shown: str) -> None:
    assert escape(hostile) == shown


@given(st.dictionaries(st.sampled_from(["name", "file", "class_", "node"]), st.text()))
def test_any_text_becomes_one_short_line_without_control_characters(
    values: dict[str, str],
) -> None:
    event = clean(None, "info", {"event": "dhcp.ignore", "level": "info", **values})

    for line in (json_line(event), console_line(event, colours=False)):
        assert len(line) <= MAX_LINE + len("00:00:00 critical ") + 1
        text = line.decode()
        assert text.endswith("\n")
        assert text[:-1].isprintable()


@given(st.lists(st.text(min_size=200), min_size=8, max_size=12))
def test_a_packet_costs_at_most_six_hundred_bytes(texts: list[str]) -> None:
    event: dict[str, Any] = {"event": "dhcp.ignore", "level": "info"}
    event.update({f"key{number}": text for number, text in enumerate(texts)})

    line = json_line(clean(None, "info", event))

    assert len(line) <= MAX_LINE
    assert json.loads(line)["event"] == "dhcp.ignore"


def test_a_fault_of_a_file_may_be_longer() -> None:
    event = clean(
        None, "error", {"event": "registry.rejected", "level": "error", "fault": "x" * 3000}
    )

    assert MAX_LINE < len(json_line(event)) <= MAX_LONG
    assert json.loads(json_line(event))["fault"] == "x" * 3000


@pytest.mark.parametrize(
    "text",
    [
        "http://10.0.0.1:9873/b/SECRET/kernel",
        "/b/SECRET",
        "/b/SECRET?compress=gz",
        "/runtime/52-54-00-12-34-56?assetkey=SECRET&stage=runtime",
        "/x?a=1&token=SECRET",
        "GET /b/SECRET/system HTTP/1.1",
        "b/SECRET/system",
        "/ipxe/52-54-00-12-34-56?uuid=&assethex=SECRET",
    ],
)
def test_tokens_in_addresses_are_taken_out(text: str) -> None:
    assert "SECRET" not in redact(text)
    assert "***" in redact(text)


def test_tokens_under_their_own_name_are_taken_out(kept: Kept) -> None:
    structlog.get_logger().info("http.request", token="SECRET", key=b"SECRET", asset_key="SECRET")

    assert "SECRET" not in json.dumps(kept.events)


def test_a_token_in_a_traceback_is_taken_out(kept: Kept) -> None:
    try:
        raise RuntimeError("GET /b/SECRET/kernel\x1b[2J failed")
    except RuntimeError:
        structlog.get_logger().exception("http.failed")

    trace = kept.events[0]["exception"]
    assert "SECRET" not in trace
    assert "\x1b" not in trace
    assert "RuntimeError" in trace


def test_a_value_that_cannot_be_shown_does_not_raise(kept: Kept) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

    structlog.get_logger().info("a.b", value=Broken())
    structlog.get_logger().info("c.d")

    assert kept.events[-1]["event"] == "c.d"


def test_lost_lines_are_counted_and_told_when_writing_works_again(kept: Kept) -> None:
    log = structlog.get_logger()
    kept.broken = True
    log.info("a.one")
    log.info("a.two")
    kept.broken = False

    log.info("a.three")

    assert [event["event"] for event in kept.events] == ["log.lost", "a.three"]
    assert kept.events[0]["count"] == 2


def test_an_output_that_raises_is_a_lost_line() -> None:
    def broken(_event: Mapping[str, Any]) -> bool:
        raise OSError(28, "No space left on device")

    sink = Sink(broken)
    sink.write({"event": "a.b"})

    assert sink.lost == 1


def test_libraries_log_through_us(kept: Kept) -> None:
    logging.getLogger("aiohttp.server").error("bad %s", "request\nline")

    assert kept.events == [
        {
            "event": "library.log",
            "level": "error",
            "logger": "aiohttp.server",
            "message": "bad request\\x0aline",
        }
    ]


def test_a_flood_of_a_librarys_lines_is_cut(kept: Kept) -> None:
    for number in range(1000):
        logging.getLogger("aiohttp.server").error("bad request %d", number)

    assert len(kept.events) == logs.MAX_LIBRARY


def test_a_full_pipe_loses_lines_instead_of_blocking() -> None:
    reader, writer = os.pipe()
    output = Lines(writer, json_line)
    line = {"event": "a.b", "level": "info", "text": "x" * 400}

    written = 0
    while output(line):
        written += 1

    assert 0 < written < 1000
    os.close(reader)
    assert output(line) is False
    os.close(writer)


def test_a_full_disk_loses_lines_and_no_more() -> None:
    with Path("/dev/full").open("wb") as full:
        assert Lines(full.fileno(), json_line)({"event": "a.b", "level": "info"}) is False


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    """As on a disk with room for half a line: here the file may not become longer."""
    script = f"""
import os, resource, signal
from bootd.sinks import Lines
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
output = Lines(os.open({str(tmp_path / "log")!r}, os.O_WRONLY | os.O_CREAT, 0o600), bytes)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (8, hard))
print(output(b"first\\n"), output(b"second\\n"), output(b"third\\n"), end=" ")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(output(b"fourth\\n"), output(b"fifth\\n"))
"""

    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert said.stdout.split() == ["True", "False", "False", "True", "True"]
    assert (tmp_path / "log").read_text().splitlines() == ["first", "se", "fourth", "fifth"]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    """What journald listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.settimeout(5)
        yield sock


def send(path: Path | str, event: dict[str, Any]) -> bool:
    with closing(Journal(str(path))) as output:
        return output(event)


def test_the_journal_gets_fields_that_can_be_searched_for(journal: socket.socket) -> None:
    event = {"event": "boot.up", "level": "warning", "node": "n001", "mac": "52:54:00:12:34:56"}

    assert send(journal.getsockname(), event)
    assert journal.recv(65536).decode().splitlines() == [
        "MESSAGE=boot.up node=n001 mac=52:54:00:12:34:56",
        "PRIORITY=4",
        "SYSLOG_IDENTIFIER=bootd",
        "BOOTD_EVENT=boot.up",
        "BOOTD_NODE=n001",
        "BOOTD_MAC=52:54:00:12:34:56",
    ]


def test_a_traceback_reaches_the_journal_in_the_form_for_several_lines(
    journal: socket.socket,
) -> None:
    send(journal.getsockname(), {"event": "a.b", "level": "error", "exception": "one\ntwo"})

    assert journal.recv(65536).endswith(
        b"BOOTD_EXCEPTION\n" + (7).to_bytes(8, "little") + b"one\ntwo\n"
    )


def test_no_value_can_add_a_field_to_the_journal(journal: socket.socket) -> None:
    event = clean(None, "info", {"event": "a.b", "level": "info", "name": "x\nBOOTD_NODE=n001"})

    send(journal.getsockname(), dict(event))

    assert not any(
        line.startswith("BOOTD_NODE") for line in journal.recv(65536).decode().splitlines()
    )


def test_a_journal_that_is_gone_is_a_lost_line(tmp_path: Path) -> None:
    assert send(tmp_path / "nobody", {"event": "a.b", "level": "info"}) is False


def test_the_journal_is_used_only_where_our_output_is_the_journal() -> None:
    status = os.fstat(1)

    assert logs.under_journal({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
    assert not logs.under_journal({"JOURNAL_STREAM": "1:1"})
    assert not logs.under_journal({})


def test_the_form_of_the_log_follows_the_settings() -> None:
    journal = logs.choose_output("journald", {})

    assert isinstance(journal, Journal)
    journal.close()
    assert isinstance(logs.choose_output("json", {}), Lines)
    assert isinstance(logs.choose_output("console", {"NO_COLOR": "1"}), Lines)
