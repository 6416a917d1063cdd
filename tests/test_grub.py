from __future__ import annotations

import re
from dataclasses import replace
from importlib.resources import files
from ipaddress import IPv4Address

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bootd import grub, scripts
from bootd.model import (
    Artefact,
    BootTarget,
    Image,
    Mac,
    Node,
    ServerAddress,
    Settings,
    Template,
    TftpSettings,
)
from bootd.registry import Registry
from bootd.templating import ScriptError

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
    loader="shim",
    overlays_system=("base",),
)
DATA = files("bootd") / "data" / "templates"
TEMPLATES = {
    entry.name: Template(entry.name, entry.read_text(), entry.name) for entry in DATA.iterdir()
}


def registry(*nodes: Node, **templates: str) -> Registry:
    own = {
        f"{name}.grub.cfg.j2": Template(name, text, f"templates/{name}.grub.cfg.j2")
        for name, text in templates.items()
    }
    return Registry(
        settings=Settings(),
        nodes={node.name: node for node in nodes},
        images={IMAGE.name: IMAGE},
        overlays={},
        templates=TEMPLATES | own,
    )


def config(
    node: Node = NODE, token: str | None = TOKEN, *, why: str = "", ask: bool = False
) -> str:
    known = registry(node)
    plan = scripts.plan(known, node, MAC, SERVER, token=token, boot_id="0" * 16)
    return grub.render(known, plan, why=why, ask=ask)


def lexed(text: str) -> list[str]:
    """The words of one line as GRUB reads them (grub-core/script/yylex.l): a model of its own."""
    words: list[str] = []
    word: str | None = None
    at = 0
    while at < len(text):
        char = text[at]
        if char == "'":
            end = text.index("'", at + 1)
            word = (word or "") + text[at + 1 : end]
            at = end
        elif char == "\\":
            word = (word or "") + text[at + 1]
            at += 1
        elif char in " \t":
            if word is not None:
                words.append(word)
            word = None
        else:
            assert char not in '{}|&$;<>"#*?~`![]', f"{char!r} is special outside of quotes"
            word = (word or "") + char
        at += 1
    return words if word is None else [*words, word]


def grub_cmdline(words: list[str]) -> str:
    """What GRUB's ``linux`` makes of its words (grub-core/lib/cmdline.c)."""
    made = []
    for word in words:
        escaped = re.sub(r"([\\'\"])", r"\\\1", word)
        made.append(f'"{escaped}"' if " " in word else escaped)
    return " ".join(made)


def kernel_arguments(cmdline: str) -> list[tuple[str, str | None]]:
    """The parameters that Linux finds (lib/cmdline.c, next_arg)."""
    found = []
    for raw in re.findall(r'(?:[^ "]|"[^"]*")+', cmdline):
        text = raw
        if text.startswith('"'):
            text = text[1:].removesuffix('"')
        name, equals, value = text.partition("=")
        if value.startswith('"'):
            value = value[1:].removesuffix('"')
        found.append((name, value.removesuffix('"') if equals else None))
    return found


printable = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=40)


@given(st.lists(printable, min_size=1, max_size=5))
def test_any_value_is_one_word_for_grub_and_the_word_is_the_value(values: list[str]) -> None:
    assert lexed(" ".join(grub.quote(value) for value in values)) == values


@given(st.text(min_size=1))
def test_what_cannot_stand_in_a_line_is_refused(text: str) -> None:
    assume(any(ord(char) < 32 or char in "\x7f\x85\u2028\u2029" for char in text))

    with pytest.raises(ScriptError, match="control character"):
        grub.quote(text)


@given(
    st.lists(
        st.from_regex(
            r'[a-z._]{1,8}(=([!#-&(-\[\]-~]{0,8}|"[ !#-&(-\[\]-~]{0,8}"))?', fullmatch=True
        ),
        max_size=6,
    )
)
def test_linux_sees_the_arguments_that_it_would_see_without_grub(arguments: list[str]) -> None:
    words = lexed(grub.words(arguments))

    assert kernel_arguments(grub_cmdline(words)) == kernel_arguments(" ".join(arguments))


@pytest.mark.parametrize("argument", ["a\\b", "it's", 'a="b', "a\nb"])
def test_an_argument_that_grub_would_change_is_refused(argument: str) -> None:
    with pytest.raises(ScriptError):
        grub.words([argument])


def test_arguments_without_grubs_characters_are_left_as_they_are() -> None:
    arguments = ["quiet", "console=ttyS0,115200", "ip=10.0.0.2::10.0.0.1:255.255.255.0:n001"]

    assert grub.words(arguments) == " ".join(arguments)


@pytest.mark.parametrize(
    ("url", "http", "tftp"),
    [
        ("http://10.0.0.1:9873/b/T/k", "(http,10.0.0.1:9873)/b/T/k", "(tftp,10.0.0.1)/b/T/k"),
        ("http://10.0.0.1:80/b", "(http,10.0.0.1)/b", "(tftp,10.0.0.1)/b"),
    ],
)  # fmt: skip
def test_urls_are_named_as_grub_names_files_on_the_network(url: str, http: str, tftp: str) -> None:
    assert (grub.by_http(url), grub.by_tftp(url)) == (http, tftp)


def test_the_configuration_loads_kernel_initramfs_and_overlay_with_the_boots_token() -> None:
    text = config()

    base = f"(http,10.0.0.1:9873)/b/{TOKEN}"
    assert f"linux '{base}/kernel' quiet console=ttyS0,115200 BOOTIF=01-52-54-00-12-34-56 " in text
    assert f"initrd '{base}/initramfs' '{base}/system'\n" in text
    assert "source '(http,10.0.0.1:9873)/grub/52-54-00-12-34-56'" in text


def test_each_step_is_tried_by_tftp_too_which_grub_before_2_12_needs() -> None:
    text = config()

    base = f"(tftp,10.0.0.1)/b/{TOKEN}"
    assert f"linux '{base}/kernel'" in text
    assert f"initrd '{base}/initramfs' '{base}/system'\n" in text
    assert text.index("(http,10.0.0.1:9873)/b/") < text.index("(tftp,")


def test_the_server_is_asked_before_initrds_as_grub_takes_a_refusal_for_the_file() -> None:
    text = config()

    ready = f"source '(http,10.0.0.1:9873)/b/{TOKEN}/ready'"
    assert text.index("set bootd_ready=n") < text.index(ready) < text.index("initrd '(http")
    assert grub.READY == "set bootd_ready=y\n"
    assert "source" not in config(token=None)[: config(token=None).index("bootd_heard=y")]


@pytest.mark.parametrize("tftp", [TftpSettings(enabled=False), TftpSettings(port=6969)])
def test_tftp_is_left_out_where_grub_cannot_reach_it(tftp: TftpSettings) -> None:
    known = replace(registry(NODE), settings=Settings(tftp=tftp))
    plan = scripts.plan(known, NODE, MAC, SERVER, token=TOKEN)

    assert "(tftp," not in grub.render(known, plan)


def test_a_client_over_tls_is_led_to_plain_http_which_is_all_that_grub_speaks() -> None:
    over_tls = ServerAddress(IPv4Address("10.0.0.1"), 9874, "https")

    assert grub.reached(over_tls, registry()).base == "http://10.0.0.1:9873"
    assert grub.reached(SERVER, registry()) is SERVER


def test_without_a_token_the_console_says_why_and_there_is_no_overlay() -> None:
    text = config(token=None, why="it's closed")

    assert r"echo bootd: no overlay for this boot: 'it'\''s closed'" in text
    assert "/b/" not in text
    assert "system" not in text
    assert "(http,10.0.0.1:9873)/kernel/52-54-00-12-34-56" in text


def test_the_machine_starts_again_where_that_would_bring_a_token() -> None:
    assert "reboot\n" in config(token=None, why="closed", ask=True)
    assert "reboot\n" not in config(token=None, why="closed")
    assert "reboot\n" not in config()


@pytest.mark.parametrize("token", [TOKEN, None])
def test_every_block_that_is_opened_is_closed(token: str | None) -> None:
    words = re.findall(
        r"(?m)(?:^|; ) *(if|fi|for|while|do|done|function|\})(?=\s|;|$)", config(token=token)
    )
    flat = config(token=token)

    assert words.count("if") == words.count("fi") > 0
    assert len(re.findall(r"\bdo\b", flat)) == len(re.findall(r"\bdone\b", flat)) > 0
    assert words.count("function") == words.count("}") > 0


def test_a_configuration_ends_by_asking_again_and_never_calls_itself_deeper() -> None:
    for text in (config(), config(token=None), hold(), hold(None)):
        end = text[text.index("set bootd_heard=y") :]
        assert end.startswith('set bootd_heard=y\nif [ "$bootd_asking" != y ]; then\n')
        assert end.rstrip().endswith("done\nfi")
        others = re.findall(r"source \S+", text[: text.index("set bootd_heard=y")])
        assert all(other.endswith("/ready'") for other in others)


def hold(mac: Mac | None = MAC) -> str:
    return grub.render_hold(registry(), mac, SERVER, why="no node has its MAC address", node=None)


def test_a_machine_that_waits_shows_its_mac_address_and_how_to_claim_it() -> None:
    assert "echo bootd: mac 52:54:00:12:34:56\n" in hold()
    assert "bootd claim 52:54:00:12:34:56 NODE" in hold()
    assert "echo bootd: mac $net_default_mac\n" in hold(None)
    assert "(http,10.0.0.1:9873)/grub/grub.cfg" in hold(None)


def test_a_node_that_boots_locally_leaves_grub() -> None:
    text = grub.render_local(registry(), replace(NODE, boot=BootTarget.LOCAL), MAC, SERVER)

    assert text.rstrip().endswith("exit")


@given(printable)
def test_no_value_of_a_node_adds_a_command(value: str) -> None:
    assume(value)
    own = "set x={{ node.tags.x }}\n"
    node = replace(NODE, template="own", tags={"x": value})
    known = registry(node, own=own)
    plan = scripts.plan(known, node, MAC, SERVER)

    text = grub.render(known, plan)

    assert lexed(text.removesuffix("\n")) == ["set", f"x={value}"]


def test_a_nodes_own_template_is_used_where_there_is_one_for_grub() -> None:
    own = replace(NODE, template="own")

    assert grub.template_of(registry(own, own="echo x\n"), own).text == "echo x\n"
    assert grub.template_of(registry(own), own).name == grub.CONFIG


def test_the_distributions_templates_are_in_order() -> None:
    nodes = (
        NODE,
        replace(NODE, name="n002", boot=BootTarget.LOCAL),
        replace(NODE, name="n003", image=None),
    )

    assert grub.check(registry(*nodes)) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("echo {{ node.nmae }}\n", "templates/own.grub.cfg.j2:1:1: nodes.n001: .*nmae"),
        ("{% if %}\n", "templates/own.grub.cfg.j2:1:1: Expected"),
        ("\n{{ 1 // 0 }}\n", "templates/own.grub.cfg.j2:2:1: nodes.n001: ZeroDivisionError"),
        ("{{ countdown(0) }}\n", "templates/own.grub.cfg.j2:1:1: nodes.n001: countdown of 0 s"),
    ],
)
def test_a_fault_in_a_template_is_found_with_its_place(text: str, fault: str) -> None:
    faults = grub.check(registry(replace(NODE, template="own"), own=text))

    assert any(re.match(fault, each) for each in faults), faults


def test_only_nodes_that_boot_by_grub_are_tried() -> None:
    broken = {"own": "{{ node.nmae }}\n"}

    assert grub.check(registry(replace(NODE, loader="ipxe", template="own"), **broken)) == []


def test_an_argument_that_grub_cannot_pass_on_is_a_fault_of_the_node() -> None:
    (fault,) = grub.check(registry(replace(NODE, kernel_args=("dyndbg='+p'",))))

    assert "nodes.n001: kernel argument" in fault
    assert "GRUB cannot pass" in fault
