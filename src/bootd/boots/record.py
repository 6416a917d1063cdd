"""Boots as lines of JSON and back, so that a restart of the daemon forgets none.

Pure. All fields of a `Boot` are kept, whichever it has: pydantic goes by the classes' own types.
Times are monotonic in memory and seconds since 1970 in a line, by the `offset` of whoever writes
and whoever reads; a line of another version loses what it cannot say, or is refused as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from bootd.boots.timeline import Boot, Refresh, Step
from bootd.model import Image

CUT_OFF: Final = "restarted"
"""The outcome of a step that was running when the daemon was: nobody saw how it ended."""
MAX_LINE: Final = 256 * 1024
"""Bytes of a line that is read: several times what `timeline.MAX_STEPS` steps need."""

_TIMES: Final[Mapping[type, tuple[str, ...]]] = MappingProxyType(
    {
        Boot: ("started", "seen", "ended", "window"),
        Step: ("begun", "ended", "moved"),
        Refresh: ("at",),
    }
)
_boots: Final = TypeAdapter(Boot)


class RecordError(ValueError):
    """A line that is no boot."""


def dump(boot: Boot, offset: float) -> bytes:
    """One boot as one line, without its end. `offset` is wall-clock less monotonic seconds."""
    # A boot that is over needs its image no more; the others keep the generation they began with.
    left_out = {"image"} if boot.outcome == "up" else None
    if boot.image is not None and left_out is None:
        # pydantic writes no mappingproxy, which is what an image from the disk has.
        boot = replace(boot, image=replace(boot.image, artefacts=dict(boot.image.artefacts)))
    value = _boots.dump_python(boot, mode="json", exclude=left_out, exclude_defaults=True)
    _shift(value, Boot, offset)
    for step in value.get("steps", ()):
        _shift(step, Step, offset)
    if value.get("refresh") is not None:
        _shift(value["refresh"], Refresh, offset)
    return _any.dump_json(value)


def parse(
    line: bytes, offset: float, share: Callable[[Image], Image] = lambda image: image
) -> Boot:
    """The boot of a line. `share` gives one image for all that are equal: ten thousand boots have
    few between them. Raises `RecordError`."""
    if len(line) > MAX_LINE:
        raise RecordError(f"a line of {len(line)} bytes")
    try:
        boot = _boots.validate_json(line)
    except (ValidationError, RecursionError) as error:
        raise RecordError(str(error)) from None
    for owner in (boot, *boot.steps, boot.refresh):
        if owner is not None:
            for name in _TIMES[type(owner)]:
                at = getattr(owner, name)
                if at is not None:
                    setattr(owner, name, at - offset)
    for step in boot.steps:
        if step.ended is None:
            step.ended, step.outcome = boot.seen, CUT_OFF
    if boot.image is not None:
        boot.image = share(boot.image)
    return boot


def _shift(value: dict[str, Any], owner: type, offset: float) -> None:
    for name in _TIMES[owner]:
        if value.get(name) is not None:
            value[name] = round(value[name] + offset, 3)


_any: Final = TypeAdapter(dict[str, Any])
