"""What bootd.yaml and nodes.yaml may say. Pure; `config.validate` holds a file against it.

Written things stop here: `NodeSpec` is one entry of a file, with nothing merged; what was decided
is `bootd.model.Node`. An empty value (``mac:``) counts as not written. To add a key: a field here,
its row in docs/configuration.md, and its way into `bootd.model` (`config.settings` for bootd.yaml,
`config.layers` and `config.merge` for nodes.yaml).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from bootd.config import values
from bootd.model import BootTarget, DhcpMode, Mac, Method, Network, UnknownPolicy


@dataclass(frozen=True, eq=False)
class _Checked:
    """Annotation: a value that one function of `config.values` checks, and what JSON Schema says of
    it to an editor."""

    check: Callable[[object], Any]
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})

    def __get_pydantic_core_schema__(self, _source: Any, _handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, _core: CoreSchema, _handler: Any) -> JsonSchemaValue:
        return dict(self.schema)


MAX_ITEMS: Final = 1024
"""Items of one list, or keys of one map of free names."""
_UNBOUNDED: Final = frozenset(("resources", "options"))
MAX_UNKNOWN: Final = 20
"""Unknown keys of one map that are told one by one."""

_TEXT: Final = {"type": ["string", "integer", "boolean"]}
_MAC: Final = "^[0-9A-Fa-f]{2}([:-]?[0-9A-Fa-f]{2}){5}$|^([0-9A-Fa-f]{4}\\.){2}[0-9A-Fa-f]{4}$"
_SPANS: Final = ["90s", "10m", "1h30m"]


def _whole(low: int, high: int, what: str) -> _Checked:
    schema = {"type": "integer", "minimum": low, "maximum": high}
    return _Checked(values.whole(low, high, what), schema)


def _auto_or(low: int, high: int, what: str) -> _Checked:
    number = _whole(low, high, what)
    return _Checked(
        values.auto_or(number.check), {"anyOf": [{"const": "auto"}, dict(number.schema)]}
    )


def _span(low: int, high: int) -> _Checked:
    return _Checked(values.duration(low, high), {"type": ["string", "integer"], "examples": _SPANS})


def _one_of(*words: str) -> _Checked:
    return _Checked(values.choice(words), {"enum": [*words]})


def _member(kind: type[StrEnum]) -> _Checked:
    return _Checked(values.member(kind), {"enum": [item.value for item in kind]})


Line = Annotated[str, _Checked(values.line, _TEXT)]
Prose = Annotated[str, _Checked(values.prose, _TEXT)]
Name = Annotated[str, _Checked(values.name, _TEXT)]
ImageName = Annotated[str, _Checked(values.image_name, _TEXT)]
RemovableName = Annotated[str, _Checked(values.removable_name, _TEXT)]
Quirk = Annotated[str, _Checked(values.quirk)]
NodeKey = Annotated[str, _Checked(values.node_key)]
KernelArgument = Annotated[str, _Checked(values.kernel_argument, _TEXT)]
Loader = Annotated[str, _Checked(values.loader)]
ServerPath = Annotated[str, _Checked(values.path)]
Interface = Annotated[str, _Checked(values.interface)]
Uuid = Annotated[str, _Checked(values.uuid)]
MacText = Annotated[Mac, _Checked(values.mac, {"type": ["string", "integer"], "pattern": _MAC})]
Ip = Annotated[IPv4Interface, _Checked(values.ip)]
Ip6 = Annotated[IPv6Interface, _Checked(values.ip6)]
Gateway = Annotated[IPv4Address, _Checked(values.gateway)]
Gateway6 = Annotated[IPv6Address, _Checked(values.gateway6)]
Net = Annotated[Network, _Checked(values.network)]
Net4 = Annotated[IPv4Network, _Checked(values.network4)]
Flag = Annotated[bool, _Checked(values.flag, {"type": "boolean"})]
Port = Annotated[int, _whole(1, 65535, "a port")]


class Written(BaseModel):
    """A map of known keys. What is empty was not written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, data: Any) -> Any:
        if data is None:
            return {}
        if not isinstance(data, dict):
            return data
        known = cls.model_fields
        for key, value in data.items():
            if isinstance(value, list | dict) and len(value) > MAX_ITEMS and key not in _UNBOUNDED:
                raise ValueError(
                    f"{key[:32]} has {len(value)} entries; at most {MAX_ITEMS} are read"
                )
        unknown = data.keys() - known.keys()
        if len(unknown) > MAX_UNKNOWN:
            some = ", ".join(repr(key[:32]) for key in list(data)[:3])
            raise ValueError(f"{len(unknown)} unknown keys, as in {some}")
        if None in data.values() or "" in data.values():
            return {k: v for k, v in data.items() if k in unknown or (v is not None and v != "")}
        return data


# ---- nodes.yaml ----------------------------------------------------------------------------------


class KernelSpec(Written):
    """``kernel:`` of a node or profile."""

    version: Line | None = Field(
        None, description="Kernel of the image to boot; default the newest"
    )
    args: tuple[KernelArgument, ...] = Field((), description="Kernel arguments; ~x takes x away")


class OverlaysSpec(Written):
    """``overlays:`` of a node or profile."""

    system: tuple[RemovableName, ...] = Field((), description="Overlays given at boot, in order")
    runtime: tuple[RemovableName, ...] = Field((), description="Overlays refreshed while it runs")


class DeviceSpec(Written):
    """One device under ``network:``."""

    device: Interface | None = Field(None, description="The kernel's name of the interface")
    type: Name | None = Field(None, description="ethernet, infiniband, bond, vlan, ...")
    mac: MacText | None = Field(None, description="MAC address")
    ip: Ip | None = Field(None, description="IPv4 address with prefix length")
    ip6: Ip6 | None = Field(None, description="IPv6 address with prefix length")
    gateway: Gateway | None = Field(None, description="IPv4 router")
    gateway6: Gateway6 | None = Field(None, description="IPv6 router")
    mtu: Annotated[int, _whole(68, 65535, "an MTU")] | None = Field(None, description="Bytes")
    dns: tuple[Line, ...] = Field((), description="DNS servers; ~x takes x away")
    search: tuple[Line, ...] = Field((), description="DNS search domains; ~x takes x away")
    options: dict[str, Any] | None = Field(
        None, description="Anything else for templates: routes, vlan"
    )


class ProfileSpec(Written):
    """One entry under ``profiles:``: what nodes can share."""

    profiles: tuple[RemovableName, ...] = Field((), description="Profiles merged before this one")
    image: ImageName | None = Field(
        None, description="Image to boot; NAME@GENERATION for another than the active generation"
    )
    kernel: KernelSpec | None = Field(None, description="Kernel version and arguments")
    method: Annotated[Method, _member(Method)] | None = Field(
        None, description="How the root file system comes"
    )
    loader: Loader | None = Field(None, description="Boot loader, or a file below state_dir/tftp")
    overlays: OverlaysSpec | None = Field(None, description="Overlays by kind")
    template: Name | None = Field(None, description="Boot script template: NAME.ipxe.j2")
    boot: Annotated[BootTarget, _member(BootTarget)] | None = Field(
        None, description="network, local or once"
    )
    network: dict[Name, DeviceSpec] | None = Field(
        None, description="Network devices by a name of yours"
    )
    asset_key: Line | None = Field(None, description="SMBIOS chassis asset tag that is required")
    security: Annotated[str, _one_of("bootd", "warewulf")] | None = Field(
        None, description="Rules for secrets"
    )
    quirks: tuple[Quirk, ...] = Field((), description="Firmware workarounds, like binl")
    tags: dict[str, Line | None] | None = Field(
        None, description="Free words for templates and inventories"
    )
    resources: dict[str, Any] | None = Field(
        None, description="Free structures for templates: fstab, users"
    )
    comment: Prose | None = Field(None, description="For people; not inherited")


class NodeSpec(ProfileSpec):
    """One entry under ``nodes:``: a node, or a set of them."""

    mac: MacText | None = Field(None, description="MAC address of the primary device")
    ip: Ip | None = Field(
        None, description="IPv4 address of the primary device, with prefix length"
    )
    uuid: Uuid | None = Field(None, description="SMBIOS UUID that is required")
    serial: Line | None = Field(None, description="SMBIOS serial number that is required")


class NodesFile(Written):
    """nodes.yaml, and each file of nodes.d."""

    profiles: dict[Name, ProfileSpec | None] | None = Field(
        None, description="What nodes share, by name"
    )
    nodes: dict[NodeKey, NodeSpec | None] | None = Field(
        None, description="Nodes and node sets, by name"
    )


# ---- bootd.yaml ----------------------------------------------------------------------------------


class DhcpFile(Written):
    """``dhcp:``."""

    mode: Annotated[DhcpMode, _member(DhcpMode)] = Field(
        DhcpMode.PROXY, description="proxy, reservation or off"
    )
    port: Port = Field(67, description="Server port")
    pxe_port: Port = Field(4011, description="Second port of a ProxyDHCP server")
    client_port: Port = Field(68, description="Port that clients listen on")
    unknown: Annotated[UnknownPolicy, _member(UnknownPolicy)] = Field(
        UnknownPolicy.HOLD, description="What MACs without a node get: ignore, hold or default"
    )
    relays: tuple[Net4, ...] = Field((), description="Relay agents that are answered")
    lease_time: Annotated[float, _span(120, 31536000)] = Field(
        86400.0, description="Of reservations"
    )


class TftpFile(Written):
    """``tftp:``."""

    enabled: Flag = Field(True, description="Whether TFTP is served")
    port: Port = Field(69, description="Server port")
    max_transfers: Annotated[int, _whole(1, 65536, "a number of transfers")] = Field(
        4096, description="At once"
    )
    max_per_client: Annotated[int, _whole(1, 1024, "a number of transfers")] = Field(
        8, description="Of one address"
    )
    max_blksize: Annotated[int | None, _auto_or(8, 65464, "a block size")] = Field(
        None, description="Bytes"
    )
    max_windowsize: Annotated[int, _whole(1, 64, "a window size")] = Field(64, description="Blocks")
    single_port: Flag = Field(False, description="All transfers from one port, for firewalls")


class TlsFile(Written):
    """``http.tls:``."""

    port: Port = Field(9874, description="HTTPS port")
    certificate: ServerPath = Field(description="Certificate chain, PEM")
    key: ServerPath = Field(description="Private key, PEM, without a passphrase")
    scripts: Flag = Field(False, description="Whether iPXE gets its script over HTTPS only")


class HttpFile(Written):
    """``http:``."""

    port: Port = Field(9873, description="HTTP port")
    tls: TlsFile | None = Field(None, description="HTTPS; absent: none")
    max_image_transfers: Annotated[int | None, _auto_or(1, 65536, "a number of transfers")] = Field(
        None, description="Large downloads at once"
    )
    admin_networks: tuple[Net, ...] = Field(
        (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")), description="Who may see status"
    )


class SecurityFile(Written):
    """``security:``."""

    boot_window: Annotated[float, _span(10, 86400)] = Field(600.0, description="Time to boot")
    asset_key: Annotated[str, _one_of("optional", "required")] = Field(
        "optional", description="For every node"
    )


class ImagesFile(Written):
    """``images:``."""

    keep: Annotated[int, _whole(1, 1000, "a number of generations")] = Field(
        3, description="Generations of each image that gc keeps"
    )
    max_size: Annotated[
        int, _Checked(values.size, {"type": ["string", "integer"], "examples": ["64G"]})
    ] = Field(64 << 30, description="What a source may unpack to")
    compression: Annotated[str, _one_of("auto", "zstd", "gzip")] = Field(
        "auto", description="Of the archive for method initramfs"
    )


class LogFile(Written):
    """``log:``."""

    level: Annotated[str, _one_of("debug", "info", "warning", "error")] = Field(
        "info", description="Least level"
    )
    format: Annotated[str, _one_of("auto", "journald", "console", "json")] = Field(
        "auto", description="How"
    )


class BootdFile(Written):
    """bootd.yaml."""

    interfaces: tuple[Interface, ...] = Field((), description="Interfaces that are served")
    state_dir: ServerPath = Field("/var/lib/bootd", description="Images, claims, keys")
    run_dir: ServerPath = Field("/run/bootd", description="Control socket")
    nodes: tuple[ServerPath, ...] = Field(("nodes.yaml", "nodes.d/*.yaml"), description="Files")
    overlays: tuple[ServerPath, ...] = Field(("overlays",), description="Site overlays")
    templates: tuple[ServerPath, ...] = Field(("templates",), description="Site templates")
    dhcp: DhcpFile = Field(default_factory=DhcpFile, description="ProxyDHCP")
    tftp: TftpFile = Field(default_factory=TftpFile, description="TFTP")
    http: HttpFile = Field(default_factory=HttpFile, description="HTTP")
    security: SecurityFile = Field(default_factory=SecurityFile, description="Boots and secrets")
    images: ImagesFile = Field(default_factory=ImagesFile, description="Imports and gc")
    log: LogFile = Field(default_factory=LogFile, description="Log")


ENTRIES: Final[dict[tuple[type[Written], str], type[Written]]] = {
    (NodesFile, "profiles"): ProfileSpec,
    (NodesFile, "nodes"): NodeSpec,
    (ProfileSpec, "network"): DeviceSpec,
    (NodeSpec, "network"): DeviceSpec,
}
"""Maps with names of the operator's choice, and what stands under each name."""


def submodel(kind: type[Written], key: str) -> type[Written] | None:
    """The map of known keys that stands under `key`, if one does."""
    annotation = kind.model_fields[key].annotation
    for found in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(found, type) and issubclass(found, Written):
            return found
    return None


class _Schema(GenerateJsonSchema):
    """Defaults that JSON cannot say (None for auto) are left out."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """The schema without ``default: null``, which would read as a value to write."""
        made = super().default_schema(schema)
        if made.get("default", ...) is None:
            made.pop("default")
        return made


def json_schema() -> dict[str, dict[str, Any]]:
    """JSON Schemas (2020-12) by file, for editors: ``bootd.yaml`` and ``nodes.yaml``."""
    made = {}
    for name, kind in (("bootd.yaml", BootdFile), ("nodes.yaml", NodesFile)):
        schema = TypeAdapter(kind).json_schema(schema_generator=_Schema)
        made[name] = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
        made[name]["title"] = f"bootd: {name}"
    return made
