"""A document held against the models of `config.schema`: a checked model, and every fault. Pure.

Pydantic finds what is wrong; the words are ours, for operators and not for programmers.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

from pydantic import ValidationError

from bootd.config import values
from bootd.config.faults import MAX_FAULTS, Fault, nearest, shown
from bootd.config.nodesets import MAX_NODES
from bootd.config.schema import ENTRIES, NodesFile, NodeSpec, Written, submodel
from bootd.config.source import Document, Step, dotted

_CHECK_NAME: Final = {"profiles": values.name, "nodes": values.node_key}

M = TypeVar("M", bound=Written)


def validate(kind: type[M], document: Document) -> tuple[M, list[Fault]]:
    """The document as a model, and every fault with its place; faults of reading it come first.

    Where there are faults the model is what is left without the faulty parts, so that the rest can
    be checked too: a faulty key is as if it were not written, and an entry of `nodes` or `profiles`
    that is wrong as a whole is there but empty. A document that is empty is an empty model. After
    `MAX_FAULTS` faults the rest is not looked at.
    """
    faults = list(document.faults)
    value = {} if document.value is None else document.value
    sections: dict[str, Any] = {}
    if isinstance(value, dict):
        found = {key for of, key in ENTRIES if of is kind and isinstance(value.get(key), dict)}
        sections = {key: value[key] for key in value if key in found}
        value = {key: value[key] for key in value if key not in found}
    checked, wrong = _checked(kind, value)
    if checked is None:
        top = {str(error["loc"][0]) for error in wrong if error["loc"]}
        rest = {k: v for k, v in value.items() if k not in top} if top else {}
        checked = kind.model_validate(rest)
    faults += [_fault(kind, document, error) for error in wrong]
    entries = {
        section: _entries(kind, document, section, written, faults)
        for section, written in sections.items()
    }
    return checked.model_copy(update=entries), faults


def _entries(
    kind: type[Written], document: Document, section: str, written: Any, faults: list[Fault]
) -> dict[str, Any]:
    """The entries of `nodes` or `profiles`, one by one: the event loop gets its turn between."""
    if len(written) > MAX_NODES:
        what = f"{len(written)} entries; at most {MAX_NODES} are read"
        faults.append(Fault(document.origin((section,)), section, what))
        return {}
    of_entry, entries = ENTRIES[kind, section], {}
    for name, entry in written.items():
        if len(faults) > MAX_FAULTS:
            break
        try:
            _CHECK_NAME[section](name)
        except ValueError as error:
            path = (section, name)
            faults.append(Fault(document.origin(path, key=True), dotted(path), str(error)))
            continue
        entries[name], wrong = (None, []) if entry is None else _checked(of_entry, entry)
        if wrong:
            entries[name] = _rest(of_entry, entry, wrong)
        for each in wrong:
            faults.append(_fault(kind, document, {**each, "loc": (section, name, *each["loc"])}))
    return entries


def _rest(of: type[Written], entry: Any, wrong: list[dict[str, Any]]) -> Written | None:
    """The entry less its faulty keys, or None where they are not what makes it wrong."""
    faulty = {str(error["loc"][0]) for error in wrong if error["loc"]}
    if not faulty or not isinstance(entry, dict):
        return None
    return _checked(of, {key: value for key, value in entry.items() if key not in faulty})[0]


def _checked(kind: type[M], value: Any) -> tuple[M | None, list[dict[str, Any]]]:
    try:
        return kind.model_validate(value), []
    except ValidationError as error:
        # Pydantic's own words speak to programmers; those of _fault are for operators.
        return None, [dict(each) for each in error.errors(include_url=False)]


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
    if _is_of_one_node(kind, path):
        return f"{shown(word)} is of one node: a profile cannot have it"
    hint = nearest(word, known)
    if not hint and known:
        hint = f"; known here: {', '.join(known)}"
    return f"unknown key {shown(word)}{hint}"


def _is_of_one_node(kind: type[Written], path: list[Step]) -> bool:
    """Whether a profile has what only nodes have: ``profiles.gpu.mac``."""
    return (
        kind is NodesFile
        and len(path) == 3
        and path[0] == "profiles"
        and path[2] in NodeSpec.model_fields
    )


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
