"""Who a client is, and what of a boot it may have: the same for HTTP and for TFTP.

Pure, but for the neighbour table that it asks. The rules are `boots.window`; here they are applied:
an address to a machine, a boot to a token, a token to the boot that it opens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from bootd.boots import tokens, window
from bootd.boots.timeline import Boot, Boots
from bootd.model import Mac, Node
from bootd.registry import Registry


class Shut(Exception):
    """A token that opens nothing for this client now; `reason` is one of `window.SENTENCES`, `mac`
    the machine that it was signed for, where it was signed here."""

    def __init__(self, reason: str, mac: Mac | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.mac = mac


@dataclass(frozen=True, slots=True)
class Gate:
    """`keys` sign tokens, the newest first; `neighbour` asks the kernel who has an address. Times
    are monotonic seconds."""

    boots: Boots
    keys: Sequence[bytes]
    neighbour: Callable[[IPv4Address], Mac | None]

    def machine(self, registry: Registry, peer: IPv4Address) -> Mac | None:
        """The machine at an address: as the link says, else as its DHCP exchange or nodes.yaml did.
        It names a node and vouches for nothing: that is `window.grant`."""
        on_link = self.neighbour(peer)
        if on_link is not None:
            return on_link
        booting = next((b for b in self.boots if b.address == peer and b.outcome != "up"), None)
        if booting is not None:
            return booting.mac
        node = registry.by_ip.get(peer)
        return node.macs[0] if node is not None and node.macs else None

    def link(self, registry: Registry, mac: Mac, peer: IPv4Address) -> window.Link:
        """Who has the address `peer` on the link, as seen from `mac`; asked when it is called."""
        return lambda: window.owner(registry, mac, self.neighbour(peer))

    def token(self, boot: Boot, peer: IPv4Address) -> str:
        """A token for a boot that `window.grant` has found open to `peer`."""
        if boot.address is None:
            boot.address = peer  # the link vouched for it
        expires = int(boot.window + self.boots.offset) + 1
        return tokens.mint(self.keys[0], tokens.Claims(boot.mac, boot.id, peer, expires))

    def enter(
        self, registry: Registry, token: str, peer: IPv4Address, now: float
    ) -> tuple[Node, Boot]:
        """The node and boot that a token opens for `peer` now. Raises `Shut`."""
        try:
            claims = tokens.check(self.keys, token, now_wall=now + self.boots.offset)
        except tokens.TokenError as error:
            raise Shut(error.reason) from None
        node = registry.by_mac.get(claims.mac)
        if node is None:
            raise Shut("unknown-node", claims.mac)
        boot = self.boots.of(claims.mac)
        until = claims.expires - self.boots.offset
        if boot is None or self.boots.missed(boot, claims.boot_id, until):
            # Signed by us, and we know nothing of it: this process was started in the middle of it.
            boot = self.boots.adopt(claims.mac, claims.boot_id, node.name, until, now)
            boot.address = claims.address
        reason = window.admit(boot, claims, peer, self.link(registry, claims.mac, peer), now)
        if reason:
            raise Shut(reason, claims.mac)
        return node, boot
