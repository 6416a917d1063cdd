"""The unit under a real systemd: installed as an operator would, in a container of its own."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from tests.container.nspawn import Container, ContainerError

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]

SETTINGS = "interfaces: [lo]\n"
NODES = "nodes:\n  n001: {mac: 52:54:00:12:34:56}\n  n002: {mac: 52:54:00:12:34:57}\n"
FETCH = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"

LEASES = """
import socket
with socket.create_connection(("127.0.0.1", 9873)) as sock:
    sock.sendall(b"GET /initramfs/52-54-00-12-34-56 HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    assert sock.recv(1 << 20).startswith(b"HTTP/1.1 200")
    sock.recv(1 << 20)
    print(open("/proc/locks").read())
"""


@pytest.fixture(scope="module")
def installed() -> Iterator[Container]:
    """A machine where `make install` has run, and nothing else."""
    with Container() as machine:
        machine.install_bootd()
        yield machine


@pytest.fixture
def machine(installed: Container) -> Iterator[Container]:
    """The installed machine with two nodes, and bootd running."""
    installed.write("/etc/bootd/bootd.yaml", SETTINGS)
    installed.write("/etc/bootd/nodes.yaml", NODES)
    installed.run("rm", "-rf", "/etc/systemd/system/bootd.service.d")
    installed.run("systemctl", "daemon-reload")
    installed.run("systemctl", "restart", "bootd")
    yield installed
    installed.run("systemctl", "stop", "bootd", check=False)
    installed.run("systemctl", "reset-failed", "bootd", check=False)


def dropped_in(machine: Container, text: str) -> None:
    machine.run("mkdir", "-p", "/etc/systemd/system/bootd.service.d")
    machine.write("/etc/systemd/system/bootd.service.d/test.conf", f"[Service]\n{text}\n")
    machine.run("systemctl", "daemon-reload")


def test_it_starts_to_ready_as_its_own_user_with_three_capabilities(machine: Container) -> None:
    assert machine.property("ActiveState") == "active"
    assert machine.property("StatusText") == "Serving 2 nodes, registry generation 1"
    pid = machine.property("MainPID")
    status = machine.read(f"/proc/{pid}/status")
    uid = machine.run("id", "-u", "bootd").stdout.strip()
    assert re.search(rf"^Uid:\t{uid}\t{uid}", status, re.M)
    # CAP_NET_BIND_SERVICE is bit 10, CAP_NET_RAW bit 13, CAP_LEASE bit 28.
    for line in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
        assert re.search(rf"^{line}:\t0*{1 << 10 | 1 << 13 | 1 << 28:x}$", status, re.M), status
    assert re.search(r"^NoNewPrivs:\t1$", status, re.M)
    assert re.search(r"^Seccomp:\t2$", status, re.M)


def test_the_ports_below_1024_are_open(machine: Container) -> None:
    udp = machine.run("ss", "-lnuH").stdout

    assert re.search(r":67\s", udp)
    assert re.search(r":69\s", udp)
    assert re.search(r":4011\s", udp)
    assert (
        "waits"
        in machine.run(
            "python3", "-c", FETCH, "http://127.0.0.1:9873/ipxe/52-54-00-12-34-56"
        ).stdout
    )


def test_a_file_that_root_imported_is_leased_while_it_is_sent(machine: Container) -> None:
    """A lease on another user's file needs CAP_LEASE, and what is not leased has to be copied."""
    # As far as an import looks: a boot sector with the signature of Linux' boot protocol.
    machine.run("python3", "-c", "open('/root/kernel', 'wb').write("
                "bytes(510) + b'\\x55\\xaa\\xeb\\x66HdrS\\x0f\\x02' + bytes(4000))")  # fmt: skip
    machine.run("dd", "if=/dev/urandom", "of=/root/initramfs", "bs=1M", "count=32")
    machine.run(
        "/opt/bootd/bin/bootd", "image", "import", "demo",
        "--kernel", "/root/kernel", "--initramfs", "/root/initramfs",
    )  # fmt: skip
    machine.write("/etc/bootd/nodes.yaml", NODES.replace("34:56}", "34:56, image: demo}"))
    machine.run("systemctl", "reload", "bootd")

    shown = machine.run("python3", "-c", LEASES).stdout

    assert f"LEASE ACTIVE READ {machine.property('MainPID')} " in " ".join(shown.split())


def test_a_reload_with_a_good_file_succeeds_and_says_what_changed(machine: Container) -> None:
    machine.write("/etc/bootd/nodes.yaml", NODES + "  n003: {}\n")

    machine.run("systemctl", "reload", "bootd")

    assert machine.property("StatusText") == "Serving 3 nodes, registry generation 2"
    assert "added=n003" in machine.journal("-u", "bootd", "BOOTD_EVENT=registry.loaded")[-1]


def test_a_reload_with_a_broken_file_fails_and_shows_the_place(machine: Container) -> None:
    machine.write("/etc/bootd/nodes.yaml", NODES.replace("34:57", "zz"))

    done = machine.run("systemctl", "reload", "bootd", check=False)

    assert done.returncode != 0
    journal = machine.journal("-u", "bootd", "-n", "6")
    assert any(line.startswith("nodes.yaml:3:") for line in journal), journal
    assert machine.property("ActiveState") == "active"
    assert machine.property("StatusText") == "Serving 2 nodes, registry generation 1"


def test_the_journal_is_searched_by_node(machine: Container) -> None:
    url = "http://127.0.0.1:9873/ipxe/52-54-00-12-34-56"
    machine.run("python3", "-c", FETCH, url)

    lines = machine.journal("BOOTD_NODE=n001")

    assert lines
    assert all("node=n001" in line for line in lines)
    assert machine.journal("BOOTD_NODE=n002") == []
    (entry,) = machine.journal("-o", "json", "BOOTD_EVENT=bootd.ready", "-n", "1")
    assert '"SYSLOG_IDENTIFIER":"bootd"' in entry
    assert '"PRIORITY":"6"' in entry


def test_it_is_back_after_it_was_killed(machine: Container) -> None:
    before = machine.property("MainPID")

    machine.run("kill", "-9", before)

    machine.wait_for(
        "a restart",
        lambda: (
            machine.property("ActiveState") == "active"
            and machine.property("MainPID") not in (before, "0")
        ),
    )
    assert machine.property("NRestarts") == "1"
    assert "n001" in machine.run("bootd", "status").stdout


def test_a_daemon_that_hangs_is_ended_by_the_watchdog_and_comes_back(machine: Container) -> None:
    assert machine.property("WatchdogUSec") == "30s"
    dropped_in(machine, "WatchdogSec=2s")
    machine.run("systemctl", "restart", "bootd")
    before = machine.property("MainPID")
    time.sleep(5)  # more than the limit: while it is fed nothing happens
    assert machine.property("MainPID") == before

    machine.run("kill", "-STOP", before)

    machine.wait_for(
        "a restart by the watchdog",
        lambda: machine.property("MainPID") not in (before, "0"),
    )
    assert any("atchdog" in line for line in machine.journal("-u", "bootd", "-n", "30"))


def test_it_stops_cleanly_within_ten_seconds(machine: Container) -> None:
    started = time.monotonic()

    machine.run("systemctl", "stop", "bootd")

    assert time.monotonic() - started < 10
    assert machine.property("Result") == "success"
    assert machine.property("ExecMainStatus") == "0"
    assert machine.run("ls", "/run").stdout.split().count("bootd") == 0


def test_a_broken_file_at_the_start_is_told_once_and_not_tried_again(machine: Container) -> None:
    machine.run("systemctl", "stop", "bootd")
    machine.write("/etc/bootd/nodes.yaml", NODES.replace("34:57", "zz"))

    done = machine.run("systemctl", "start", "bootd", check=False)

    assert done.returncode != 0
    assert machine.property("ActiveState") == "failed"
    assert machine.property("ExecMainStatus") == "2"
    journal = machine.journal("-u", "bootd", "-n", "10")
    assert sum("nodes.yaml:3:" in line for line in journal) == 1


def test_the_sandbox_is_rated_two_or_better(machine: Container) -> None:
    done = machine.run("systemd-analyze", "security", "--no-pager", "bootd")

    rating = re.search(r"exposure level for bootd.service: ([0-9.]+)", done.stdout)
    assert rating is not None
    assert float(rating[1]) <= 2.0


def test_the_unit_has_nothing_that_systemd_complains_of(machine: Container) -> None:
    done = machine.run("systemd-analyze", "verify", "/etc/systemd/system/bootd.service")

    assert done.stderr.strip() == ""


def test_members_of_the_group_may_ask_and_others_are_told_why_not(machine: Container) -> None:
    machine.run("useradd", "--groups", "bootd", "operator-1")
    machine.run("useradd", "stranger-1")

    member = machine.run("setpriv", "--reuid=operator-1", "--regid=operator-1", "--init-groups",
                         "bootd", "status")  # fmt: skip
    stranger = machine.run("setpriv", "--reuid=stranger-1", "--regid=stranger-1", "--init-groups",
                           "bootd", "status", check=False)  # fmt: skip

    assert "n001" in member.stdout
    assert stranger.returncode != 0
    assert "ermission denied" in stranger.stderr


def test_an_upgrade_keeps_edited_files_and_renews_the_others() -> None:
    with Container() as machine:
        machine.install_bootd()
        example = machine.read("/etc/bootd/nodes.yaml")
        machine.write("/etc/bootd/bootd.yaml", SETTINGS)
        machine.write("/opt/bootd/share/conf/nodes.yaml", "# an older example\n")
        machine.write("/etc/bootd/nodes.yaml", "# an older example\n")
        machine.write("/opt/bootd/share/conf/bootd.yaml", "# an older example\n")

        said = machine.install_bootd()

        assert machine.read("/etc/bootd/nodes.yaml") == example
        assert machine.read("/etc/bootd/bootd.yaml") == SETTINGS
        assert "bootd.yaml.new" in said
        assert machine.run("stat", "-c", "%U:%G %a", "/etc/bootd/nodes.yaml").stdout.strip() == (
            "root:bootd 640"
        )

        said = machine.install_bootd()

        assert "bootd.yaml.new" not in said  # told once

        machine.run("systemctl", "start", "bootd")
        machine.run("make", "-C", "/src", "uninstall")

        for gone in (
            "/opt/bootd",
            "/usr/local/bin/bootd",
            "/etc/systemd/system/bootd.service",
            "/run/bootd",
        ):
            assert machine.run("test", "-e", gone, check=False).returncode == 1, gone
        assert machine.run("pgrep", "-x", "bootd", check=False).returncode == 1
        assert machine.read("/etc/bootd/bootd.yaml") == SETTINGS
        machine.run("test", "-d", "/var/lib/bootd/keys")

        machine.run("sh", "/src/systemd/uninstall.sh", "--purge")

        assert machine.run("test", "-e", "/etc/bootd", check=False).returncode == 1
        assert machine.run("test", "-e", "/var/lib/bootd", check=False).returncode == 1
        assert machine.run("id", "bootd", check=False).returncode == 1


def test_an_install_by_someone_else_than_root_is_a_sentence(installed: Container) -> None:
    with pytest.raises(ContainerError, match="run it as root"):
        installed.run("setpriv", "--reuid=nobody", "--", "sh", "/src/systemd/install.sh")
