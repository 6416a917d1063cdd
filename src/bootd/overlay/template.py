"""The language of overlay templates: sandboxed Jinja2, nothing undefined, nothing printed as None.

Pure. Beside Jinja2's own statements there are two: ``{% file "PATH" %}…{% endfile %}`` puts what it
encloses into a file of its own, and ``{% skip %}`` says that this template makes no file here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType
from typing import Any, Final

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bootd.overlay.filters import FILTERS

_SINK: Final = "bootd_files"
"""The variable that carries a rendering's `Rendered` to the ``file`` statement."""


class RenderError(Exception):
    """A template that does not render: `source` and `line` (from 1) say where, `reason` what."""

    def __init__(self, source: str, line: int, reason: str, node: str = "") -> None:
        self.source, self.line, self.reason, self.node = source, line, reason, node
        super().__init__(f"{source}:{line}: {f'node {node}: ' if node else ''}{reason}")


@dataclass(slots=True)
class Rendered:
    """What one template made: `content` for its own path (None: skipped), and files by path with
    their permission bits (None: the template's own)."""

    content: bytes | None = None
    files: dict[str, tuple[bytes, int | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A template ready to render. `names` are the variables it reads."""

    template: Template
    source: str
    names: frozenset[str]


class _Skip(Exception):
    """Ends a rendering that makes no file."""


class _Statements(Extension):
    """The two statements that Jinja2 does not have."""

    tags = {"file", "skip"}  # noqa: RUF012 - Jinja2 declares it as an instance attribute

    def parse(self, parser: Parser) -> nodes.Node:
        """Turn ``file`` into a call with its body, ``skip`` into one without."""
        token = next(parser.stream)
        if token.value == "skip":
            call = self.call_method("_skip", lineno=token.lineno)
            return nodes.ExprStmt(call, lineno=token.lineno)
        arguments: list[nodes.Expr] = [nodes.ContextReference(), parser.parse_expression()]
        if parser.stream.skip_if("comma"):
            arguments.append(parser.parse_expression())
        body = parser.parse_statements(("name:endfile",), drop_needle=True)
        call = self.call_method("_file", arguments, lineno=token.lineno)
        return nodes.CallBlock(call, [], [], body).set_lineno(token.lineno)

    def _skip(self) -> None:
        raise _Skip

    def _file(
        self, context: Context, path: object, mode: object = None, *, caller: Callable[[], str]
    ) -> str:
        rendered = context[_SINK]
        assert isinstance(rendered, Rendered)
        if not isinstance(path, str):
            raise TypeError(f"file: the path is of type {type(path).__name__}, not a text")
        if path in rendered.files:
            raise ValueError(f"file: {path!r} is written twice")
        rendered.files[path] = (caller().encode(), _mode(mode))
        return ""


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


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        finalize=_finalize,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        extensions=[_Statements],
    )
    environment.filters.update(FILTERS)
    return environment


_ENVIRONMENT: Final = _environment()


@lru_cache(maxsize=4096)
def compile_template(content: bytes, source: str) -> Compiled:
    """Compile a template in UTF-8, once per text and file. Raises `RenderError`."""
    text = content.decode("utf-8")
    try:
        tree = _ENVIRONMENT.parse(text, filename=source)
        names = frozenset(meta.find_undeclared_variables(tree))
        code: CodeType = _ENVIRONMENT.compile(text, filename=source)
    except TemplateSyntaxError as error:
        raise RenderError(source, error.lineno, error.message or "syntax error") from None
    template = Template.from_code(_ENVIRONMENT, code, _ENVIRONMENT.make_globals(None))
    return Compiled(template, source, names)


def render_template(compiled: Compiled, variables: Mapping[str, Any]) -> Rendered:
    """What the template makes of `variables`. Raises `RenderError`, and nothing else."""
    rendered = Rendered()
    try:
        text = compiled.template.render({**variables, _SINK: rendered})
        # What stands between file statements is layout, not a file.
        if not rendered.files or text.strip():
            rendered.content = text.encode()
    except _Skip:
        pass
    except Exception as error:  # a template can raise whatever its expressions do
        raise RenderError(compiled.source, _line(error, compiled), _reason(error)) from None
    return rendered


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
    kind = type(error).__name__
    text = str(error).replace("\n", " ")[:300]
    return text if kind in ("UndefinedError", "TemplateValueError") and text else f"{kind}: {text}"
