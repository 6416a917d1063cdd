from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd import scripts
from bootd.model import (
    Artefact,
    BootPlan,
    BootTarget,
    Image,
    Mac,
    Node,
    ServerAddress,
    Settings,
    Template,
)
from bootd.registry import Registry
from bootd.scripts import ScriptError

MAC = Mac("52:54:00:12:34:56")
SERVER = ServerAddress(IPv4Address("10.0.0.1"))
TOKEN = "T" * 52
IMAGE = Image(
    "debian-12",
    "20261122-1",
    {"kernel": Artefact("/k", 1, "0" * 64), "initramfs": Artefact("/i", 1, "1" * 64)},
)
NODE = Node(
    "n001",
    mac=MAC,
    image="debian-12",
    kernel_args=("quiet", "console=ttyS0,115200"),
    overlays_system=("base",),
)
DATA = files("bootd") / "data" / "templates"
TEMPLATES = {
    name: Template(name, (DATA / name).read_text(), name)
    for name in ("default.ipxe.j2", "hold.ipxe.j2", "local.ipxe.j2")
}


def registry(*nodes: Node, **templates: str) -> Registry:
    texts = {f"{name}.ipxe.j2": text for name, text in templates.items()}
    own = {name: Template(name, text, f"templates/{name}") for name, text in texts.items()}
    return Registry(
        settings=Settings(),
        nodes={node.name: node for node in nodes},
        images={IMAGE.name: IMAGE},
        overlays={},
        templates=TEMPLATES | own,
    )


def planned(node: Node = NODE, token: str | None = TOKEN) -> BootPlan:
    return scripts.plan(registry(node), node, MAC, SERVER, token=token, boot_id="0" * 16)


def script(token: str | None = TOKEN, *, ask: bool = True) -> list[str]:
    text = scripts.render_ipxe(
        planned(token=token), TEMPLATES["default.ipxe.j2"], why="it is too late", ask=ask
    )
    return text.splitlines()


def rendered(text: str, node: Node = NODE) -> str:
    return scripts.render_ipxe(planned(node), Template("x.ipxe.j2", text, "templates/x.ipxe.j2"))


def line_of(lines: list[str], start: str) -> str:
    (found,) = [line for line in lines if line.startswith(start)]
    return found


def test_the_console_shows_node_image_and_server() -> None:
    said = "\n".join(line for line in script() if line.startswith("echo"))

    assert "n001, 52:54:00:12:34:56" in said
    assert "debian-12 20261122-1" in said
    assert "http://10.0.0.1:9873" in said


def test_the_kernel_gets_the_nodes_arguments_then_who_it_is_then_its_initrds() -> None:
    assert line_of(script(), "kernel ") == (
        f"kernel --name kernel http://10.0.0.1:9873/b/{TOKEN}/kernel quiet console=ttyS0,115200 "
        "BOOTIF=01-52-54-00-12-34-56 bootd.node=n001 bootd.server=http://10.0.0.1:9873 "
        "initrd=initramfs initrd=overlay && goto first-initramfs ||"
    )


def test_the_overlay_is_fetched_after_the_initramfs_so_that_its_files_win() -> None:
    initrds = [line.split()[2:4] for line in script() if line.startswith("initrd ")]

    assert initrds == [
        ["initramfs", f"http://10.0.0.1:9873/b/{TOKEN}/initramfs"],
        ["overlay", f"http://10.0.0.1:9873/b/{TOKEN}/system"],
    ]


def test_the_token_is_not_on_the_kernels_command_line() -> None:
    _, _, _, url, *arguments = line_of(script(), "kernel ").split()

    assert TOKEN in url
    assert not any(TOKEN in argument for argument in arguments)


def test_every_command_that_may_fail_says_what_then() -> None:
    """A script that ends with an error drops the machine to its firmware."""
    harmless = ("#", ":", "echo", "set ", "goto ", "inc ")
    for token in (TOKEN, None):
        for line in filter(None, script(token)):
            assert line.startswith(harmless) or "||" in line, line


def test_every_label_that_is_gone_to_exists() -> None:
    for lines in (script(), script(None), script(None, ask=False)):
        labels = {line[1:] for line in lines if line.startswith(":")}
        wanted = {line.split("goto ")[1].split()[0] for line in lines if "goto " in line}

        assert wanted - labels == {"${step}"}
        steps = {line.split()[-1] for line in lines if line.startswith("set step ")}
        assert steps - {"boot"} <= labels


def test_the_last_line_goes_back() -> None:
    for lines in (script(), script(None), scripts.autoexec(SERVER).splitlines()):
        assert lines[-1].startswith("goto ")


def test_a_failing_step_is_reported_with_its_error() -> None:
    assert line_of(script(), "imgfetch ") == (
        f"imgfetch --name report http://10.0.0.1:9873/b/{TOKEN}/fail"
        "?step=${step}&errno=${code} ||"
    )


def test_the_report_is_freed_so_that_it_never_becomes_an_initrd() -> None:
    lines = script()
    report = next(i for i, line in enumerate(lines) if line.startswith("imgfetch "))

    assert lines[report + 1] == "imgfree report ||"


def test_a_round_ends_by_asking_the_server_again() -> None:
    assert "chain --replace --autofree http://10.0.0.1:9873/ipxe/52-54-00-12-34-56 ||" in script()


def test_without_a_token_nothing_secret_is_named_and_the_console_says_why() -> None:
    lines = script(None)
    text = "\n".join(lines)

    assert "/b/" not in text
    assert "overlay" not in line_of(lines, "kernel ")
    assert "http://10.0.0.1:9873/kernel/52-54-00-12-34-56" in text
    assert "echo bootd: no overlay for this boot: it is too late" in lines
    assert "dhcp netX || dhcp ||" in text


def test_dhcp_is_not_asked_again_where_that_opens_nothing() -> None:
    before = script(None, ask=False)
    before = before[: before.index(":first-kernel")]

    assert not any(line.startswith("dhcp") for line in before)


def test_a_secret_image_has_no_public_url() -> None:
    secret = replace(registry(NODE), images={IMAGE.name: replace(IMAGE, secret=True)})

    plan = scripts.plan(secret, NODE, MAC, SERVER)

    assert set(plan.urls) == {"script"}


def test_a_node_without_an_image_has_no_plan() -> None:
    with pytest.raises(ScriptError, match="node n001: no image is set"):
        planned(replace(NODE, image=None))
    with pytest.raises(ScriptError, match="image 'gone' is not imported"):
        planned(replace(NODE, image="gone"))


@pytest.mark.parametrize("argument", ["||", "&&", "#quiet"])
def test_an_argument_that_would_end_the_ipxe_command_is_refused(argument: str) -> None:
    with pytest.raises(ScriptError, match="would end iPXE's command"):
        planned(replace(NODE, kernel_args=("quiet", argument)))


@pytest.mark.parametrize("char", ["\n", "\r", "\0", "\x1b", "\x7f", "\x85", "\u2028"])
def test_no_value_can_begin_a_line_of_its_own(char: str) -> None:
    evil = replace(NODE, tags={"rack": f"r1{char}chain http://evil/"})

    with pytest.raises(ScriptError, match=r"templates/x\.ipxe\.j2:2: .*control character"):
        rendered("#!ipxe\necho {{ node.tags.rack }}\n", evil)


@given(st.text())
def test_a_value_of_any_text_stays_on_its_line_or_is_refused(text: str) -> None:
    try:
        script = rendered("#!ipxe\necho {{ node.comment }}\n", replace(NODE, comment=text))
    except ScriptError:
        return
    assert script == f"#!ipxe\necho {text}\n"
    assert len(script.splitlines()) == 2


def test_a_value_is_not_a_template() -> None:
    text = rendered("#!ipxe\necho {{ node.comment }}\n", replace(NODE, comment="{{ 7 * 191 }}"))

    assert "{{ 7 * 191 }}" in text


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("#!ipxe\n\necho {{ node.nmae }}\n", r"templates/x\.ipxe\.j2:3: .*nmae"),
        ("#!ipxe\n{% if %}\n", r"templates/x\.ipxe\.j2:2: "),
        ("#!ipxe\n{{ 1 / 0 }}\n", r"templates/x\.ipxe\.j2:2: ZeroDivisionError"),
        ("#!ipxe\n{{ ''.__class__.__mro__ }}\n", r"templates/x\.ipxe\.j2:2: .*unsafe"),
        ("#!ipxe\n{{ countdown(0) }}\n", r"templates/x\.ipxe\.j2:2: countdown of 0 s"),
        (
            "#!ipxe\n{% for a in range(9999) %}\n{% for b in range(999) %}{% endfor %}{% endfor %}",
            r"templates/x\.ipxe\.j2:3: does not end: more than 1,000,000 turns of loops",
        ),
        ("#!ipxe\n{{ 'x' * 10**9 }}", r"templates/x\.ipxe\.j2:2: makes more than 4 MiB$"),
        (
            "#!ipxe\n{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            r"templates/x\.ipxe\.j2:2: does not end: a macro or loop calls itself too often",
        ),
        ("echo\n", r"templates/x\.ipxe\.j2:1: .*#!ipxe"),
    ],
)
def test_a_template_that_does_not_render_names_its_line(text: str, fault: str) -> None:
    with pytest.raises(ScriptError, match=fault):
        rendered(text)


def test_hold_shows_who_waits_and_why_and_asks_again() -> None:
    text = scripts.render_hold(
        MAC, SERVER, TEMPLATES["hold.ipxe.j2"], why="no node has its MAC address"
    )

    for shown in (MAC, "${uuid}", "${serial}", "no node has its MAC address", SERVER.base):
        assert any(shown in line for line in text.splitlines() if line.startswith("echo"))
    assert (
        "chain --replace --autofree http://10.0.0.1:9873/ipxe/52-54-00-12-34-56"
        "?uuid=${uuid}&serial=${serial:uristring} ||" in text
    )
    assert text.splitlines()[-1] == "goto ask"


def test_only_a_node_that_boots_locally_ends_its_script() -> None:
    text = scripts.render_local(
        replace(NODE, boot=BootTarget.LOCAL), MAC, SERVER, TEMPLATES["local.ipxe.j2"]
    )

    assert text.splitlines()[-1] == "exit 1"
    assert "exit" not in "\n".join(script())


def test_autoexec_of_a_named_machine_asks_for_it_and_else_for_the_card_it_came_from() -> None:
    assert "/ipxe/52-54-00-12-34-56 " in scripts.autoexec(SERVER, MAC)
    assert "/ipxe/${netX/mac:hexhyp} " in scripts.autoexec(SERVER)


def test_a_good_registry_has_no_faults() -> None:
    assert scripts.check(registry(NODE, replace(NODE, name="n002", boot=BootTarget.LOCAL))) == []


def test_check_names_every_template_that_fails_for_some_node() -> None:
    nodes = (
        replace(NODE, name="a", template="rack"),
        replace(NODE, name="b", template="gone"),
        replace(NODE, name="c", tags={"rack": "r1"}, template="rack"),
        replace(NODE, name="d", kernel_args=("||",)),
    )

    faults = scripts.check(registry(*nodes, rack="#!ipxe\necho {{ node.tags.rack }}\n"))

    assert len(faults) == 3
    assert faults[0] == ("templates/rack.ipxe.j2:2:1: nodes.a: a map has no 'rack'")
    assert faults[1] == "node b: there is no template gone.ipxe.j2"
    assert "node d: kernel argument '||'" in faults[2]


def test_ten_thousand_nodes_of_one_shape_are_one_script(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(scripts, "render_ipxe", lambda *_, **__: made.append(1))
    nodes = [
        replace(NODE, name=f"n{i:05}", mac=Mac(f"52:54:00:00:{i >> 8:02x}:{i & 255:02x}"))
        for i in range(10_000)
    ]

    scripts.check(registry(*nodes))

    assert len(made) == 2
