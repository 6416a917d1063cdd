"""Templates of boot scripts, sandboxed: what iPXE's, GRUB's and PXELINUX's texts have in common.

Pure. A template is the operator's and may be replaced by a site; a *value* is never trusted to be
one line, whatever it came from. None of these languages can quote a line end, so a value with a
control character is refused (`ScriptError`) wherever a template puts one; that is what stands
between a file or a request and an injected command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from types import CodeType, MappingProxyType, TracebackType
from typing import Any, Final

from jinja2 import StrictUndefined, TemplateSyntaxError
from jinja2 import Template as Compiled
from jinja2.runtime import LoopContext

from bootd.model import (
    Artefact,
    Image,
    Initrd,
    Kernel,
    NetDev,
    Node,
    ServerAddress,
    Template,
    dashed,
)
from bootd.sandbox import BoundedEnvironment, Limits, reason

LIMITS: Final = Limits(turns=1_000_000, size=4 << 20)
"""Of one script. A second or less: others wait for it meanwhile."""
_SEPARATORS: Final = frozenset("\x85\u2028\u2029")
_LOOP: Final = frozenset(("index", "index0", "length", "first", "last", "previtem", "nextitem"))
_PLAIN: Final[Mapping[type, frozenset[str]]] = MappingProxyType(
    {
        kind: frozenset(name for name in dir(kind) if not name.startswith("_"))
        for kind in (Node, NetDev, Image, Kernel, Artefact, Initrd, ServerAddress)
    }
    | {LoopContext: _LOOP}
)
"""What a template may read of our own frozen values, and of a loop: there the sandbox need not look
twice."""
_METHODS: Final = frozenset(dir(MappingProxyType))


class ScriptError(Exception):
    """A script cannot be made. The message says where: ``default.ipxe.j2:12: …``."""


_PLACED: Final = re.compile(r"(?P<file>[^\n]+?\.j2)(:(?P<line>\d+))?: (?P<what>.+)", re.DOTALL)


def located(error: ScriptError, node: str = "") -> str:
    """`error` in the form of all faults, ``default.ipxe.j2:12:1: nodes.n001: what`` (Jinja2 tells
    no columns); one that has no place in a template with its node's name."""
    found = _PLACED.fullmatch(str(error))
    if found is None:
        known = not node or f"node {node}" in str(error)
        return str(error) if known else f"{error} (node {node})"
    place = f"{found['file']}:{found['line'] or 1}:1: "
    return place + (f"nodes.{node}: " if node else "") + found["what"]


class Lines(str):
    """Text of a script that we made ourselves: the one value that may hold line ends, and that is
    put as it is."""

    __slots__ = ()


def one_line(value: Any) -> Any:
    """`value` as a template prints it; `ScriptError` where it holds a control character."""
    if (type(value) is str and value.isprintable()) or isinstance(value, Lines):
        return value
    text = value if isinstance(value, str) else str(value)
    if not text.isprintable() and any(ord(c) < 32 or c == "\x7f" or c in _SEPARATORS for c in text):
        raise ScriptError(f"{text[:80]!r} has a control character or a line end in it")
    return value


class _Environment(BoundedEnvironment):
    """The sandbox, which need not look twice at our own frozen values."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As the sandbox's, which takes a third of a script's time to look twice."""
        kind = type(obj)
        plain = _PLAIN.get(kind)
        if plain is not None and attribute in plain:
            return getattr(obj, attribute)
        if kind is MappingProxyType and attribute not in _METHODS and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """As the sandbox's."""
        return attr in _PLAIN.get(type(obj), ()) or super().is_safe_attribute(obj, attr, value)


class Language:
    """One kind of script. `put` makes a value the text that stands in the script, or raises
    `ScriptError`; `helpers` are functions that templates may call, also as filters."""

    def __init__(
        self, put: Callable[[Any], Any], helpers: Mapping[str, Callable[..., object]]
    ) -> None:
        self._environment = _Environment(
            LIMITS,
            undefined=StrictUndefined,
            finalize=put,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            autoescape=False,  # HTML's escapes mean nothing here; `put` is what protects a script
            cache_size=0,
        )
        self._environment.filters["dashed"] = dashed
        self._environment.filters.update(helpers)
        self._environment.globals.update(helpers)
        self._compiled = lru_cache(maxsize=128)(self._compile)

    def compile(self, template: Template) -> Compiled:
        """The template, compiled once for each text. Raises `ScriptError`."""
        return self._compiled(template.text, template.source or template.name)

    def render(self, template: Template, values: Mapping[str, Any]) -> str:
        """The script. Raises `ScriptError` for whatever goes wrong in the template."""
        compiled = self.compile(template)
        try:
            return compiled.render(values)
        except ScriptError as error:
            raise ScriptError(f"{_place(template, error.__traceback__)}: {error}") from None
        except Exception as error:  # whatever an expression may raise: 1/0, a wrong type, …
            what = reason(error)
            raise ScriptError(f"{_place(template, error.__traceback__)}: {what}") from None

    def _compile(self, text: str, source: str) -> Compiled:
        try:
            code: CodeType = self._environment.compile(text, source, source)
        except TemplateSyntaxError as error:
            raise ScriptError(f"{source}:{error.lineno}: {error.message}") from None
        return Compiled.from_code(self._environment, code, self._environment.globals)


def _frames(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _place(template: Template, trace: TracebackType | None) -> str:
    """``file:line`` of the template where an error came up; Jinja2 maps its lines back for us."""
    source = template.source or template.name
    lines = [f.tb_lineno for f in _frames(trace) if f.tb_frame.f_code.co_filename == source]
    return f"{source}:{lines[-1]}" if lines else source
