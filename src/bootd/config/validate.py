"""A document held against the models of `config.schema`: a checked model, and every fault. Pure.

Pydantic finds what is wrong; the words are ours, for operators and not for programmers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from bootd.config import values
from bootd.config.faults import Fault, nearest, shown
from bootd.config.schema import ENTRIES, Written, submodel
from bootd.config.source import Document, Step, dotted

M = TypeVar("M", bound=Written)


def validate(kind: type[M], document: Document) -> tuple[M, list[Fault]]:
    """The document as a model, and every fault with its place; faults of reading it come first.

    Where there are faults the model is what is left without the faulty parts, so that the rest can
    be checked too: an entry of `nodes` or `profiles` is there but empty, other keys are as if they
    were not written. A document that is empty is an empty model.
    """
    faults = list(document.faults)
    value: Any = document.value
    while True:
        try:
            return kind.model_validate(value), faults
        except ValidationError as error:
            # Pydantic's own words speak to programmers; these are for operators.
            found = error.errors(include_url=False, include_context=True)
        faults.extend(_fault(kind, document, dict(each)) for each in found)
        value = _without(kind, value, [each["loc"] for each in found])


def _without(kind: type[Written], value: Any, places: Iterable[Sequence[Step]]) -> Any:
    """`value` less its faulty parts: always a value with fewer faults."""
    if not isinstance(value, dict):
        return {}
    left = dict(value)
    for place in places:
        key = str(place[0])
        if (kind, key) not in ENTRIES or len(place) < 2 or not isinstance(left.get(key), dict):
            left.pop(key, None)
            continue
        entries = dict(left[key])
        if len(place) == 3 and place[2] == "[key]":
            entries.pop(str(place[1]), None)
        elif str(place[1]) in entries:
            entries[str(place[1])] = None
        left[key] = entries
    return left


def _fault(kind: type[Written], document: Document, error: dict[str, Any]) -> Fault:
    path: list[Step] = list(error["loc"])
    is_key = bool(path) and path[-1] == "[key]"
    if is_key:
        path.pop()
    unknown = error["type"] == "extra_forbidden"
    origin = document.origin(path, key=is_key or unknown)
    what = _unknown(kind, path) if unknown else _words(error)
    return Fault(origin, dotted(path), what)


def _words(error: dict[str, Any]) -> str:
    given = error["input"]
    match error["type"]:
        case "value_error":
            return str(error["ctx"]["error"])
        case "missing":
            return "is missing"
        case "tuple_type":
            return f"{values.said(given)} where a list is expected, like [a, b]"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"{values.said(given)} where a map of keys is expected"
        case _:
            return str(error["msg"])


def _unknown(kind: type[Written], path: list[Step]) -> str:
    """``unknown key 'profils'; did you mean 'profiles'?``"""
    word = str(path[-1])
    known = _keys_at(kind, path[:-1])
    hint = nearest(word, known)
    if not hint and known:
        hint = f"; known here: {', '.join(known)}"
    return f"unknown key {shown(word)}{hint}"


def _keys_at(kind: type[Written], path: list[Step]) -> list[str]:
    """The keys that may stand in the map at `path`."""
    here: type[Written] | None = kind
    steps = iter(path)
    for step in steps:
        assert here is not None
        assert isinstance(step, str)
        below = ENTRIES.get((here, step))
        if below is not None:
            next(steps, None)  # a name of the operator's choice
        here = below or submodel(here, step)
    return list(here.model_fields) if here is not None else []
