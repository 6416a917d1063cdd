"""Broken configuration files, and the exact lines that `bootd check` must answer with.

Each case: bootd.yaml (None: it is fine), nodes.yaml, and every fault in order. An expected line
that ends in ``…`` is only the beginning of the fault.
"""

# ruff: noqa: E501 # whole lines, as they are printed, can be searched for

from __future__ import annotations

from typing import NamedTuple

FINE = "nodes: {}\n"


class Broken(NamedTuple):
    """One case, by a name for the test's output."""

    name: str
    nodes: str
    faults: list[str]
    bootd: str | None = None


def of_node(name: str, entry: str, *faults: str) -> Broken:
    """A fault in the one node of nodes.yaml, which stands in line 2 and begins in column 9."""
    return Broken(name, f"nodes:\n  n001: {entry}\n", list(faults))


def of_bootd(name: str, text: str, *faults: str) -> Broken:
    """A fault in bootd.yaml."""
    return Broken(name, FINE, list(faults), bootd=text)


BROKEN = [
    # --- YAML ---
    Broken("empty", "", ["nodes.yaml:1:1: the file is empty, as after a write that failed…"]),
    Broken("blank", " \n\n", ["nodes.yaml:1:1: the file is empty, as after a write that failed…"]),
    Broken("cut in a list", "nodes:\n  n1: {profiles: [a,\n", ["nodes.yaml:3:1: not valid YAML:…"]),
    Broken("cut in a word", "nodes:\n  n1: {}\n  n2", ["nodes.yaml:4:1: not valid YAML: could…"]),
    Broken("a tab", "nodes:\n\tn1: {}\n", ["nodes.yaml:2:1: a tab where YAML takes only spaces"]),
    Broken("nul bytes", "nodes: {}\n\0\0\0\0", ["nodes.yaml:2:1: the character U+0000 is not…"]),
    Broken(
        "a name twice",
        "nodes:\n  n1: {}\n  n1: {}\n",
        ["nodes.yaml:3:3: nodes.n1: 'n1' is written twice (first in line 2)"],
    ),
    Broken(
        "an alias",
        "nodes:\n  n1: &a {}\n  n2: *a\n",
        [
            "nodes.yaml:2:7: nodes.n1: anchors (&a) are not read: use a profile, or quote it if it is text",
            "nodes.yaml:3:7: nodes.n2: aliases (*a) are not read: use a profile, or quote it if it is text",
        ],
    ),
    Broken(
        "a python object",
        "nodes: {n1: {comment: !!python/object/apply:os.system 'true'}}\n",
        [
            "nodes.yaml:1:23: nodes.n1.comment: tags ('tag:yaml.org,2002:python/object/apply:os.system') are not read"
        ],
    ),
    Broken("two documents", "nodes: {}\n---\nnodes: {}\n", ["nodes.yaml:2:1: a second document…"]),
    Broken("a list", "- nodes\n", ["nodes.yaml:1:1: a list where a map of keys is expected"]),
    Broken("a word", "nodes\n", ["nodes.yaml:1:1: 'nodes' where a map of keys is expected"]),
    # --- keys and kinds ---
    Broken(
        "an unknown section",
        "node: {}\n",
        ["nodes.yaml:1:1: node: unknown key 'node'; did you mean 'nodes'?"],
    ),
    of_node(
        "an unknown key",
        "{profils: [a]}",
        "nodes.yaml:2:10: nodes.n001.profils: unknown key 'profils'; did you mean 'profiles'?",
    ),
    of_node(
        "an unknown key far from all",
        "{kernel: {xyzzy: 1}}",
        "nodes.yaml:2:19: nodes.n001.kernel.xyzzy: unknown key 'xyzzy'; known here: version, args",
    ),
    of_node(
        "an unknown key of a device",
        "{network: {boot: {ipp: 10.0.0.1/24}}}",
        "nodes.yaml:2:27: nodes.n001.network.boot.ipp: unknown key 'ipp'; did you mean 'ip'?",
    ),
    Broken(
        "nodes as a list",
        "nodes: [n1, n2]\n",
        ["nodes.yaml:1:8: nodes: a list where a map of keys is expected"],
    ),
    of_node("a node that is text", "yes", "nodes.yaml:2:9: nodes.n001: 'yes' where a map of…"),
    of_node(
        "text for a list",
        "{profiles: default}",
        "nodes.yaml:2:20: nodes.n001.profiles: 'default' where a list is expected, like [a, b]",
    ),
    of_node(
        "a map for text",
        "{image: {name: a}}",
        "nodes.yaml:2:17: nodes.n001.image: a map where text is expected",
    ),
    of_node(
        "nothing in a list",
        "{kernel: {args: [quiet, ~]}}",
        "nodes.yaml:2:33: nodes.n001.kernel.args[1]: nothing where text is expected",
    ),
    of_node(
        "a list without end",
        "{kernel: {args: [" + "a, " * 1025 + "]}}",
        "nodes.yaml:2:18: nodes.n001.kernel: args has 1025 entries; at most 1024 are read",
    ),
    of_node(
        "a file of another kind",
        "{" + ", ".join(f"k{i}: 1" for i in range(21)) + "}",
        "nodes.yaml:2:9: nodes.n001: 21 unknown keys, as in 'k0', 'k1', 'k2'",
    ),
    Broken(
        "mac in a profile",
        "profiles: {default: {mac: 52:54:00:00:00:01}}\n",
        ["nodes.yaml:1:22: profiles.default.mac: 'mac' is of one node: a profile cannot have it"],
    ),
    # --- values ---
    of_node("a MAC", "{mac: zz}", "nodes.yaml:2:15: nodes.n001.mac: 'zz' is not a MAC address"),
    of_node(
        "a MAC of zeros",
        "{mac: 00:00:00:00:00:00}",
        "nodes.yaml:2:15: nodes.n001.mac: '00:00:00:00:00:00' is not a MAC address: all zero",
    ),
    of_node(
        "a multicast MAC",
        "{mac: 01:00:5e:00:00:01}",
        "nodes.yaml:2:15: nodes.n001.mac: '01:00:5e:00:00:01' is a group address, not a network card's",
    ),
    of_node(
        "an IP",
        "{ip: 10.0.0.300/24}",
        "nodes.yaml:2:14: nodes.n001.ip: '10.0.0.300/24' is not an IPv4 address with prefix length, like 10.0.0.11/24",
    ),
    of_node(
        "an IPv6 address as ip",
        '{ip: "2001:db8::1/64"}',
        "nodes.yaml:2:14: nodes.n001.ip: '2001:db8::1/64' is an IPv6 address: write it as ip6",
    ),
    of_node(
        "a network for an IP",
        "{ip: 10.0.0.0/24}",
        "nodes.yaml:2:14: nodes.n001.ip: '10.0.0.0/24' is the address of the network itself, not of a host in it",
    ),
    of_node(
        "loopback as IP",
        "{ip: 127.0.0.1/8}",
        "nodes.yaml:2:14: nodes.n001.ip: '127.0.0.1/8' is no address that a node can have",
    ),
    of_node(
        "a gateway with prefix",
        "{network: {boot: {gateway: 10.0.0.1/24}}}",
        "nodes.yaml:2:36: nodes.n001.network.boot.gateway: '10.0.0.1/24' is not an IPv4 address, like 10.0.0.1",
    ),
    of_node(
        "an MTU",
        "{network: {boot: {mtu: 1}}}",
        "nodes.yaml:2:32: nodes.n001.network.boot.mtu: 1 is not an MTU (68 to 65535)",
    ),
    of_node(
        "a UUID",
        "{uuid: 1234}",
        "nodes.yaml:2:16: nodes.n001.uuid: 1234 is not a UUID",
    ),
    of_node(
        "a choice",
        "{boot: locl}",
        "nodes.yaml:2:16: nodes.n001.boot: 'locl' is not one of network, local, once; did you mean 'local'?",
    ),
    of_node(
        "a line break in a kernel argument",
        '{kernel: {args: ["quiet\\nroot=/dev/sda"]}}',
        "nodes.yaml:2:26: nodes.n001.kernel.args[0]: 'quiet\\nroot=/dev/sda' has control characters or line breaks",
    ),
    of_node(
        "an escape sequence in a tag",
        '{tags: {x: "\\e[31m"}}',
        "nodes.yaml:2:20: nodes.n001.tags.x: '\\x1b[31m' has control characters or line breaks",
    ),
    of_node(
        "a line separator in a kernel argument",
        '{kernel: {args: ["a\\Lb"]}}',
        "nodes.yaml:2:26: nodes.n001.kernel.args[0]: 'a\\u2028b' has control characters or line breaks",
    ),
    of_node(
        "a loader outside",
        "{loader: ../../etc/shadow}",
        "nodes.yaml:2:18: nodes.n001.loader: '../../etc/shadow' is not a boot loader:…",
    ),
    of_node(
        "an image with a path",
        "{image: ../x}",
        "nodes.yaml:2:17: nodes.n001.image: '../x' is not a name: letters, digits and . _ + - after…",
    ),
    of_node(
        "a long value",
        "{comment: " + "x" * 4097 + "}",
        "nodes.yaml:2:19: nodes.n001.comment: the text is 4097 characters long; at most 4096 are read",
    ),
    Broken(
        "a node's name",
        "nodes:\n  n 1: {}\n",
        [
            "nodes.yaml:2:3: nodes.n 1: 'n 1' is not a node name: letters, digits, - and . after a letter or digit; a set is written n[001-128]"
        ],
    ),
    Broken(
        "a set without end",
        'nodes:\n  "n[1-": {}\n',
        ["nodes.yaml:2:3: nodes.n[1-: 'n[1-' is not a set of nodes: missing bracket:…"],
    ),
    # --- between entries ---
    Broken(
        "a MAC of two nodes",
        "nodes:\n  n1: {mac: 52:54:00:00:00:01}\n  n2: {network: {a: {mac: 52-54-00-00-00-01}}}\n",
        [
            "nodes.yaml:3:27: nodes.n2.network.a.mac: 52:54:00:00:00:01 is also mac of n1 (nodes.yaml:2:13)"
        ],
    ),
    Broken(
        "a MAC twice in one node",
        "nodes:\n  n1: {network: {a: {mac: 5254.0000.0001}, b: {mac: 5254.0000.0001}}}\n",
        [
            "nodes.yaml:2:53: nodes.n1.network.b.mac: 52:54:00:00:00:01 is also network.a.mac of n1 (nodes.yaml:2:27)"
        ],
    ),
    Broken(
        "an IP of two nodes, with other prefix lengths",
        "nodes:\n  n1: {ip: 10.0.0.1/24}\n  n2: {ip: 10.0.0.1/16}\n",
        ["nodes.yaml:3:12: nodes.n2.ip: 10.0.0.1 is also ip of n1 (nodes.yaml:2:12)"],
    ),
    Broken(
        "an IP that a profile gives to all",
        "profiles: {default: {network: {boot: {ip: 10.0.0.1/24}}}}\nnodes: {n1: {}, n2: {}}\n",
        [
            "nodes.yaml:1:43: nodes.n2.network.boot.ip: 10.0.0.1 is also network.boot.ip of n1 (nodes.yaml:1:43)"
        ],
    ),
    Broken(
        "a profile that is not there",
        "profiles: {default: {}}\nnodes:\n  n1: {profiles: [defualt]}\n",
        [
            "nodes.yaml:3:19: nodes.n1.profiles[0]: there is no profile 'defualt'; did you mean 'default'?"
        ],
    ),
    Broken(
        "an image, an overlay and a template that are not there",
        "profiles:\n  default:\n    image: debian-13\n    overlays: {system: [bse]}\n"
        '    template: defalt\nnodes: {"n[1-3]": {}}\n',
        [
            "nodes.yaml:3:12: nodes.n1.image: there is no image 'debian-13'; see bootd image list, bootd image import (and 3 more nodes)",
            "nodes.yaml:4:25: nodes.n1.overlays.system[0]: there is no overlay 'bse'; did you mean 'base'? (and 3 more nodes)",
            "nodes.yaml:5:15: nodes.n1.template: there is no template 'defalt.ipxe.j2'; did you mean 'default'? (and 3 more nodes)",
        ],
    ),
    Broken(
        "many faults at once",
        "profiles:\n  a: {image: [x]}\nnodes:\n  n1: {mac: zz, boot: disk}\n  n2: {profiles: [b]}\nx: 1\n",
        [
            "nodes.yaml:2:14: profiles.a.image: a list where text is expected",
            "nodes.yaml:4:13: nodes.n1.mac: 'zz' is not a MAC address",
            "nodes.yaml:4:23: nodes.n1.boot: 'disk' is not one of network, local, once",
            "nodes.yaml:5:19: nodes.n2.profiles[0]: there is no profile 'b'",
            "nodes.yaml:6:1: x: unknown key 'x'; known here: profiles, nodes",
        ],
    ),
    # --- bootd.yaml ---
    of_bootd("empty", "", "bootd.yaml:1:1: the file is empty, as after a write that failed…"),
    of_bootd(
        "an unknown key",
        "dhpc: {}\n",
        "bootd.yaml:1:1: dhpc: unknown key 'dhpc'; did you mean 'dhcp'?",
    ),
    of_bootd(
        "a mode",
        "dhcp: {mode: proxi}\n",
        "bootd.yaml:1:14: dhcp.mode: 'proxi' is not one of proxy, reservation, off; did you mean 'proxy'?",
    ),
    of_bootd(
        "ports",
        "dhcp: {port: 0}\ntftp: {port: 65536}\nhttp: {port: http}\n",
        "bootd.yaml:1:14: dhcp.port: 0 is not a port (1 to 65535)",
        "bootd.yaml:2:14: tftp.port: 65536 is not a port (1 to 65535)",
        "bootd.yaml:3:14: http.port: 'http' is not a port (1 to 65535)",
    ),
    of_bootd(
        "one port for two services",
        "dhcp: {port: 69}\nhttp: {port: 80, tls: {port: 80, certificate: a, key: b}}\n",
        "bootd.yaml:1:1: tftp.port: port 69 is also dhcp.port",
        "bootd.yaml:2:30: http.tls.port: port 80 is also http.port",
        "bootd.yaml:2:47: http.tls.certificate: …",
    ),
    of_bootd(
        "yes for true",
        "tftp: {enabled: yes}\n",
        "bootd.yaml:1:17: tftp.enabled: 'yes' is not true or false",
    ),
    of_bootd(
        "a block size",
        "tftp: {max_blksize: 7, max_windowsize: 65}\n",
        "bootd.yaml:1:21: tftp.max_blksize: 7 is not a block size (8 to 65464), nor auto",
        "bootd.yaml:1:40: tftp.max_windowsize: 65 is not a window size (1 to 64)",
    ),
    of_bootd(
        "a time span",
        "security: {boot_window: 10 minutes}\n",
        "bootd.yaml:1:25: security.boot_window: '10 minutes' is not a time span, like 90s, 10m or 1h30m",
    ),
    of_bootd(
        "a time span out of range",
        "security: {boot_window: 5s}\n",
        "bootd.yaml:1:25: security.boot_window: '5s' is out of range (10s to 86400s)",
    ),
    of_bootd(
        "sizes",
        "images: {max_size: much, keep: 0}\n",
        "bootd.yaml:1:20: images.max_size: 'much' is not a size, like 500M or 64G",
        "bootd.yaml:1:32: images.keep: 0 is not a number of generations (1 to 1000)",
    ),
    of_bootd(
        "a size out of range",
        "images: {max_size: 1K}\n",
        "bootd.yaml:1:20: images.max_size: '1K' is out of range (1M to 1024T)",
    ),
    of_bootd(
        "networks",
        "dhcp: {relays: [10.0.0.1/24]}\nhttp: {admin_networks: [localhost]}\n",
        "bootd.yaml:1:17: dhcp.relays[0]: '10.0.0.1/24' has host bits set: the network is 10.0.0.0/24",
        "bootd.yaml:2:25: http.admin_networks[0]: 'localhost' is not an address or a network",
    ),
    of_bootd(
        "an interface",
        "interfaces: [averyveryverylongname]\n",
        "bootd.yaml:1:14: interfaces[0]: 'averyveryverylongname' is not an interface name (at most 15 characters, no space)",
    ),
    of_bootd(
        "TLS without a key",
        "http: {tls: {certificate: c.pem}}\n",
        "bootd.yaml:1:13: http.tls.key: is missing",
    ),
    of_bootd(
        "the default profile for strangers, which is not there",
        "dhcp: {unknown: default}\n",
        "bootd.yaml:1:17: dhcp.unknown: there is no profile 'default' to boot them",
    ),
    of_bootd(
        "nodes files that are not there",
        "nodes: [nodes.yaml, other.yaml]\n",
        "bootd.yaml:1:21: nodes[1]: other.yaml cannot be read: no such file or directory",
    ),
]
