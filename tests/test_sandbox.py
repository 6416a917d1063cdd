"""No template runs for ever or takes all memory, and those that do neither are as they were."""

from __future__ import annotations

import pytest
from jinja2 import StrictUndefined, UndefinedError

from bootd.sandbox import MAX_PRODUCT, MAX_TURNS, BoundedEnvironment, TooMuch

ENVIRONMENT = BoundedEnvironment(undefined=StrictUndefined)


def rendered(text: str, **values: object) -> str:
    return ENVIRONMENT.from_string(text).render(values)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("{% for n in names %}{{ loop.index }}{{ n }}{% endfor %}", "1a2b3c"),
        ("{% for n in names if n != 'b' %}{{ n }}{{ ',' if not loop.last }}{% endfor %}", "a,c"),
        ("{% for n in names %}{{ loop.length }}{{ loop.revindex }}{% endfor %}", "333231"),
        ("{% for n in names | map('upper') %}{{ n }}{% endfor %}", "ABC"),
        ("{% for n in [] %}{{ n }}{% else %}none{% endfor %}", "none"),
        ("{% for a, b in {'x': 1}.items() %}{{ a }}{{ b }}{% endfor %}", "x1"),
        ("{% macro m() %}{% for n in names %}{{ n }}{% endfor %}{% endmacro %}{{ m() }}", "abc"),
        ("{% for n in [[1, [2]]] recursive %}{{ n[0] if n is sequence else n }}{% endfor %}", "1"),
        ("{{ 'ab' * 3 }}{{ 3 * [1] }}{{ 2 ** 10 }}{{ 2 * 3 }}{{ 2 ** 0.5 > 1 }}", None),
    ],
)
def test_templates_do_what_they_did(text: str, made: str | None) -> None:
    expected = "ababab[1, 1, 1]10246True" if made is None else made

    assert rendered(text, names=["a", "b", "c"]) == expected


@pytest.mark.parametrize("inner", ["many", "many | map('string')"])
def test_loops_end(inner: str) -> None:
    """Every node for every node, of ten thousand."""
    text = f"{{% for a in many %}}{{% for b in {inner} %}}{{% endfor %}}{{% endfor %}}"

    with pytest.raises(TooMuch, match=f"more than {MAX_TURNS} turns"):
        rendered(text, many=range(10_000))


def test_each_rendering_has_all_turns() -> None:
    template = ENVIRONMENT.from_string("{% for a in many %}{% endfor %}x")

    for _ in range(2):
        assert template.render(many=range(MAX_TURNS)) == "x"


@pytest.mark.parametrize(
    "text", ["{{ 'x' * n }}", "{{ n * [1] }}", "{{ 9 ** n }}", "{{ 9 ** 9999999 }}"]
)
def test_no_operator_makes_a_giant(text: str) -> None:
    with pytest.raises(TooMuch, match=f"more than {MAX_PRODUCT}"):
        rendered(text, n=2_000_000_000)


def test_a_loop_over_what_is_undefined_says_so() -> None:
    with pytest.raises(UndefinedError, match="'nobody' is undefined"):
        rendered("{% for a in nobody %}{% endfor %}")
