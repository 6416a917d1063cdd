"""The language of overlay templates: sandboxed Jinja2, nothing undefined, nothing printed as None.

Pure. Beside Jinja2's own statements there are three: ``{% file "PATH" %}…{% endfile %}`` puts what
it encloses into a file of its own, ``{% symlink "TARGET" %}`` makes this template a symlink (or,
``{% symlink "PATH", "TARGET" %}``, another path), and ``{% skip %}`` ends it without a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType, MappingProxyType
from typing import Any, Final

from jinja2 import (
    StrictUndefined,
    Template,
    TemplateSyntaxError,
    Undefined,
    meta,
    nodes,
)
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.utils import missing

from bootd.model import Condition
from bootd.overlay.filters import FILTERS
from bootd.overlay.links import TemplateValueError
from bootd.sandbox import BoundedEnvironment, Limits, reason

_SINK: Final = "bootd_files"
"""The variable that carries a rendering's `Rendered` to the statements that make files."""

VARIABLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "node": "the node: name, mac, ip, network, image, tags, resources, kernel_args, …",
        "tags": "the node's tags: tags.rack",
        "resources": "the node's resources",
        "network": "the node's network devices by name: device, mac, ip, gateway, mtu, dns, …",
        "image": "the active generation of the node's image: name, generation, kernel_version, "
        "users and groups (names to numbers)",
        "nodes": "every node, in the order of the files",
        "host_keys": "the node's SSH host keys, kept by the server: type, private, public of each",
        "known_hosts": "pairs of node and ed25519 public key, for every node that has host keys",
        "server": "bootd as this node reaches it: ip, http_port, base",
        "overlay": "the name of the overlay that the template belongs to",
    }
)
PER_NODE: Final = frozenset(("node", "tags", "resources", "network", "image", "host_keys"))
"""A template that reads none of these is rendered once for all nodes."""
ALL_NODES: Final = frozenset(("nodes", "known_hosts"))
"""A template that reads one of these changes when any node does."""


LIMITS: Final = Limits(
    turns=10_000_000,
    size=64 << 20,
    advice="; overlays are held in memory: put large files into the image",
)
"""Of one template: a second or two (ten of filters that read attributes), and as much as a whole
overlay may have (`overlay.tree`). The hosts of 10,000 nodes with all their devices take 100,000
turns."""


class RenderError(Exception):
    """A template that does not render: `source` and `line` (from 1) say where, `reason` what."""

    def __init__(self, source: str, line: int, reason: str, node: str = "") -> None:
        self.source, self.line, self.reason, self.node = source, line, reason, node
        super().__init__(f"{source}:{line}: {f'node {node}: ' if node else ''}{reason}")


@dataclass(frozen=True, slots=True)
class Made:
    """One path that a template made: a file's bytes, or with `link` a symlink's target."""

    content: bytes
    mode: int | None = None
    link: bool = False


@dataclass(slots=True)
class Rendered:
    """What one template made: `own` for its own path (None: nothing), others by path."""

    own: Made | None = None
    others: dict[str, Made] = field(default_factory=dict)
    size: int = 0

    def made(self, text: str, mode: int | None = None, *, link: bool = False) -> Made:
        """`text` as bytes. Raises `TooMuch` where it is too much."""
        content = text.encode()
        self.size += len(content)
        LIMITS.fits(self.size)
        return Made(content, mode, link)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A template ready to render. `names` are the variables it reads; `elsewhere` says that it has
    statements that make files or symlinks, for some nodes at least."""

    template: Template
    source: str
    names: frozenset[str]
    elsewhere: bool


class _End(Exception):
    """Ends a rendering: what it made is in its `Rendered`."""


class _Statements(Extension):
    """The statements that Jinja2 does not have."""

    identifier = "bootd.statements"
    tags = {"file", "skip", "symlink"}  # noqa: RUF012 - Jinja2 declares it as an instance attribute

    def parse(self, parser: Parser) -> nodes.Node:
        """Turn a statement into a call of the method of its name; ``file`` hands over its body."""
        token = next(parser.stream)
        arguments: list[nodes.Expr] = [nodes.ContextReference()]
        if token.value != "skip":
            arguments.append(parser.parse_expression())
            if parser.stream.skip_if("comma"):
                arguments.append(parser.parse_expression())
        call = self.call_method(f"_{token.value}", arguments, lineno=token.lineno)
        if token.value != "file":
            return nodes.ExprStmt(call, lineno=token.lineno)
        body = parser.parse_statements(("name:endfile",), drop_needle=True)
        return nodes.CallBlock(call, [], [], body).set_lineno(token.lineno)

    def _skip(self, context: Context) -> None:
        _rendered(context).own = None
        raise _End

    def _symlink(self, context: Context, first: object, second: object = None) -> None:
        target = _text("symlink: the target", first if second is None else second)
        made = _rendered(context).made(target, link=True)
        if second is None:
            _rendered(context).own = made
            raise _End
        _add(context, _text("symlink: the path", first), made)

    def _file(
        self, context: Context, path: object, mode: object = None, *, caller: Callable[[], str]
    ) -> str:
        text = _text("file: the path", path)
        _add(context, text, _rendered(context).made(caller(), _mode(mode)))
        return ""


def _rendered(context: Context) -> Rendered:
    rendered = context.parent[_SINK]
    assert isinstance(rendered, Rendered)
    return rendered


def _add(context: Context, path: str, made: Made) -> None:
    others = _rendered(context).others
    if path in others:
        raise ValueError(f"{path!r} is written twice")
    others[path] = made


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} is of type {type(value).__name__}, not a text")
    return value


def _mode(value: object) -> int | None:
    """Permission bits from ``"0600"``; a bare 600 would silently be decimal."""
    if value is None:
        return None
    if isinstance(value, str) and 3 <= len(value) <= 5:
        try:
            return int(value, 8) & 0o7777
        except ValueError:
            pass
    raise ValueError(f'file: mode {value!r} is not octal digits in quotes, as "0600"')


def _finalize(value: object) -> object:
    """Refuse to print what is never meant: ``None`` in a configuration file, or a method that
    was not called."""
    if value is None:
        raise ValueError("an expression gave None: say what to write where there is no value")
    if callable(value) and not isinstance(value, StrictUndefined):
        raise TypeError("an expression gave a function: the parentheses are missing")
    return value


def _environment(undefined: type[Undefined]) -> BoundedEnvironment:
    environment = BoundedEnvironment(
        LIMITS,
        undefined=undefined,
        finalize=_finalize,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        extensions=[_Statements],
    )
    environment.filters.update(FILTERS)
    return environment


_ENVIRONMENT: Final = _environment(StrictUndefined)


@lru_cache(maxsize=4096)
def compile_template(content: bytes, source: str) -> Compiled:
    """Compile a template in UTF-8, once per text and file. Raises `RenderError`."""
    return _compile(_ENVIRONMENT, content.decode("utf-8"), source)


def _compile(environment: BoundedEnvironment, text: str, source: str) -> Compiled:
    try:
        tree = environment.parse(text, filename=source)
        names = frozenset(meta.find_undeclared_variables(tree))
        code: CodeType = environment.compile(tree, filename=source)
    except TemplateSyntaxError as error:
        raise RenderError(source, error.lineno, error.message or "syntax error") from None
    template = Template.from_code(environment, code, environment.make_globals(None))
    made = {found.name for found in tree.find_all(nodes.ExtensionAttribute)}
    return Compiled(template, source, names, not made.isdisjoint(("_file", "_symlink")))


def render_template(compiled: Compiled, variables: Mapping[str, Any]) -> Rendered:
    """What the template makes of `variables`. Raises `RenderError`, and nothing else."""
    rendered = Rendered()
    try:
        text = compiled.template.render({**variables, _SINK: rendered})
        # What stands between file statements is layout, also where none of them made a file.
        if not compiled.elsewhere or text.strip():
            rendered.own = rendered.made(text)
    except _End:
        pass
    except Exception as error:  # a template can raise whatever its expressions do
        raise RenderError(compiled.source, _line(error, compiled), _reason(error)) from None
    return rendered


class _Absent(Undefined):
    """In a condition a tag that a node does not have is false and unlike anything; a name that
    nothing has is still an error."""

    def __new__(  # type: ignore[misc] # what is no tag is strict
        cls, hint: str | None = None, obj: Any = missing, *more: Any, **named: Any
    ) -> Undefined:
        """A lenient value only where a key of a map is missing."""
        if isinstance(obj, Mapping):
            return super().__new__(cls)
        return StrictUndefined(hint, obj, *more, **named)


_CONDITIONS: Final = _environment(_Absent)


@lru_cache(maxsize=1024)
def compile_condition(condition: Condition) -> Compiled:
    """Compile a condition, once. Raises `RenderError`, also for a variable that does not exist."""
    # The line breaks bring the expression to the line where it is written, for messages.
    text = "\n" * (condition.line - 1) + "{{ (" + condition.text + ") and 1 or 0 }}"
    compiled = _compile(_CONDITIONS, text, condition.file)
    for name in sorted(compiled.names - set(VARIABLES)):
        known = ", ".join(VARIABLES)
        raise RenderError(
            condition.file, condition.line, f"{name!r} is undefined; there are {known}"
        )
    return compiled


def fits(condition: Condition, variables: Mapping[str, Any]) -> bool:
    """Whether a condition holds. Raises `RenderError`."""
    made = render_template(compile_condition(condition), variables).own
    return made is not None and made.content.strip() == b"1"


def _line(error: Exception, compiled: Compiled) -> int:
    """The template's line that raised: Jinja2 rewrites tracebacks to name the template."""
    line = 1
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == compiled.source:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _reason(error: Exception) -> str:
    own = isinstance(error, TemplateValueError) and str(error)
    return (own or reason(error)).replace("\n", " ")[:300]
