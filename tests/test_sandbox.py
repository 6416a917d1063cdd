"""No template runs for ever or takes all memory, and those that do neither are as they were."""

from __future__ import annotations

import tracemalloc

import pytest
from jinja2 import StrictUndefined, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bootd.sandbox import CALL_TURNS, MAX_WIDTH, BoundedEnvironment, Limits, TooMuch, reason

TURNS = 1000
ENVIRONMENT = BoundedEnvironment(
    Limits(TURNS, 1 << 20, "; put it elsewhere"), undefined=StrictUndefined
)
JINJA = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
"""What templates would be without bounds."""
NAMES = ("a", "b", "c")
TREE = ({"n": 1, "of": ({"n": 2, "of": ()}, {"n": 3, "of": ({"n": 4, "of": ()},)})},)


def rendered(text: str, **values: object) -> str:
    return ENVIRONMENT.from_string(text).render(values)


@pytest.mark.parametrize(
    "text",
    [
        "{% for n in names %}{{ loop.index }}{{ n }}{% endfor %}",
        "{% for n in names %}{{ loop.length }}{{ loop.revindex }}{{ loop.last }}{% endfor %}",
        "{% for n in names | map('upper') %}{{ loop.length }}{{ n }}{{ loop.last }}{% endfor %}",
        "{% for n in names if n != 'b' %}{{ n }}{{ loop.length }}{{ loop.last }}{% endfor %}",
        "{% for n in names %}{{ loop.previtem if loop.index > 1 }}"
        "{{ loop.nextitem if not loop.last }}{% endfor %}",
        "{% for n in [] %}{{ n }}{% else %}none{% endfor %}",
        "{% for a, b in {'x': 1}.items() %}{{ a }}{{ b }}{% endfor %}",
        "{% for key in {'x': 1} %}{{ key }}{{ loop.length }}{% endfor %}",
        "{% for letter in 'xyz' %}{{ letter }}{% endfor %}",
        "{% macro m(x, y=2) %}{% for n in names %}{{ n }}{{ x }}{{ y }}{% endfor %}{% endmacro %}"
        "{{ m(1) }}{{ m(1, y=3) }}",
        "{% macro m() %}<{{ caller('x') }}>{% endmacro %}{% call(x) m() %}{{ x }}{% endcall %}",
        "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, a=2) }}",
        "{% block b %}{% for n in names %}{{ n }}{% endfor %}{% endblock %}{{ self.b() }}",
        "{% for n in names %}{% block c scoped %}{{ n }}{{ loop.index }}{% endblock %}{% endfor %}",
        "{% for t in tree recursive %}{{ t.n }}{{ loop.depth }}{{ loop.length }}{{ loop.last }}"
        "({{ loop(t.of) }}){% endfor %}",
        "{% for t in tree if t.n != 2 recursive %}{{ t.n }}{{ loop.length }}({{ loop(t.of) }})"
        "{% else %}-{% endfor %}",
        "{% for t in tree recursive %}{% for u in t.of %}{{ u.n }}{{ loop.index }}{% endfor %}"
        "{{ loop(t.of) }}{% endfor %}",
        "{{ 'ab' * 3 }}{{ 3 * [1] }}{{ 'ab' * -3 }}{{ 2 ** 10 }}{{ 2 * 3 }}{{ 2 ** 0.5 }}",
        "{{ 7 % 4 }}{{ '%5s|%-4d|%05.1f|%%' % ('a', 2, 3) }}{{ '%*d' % (5, 1) }}{{ '%s' % 1 }}",
        "{{ '%(a)9s' % {'a': 1} }}{{ '%3d' | format(9) }}{{ '100%% 9999999s' % () }}",
        "{{ 'x' | center(9) }}{{ 'a\\nb' | indent(2, first=true) }}{{ 1.55 | round(1, 'floor') }}",
        "{{ names | batch(2, '-') | list }}{{ names | slice(2) | list }}{{ 9999999 | tojson }}",
        "{{ 'x'.ljust(5) }}{{ '7'.zfill(3) }}{{ 'a\\tb'.expandtabs(3) }}{{ names.index('b') }}",
        "{{ '{:>5}{:{w}}{}'.format(1, 2, 3, w=4) }}{{ '{a:5}'.format_map({'a': 1}) }}",
        "{{ '{:9999}'.format('x') | length }}{{ '{:{w}}'.format('x', w=100000) | length }}",
        "{{ 10000000 | round(1) }}{{ 123456789 | string | center(11) }}",
        "{{ names | map('upper') | join('-') }}{{ tree | sum(attribute='n') }}{{ names | max }}",
        "{{ tree | selectattr('n', 'eq', 1) | map(attribute='n') | list }}{{ 'ba' | sort }}",
        "{% for k, v in {'x': 1} | dictsort %}{{ k }}{{ v }}{% endfor %}{{ [] | join }}",
        "{% filter upper %}{{ names | unique | join }}{% endfilter %}{{ nope | default([1]) }}",
        "{% set x %}{% for n in names %}{{ n }}{% endfor %}{% endset %}{{ x }}",
        "{% for i in range(700) %}{{ i }},{{ i }}{% endfor %}",
    ],
)
def test_templates_make_what_they_made(text: str) -> None:
    values = {"names": NAMES, "tree": TREE}

    assert rendered(text, **values) == JINJA.from_string(text).render(values)


OVER = "{% for x in range(30) %}"
END = "{% endfor %}"


@pytest.mark.parametrize(
    "text",
    [
        f"{{% for a in range({TURNS + 1}) %}}{END}",
        f"{OVER}{OVER}{END}{OVER}{END}{END}",
        f"{OVER}{{% for y in range(40) | map('string') %}}{END}{END}",
        f"{OVER}{{% for y in range(40) if false %}}{END}{END}",
        f"{OVER}{{{{ range(40) | map('string') | join }}}}{END}",
        f"{OVER}{{{{ range(40) | select('odd') | list | length }}}}{END}",
        f"{OVER}{{% set y = range(40) | sum %}}{END}",
        f"{OVER}{{% for y in range(40) %}}{{{{ loop.last }}}}{END}{END}",
        f"{{% macro m() %}}{OVER}{END}{{% endmacro %}}{OVER}{{{{ m() }}}}{END}",
        f"{{% macro m() %}}{OVER}{{{{ caller() }}}}{END}{{% endmacro %}}"
        f"{{% call m() %}}{OVER}{END}{{% endcall %}}",
        f"{{% macro m() %}}{{% macro k() %}}{OVER}{END}{{% endmacro %}}{OVER}{{{{ k() }}}}{END}"
        "{% endmacro %}{{ m() }}",
        f"{{% block b %}}{OVER}{END}{{% endblock %}}{OVER}{{{{ self.b() }}}}{END}",
        f"{OVER}{{% block b scoped %}}{OVER}{OVER}{END}{END}{{% endblock %}}{END}",
        # Each calls itself twice, sixty deep.
        "{% macro m(n) %}{% if n %}{{ m(n - 1) ~ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% set ns = namespace(n=0) %}{% block b %}{% if ns.n < 60 %}{% set ns.n = ns.n + 1 %}"
        "{{ self.b() }}{{ self.b() }}{% set ns.n = ns.n - 1 %}{% endif %}{% endblock %}",
        "{% for x in 'ab' recursive %}{% if loop.depth < 60 %}{{ loop('ab') }}{% endif %}"
        "{% endfor %}",
        "{% for x in range(9) if true recursive %}{% if loop.depth < 4 %}"
        "{{ loop(range(9)) }}{% endif %}{% endfor %}",
        "{% for x in range(9) recursive %}{% set again = loop %}{% if loop.depth < 4 %}"
        "{{ again(range(9)) }}{% endif %}{% endfor %}",
        f"{{% for x in range({TURNS + 1}) if false recursive %}}{END}",
    ],
)
def test_all_loops_and_calls_of_one_rendering_count_together(text: str) -> None:
    with pytest.raises(TooMuch, match=rf"does not end: more than 1,000 turns .* as {CALL_TURNS}\)"):
        rendered(text)


@pytest.mark.parametrize(
    "text",
    [
        "{% for a in many %}{% endfor %}x",
        "{% for a in many recursive %}{% endfor %}x",
        "{% for a in many if false recursive %}{% endfor %}x",
        "{% for a in many | map('string') %}{% endfor %}x",
        "{% set a = many | map('string') | select | sort | list %}x",
        f"{{% macro m() %}}{{% endmacro %}}"
        f"{{% for a in range({TURNS // (CALL_TURNS + 1)}) %}}{{{{ m() }}}}{{% endfor %}}x",
    ],
)
def test_each_rendering_has_all_turns(text: str) -> None:
    template = ENVIRONMENT.from_string(text)

    for _ in range(2):
        assert template.render(many=range(TURNS)) == "x"


def test_calls_of_other_functions_are_free() -> None:
    assert rendered(f"{{% for a in range({TURNS}) %}}{{{{ 'x'.upper() }}}}{END}") == "X" * TURNS


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'x' * 2000000000 }}",
        "{{ 2000000000 * [1] }}",
        "{{ 200000 * [1] }}",
        "{% for i in range(9) %}{{ 'x' * -900000 }}{{ ('x' * 200000) | length }}{% endfor %}",
        # Text is of use only once it was made: not more of it is made than fits.
        "{% set x = 'x' * 100000 %}{% for i in range(900) %}{{ x }}{% endfor %}",
        "{% set x = 'x' * 2000 %}{% for i in range(900) %}{{ i }}{{ x }}{% endfor %}",
        "{% set x = 'x' * 100000 %}"
        "{% set y %}{% for i in range(900) %}{{ x }}{% endfor %}{% endset %}",
        "{% macro m(x) %}{% for i in range(900) %}{{ x }}{% endfor %}{% endmacro %}"
        "{{ m('x' * 100000) | length }}",
    ],
)
def test_no_more_is_made_than_fits(text: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TooMuch, match="makes more than 1 MiB; put it elsewhere"):
            rendered(text)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    [
        "{{ 9 ** 2000000000 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ (2 ** 2000) * (2 ** 2000) * (2 ** 2000) }}",
    ],
)
def test_no_number_is_a_giant(text: str) -> None:
    with pytest.raises(TooMuch, match="makes a number of more than 4,096 bits"):
        rendered(text)


@pytest.mark.parametrize(
    "text",
    [
        "'x' | center(N)",
        "'x' | center(width=N)",
        "'x\ny' | indent(N)",
        "[1] | batch(N, 0) | list",
        "[1] | slice(N) | list",
        "1 | round(N, 'ceil')",
        "[1] | tojson(N)",
        "[1] | tojson(indent=N)",
        "'%Nd' % 1",
        "'%(a)-Nd' % {'a': 1}",
        "'%.Nf' % 1",
        "'%s%*d' % ('x', N, 1)",
        "'%*d' % (-N, 1)",
        "('%99999d' * 2) % (1, 1)",
        "'%Nd' | format(1)",
        "'%*d' | format(N, 1)",
        "'{:N}'.format(1)",
        "'{:>{w}}'.format(1, w=N)",
        "'{0!r:N}'.format(1)",
        "'{a:N}'.format_map({'a': 1})",
        "'x'.center(N)",
        "'x'.ljust(N)",
        "'x'['rjust'](N)",
        "('x' | attr('zfill'))(N)",
        "'\t'.expandtabs(N)",
        "'\t'.expandtabs(tabsize=N)",
        "(1).to_bytes(N, 'big')",
        "(1).to_bytes(length=N, byteorder='big')",
    ],
)
def test_no_width_makes_a_giant(text: str) -> None:
    with pytest.raises(TooMuch, match="width or precision of more than 100,000"):
        rendered(f"{{{{ {text.replace('N', str(MAX_WIDTH + 1))} }}}}")


def test_a_loop_over_what_is_undefined_says_so() -> None:
    with pytest.raises(UndefinedError, match="'nobody' is undefined"):
        rendered("{% for a in nobody %}{% endfor %}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{ nobody }}", "'nobody' is undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{% for a in 5 %}{% endfor %}", "TypeError: 'int' object is not iterable"),
        ("{{ 'x' * 2000000 }}", "makes more than 1 MiB; put it elsewhere"),
        ("{{ ().__class__ }}", "access to attribute '__class__' of 'tuple' object is unsafe."),
    ],
)
def test_reasons_are_sentences(text: str, says: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each of another kind
        rendered(text)

    assert reason(caught.value) == says


def test_what_calls_itself_for_ever_says_so() -> None:
    roomy = BoundedEnvironment(Limits(10**6, 1 << 20))

    with pytest.raises(RecursionError) as caught:
        roomy.from_string("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").render()

    assert reason(caught.value) == "does not end: a macro or loop calls itself too often"
