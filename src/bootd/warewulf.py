"""Images made for Warewulf: which nodes are switched to its ways, and the kernel arguments that its
initramfs reads. Pure.

Two-stage: the initramfs has Warewulf's dracut module, which fetches the image and the overlays
itself, by Warewulf's routes. Single-stage: the kernel unpacks the image and the system overlay,
whose ``/init`` (overlay ``wwinit``) goes on; then the node's own client asks for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bootd.model import Kernel, Mac, Node, ServerAddress

RULES: Final = "warewulf"
"""What a node's `security` says where Warewulf's rules hold."""
FEATURE: Final = "warewulf"
"""The feature of an initramfs that has Warewulf's dracut module."""
_ROOT: Final = "root=wwinit"
_OVERLAY: Final = "wwinit"


def switched(node: Node) -> bool:
    """Whether Warewulf's rules hold for this node."""
    return node.security == RULES


def two_stage(node: Node, kernel: Kernel) -> bool:
    """Whether `node` boots into an initramfs that fetches the rest: what that was built with says
    so, or the node's kernel arguments."""
    asked = any(argument.startswith(_ROOT) for argument in node.kernel_args)
    return switched(node) and (asked or FEATURE in kernel.features)


def brings_init(node: Node) -> bool:
    """Whether the node's system overlay has the ``/init`` that the kernel is to run."""
    return switched(node) and _OVERLAY in node.overlays_system


def arguments(node: Node, mac: Mac, server: ServerAddress, *, staged: bool) -> tuple[str, ...]:
    """What Warewulf's programs read off the kernel's command line, but for what the node's own
    arguments say already."""
    if not switched(node):
        return ()
    own = {argument.partition("=")[0] for argument in node.kernel_args}
    ours = _staged(node, mac, server) if staged else iter(())
    return tuple(
        argument for argument in (*ours, f"wwid={mac}") if argument.partition("=")[0] not in own
    )


def _staged(node: Node, mac: Mac, server: ServerAddress) -> Iterator[str]:
    yield "root=wwinit:tmpfs"
    yield f"wwinit.server={server.base}"
    yield f"wwinit.uri={server.base}/provision/{mac}"
    yield "init=/warewulf/run-init"
    yield "rd.neednet=1"
    named = next((d.device for d in node.network.values() if d.mac == mac and d.device), "")
    if named:
        yield f"ifname={named}:{mac}"
    yield f"ip={named}:dhcp" if named else "ip=dhcp"
