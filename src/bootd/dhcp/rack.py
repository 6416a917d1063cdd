"""Answers for a rack: machines of one model send the same packet, but for who they are.

Pure. What differs between two of them is the transaction id, the second half of the MAC address,
the client identifier (61) and the UUID (97); in the answer the same, and the MAC address in the
boot file. So a decision made for one is given to the next with these exchanged, in a quarter of the
time, and that is what a burst of ten thousand first packets needs.

The maker's half of the MAC address stays in the key, as quirks and Raspberry Pis are told by it,
and so do the node's own settings that a decision looks at. Leases are not answered so: they are
each node's own. An answer is only used this way if the exchange, tried on its own request,
reproduces it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from bootd.dhcp.policy import Client, Offer
from bootd.dhcp.wire import WireError, locate
from bootd.model import Mac, Node, dashed

MAX_MODELS: Final = 256
_ETHERNET: Final = b"\x01\x06"
_HALF: Final = 31
"""Where the second half of the MAC address begins in the header; the first is the maker's."""
_FILE: Final = 108
_MAKER: Final = len("00:11:22")
_DIGITS: Final = 8
"""Characters of that half written ``12-34-56``."""

_Span = tuple[int, int]
_ModelKey = tuple[bytes, str, frozenset[str]]


class _Model(NamedTuple):
    """An answer as the pieces between what differs, and where each difference is in a request."""

    pieces: tuple[bytes, ...]
    fill: tuple[_Span | None, ...]
    """For each gap, the span of the request that goes in; None for the MAC address in words."""
    offer: Offer
    file: tuple[str, str] | None
    """The boot file before and behind the MAC address."""


class Rack:
    """The models that were answered on one way in; the same server address, port and sender."""

    def __init__(self) -> None:
        self._layouts: dict[int, list[tuple[_Span, ...]]] = {}
        self._models: dict[_ModelKey, _Model] = {}

    def answer(self, data: bytes, nodes: Mapping[Mac, Node]) -> Offer | None:
        """The answer to `data`, if it comes from a known node of a model that was answered."""
        layouts = self._layouts.get(len(data))
        if layouts is None:
            return None
        mac = Mac(data[28:34].hex(":"))
        node = nodes.get(mac)
        if node is None:
            return None
        for layout in layouts:
            model = self._models.get((_without(data, layout), node.loader, node.quirks))
            if model is not None:
                return _made_for(model, data, mac, node)
        return None

    def learn(self, data: bytes, offer: Offer) -> None:
        """`offer` is what a known node was answered to `data`."""
        node, mac = offer.node, offer.client.mac
        if node is None or mac is None or offer.lease is not None or offer.routed:
            return
        if any(len(quirk.partition("@")[2]) > _MAKER for quirk in node.quirks):
            return  # it holds for less than a maker's cards
        layout = _layout(data)
        model = _model(data, offer, mac) if layout is not None else None
        if layout is None or model is None:
            return
        if _made_for(model, data, mac, node) != offer:
            return
        if len(self._models) >= MAX_MODELS:
            self._models.clear()
            self._layouts.clear()
        known = self._layouts.setdefault(len(data), [])
        if layout not in known:
            known.append(layout)
        self._models[_without(data, layout), node.loader, node.quirks] = model


def _layout(data: bytes) -> tuple[_Span, ...] | None:
    """The spans of a request that tell machines of one model apart; None where it is unusual."""
    if data[1:3] != _ETHERNET:
        return None
    try:
        options = locate(data, (61, 97))
    except WireError:
        return None
    return ((4, 10), (_HALF, 34), *sorted(options.values()))


def _without(data: bytes, layout: tuple[_Span, ...]) -> bytes:
    """What is left of a request without these spans."""
    pieces, at = [], 0
    for start, end in layout:
        pieces.append(data[at:start])
        at = end
    pieces.append(data[at:])
    return b"".join(pieces)


def _model(data: bytes, offer: Offer, mac: Mac) -> _Model | None:
    """Cut an answer where machines differ."""
    words = dashed(mac)
    gaps: dict[_Span, _Span | None] = {(4, 8): (4, 8), (_HALF, 34): (_HALF, 34)}
    file = None
    try:
        asked, given = locate(data, (97,)), locate(offer.data, (67, 97))
    except WireError:
        return None
    if 97 in given:
        if 97 not in asked:
            return None
        gaps[given[97]] = asked[97]
    if offer.file.count(words) > 1:
        return None
    if words in offer.file:
        before, _, behind = offer.file.partition(words)
        file = (before, behind)
        half = len(before) + len(words) - _DIGITS
        for start in (_FILE, given[67][0]):
            gaps[start + half, start + half + _DIGITS] = None
    pieces, at = [], 0
    for start, end in sorted(gaps):
        pieces.append(offer.data[at:start])
        at = end
    return _Model(
        (*pieces, offer.data[at:]), tuple(gaps[span] for span in sorted(gaps)), offer, file
    )


def _made_for(model: _Model, data: bytes, mac: Mac, node: Node) -> Offer:
    """The model's answer, for this machine."""
    first, *pieces = model.pieces
    parts = [first]
    words = dashed(mac)
    digits = words[-_DIGITS:].encode()
    for span, piece in zip(model.fill, pieces, strict=True):
        parts += (digits if span is None else data[span[0] : span[1]], piece)
    offer = model.offer
    file = offer.file if model.file is None else f"{model.file[0]}{words}{model.file[1]}"
    return Offer(
        b"".join(parts),
        offer.to,
        Client(mac, *offer.client[1:]),
        node,
        offer.arch,
        file,
        offer.first_stage,
        offer.opens,
        offer.kind,
    )
