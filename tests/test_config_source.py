"""YAML as bootd reads it: text stays text, everything knows its place, nothing explodes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd.config import source
from bootd.config.source import MAX_BYTES, MAX_DEPTH, Document, YamlMap, parse, plain


def read(text: str) -> object:
    document = parse(text, "f.yaml")
    assert document.faults == []
    return plain(document.value)


def faults(data: str | bytes) -> list[str]:
    return [str(fault) for fault in parse(data, "f.yaml").faults]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("52:54:00:12:34:56", "52:54:00:12:34:56"),
        ("12:34:56", "12:34:56"),
        ("no", "no"),
        ("on", "on"),
        ("0644", "0644"),
        ("0o17", "0o17"),
        ("0x1f", "0x1f"),
        ("6.10", "6.10"),
        ("1e3", "1e3"),
        ("+5", "+5"),
        ("1_000", "1_000"),
        ("2026-11-22", "2026-11-22"),
        ("True", "True"),
        ("~quiet", "~quiet"),
        ("'12'", "12"),
        ('"true"', "true"),
        ("9999999999999999999999", "9999999999999999999999"),
        ("-0", "-0"),
        ("true", True),
        ("false", False),
        ("12", 12),
        ("0", 0),
        ("-7", -7),
        ("~", None),
        ("null", None),
        ("", None),
    ],
)
def test_a_bare_word_is_what_json_would_take_it_for_and_else_text(text: str, value: object) -> None:
    assert read(f"key: {text}\n") == {"key": value}


def test_keys_are_always_text() -> None:
    assert read("1: a\nno: b\ntrue: c\n") == {"1": "a", "no": "b", "true": "c"}


def test_block_and_flow_style_and_multi_line_text_are_read() -> None:
    assert read("a: |\n  one\n  two\nb: [x, {c: d}]\n") == {
        "a": "one\ntwo\n",
        "b": ["x", {"c": "d"}],
    }


def test_every_value_knows_its_line_and_column() -> None:
    text = "nodes:\n  n1:\n    mac: aa\n    profiles: [x,   y]\n"
    document = parse(text, "f.yaml")

    assert document.position(("nodes", "n1", "mac")) == (3, 10)
    assert document.position(("nodes", "n1", "mac"), key=True) == (3, 5)
    assert document.position(("nodes", "n1", "profiles", 1)) == (4, 21)
    assert str(document.origin(("nodes", "n1"), key=True)) == "f.yaml:2:3"


def test_the_place_of_what_is_missing_is_its_nearest_parent() -> None:
    document = parse("http:\n  tls: {port: 1}\n", "f.yaml")

    assert document.position(("http", "tls", "key")) == (2, 8)
    assert document.position(("nothing", 3)) == (1, 1)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("a: 1\na: 2\n", "f.yaml:2:1: a: 'a' is written twice (first in line 1)"),
        ("b: {c: 1, c: 2}\n", "f.yaml:1:11: b.c: 'c' is written twice (first in line 1)"),
        ("a: &x 1\nb: 2\n", "f.yaml:1:4: a: anchors (&x) are not read"),
        ("a: 1\nb: *x\n", "f.yaml:2:4: b: aliases (*x) are not read"),
        ("a: !!python/object:os.system x\n", "f.yaml:1:4: a: tags ("),
        ("a: !local [b]\n", "f.yaml:1:4: a: tags ('!local') are not read"),
        ("a: [\n", "f.yaml:2:1: not valid YAML: did not find expected node content"),
        ("a: b: c\n", "f.yaml:1:5: not valid YAML: mapping values are not allowed"),
        ("a: 'x\n", "not valid YAML: found unexpected end of stream"),
        ("\ta: 1\n", "f.yaml:1:1: a tab where YAML takes only spaces"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2:1: a second document begins here"),
        ("ä: \x01\n", "f.yaml:1:4: the character U+0001 is not allowed"),
        (b"a: x\nb: \xff\n", "f.yaml:2:4: not UTF-8 text"),
        ("a: \ud800\n", "f.yaml:1:4: not UTF-8 text"),
        ("{[a]: b}\n", "f.yaml:1:2: a key must be plain text"),
        ('"a\\nb": 1\n', "f.yaml:1:1: the key 'a\\nb' has control characters"),
        ("%YAML 3.0\n---\na: 1\n", "not valid YAML: found incompatible YAML document"),
    ],
)
def test_what_is_not_read_is_a_fault_with_its_place(data: str | bytes, expected: str) -> None:
    assert any(expected in fault for fault in faults(data)), faults(data)


def test_several_faults_of_one_file_are_found_at_once() -> None:
    assert len(faults("a: &x 1\nb: *x\nc: 1\nc: 2\n")) == 3


def test_maps_and_lists_nest_up_to_the_limit_and_no_deeper() -> None:
    assert faults("[" * MAX_DEPTH + "]" * MAX_DEPTH) == []
    assert "32 deep" in faults("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))[0]


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 100_000, "? " * 100_000, "{a: " * 100_000])
def test_endless_nesting_is_refused_before_it_costs_anything(text: str) -> None:
    assert len(faults(text)) == 1


def test_a_file_is_read_up_to_the_limit_and_no_longer() -> None:
    text = "a: " + "x" * (MAX_BYTES - 4) + "\n"
    assert faults(text) == []
    assert "at most" in faults("#" + text)[0]


def test_a_file_holds_values_up_to_the_limit_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_VALUES", 50)

    assert faults("[" + "a," * 49 + "]") == []
    assert "more than 50 values" in faults("[" + "a," * 50 + "]")[0]


def test_after_a_thousand_faults_the_rest_is_not_read() -> None:
    found = faults("a: 1\n" * 3000)

    assert len(found) == 1002
    assert found[-1] == "f.yaml:1002:1: and so on: the rest of the file is not read"


def test_empty_and_commented_files_say_nothing() -> None:
    assert read("") is None
    assert read("# only a comment\n") is None
    assert read("---\n") is None


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert read("\ufeffa: 1\n") == {"a": 1}


@given(st.text(max_size=200))
def test_any_text_gives_a_value_or_faults(text: str) -> None:
    _holds(parse(text, "f.yaml"))


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_faults(data: bytes) -> None:
    _holds(parse(data, "f.yaml"))


@given(st.lists(st.sampled_from(list("ab:-,[]{}&*!|>'\"#%@~ \n\t0")), max_size=60).map("".join))
def test_any_mixture_of_yaml_punctuation_gives_a_value_or_faults(text: str) -> None:
    _holds(parse(text, "f.yaml"))


def _holds(document: Document) -> None:
    for fault in document.faults:
        assert "\n" not in str(fault)
        assert fault.origin.line >= 1
        assert fault.origin.column >= 1
    if isinstance(document.value, YamlMap):
        assert document.value.keys() == document.value.marks.keys()
