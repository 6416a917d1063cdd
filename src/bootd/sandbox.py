"""Jinja2's sandbox, in which no template runs for ever or takes all memory. Pure.

A template is the operator's, but one slip (every node for every node, of ten thousand) would keep a
reload busy for hours, and a thread cannot be stopped from outside. The sandbox itself bounds
``range`` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, cast

from jinja2 import TemplateRuntimeError, nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TURNS: Final = 1_000_000
"""Turns of all loops of one rendering: a few seconds."""
MAX_PRODUCT: Final = 1_000_000
"""Items or characters that a repetition makes, and digits that a power may have."""
_TURNS: Final = "bootd_turns"
_COUNTED: Final = "bootd_counted"
_ENDLESS: Final = f"its loops take more than {MAX_TURNS} turns"


class TooMuch(TemplateRuntimeError):
    """A template that would not end in time, or not fit into memory."""


@pass_context
def _counted(context: Context, items: Any) -> Iterable[Any]:
    """`items`, each of which is one turn of `MAX_TURNS`. Where their number is known they are
    counted beforehand: it costs a third of a large loop's time to look at each."""
    left = context.vars.setdefault(_TURNS, [MAX_TURNS])
    try:
        left[0] -= len(items)
    except TypeError:
        return _counting(items, left)
    if left[0] < 0:
        raise TooMuch(_ENDLESS)
    return cast(Iterable[Any], items)


def _counting(items: Iterable[Any], left: list[int]) -> Iterator[Any]:
    for item in items:
        left[0] -= 1
        if left[0] < 0:
            raise TooMuch(_ENDLESS)
        yield item


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """See the module."""

    intercepted_binops = frozenset(("*", "**"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters[_COUNTED] = _counted

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            line = loop.iter.lineno
            loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=line)
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """As the sandbox's, but for what would make a giant."""
        if operator == "**":
            if isinstance(left, int) and isinstance(right, int):
                _fits(left.bit_length() * right)
        else:
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | bytes | list | tuple) and isinstance(times, int):
                    _fits(len(many) * times)
        return super().call_binop(context, operator, left, right)


def _fits(size: int) -> None:
    if size > MAX_PRODUCT:
        raise TooMuch(f"it makes something of more than {MAX_PRODUCT} characters or digits")
