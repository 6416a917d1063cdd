"""What templates can ask for that is secret, and what stands in for it. Pure.

Rendering asks a `Secrets`; the daemon gives one that keeps keys on disk (`overlay.hostkeys`).
Checking files and explaining them uses `PLACEHOLDERS`, which makes nothing and shows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from bootd.model import Node
from bootd.overlay.links import TemplateValueError

KEY_TYPES: Final = ("ed25519", "ecdsa", "rsa")
"""SSH host keys that a node gets, unless ``resources.ssh.key_types`` names fewer."""


@dataclass(frozen=True, slots=True)
class HostKey:
    """One SSH host key of a node: `type` of `KEY_TYPES`, both halves as OpenSSH writes them."""

    type: str
    private: str
    public: str


class Secrets(Protocol):
    """Gives keys. Methods raise `TemplateValueError` with a sentence."""

    def host_keys(self, node: Node) -> Sequence[HostKey]:
        """A node's SSH host keys, always the same ones."""

    def public_keys(self, nodes: Sequence[Node]) -> Sequence[str]:
        """The ed25519 host keys of `nodes`, for known_hosts."""


class _Placeholders:
    def host_keys(self, node: Node) -> Sequence[HostKey]:
        text = "(not shown)\n"
        return [HostKey(kind, text, f"{kind} (not shown)\n") for kind in key_types(node)]

    def public_keys(self, nodes: Sequence[Node]) -> Sequence[str]:
        return ["ssh-ed25519 (not shown)"] * len(nodes)


PLACEHOLDERS: Final[Secrets] = _Placeholders()


def key_types(node: Node) -> tuple[str, ...]:
    """The types of host keys that a node has. Raises `TemplateValueError`."""
    ssh = node.resources.get("ssh", {})
    wanted = ssh.get("key_types", KEY_TYPES) if hasattr(ssh, "get") else None
    if not isinstance(wanted, list | tuple) or not wanted:
        raise TemplateValueError(f"resources.ssh.key_types is not a list of {KEY_TYPES}")
    for kind in wanted:
        if kind not in KEY_TYPES:
            raise TemplateValueError(
                f"resources.ssh.key_types: {kind!r} is not one of {', '.join(KEY_TYPES)}"
            )
    # known_hosts names the ed25519 key, so there always is one.
    return tuple(dict.fromkeys(("ed25519", *wanted)))
