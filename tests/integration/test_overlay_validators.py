"""What the distribution's overlays make, held against the programs that will read it.

The programs run in a Debian of their own, on a layer of memory, with no network and no devices but
their own: never with this machine's configuration.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bootd.model import Node
from bootd.overlay.cpio import Entry, archive
from bootd.overlay.hostkeys import HostKeys
from tests.container.nspawn import root_folder
from tests.overlay_nodes import (
    BARE,
    BONDED,
    DUAL,
    FABRIC,
    NETWORKS,
    PLAIN,
    RICH,
    device,
    node,
    rendered,
)

pytestmark = pytest.mark.integration

PACKAGES = (
    *("systemd", "network-manager", "netplan.io", "ifupdown", "ifenslave", "bridge-utils"),
    *("openssh-server", "sudo", "chrony", "iproute2", "tzdata", "cpio"),
)

IN_ROOT = """
set -eu
root=$1; shift
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir="$root",upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
cd /mnt/root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs tmpfs run
mount --rbind /dev dev
exec chroot /mnt/root sh -euc 'cpio -idmu --quiet; exec </dev/null; exec "$@"' sh "$@"
"""


@dataclass(frozen=True)
class Done:
    status: int
    output: str


Run = Callable[..., Done]


@pytest.fixture(scope="module")
def run() -> Run:
    """Unpacks an archive over a fresh Debian, as the kernel would, and runs a command there; its
    namespaces are gone with it."""
    root = root_folder(PACKAGES)

    def run(entries: Iterable[Entry], *command: str) -> Done:
        done = subprocess.run(
            ["unshare", "--mount", "--net", "sh", "-c", IN_ROOT, "sh", str(root), *command],
            input=archive(entries),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
        return Done(done.returncode, done.stdout.decode())

    return run


def sh(run: Run, given: Node, overlay: str, script: str) -> Done:
    return run(rendered(given, overlay).values(), "sh", "-euc", script)


# networkd reads its files when it starts, complains with file and line, and goes on. It has told
# all when it has set up the loopback device.
NETWORKD = """
mkdir /run/systemd
SYSTEMD_LOG_TARGET=console SYSTEMD_LOG_LEVEL=debug /lib/systemd/systemd-networkd >/run/log 2>&1 &
while ! grep -q 'lo: Saved new link' /run/log; do kill -0 $!; sleep 0.05; done
kill $!
cat /run/log
"""


def complaints(log: str) -> list[str]:
    return [line for line in log.splitlines() if re.search(r"10-bootd-[^ ]*:\d*:? ", line)]


@pytest.mark.parametrize("given", NETWORKS, ids=lambda given: given.name)
def test_networkd_reads_every_setting(run: Run, given: Node) -> None:
    done = sh(run, given, "networkd", NETWORKD)

    assert done.status == 0, done.output
    assert complaints(done.output) == []


def test_networkd_would_tell_a_setting_that_it_does_not_know(run: Run) -> None:
    plant = "sed -i 's/^DHCP=/DCHP=/' /etc/systemd/network/10-bootd-eth0.network;" + NETWORKD

    (line,) = complaints(sh(run, PLAIN, "networkd", plant).output)

    assert "Unknown key 'DCHP'" in line


def test_networkd_takes_the_bond_and_its_vlan(run: Run) -> None:
    done = sh(run, BONDED, "networkd", NETWORKD)

    assert 'bond0: loaded "bond"' in done.output
    assert 'bond0.100: loaded "vlan"' in done.output


def test_udev_reads_the_rule_for_infiniband(run: Run) -> None:
    done = sh(run, FABRIC, "networkd", "udevadm test --action=add /sys/class/net/lo 2>&1")

    assert "Reading rules file: /etc/udev/rules.d/90-bootd-ib0.rules" in done.output, done.output
    assert not [line for line in done.output.splitlines() if "90-bootd-ib0.rules:" in line]


@pytest.mark.parametrize("given", [PLAIN, BONDED, FABRIC], ids=lambda given: given.name)
def test_udev_reads_the_names_of_cards(run: Run, given: Node) -> None:
    done = sh(
        run,
        given,
        "netname",
        "SYSTEMD_LOG_LEVEL=debug udevadm test-builtin net_setup_link /sys/class/net/lo 2>&1",
    )

    assert 'file "/etc/systemd/network/10-bootd-' in done.output, done.output
    assert complaints(done.output) == []


def keys(text: str) -> dict[str, set[str]]:
    """Section to keys of a keyfile."""
    found: dict[str, set[str]] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line
        elif "=" in line:
            found.setdefault(section, set()).add(line.partition("=")[0])
    return found


@pytest.mark.parametrize("given", NETWORKS, ids=lambda given: given.name)
def test_networkmanager_reads_every_key(run: Run, given: Node) -> None:
    """nmcli reads a connection, changes one thing and writes it: keys it does not know are lost."""
    entries = rendered(given, "NetworkManager")
    files = [path for path in entries if path.endswith(".nmconnection")]
    assert len(files) >= len(given.network)
    for path in files:
        text = entries[path].content.decode()
        script = f"nmcli --offline connection modify connection.zone probe < '/{path}'"

        done = sh(run, given, "NetworkManager", script)

        assert done.status == 0, f"{done.output}\n{text}"
        written = keys(done.output)
        written["[connection]"].remove("zone")
        lost = {
            section: names - written.get(section, set()) for section, names in keys(text).items()
        }
        assert not any(lost.values()), (lost, text, done.output)


@pytest.mark.parametrize("given", NETWORKS, ids=lambda given: given.name)
def test_netplan_generates_from_every_node(run: Run, given: Node) -> None:
    done = sh(run, given, "netplan", "netplan generate; ls /run/systemd/network")

    assert done.status == 0, done.output
    assert "10-netplan-" in done.output


def test_netplan_would_tell_a_key_that_it_does_not_know(run: Run) -> None:
    plant = "sed -i s/addresses:/adresses:/ /etc/netplan/90-bootd.yaml; netplan generate"

    assert sh(run, PLAIN, "netplan", plant).status != 0


@pytest.mark.parametrize("given", [PLAIN, BONDED, FABRIC, DUAL], ids=lambda given: given.name)
def test_ifupdown_knows_what_to_do_with_every_interface(run: Run, given: Node) -> None:
    done = sh(run, given, "ifupdown", "ifup --no-act --verbose -a 2>&1")

    assert done.status == 0, done.output
    for name in (found.device for found in given.network.values()):
        assert re.search(rf"(dev|addr add .*dev) {re.escape(name)}\b", done.output), done.output
    for found in given.network.values():
        assert found.ip is None or str(found.ip.ip) in done.output


def test_ifupdown_would_tell_a_method_that_it_does_not_know(run: Run) -> None:
    plant = "sed -i 's/inet static/inet statik/' /etc/network/interfaces; ifup --no-act -a"

    assert sh(run, PLAIN, "ifupdown", plant).status != 0


def test_fstab_is_verified_by_findmnt(run: Run) -> None:
    done = sh(run, RICH, "fstab", "mkdir -p '/scratch space'; findmnt --verify 2>&1")

    assert done.status == 0, done.output
    assert "no errors or warnings detected" in done.output


def test_mount_units_are_verified_by_systemd(run: Run) -> None:
    done = sh(
        run,
        RICH,
        "systemd-mounts",
        "cd /etc/systemd/system; systemd-analyze verify ./*.mount ./*.automount 2>&1;"
        "for link in */*mount; do test -e $link && echo $link; done",
    )

    assert done.status == 0, done.output
    assert done.output.split() == [
        "local-fs.target.wants/var-scratch.automount",
        r"remote-fs.target.wants/srv-my\x2ddata.mount",
    ]


def test_the_names_of_mount_units_are_those_that_systemd_gives(run: Run) -> None:
    done = sh(run, RICH, "systemd-mounts", "systemd-escape --path --suffix=mount /srv/my-data")

    assert f"etc/systemd/system/{done.output.strip()}" in rendered(RICH, "systemd-mounts")


def test_users_are_added_with_groups_passwords_homes_and_keys(run: Run) -> None:
    """The service's own commands, as the service would run them."""
    done = sh(
        run,
        RICH,
        "users",
        "unit=/etc/systemd/system/bootd-users.service\n"
        "systemd-analyze verify $unit\n"
        "visudo --check --quiet\n"
        "sed -n s/ExecStart=//p $unit > /run/steps\n"
        "sh -eu /run/steps < /etc/bootd/passwords 2>/run/said || { cat /run/said; exit 1; }\n"
        "id -nG alice; id -gn bob; getent passwd alice bob | cut -d: -f5-\n"
        "getent shadow alice root | cut -d: -f1,2\n"
        "cd /home/alice/.ssh; stat -c '%a %U %n' authorized_keys; cat authorized_keys\n"
        "test ! -e /srv/bob; sudo -l -U bob 2>/dev/null | tail -1",
    )

    assert done.status == 0, done.output
    assert [line.strip() for line in done.output.splitlines()] == [
        "alice adm hpc",
        "hpc",
        'Alice "A" Example, 50%:/home/alice:/bin/bash',
        ":/srv/bob:/bin/sh",
        "alice:$6$salt$hash",
        "root:$6$root$hash",
        "600 alice authorized_keys",
        "ssh-ed25519 AAAA alice@a",
        "ssh-rsa BBBB 100%",
        "(root) NOPASSWD: /usr/bin/dmesg",
    ]


def test_chronyd_takes_both_files(run: Run) -> None:
    done = sh(
        run, RICH, "chrony", "chronyd -p -f /etc/chrony/chrony.conf; chronyd -p -f /etc/chrony.conf"
    )

    assert done.status == 0, done.output
    assert done.output.count("server ntp.example prefer iburst") == 2


def test_the_time_zone_is_what_the_tag_says(run: Run) -> None:
    done = sh(run, PLAIN, "localtime", "date -d 2026-07-01T12:00Z +%Z; cat /etc/timezone")

    assert done.output.split() == ["CEST", "Europe/Berlin"]


def test_sshd_takes_the_host_keys_and_ssh_finds_them(run: Run, tmp_path: Path) -> None:
    entries = rendered(PLAIN, "ssh", secrets=HostKeys(tmp_path))
    script = (
        "rm -f /etc/ssh/unused; mkdir -p /run/sshd; /usr/sbin/sshd -t\n"
        "for kind in ed25519 ecdsa rsa; do\n"
        "  key=/etc/ssh/ssh_host_${kind}_key\n"
        "  ssh-keygen -y -f $key | cut -d' ' -f1,2 > /run/own\n"
        "  cut -d' ' -f1,2 $key.pub | cmp - /run/own\n"
        "done\n"
        "for name in n001 n001-boot 10.0.0.11; do\n"
        "  ssh-keygen -F $name -f /etc/ssh/ssh_known_hosts | tail -1 | cut -d' ' -f3\n"
        "done\n"
        "cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub"
    )

    done = run(entries.values(), "sh", "-euc", script)

    assert done.status == 0, done.output
    assert len(set(done.output.split())) == 1
    assert len(done.output.split()) == 4


def test_a_shell_reads_the_nodes_facts_as_they_are(run: Run) -> None:
    odd = node("odd", device("boot", "eth0", mac=BARE.mac), tags={"x": "y"})
    done = sh(
        run, odd, "base", '. /etc/bootd/node; echo "$NAME|$MAC|$IP|$IMAGE"; cat /etc/hostname'
    )

    assert done.output == f"odd|{BARE.mac}||debian\nodd\n"


def test_systemd_takes_the_machine_id(run: Run) -> None:
    done = sh(run, PLAIN, "base", "systemd-machine-id-setup --print")

    assert done.output.strip() == rendered(PLAIN, "base")["etc/machine-id"].content.decode().strip()
