"""Warewulf's overlay templates (Go's text/template) in Jinja2, as far as that is safe. Pure.

Only a template whose every action is a plain variable or a comment is rewritten; anything with a
condition, loop or function is left to the operator, for half a translation would be worse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_ACTION: Final = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.DOTALL)
_JINJA: Final = re.compile(r"\{%|%\}|\{#|#\}")
_TAG: Final = re.compile(r"\.Tags\.([A-Za-z_][A-Za-z0-9_]*)")
_VARIABLES: Final[Mapping[str, str]] = {
    ".Id": "node.name",
    ".Hostname": "node.name",
    ".Fqdn": "node.name",
    ".ImageName": "node.image",
    ".ClusterName": "tags.cluster",
    ".Cluster": "tags.cluster",
    ".Comment": "node.comment",
    ".Overlay": "overlay",
    ".Ipaddr": "server.ip",
    ".Kernel.Version": "node.kernel_version",
}


def translate(text: str) -> str | None:
    """The template for bootd, or None where a person has to write it."""
    actions = [action[2] for action in _ACTION.finditer(text)]
    if _JINJA.search(text) or not all(map(_known, actions)):
        return None
    return _ACTION.sub(lambda action: _one(*action.groups()), text)


def _known(action: str) -> bool:
    return _is_comment(action) or action in _VARIABLES or _TAG.fullmatch(action) is not None


def _is_comment(action: str) -> bool:
    return action.startswith("/*") and action.endswith("*/")


def _one(before: str, action: str, after: str) -> str:
    """An action, with its orders to take blanks away."""
    if _is_comment(action):
        return f"{{#{before} {after}#}}"
    tag = _TAG.fullmatch(action)
    name = f"tags.{tag[1]}" if tag is not None else _VARIABLES[action]
    return f"{{{{{before} {name} {after}}}}}"
