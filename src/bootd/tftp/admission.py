"""Who may have a transfer: limits in total and for each client, and who goes when they are full.

Pure. Anyone can send a request in anyone's name, so a place is sure only to a client that has
acknowledged something; the others make room for it, the oldest first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar

Peer = tuple[str, int]
"""A client's address and port: TFTP's transfer identifier."""

STUCK: Final = 5.0
"""Seconds without progress after which a client's own newer request may take the place."""


class Place(Protocol):
    """What admission knows of a transfer."""

    @property
    def verified(self) -> bool:
        """True once the client has acknowledged something."""

    @property
    def stalled_since(self) -> float:
        """When it last got further, in monotonic seconds."""


T = TypeVar("T", bound=Place)


class Full(Exception):
    """No place; `reason` is ``busy`` (in total) or ``per-client``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Places(Generic[T]):
    """The transfers under way by client and port, in the order they came."""

    def __init__(self) -> None:
        self._all: dict[Peer, T] = {}
        self._unverified: dict[Peer, T] = {}
        self._of_client: dict[str, dict[Peer, T]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._all.values()))

    def get(self, peer: Peer) -> T | None:
        """The transfer of that client and port."""
        return self._all.get(peer)

    def room(self, client: str, now: float, *, limit: int, per_client: int) -> T | None:
        """Whom a new transfer of `client` would replace; None where there is room.

        Raises `Full` where everyone who is there has a better right.
        """
        own = self._of_client.get(client, {})
        if len(own) >= per_client:
            victim = next((place for place in own.values() if not place.verified), None)
            if victim is None:
                victim = min(own.values(), key=lambda place: place.stalled_since)
                if now - victim.stalled_since < STUCK:
                    raise Full("per-client")
            return victim
        if len(self._all) >= limit:
            if not self._unverified:
                raise Full("busy")
            return next(iter(self._unverified.values()))
        return None

    def add(self, peer: Peer, place: T) -> None:
        """A new transfer; the peer has none."""
        self._all[peer] = self._unverified[peer] = place
        self._of_client.setdefault(peer[0], {})[peer] = place

    def verified(self, peer: Peer) -> None:
        """The client has acknowledged something: its place is sure."""
        self._unverified.pop(peer, None)

    def remove(self, peer: Peer) -> None:
        """The transfer is over."""
        del self._all[peer]
        self._unverified.pop(peer, None)
        own = self._of_client[peer[0]]
        del own[peer]
        if not own:
            del self._of_client[peer[0]]
