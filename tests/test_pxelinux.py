from __future__ import annotations

from dataclasses import replace

import pytest

from bootd import pxelinux, scripts
from bootd.model import BootTarget, Node, Template
from bootd.registry import Registry
from bootd.templating import ScriptError
from tests.test_grub import MAC, NODE, SERVER, TOKEN, registry

PXE = replace(NODE, loader="pxelinux.0")


def config(node: Node = PXE, token: str | None = TOKEN, known: Registry | None = None) -> str:
    known = known or registry(node)
    plan = scripts.plan(known, node, MAC, SERVER, token=token)
    return pxelinux.render(known, plan, why="closed")


def fields(text: str) -> dict[str, str]:
    lines = (line.strip().partition(" ") for line in text.splitlines() if line.strip())
    return {keyword: rest for keyword, _, rest in lines}


def test_kernel_and_initrds_are_named_by_tftp_paths_from_the_root() -> None:
    said = fields(config())

    assert said["LINUX"] == f"/b/{TOKEN}/kernel"
    assert said["INITRD"] == f"/b/{TOKEN}/initramfs,/b/{TOKEN}/system"
    assert said["APPEND"].startswith("quiet console=ttyS0,115200 BOOTIF=01-52-54-00-12-34-56 ")
    assert said["DEFAULT"] == said["LABEL"] == "bootd"


def test_lpxelinux_is_given_urls() -> None:
    said = fields(config(replace(NODE, loader="lpxelinux.0")))

    assert said["LINUX"] == f"http://10.0.0.1:9873/b/{TOKEN}/kernel"


def test_without_a_token_it_says_why_and_names_public_files() -> None:
    text = config(token=None)

    assert "SAY bootd: no overlay for this boot: closed" in text
    assert fields(text)["INITRD"] == "/initramfs/52-54-00-12-34-56"


def test_an_argument_with_a_line_end_is_refused() -> None:
    with pytest.raises(ScriptError, match="control character"):
        config(replace(PXE, kernel_args=("quiet\nLABEL x",)))


def test_a_command_line_that_the_kernel_would_cut_is_refused() -> None:
    short, long = ("x" * 1900,), ("x" * 2048,)

    assert config(replace(PXE, kernel_args=short))
    with pytest.raises(ScriptError, match="2047 characters"):
        config(replace(PXE, kernel_args=long))


def test_a_machine_that_waits_reads_its_configuration_again() -> None:
    text = pxelinux.render_hold(registry(), MAC, SERVER, why="no node", node=None)

    assert "CONFIG /pxelinux.cfg/01-52-54-00-12-34-56" in text
    assert "SAY bootd: this machine waits: no node\n" in text


def test_the_distributions_templates_are_in_order() -> None:
    local = replace(PXE, name="n002", boot=BootTarget.LOCAL)

    assert pxelinux.check(registry(PXE, local, replace(PXE, name="n003", image=None))) == []


def test_a_fault_of_a_node_or_a_template_is_found() -> None:
    faulty = registry(replace(PXE, kernel_args=("x" * 2048,)))
    (fault,) = pxelinux.check(faulty)
    assert fault == "node n001: the kernel takes 2047 characters at most"

    broken = Template("own.pxelinux.cfg.j2", "{% if %}", "templates/own.pxelinux.cfg.j2")
    known = registry(NODE)
    known = replace(known, templates={**known.templates, broken.name: broken})
    (fault,) = pxelinux.check(known)
    assert fault.startswith("templates/own.pxelinux.cfg.j2:1:1: Expected")
