"""What a machine would get, and why: the daemon's own decisions, run without a network.

Pure. The question is what a client's DHCP packet would say; the answers are plain values for JSON.
Where a boot has a token, the word TOKEN stands for it.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any, Final

from bootd import configs, methods, scripts
from bootd.config.explain import explain as values_of
from bootd.dhcp.policy import Ignore, Offer, decide
from bootd.dhcp.wire import REQUEST, Message, encode
from bootd.methods import NOBODY, Machine
from bootd.model import Arch, BootTarget, Mac, Node, ServerAddress, UnknownPolicy
from bootd.overlay.render import render
from bootd.overlay.template import RenderError
from bootd.registry import Registry
from bootd.templating import ScriptError

ARCHES: Final[Mapping[str, int]] = {
    "bios": Arch.X86_BIOS,
    "ia32": Arch.EFI_IA32,
    "x64": Arch.EFI_X64,
    "arm32": Arch.EFI_ARM32,
    "arm64": Arch.EFI_ARM64,
    "riscv64": Arch.EFI_RISCV64,
    "loongarch64": Arch.EFI_LOONGARCH64,
    "x64-http": Arch.EFI_X64_HTTP,
    "arm64-http": Arch.EFI_ARM64_HTTP,
}
"""What `--arch` may say besides a number of DHCP option 93."""

TOKEN: Final = "TOKEN"
_MESSAGE_TYPES: Final = {2: "offer", 5: "ack", 6: "nak"}
_TEXT: Final = frozenset({12, 15, 17, 60, 66, 67, 210})
_ADDRESSES: Final = frozenset({1, 3, 6, 28, 42, 54})
_NAMES: Final = {
    1: "subnet-mask", 3: "router", 6: "dns", 12: "host-name", 15: "domain", 26: "mtu",
    28: "broadcast", 43: "vendor", 51: "lease-time", 53: "message-type", 54: "server-id",
    60: "class", 66: "server-name", 67: "boot-file", 82: "relay-agent", 93: "arch",
    97: "uuid", 119: "search",
}  # fmt: skip
_IPXE_FEATURES: Final = bytes((0x13, 1, 1, 0x14, 1, 1, 0x18, 1, 1, 0x24, 1, 1))
"""HTTP, HTTPS, bzImage and EFI (option 175): what Debian 13's iPXE says of itself."""


@dataclass(frozen=True, slots=True)
class Question:
    """Who asks: option 93, option 60's first word, option 77."""

    mac: Mac
    arch: int = Arch.EFI_X64
    vendor_class: str = "PXEClient"
    user_class: str = ""


def discover(question: Question) -> Message:
    """The DHCPDISCOVER that such a client sends."""
    vendor_class = f"{question.vendor_class}:Arch:{question.arch:05d}:UNDI:003000"
    options = {
        53: b"\x01",
        57: (1472).to_bytes(2, "big"),
        60: vendor_class.encode(),
        93: question.arch.to_bytes(2, "big"),
        94: b"\x01\x03\x00",
        97: bytes(17),
    }
    if question.user_class:
        options[77] = question.user_class.encode()
    if question.user_class == "iPXE":
        options[175] = _IPXE_FEATURES
    nowhere = bytes(4)
    return Message(
        REQUEST, 1, 6, 0, 1, 0, 0x8000, nowhere, nowhere, nowhere, nowhere,
        bytes.fromhex(question.mac.replace(":", "")) + bytes(10), b"", b"", options,
    )  # fmt: skip


def dhcp_answer(registry: Registry, question: Question, us: ServerAddress) -> dict[str, Any]:
    """The answer on port 67 to `question`, decoded, or the reason for silence."""
    message = discover(question)
    size = len(encode(message))
    answer = decide(message, registry, us, port=registry.settings.dhcp.port, size=size)
    asked = {
        "arch": int(question.arch),
        "class": question.vendor_class,
        "user_class": question.user_class or None,
    }
    if isinstance(answer, Ignore):
        return {"asked": asked, "answered": False, "reason": answer.reason}
    return {"asked": asked, "answered": True, "reason": "", **_describe_offer(answer)}


def _describe_offer(offer: Offer) -> dict[str, Any]:
    reply = offer.message
    return {
        "message": _MESSAGE_TYPES.get(reply.options[53][0], str(reply.options[53][0])),
        "bytes": len(offer.data),
        "to": f"{offer.to[0]}:{offer.to[1]}",
        "boot_file": offer.file,
        "yiaddr": str(IPv4Address(reply.yiaddr)),
        "siaddr": str(IPv4Address(reply.siaddr)),
        "file": reply.file.decode(errors="backslashreplace"),
        "options": {
            f"{code} {_NAMES.get(code, '')}".strip(): _option(code, value)
            for code, value in reply.options.items()
        },
        "hex": offer.data.hex(),
    }


def _option(code: int, value: bytes) -> str:
    if code == 53:
        return _MESSAGE_TYPES.get(value[0], str(value[0]))
    if code in _TEXT:
        return value.decode(errors="backslashreplace")
    if code in _ADDRESSES and value and len(value) % 4 == 0:
        return " ".join(str(IPv4Address(value[at : at + 4])) for at in range(0, len(value), 4))
    return value.hex(":")


def boot_script(
    registry: Registry, node: Node | None, mac: Mac, us: ServerAddress, machine: Machine = NOBODY
) -> dict[str, Any]:
    """The script inside a boot window, in the language of the node's loader: which kind, from which
    template, its text; and for a boot how its root comes, and why so."""
    why = "no node has this MAC address"
    kind = configs.kind_of(node if node is not None else registry.default)
    answer = {"language": kind.name, "kind": "hold", "why": ""}
    if node is not None:
        try:
            answer["template"] = kind.template(registry, node).source
            if node.boot is BootTarget.LOCAL:
                text = kind.local(registry, node, mac, us)
                return answer | {"kind": "local", "text": text}
            plan = scripts.plan(
                registry, node, mac, us, token=TOKEN, boot_id="BOOT", machine=machine
            )
            return answer | {
                "kind": "boot",
                "text": kind.render(registry, plan),
                "method": plan.method.value,
                "reason": plan.reason,
                "kernel": plan.kernel_version,
            }
        except ScriptError as error:
            why = str(error)
    answer["template"] = kind.template(registry, None).source
    text = kind.hold(registry, mac, us, why=why, node=node)
    return answer | {"why": why, "text": text}


def files(registry: Registry, node: Node, us: ServerAddress) -> dict[str, Any]:
    """What the script fetches: the image's files, and every path of the system overlay."""
    image = registry.images.get(node.image or "")
    artefacts = methods.files_for(node, image).artefacts if image is not None else {}
    answer: dict[str, Any] = {
        "image": [
            {"role": role, "path": file.path, "bytes": file.size, "sha256": file.sha256}
            for role, file in artefacts.items()
        ],
        "system": [],
        "error": "",
    }
    try:
        answer["system"] = [
            {
                "path": entry.path,
                "mode": stat.filemode(entry.mode),
                "owner": f"{entry.uid}:{entry.gid}",
                "bytes": len(entry.content),
            }
            for entry in render(registry, node, "system", us)
        ]
    except RenderError as error:
        answer["error"] = str(error)
    return answer


def explain(
    registry: Registry,
    who: Node | Mac,
    us: ServerAddress,
    questions: list[Question],
    *,
    once_done: Collection[str] = (),
) -> dict[str, Any]:
    """Everything about one machine. `questions` are the DHCP packets to answer; of the nodes
    `once_done` the registry says ``boot: local`` where the files say ``once``."""
    if isinstance(who, Node):
        node: Node | None = who
    else:
        node = registry.by_mac.get(who)
    mac = node.macs[0] if node is not None and node.macs else None
    if not isinstance(who, Node):
        mac = who
    policy = registry.settings.dhcp.unknown
    given = registry.default if node is None and policy is UnknownPolicy.DEFAULT else node
    there = registry.settings.http.for_scripts(us)
    return {
        "node": node.name if node is not None else None,
        "mac": mac,
        "decision": _decision(node, mac, policy, once_done),
        "server": us.base,
        "values": resolved(_as_written(given, once_done)) if given is not None else [],
        "dhcp": [dhcp_answer(registry, question, us) for question in questions],
        "script": boot_script(registry, given, mac, there, _machine(questions)) if mac else None,
        "files": files(registry, given, there) if given is not None else None,
    }


def _machine(questions: list[Question]) -> Machine:
    """What the questions say of the firmware; memory is nothing that DHCP tells."""
    if not questions:
        return NOBODY
    return Machine(bios=questions[0].arch in (Arch.X86_BIOS, Arch.X86_BIOS_HTTP))


def _as_written(node: Node, once_done: Collection[str]) -> Node:
    return replace(node, boot=BootTarget.ONCE) if node.name in once_done else node


def _decision(
    node: Node | None, mac: Mac | None, policy: UnknownPolicy, once_done: Collection[str]
) -> str:
    if node is None:
        return f"no node has MAC address {mac}: dhcp.unknown is {policy.value}"
    if mac is None:
        return f"{node.name} has no MAC address: it is never asked for"
    what = {
        BootTarget.NETWORK: f"boots image {node.image}",
        BootTarget.ONCE: f"boots image {node.image} once, then its own disk",
        BootTarget.LOCAL: "boots its own disk",
    }[node.boot]
    if node.name in once_done:
        what += ": it has booted once, as boot: once says"
    return f"{mac} is {node.name}, which {what}"


def resolved(node: Node) -> list[dict[str, str]]:
    """Each value that a file decided, with the place that decided it. Secrets are not shown."""
    return [
        {"key": key, "value": value, "origin": str(origin)}
        for key, value, origin in values_of(node)
        if origin is not None
    ]
