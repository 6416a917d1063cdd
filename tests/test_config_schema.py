"""The schema, its documentation, and the example files that are installed agree."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from bootd.config import values
from bootd.config.load import load, load_settings
from bootd.config.schema import (
    ENTRIES,
    BootdFile,
    DeviceSpec,
    NodesFile,
    NodeSpec,
    json_schema,
    submodel,
)
from bootd.config.source import parse, plain
from bootd.config.validate import validate
from tests.test_config_load import Site

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
DOCUMENT = (ROOT / "docs" / "configuration.md").read_text()


def keys(kind: Any, above: str = "") -> Iterator[str]:
    """Every dotted key of a model."""
    for name in kind.model_fields:
        below = None if (kind, name) in ENTRIES else submodel(kind, name)
        if below is None or name == "tls":
            yield above + name
        if below is not None:
            yield from keys(below, f"{above}{name}.")


def uncommented(text: str) -> str:
    """An example file with its examples in force: ``#key`` and ``#  key``, not ``# words``."""
    return re.sub(r"(?m)^#(?=\S|  )", "", text)


# ---- documentation -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        *keys(BootdFile),
        *keys(NodesFile),
        *keys(NodeSpec),
        *(f"network.NAME.{key}" for key in keys(DeviceSpec)),
    ],
)
def test_every_key_has_its_row_in_the_documentation(key: str) -> None:
    assert re.search(rf"(?m)^\| `{re.escape(key)}` \|", DOCUMENT)


def test_the_documentation_has_no_key_that_is_not_read() -> None:
    known = {
        *keys(BootdFile),
        *BootdFile.model_fields,
        *keys(NodesFile),
        *keys(NodeSpec),
        *(f"network.NAME.{key}" for key in keys(DeviceSpec)),
    }
    sections = DOCUMENT.split("## bootd.yaml")[1]

    assert set(re.findall(r"(?m)^\| `([^`]+)` \|", sections)) <= known


def test_the_documented_defaults_of_settings_are_the_true_ones() -> None:
    rows = re.findall(
        r"(?m)^\| `([a-z_.]+)` \| [^|]+ \| `([^`|]+)` \|", DOCUMENT.split("## nodes.yaml")[0]
    )
    assert len(rows) > 20
    written: dict[str, Any] = {}
    for key, default in rows:
        if not key.startswith("http.tls"):
            section, _, name = key.rpartition(".")
            place = written.setdefault(section, {}) if section else written
            place[name] = plain(parse(default, key).value)

    checked, faults = validate(BootdFile, parse(json.dumps(written), "defaults"))

    assert faults == []
    assert checked == BootdFile()


# ---- examples ------------------------------------------------------------------------------------


def test_the_example_files_load_as_they_are(tmp_path: Path) -> None:
    for name in ("bootd.yaml", "nodes.yaml"):
        (tmp_path / name).write_text((CONF / name).read_text())
    with (tmp_path / "bootd.yaml").open("a") as file:
        file.write("state_dir: state\n")

    registry = load(str(tmp_path / "bootd.yaml"))

    assert len(registry.nodes) == 0


def test_the_examples_settings_are_the_defaults(tmp_path: Path) -> None:
    text = uncommented((CONF / "bootd.yaml").read_text())
    (tmp_path / "shown.yaml").write_text(text.replace("interfaces: [eth1]\n", ""))
    (tmp_path / "none.yaml").write_text("{}\n")

    shown, default = (load_settings(str(tmp_path / name)) for name in ("shown.yaml", "none.yaml"))

    assert shown == replace(default, config_file=shown.config_file)


@pytest.mark.parametrize("key", [k for k in keys(BootdFile) if not k.startswith("http.tls.")])
def test_every_setting_is_in_the_example_but_what_only_few_need(key: str) -> None:
    text = uncommented((CONF / "bootd.yaml").read_text())
    name = key.rpartition(".")[2]

    assert (f"{name}:" in text) != (name in ("client_port", "lease_time"))


def test_the_example_nodes_load_when_their_comment_signs_are_removed(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.image("debian-12")
    site.write("nodes.yaml", uncommented((CONF / "nodes.yaml").read_text()))

    registry = site.load()

    assert len(registry.nodes) == 129
    assert registry.nodes["n001"].kernel_args == ("console=ttyS0,115200", "nouveau.modeset=0")
    assert registry.nodes["n002"].tags == {"rack": "r2"}
    assert registry.nodes["n129"].boot == "local"


# ---- JSON Schema ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict[str, Any]]:
    return json_schema()


def test_the_json_schemas_are_schemas_and_accept_the_examples(
    schemas: dict[str, dict[str, Any]],
) -> None:
    for name, schema in schemas.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        example = plain(parse(uncommented((CONF / name).read_text()), name).value)
        jsonschema.Draft202012Validator(schema).validate(example)
    assert schemas.keys() == {"bootd.yaml", "nodes.yaml"}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("bootd.yaml", "dhpc: {}"),
        ("bootd.yaml", "dhcp: {mode: proxi}"),
        ("bootd.yaml", "tftp: {max_blksize: 7}"),
        ("bootd.yaml", "http: {tls: {key: a}}"),
        ("nodes.yaml", "nodes: {n1: {profils: [a]}}"),
        ("nodes.yaml", "nodes: {n1: {mac: zz}}"),
        ("nodes.yaml", "profiles: {p: {boot: disk}}"),
        ("nodes.yaml", "profiles: {p: {mac: 52:54:00:00:00:01}}"),
    ],
)
def test_the_json_schemas_refuse_what_the_daemon_refuses(
    schemas: dict[str, dict[str, Any]], file: str, text: str
) -> None:
    value = plain(parse(text, file).value)
    kind: type[BaseModel] = BootdFile if file == "bootd.yaml" else NodesFile

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schemas[file]).validate(value)
    assert validate(kind, parse(text, file))[1]  # type: ignore[type-var] # both are Written


def test_every_key_says_what_it_is_for_editors() -> None:
    text = json.dumps(json_schema())
    for kind in (BootdFile, NodesFile, NodeSpec, DeviceSpec):
        for name, field in kind.model_fields.items():
            assert field.description, (kind, name)
            assert json.dumps(field.description) in text


# ---- single values -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h", 3600), ("1h30m", 5400), ("1d", 86400), ("90", 90), (90, 90)],
)
def test_time_spans_are_read(text: object, seconds: int) -> None:
    assert values.duration(1, 86400)(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "m", "10x", "-5s", "1.5h", "30m1h", "10 m", True, None, [], "٣s"]
)
def test_other_time_spans_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        values.duration(1, 86400)(text)


@pytest.mark.parametrize(
    ("given", "text"), [(12, "12"), (True, "true"), ("x y", "x y"), ("é", "é")]
)
def test_text_takes_numbers_and_words_as_they_were_typed(given: object, text: str) -> None:
    assert values.line(given) == text


def test_a_mac_of_digits_only_is_read_although_yaml_takes_it_for_a_number() -> None:
    checked, faults = validate(NodesFile, parse("nodes: {n1: {mac: 525400123456}}", "f"))

    assert faults == []
    assert checked.nodes is not None
    assert checked.nodes["n1"] is not None
    assert checked.nodes["n1"].mac == "52:54:00:12:34:56"


@pytest.mark.parametrize("given", [True, "True", "TRUE"])
def test_flags_are_true_or_false_in_yaml_and_pythons_spelling(given: object) -> None:
    assert values.flag(given) is True


@pytest.mark.parametrize(
    "given", ["binl", "binl@00:11:22", "~binl", "binl@00:11:22:33:44:55", "no-43"]
)
def test_quirks_may_be_for_one_makers_cards(given: str) -> None:
    assert values.quirk(given) == given


@pytest.mark.parametrize("given", ["", "BINL", "binl@", "binl@0011", "binl@00:11:22:33:44:55:66"])
def test_other_quirks_are_refused(given: str) -> None:
    with pytest.raises(ValueError, match="not a quirk"):
        values.quirk(given)


@pytest.mark.parametrize("given", ["auto", "snponly", "undionly.kpxe", "site/ipxe-1.21.efi"])
def test_a_loader_is_a_word_or_a_file(given: str) -> None:
    assert values.loader(given) == given


@pytest.mark.parametrize("given", ["", "/etc/x", "../x", "a/../b", "a//b", "a\\b", "a/.b"])
def test_a_loader_is_no_path_out_of_its_folder(given: str) -> None:
    with pytest.raises(ValueError, match="not a boot loader"):
        values.loader(given)


def test_a_host_in_a_network_of_two_or_one_is_no_network_address() -> None:
    assert str(values.ip("10.0.0.0/31")) == "10.0.0.0/31"
    assert str(values.ip("10.0.0.1")) == "10.0.0.1/32"
    with pytest.raises(ValueError, match="network itself"):
        values.ip("10.0.0.255/24")


def test_a_uuid_is_put_into_its_usual_form() -> None:
    usual = "4c4c4544-0044-4810-8031-b4c04f503132"

    assert values.uuid(usual.upper()) == values.uuid(usual.replace("-", "")) == usual


@pytest.mark.parametrize(
    ("check", "good", "bad", "reason"),
    [
        (values.ip6, "2001:db8::1/64", "10.0.0.1/24", "not an IPv6 address"),
        (values.ip6, "fe80::1", "::/64", "no address that a node can have"),
        (values.gateway6, "fe80::1", "fe80::1/64", "not an IPv6 address"),
        (values.network4, "10.0.0.0/8", "fe80::/64", "relay agents speak DHCPv4"),
        (values.interface, "eth0.100", "a b", "not an interface name"),
        (values.interface, "ib0", "..", "not an interface name"),
        (values.kernel_argument, 'a="b c"', " ", "an empty kernel argument"),
        (values.kernel_argument, "3", "ü", "a kernel command line is ASCII"),
        (values.kernel_argument, "~||", "||", "would end iPXE's command"),
        (values.kernel_argument, "a#b", "#b", "would end iPXE's command"),
        (values.path, "a b/ü", "", "an empty path"),
        (values.prose, "one\n\ttwo", "\x07", "control characters"),
        (values.auto_or(values.whole(1, 5, "a digit")), "5", "6", "not a digit .1 to 5., nor auto"),
        (values.choice(("a", "b")), "a", ["a"], "a list is not one of a, b"),
        (values.flag, False, 1, "1 is not true or false"),
    ],
)
def test_a_value_is_taken_or_refused_with_a_reason(
    check: Any, good: object, bad: object, reason: str
) -> None:
    assert str(check(good)) in (str(good), f"{good}/128")
    with pytest.raises(ValueError, match=reason):
        check(bad)
