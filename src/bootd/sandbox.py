"""Jinja2's sandbox, in which no template runs for ever or takes all memory. Pure.

A template is the operator's, but one slip (every node for every node, of ten thousand) would keep a
reload busy for hours, and a thread cannot be stopped from outside. The sandbox itself bounds
``range`` only. What is bounded here is what a slip does: loops, filters that go over all of
something, macros that call themselves, the text that they make, products, powers and widths. Who
means to fill the memory still can, with texts put together of themselves (``{% set x = x ~ x %}``,
forty times).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from itertools import islice
from types import BuiltinMethodType, MappingProxyType, MethodType
from typing import Any, Final, NoReturn, cast

from jinja2 import TemplateError, TemplateRuntimeError, nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from bootd.text import undefined

CALL_TURNS: Final = 10
"""Turns of a loop that a call of a macro or block counts as: it takes so many times as long."""
MAX_BITS: Final = 4096
"""Of a product or power: a single expression would stop the whole daemon."""
MAX_WIDTH: Final = 100_000
"""Characters to pad to or indent by, digits to round to, columns: as many as ``range`` may have."""
_PIECES: Final = 1000
"""Pieces of a text that are looked at together."""

_NO_MORE: Final = frozenset(
    ("batch", "dictsort", "groupby", "list", "map", "reject", "rejectattr", "select", "selectattr",
     "sort", "unique")
)  # fmt: skip
"""Filters that go over all of what they are given and give no more than that: what goes on with it
is not counted again."""
_LOOPING: Final = _NO_MORE | {"join", "max", "min", "slice", "sum"}
"""Filters that are loops, too."""

# Names that no template can spell.
_BUDGET: Final = "bootd budget"
_ITEMS: Final = "bootd items"
_TURN: Final = "bootd turn"
_CALL: Final = "bootd call"


class TooMuch(TemplateRuntimeError):
    """A template that would not end in time, or not fit into memory."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one rendering may take: turns of all its loops, and characters or bytes of what it
    makes. `advice` is what to do instead of making so much."""

    turns: int
    size: int
    advice: str = ""

    def fits(self, size: int) -> None:
        """Raises `TooMuch` where `size` is too much."""
        if size > self.size:
            raise TooMuch(f"makes more than {self.size >> 20} MiB{self.advice}")


class _Budget:
    """What one rendering has taken of its `Limits`, over all loops, macros and calls in it."""

    __slots__ = ("left", "limits", "made")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.left = limits.turns
        self.made = 0

    def spend(self, turns: int) -> None:
        """Count turns. Raises `TooMuch`."""
        self.left -= turns
        if self.left < 0:
            self.end()

    def end(self) -> NoReturn:
        """Raises `TooMuch`: there are no turns left."""
        raise TooMuch(
            f"does not end: more than {self.limits.turns:,} turns of loops "
            f"(a call of a macro counts as {CALL_TURNS})"
        )

    def make(self, size: int) -> None:
        """Count the bytes of a product. Raises `TooMuch`."""
        self.made += size
        self.limits.fits(self.made)

    def each(self, items: Iterable[Any]) -> Iterator[Any]:
        """`items`, each counted as it comes."""
        for item in items:
            self.left -= 1
            if self.left < 0:
                self.end()
            yield item


class _Context(Context):
    """A rendering's variables, its budget among them: so contexts derived of it have the same."""

    def __init__(
        self, environment: Any, parent: dict[str, Any], name: Any, blocks: Any, globals: Any = None
    ) -> None:
        super().__init__(environment, parent, name, blocks, globals)
        if _BUDGET not in parent:
            parent[_BUDGET] = _Budget(environment.limits)


@pass_context
def _items(context: Context, items: Any) -> Iterable[Any]:
    """`items`, each of which is one turn. Where their number is known they are counted beforehand:
    it costs a third of a large loop's time to look at each."""
    budget: _Budget = context.parent[_BUDGET]
    try:
        budget.left -= len(items)
    except TypeError:
        return budget.each(items)
    if budget.left < 0:
        budget.end()
    return cast(Iterable[Any], items)


@pass_context
def _turn(context: Context, value: object) -> object:
    context.parent[_BUDGET].spend(1)
    return value


@pass_context
def _call(context: Context, value: object) -> object:
    context.parent[_BUDGET].spend(CALL_TURNS)
    return value


def _filter(name: str, value: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


def _is_counted(items: nodes.Expr) -> bool:
    return isinstance(items, nodes.Filter) and items.name in _NO_MORE


def _statement(name: str, where: nodes.Node) -> nodes.ExprStmt:
    line = where.lineno
    return nodes.ExprStmt(_filter(name, nodes.Const(None, lineno=line)), lineno=line)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """See the module."""

    context_class = _Context
    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self, limits: Limits, **options: Any) -> None:
        super().__init__(**options)
        self.limits = limits
        self.filters.update({_ITEMS: _items, _TURN: _turn, _CALL: _call})
        for name, (place, keyword) in _WIDTHS.items():
            self.filters[name] = _narrow(self.filters[name], place, keyword)
        self.filters["format"] = _narrow_format(self.filters["format"])
        del self.globals["lipsum"]  # texts at random, of any length

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            if not loop.recursive:
                assert isinstance(loop.iter, nodes.Expr)
                if not _is_counted(loop.iter):
                    loop.iter = _filter(_ITEMS, loop.iter)
            elif loop.test is None:  # what its calls of itself loop over stands nowhere
                loop.body.insert(0, _statement(_TURN, loop))
            else:
                line = loop.test.lineno
                turn = _filter(_TURN, nodes.Const(True, lineno=line))
                loop.test = nodes.And(turn, loop.test, lineno=line)
        for going in list(tree.find_all(nodes.Filter)):
            if going.name in _LOOPING and going.node is not None and not _is_counted(going.node):
                going.node = _filter(_ITEMS, going.node)
        for called in tree.find_all((nodes.Macro, nodes.CallBlock, nodes.Block)):
            assert isinstance(called, nodes.Macro | nodes.CallBlock | nodes.Block)
            called.body.insert(0, _statement(_CALL, called))
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """As the sandbox's, but for what would make a giant."""
        if operator == "%":
            if isinstance(left, str):
                _fits_width(_printf_width(left, right))
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length()
            if (bits * right if operator == "**" else bits + right.bit_length()) > MAX_BITS:
                raise TooMuch(f"makes a number of more than {MAX_BITS:,} bits")
        elif operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | bytes | list | tuple) and isinstance(times, int):
                    size = 1 if isinstance(many, str | bytes) else 8  # at least, in memory
                    context.parent[_BUDGET].make(len(many) * max(times, 0) * size)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., Any] | None:
        """As the sandbox's, which asks this of every attribute that a template reads; and for the
        other methods that make as much as a number says."""
        if not isinstance(value, _METHODS):
            return None
        if value.__name__ in _PADDING:
            return _narrow(value, 0, _PADDING[value.__name__])
        wide = super().wrap_str_format(value)
        text: Any = value.__self__
        if wide is None or _WIDE_FORMAT.search(text) is None:
            return wide

        def narrow(*args: Any, **kwargs: Any) -> str:
            named = args[0] if args and value.__name__ == "format_map" else kwargs
            _Widths(self).vformat(text, args, named)
            return wide(*args, **kwargs)

        return narrow

    def concat(self, pieces: Iterable[str]) -> str:
        """All pieces in one, of the whole text as of what a macro makes. Raises `TooMuch` before
        more than what fits is in memory."""
        coming = iter(pieces)
        batch = list(islice(coming, _PIECES))
        size = sum(map(len, batch))
        self.limits.fits(size)
        if len(batch) < _PIECES:
            return "".join(batch)
        texts = []
        while batch:
            texts.append("".join(batch))
            batch = list(islice(coming, _PIECES))
            size += sum(map(len, batch))
            self.limits.fits(size)
        return "".join(texts)


def reason(error: Exception) -> str:
    """Why a rendering failed, in the words of who wrote the template."""
    if isinstance(error, RecursionError):
        return "does not end: a macro or loop calls itself too often"
    if isinstance(error, TemplateError) and error.message:
        return undefined(error.message)
    return f"{type(error).__name__}: {error}"


# ---- widths --------------------------------------------------------------------------------------

_METHODS: Final = (BuiltinMethodType, MethodType)
_WIDTHS: Final[Mapping[str, tuple[int, str]]] = MappingProxyType(
    {
        "batch": (1, "linecount"),
        "center": (1, "width"),
        "indent": (1, "width"),
        "round": (1, "precision"),
        "slice": (2, "slices"),
        "tojson": (2, "indent"),
    }
)
"""Filters that make as much as a number says: where that argument stands (Jinja2 hands some of them
its own first), and its name."""
_PADDING: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("center", "ljust", "rjust", "zfill"), ""),
        "expandtabs": "tabsize",
        "to_bytes": "length",
    }
)
"""Methods of texts and numbers whose first argument does, and its name."""
_PRINTF: Final = re.compile(r"%(?:\([^)]*\))?[#0 +-]*(\*|\d*)(?:\.(\*|\d*))?[hlL]?(.?)", re.DOTALL)
_WIDE_FORMAT: Final = re.compile(r"\d{6}|\{[^{}]*\{")
"""Only such texts for ``str.format`` can have a field wider than `MAX_WIDTH`: with so many digits,
or with a width that comes from another field."""


def _fits_width(width: object) -> None:
    if isinstance(width, int) and width > MAX_WIDTH:
        raise TooMuch(f"a width or precision of more than {MAX_WIDTH:,}")


def _narrow(function: Callable[..., Any], place: int, keyword: str) -> Callable[..., Any]:
    """`function`, with a bound to its argument at `place` or of the name `keyword`."""

    @wraps(function)
    def narrow(*args: Any, **kwargs: Any) -> Any:
        _fits_width(args[place] if len(args) > place else kwargs.get(keyword))
        return function(*args, **kwargs)

    return narrow


def _narrow_format(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def narrow(value: Any, *args: Any, **kwargs: Any) -> Any:
        _fits_width(_printf_width(str(value), args))
        return function(value, *args, **kwargs)

    return narrow


def _printf_width(text: str, values: Any) -> int:
    """The characters that all fields of ``text % values`` ask for; a ``*`` takes a value."""
    given = iter(values if isinstance(values, tuple) else (values,))
    total = 0
    for width, precision, kind in _PRINTF.findall(text):
        for number in (width, precision):
            asked = next(given, 0) if number == "*" else int(number or 0)
            total += abs(asked) if isinstance(asked, int) else 0
        if kind != "%":
            next(given, None)
    return total


class _Widths(SandboxedFormatter):
    """Looks at the width of each field, also where it comes from another one."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        """As the formatter's. Raises `TooMuch`."""
        for number in re.findall(r"\d+", format_spec):
            _fits_width(int(number))
        return super().format_field(value, format_spec)
