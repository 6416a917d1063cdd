"""Warewulf 4's nodes.conf in bootd's words. Pure: plain values in, plain values out, and a list of
what has no counterpart (`Report`).

Its merge rules are bootd's, so profiles stay profiles. What differs: bootd writes an address with
its prefix length, where Warewulf has address and netmask apart, often in different profiles.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, ip_interface
from typing import Any, Final

from bootd.model import parse_mac

Map = Mapping[str, Any]

OVERLAYS: Final[Mapping[str, str | None]] = {
    "NetworkManager": "NetworkManager",
    "chrony": "chrony",
    "debian.interfaces": "ifupdown",
    "debug": "debug",
    "fstab": "fstab",
    "host": None,
    "hostname": "base",
    "hosts": "hosts",
    "ifcfg": None,
    "ifupdown": "ifupdown",
    "ignition": None,
    "issue": "base",
    "localtime": "localtime",
    "mig": None,
    "mkfs": None,
    "mkswap": None,
    "netplan": "netplan",
    "resolv": "resolv",
    "sfdisk": None,
    "ssh.authorized_keys": "ssh",
    "ssh.host_keys": "ssh",
    "syncuser": None,
    "systemd.mount": "systemd-mounts",
    "systemd.netname": "netname",
    "systemd.networkd": "networkd",
    "systemd.swap": None,
    "udev.netname": "netname",
    "wicked": None,
    "wwclient": "agent",
    "wwinit": "base",
}
"""Warewulf's own overlays, and the distribution overlay of bootd's that does the same work."""

_UNSET: Final = frozenset({"UNDEF", "UNSET", "UNKNOWN"})
_KEPT: Final = frozenset(
    {"profiles", "comment", "kernel", "tags", "resources", "asset key", "cluster name"}
    | {"image name", "container name", "runtime overlay", "system overlay", "network devices"}
    | {"primary network", "discoverable", "ipmi", "disks", "filesystems", "ipxe template"}
)
_DEVICE: Final = frozenset(
    {"type", "device", "hwaddr", "ipaddr", "netmask", "gateway", "ipaddr6", "prefixlen6"}
    | {"gateway6", "mtu", "tags", "onboot", "primary"}
)
_WITHOUT: Final[Mapping[str, str]] = {
    "init": "bootd runs the image's own /sbin/init; write init=PATH into kernel.args",
    "root": "what `method` says: initramfs is the image in RAM, squashfs needs a third of that",
    "ipxe template": "write templates/NAME.ipxe.j2 and name it with `template`",
}
_DEFAULTS: Final[Mapping[str, str]] = {"init": "/sbin/init", "root": "initramfs"}
"""What needs no word, since it is so here as well."""


@dataclass
class Report:
    """What could not be taken over: where it stood, and what to do instead; each once."""

    lines: dict[tuple[str, str], None] = field(default_factory=dict)

    def add(self, where: str, what: str) -> None:
        """One more."""
        self.lines[where, what] = None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.lines)


@dataclass
class Cluster:
    """What a whole nodes.conf and warewulf.conf say. `own_overlays` are the site's, by the name
    that they have here; `network` is where addresses without a netmask belong."""

    profiles: Map
    nodes: Map
    own_overlays: Mapping[str, str] = field(default_factory=dict)
    network: IPv4Network | None = None
    report: Report = field(default_factory=Report)

    def convert(self) -> dict[str, dict[str, Any]]:
        """The content of nodes.yaml."""
        return {
            "profiles": {n: self._entry(f"profile {n}", e) for n, e in self.profiles.items()},
            "nodes": {n: self._node(n, e) for n, e in self.nodes.items()},
        }

    def _node(self, name: str, entry: Any) -> dict[str, Any]:
        made = self._entry(f"node {name}", entry)
        made.setdefault("profiles", [])  # Warewulf gives no profile to who names none
        if isinstance(entry, Mapping) and _true(entry.get("discoverable")):
            self.report.add(
                f"node {name}", "discoverable: `bootd claim MAC NODE` gives it its machine"
            )
        return made

    def _entry(self, where: str, entry: Any) -> dict[str, Any]:
        """One node or profile."""
        if entry is None:
            return {}
        if not isinstance(entry, Mapping):
            self.report.add(where, "is no map; left out")
            return {}
        entry = {k: v for k, v in entry.items() if v not in (None, "") and str(v) not in _UNSET}
        for key in sorted(entry.keys() - _KEPT):
            if entry[key] == _DEFAULTS.get(key):
                continue
            self.report.add(f"{where}: {key}", _WITHOUT.get(key, "has no counterpart; left out"))
        made: dict[str, Any] = {
            "comment": entry.get("comment"),
            "profiles": self._profiles(where, entry.get("profiles")),
            "image": entry.get("image name", entry.get("container name")),
            "kernel": self._kernel(where, entry.get("kernel")),
            "overlays": {
                kind: self._overlays(where, _texts(entry.get(f"{kind} overlay")))
                for kind in ("system", "runtime")
            },
            "network": self._network(where, entry),
            "asset_key": entry.get("asset key"),
            "tags": self._tags(where, entry),
            "resources": self._resources(where, entry),
        }
        template = entry.get("ipxe template", "default")
        if template != "default":
            self.report.add(f"{where}: ipxe template {template}", _WITHOUT["ipxe template"])
        return _without_empty(made)

    def _profiles(self, where: str, names: Any) -> list[str]:
        found = _texts(names)
        for name in found:
            if name.removeprefix("~") not in self.profiles:
                self.report.add(where, f"profile {name} does not exist; left out")
        return [name for name in found if name.removeprefix("~") in self.profiles]

    def _kernel(self, where: str, kernel: Any) -> dict[str, Any]:
        if not isinstance(kernel, Mapping):
            return {}
        written = arguments = kernel.get("args")
        if isinstance(written, str):  # as before Warewulf 4.6
            try:
                arguments = shlex.split(written)
            except ValueError:
                self.report.add(f"{where}: kernel args", "an open quote: look at them")
                arguments = written.split()
        version = kernel.get("version", kernel.get("override"))
        if version and "/" in str(version):
            self.report.add(f"{where}: kernel version {version}", "a path; bootd takes a version")
            version = None
        return {"version": version, "args": _texts(arguments)}

    def _overlays(self, where: str, names: Iterable[str]) -> list[str]:
        found: list[str] = []
        for name in names:
            minus, plain = ("~", name[1:]) if name.startswith("~") else ("", name)
            ours = self.own_overlays.get(plain) or OVERLAYS.get(plain)
            if ours is None:
                self.report.add(f"{where}: overlay {plain}", _no_overlay(plain))
            elif minus + ours not in found:
                found.append(minus + ours)
        return found

    def _tags(self, where: str, entry: Map) -> dict[str, str]:
        tags = entry.get("tags")
        found = {str(k): str(v) for k, v in tags.items()} if isinstance(tags, Mapping) else {}
        if "cluster name" in entry:
            found.setdefault("cluster", str(entry["cluster name"]))
        for name in ("IPXEMenuEntry", "GrubMenuEntry", "PasswordlessRoot"):
            if name in found:
                self.report.add(f"{where}: tag {name}", "kept as a tag, but means nothing to bootd")
        return found

    def _resources(self, where: str, entry: Map) -> dict[str, Any]:
        found = dict(entry["resources"]) if isinstance(entry.get("resources"), Mapping) else {}
        for key, what in (
            ("ipmi", "bootd manages no BMCs; kept under `resources` for your own templates"),
            ("disks", "bootd partitions no disks; kept under `resources`"),
            ("filesystems", "bootd makes no file systems; kept under `resources`"),
        ):
            if entry.get(key):
                self.report.add(f"{where}: {key}", what)
                found.setdefault(key, entry[key])
        return found

    # ---- network --------------------------------------------------------------------------------

    def _network(self, where: str, entry: Map) -> dict[str, Any]:
        devices = entry.get("network devices")
        if not isinstance(devices, Mapping):
            return {}
        primary = str(entry.get("primary network", ""))
        names = sorted(devices, key=lambda name: (name != primary, name))
        return {
            name: self._device(f"{where}: network {name}", entry, name, devices[name])
            for name in names
            if isinstance(devices[name], Mapping)
        }

    def _device(self, where: str, entry: Map, name: str, device: Map) -> dict[str, Any]:
        for key in sorted(device.keys() - _DEVICE):
            self.report.add(f"{where}: {key}", "has no counterpart; left out")
        raw = device.get("tags")
        tags = {k: str(v) for k, v in raw.items()} if isinstance(raw, Mapping) else {}
        dns = [tags.pop(k) for k in sorted(tags) if k.startswith("DNS") and k != "DNSSEARCH"]
        search = tags.pop("DNSSEARCH", "").replace(",", " ").split()
        options: dict[str, Any] = {"tags": tags}
        if "onboot" in device:
            options["onboot"] = _true(device["onboot"])
        return _without_empty(
            {
                "device": device.get("device"),
                "type": device.get("type"),
                "mac": self._mac(where, device.get("hwaddr")),
                "ip": self._address(where, entry, name, device.get("ipaddr")),
                "ip6": self._address6(where, entry, name, device.get("ipaddr6")),
                "gateway": device.get("gateway"),
                "gateway6": device.get("gateway6"),
                "mtu": device.get("mtu"),
                "dns": dns,
                "search": search,
                "options": _without_empty(options),
            }
        )

    def _mac(self, where: str, text: Any) -> str | None:
        if text in (None, "") or str(text) in _UNSET:
            return None
        try:
            return str(parse_mac(str(text)))
        except ValueError as error:
            self.report.add(where, f"hwaddr: {error}; left out")
            return None

    def _address(self, where: str, entry: Map, name: str, text: Any) -> str | None:
        if text in (None, "") or str(text) in _UNSET:
            return None
        mask = self._inherited(entry, name, "netmask")
        if mask is None and "/" not in str(text):
            if self.network is None:
                self.report.add(where, "ipaddr without a netmask: taken as a single address (/32)")
                return str(text)
            mask = self.network.prefixlen
        return self._interface(where, text, mask)

    def _address6(self, where: str, entry: Map, name: str, text: Any) -> str | None:
        if text in (None, "") or str(text) in _UNSET:
            return None
        return self._interface(where, text, self._inherited(entry, name, "prefixlen6") or 64)

    def _interface(self, where: str, text: Any, mask: Any) -> str | None:
        try:
            return str(ip_interface(str(text) if "/" in str(text) else f"{text}/{mask}"))
        except ValueError as error:
            self.report.add(where, f"{error}; left out")
            return None

    def _inherited(self, entry: Any, device: str, key: str, depth: int = 0) -> Any:
        """What a device's key is, here or in the profiles, the last of which wins."""
        if not isinstance(entry, Mapping) or depth > len(self.profiles):
            return None
        devices = entry.get("network devices")
        own = devices.get(device) if isinstance(devices, Mapping) else None
        value = own.get(key) if isinstance(own, Mapping) else None
        if value not in (None, "") and str(value) not in _UNSET:
            return value
        for name in reversed(_texts(entry.get("profiles"))):
            found = self._inherited(self.profiles.get(name), device, key, depth + 1)
            if found is not None:
                return found
        return None


def _no_overlay(name: str) -> str:
    if name == "syncuser":
        return "name users and groups in resources.users and resources.groups, overlay `users`"
    if name in OVERLAYS:
        return "bootd has nothing like it; left out"
    return "was not among the overlays that were given; left out"


def _texts(value: Any) -> list[str]:
    """A list of texts, or one text with commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [str(item) for item in value if item] if isinstance(value, list) else []


def _true(value: Any) -> bool:
    return str(value).lower() in ("true", "yes", "1")


def _without_empty(made: dict[str, Any]) -> dict[str, Any]:
    found = {k: _without_empty(v) if isinstance(v, dict) else v for k, v in made.items()}
    return {k: v for k, v in found.items() if v is not None and v not in ("", [], {})}
