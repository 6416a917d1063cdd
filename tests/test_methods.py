from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd import methods
from bootd.methods import Choice, Machine, MethodError
from bootd.model import Artefact, Image, Kernel, Method, Node

MIB = 1 << 20
LIVE = Kernel(
    "6.12.1",
    Artefact("/k/612", 1, "1" * 64),
    Artefact("/i/612", 1, "2" * 64),
    features=frozenset(("live-boot",)),
)
PLAIN = Kernel("6.1.9", Artefact("/k/61", 1, "3" * 64))
ROOT = Image(
    "debian-12",
    "1",
    {
        "kernel": LIVE.kernel,
        "image": Artefact("/image", 100 * MIB, "4" * 64),
        "squashfs": Artefact("/squashfs", 90 * MIB, "5" * 64),
    },
    kernels=(LIVE, PLAIN),
    unpacked=300 * MIB,
    init="/sbin/init",
)
FILES = Image(
    "demo", "1", {"kernel": Artefact("/k", 1, "6" * 64), "initramfs": Artefact("/i", 1, "7" * 64)}
)
NODE = Node("n001")


def chosen(image: Image = ROOT, machine: Machine = methods.NOBODY, **keys: object) -> Choice:
    return methods.choose(replace(NODE, **keys), image, machine)  # type: ignore[arg-type]


def test_what_the_node_says_is_done_where_the_image_can_do_it() -> None:
    assert chosen(method=Method.SQUASHFS).method is Method.SQUASHFS
    assert chosen(method=Method.INITRAMFS).method is Method.INITRAMFS


def test_auto_puts_a_root_into_ram_where_twice_its_size_fits() -> None:
    enough = chosen(machine=Machine(memory=656, said_by="iPXE"))
    short = chosen(machine=Machine(memory=655, said_by="iPXE"))

    assert enough.method is Method.INITRAMFS
    assert short.method is Method.SQUASHFS
    assert "655 MiB of memory (iPXE) are less than the 656 MiB" in short.reason


@pytest.mark.parametrize("memory", [512, "512", "512M", "512MiB"])
def test_auto_reads_the_memory_that_the_files_say(memory: object) -> None:
    by_resources = chosen(resources={"memory": memory})
    by_tag = chosen(tags={"memory": str(memory)})

    assert by_resources.method is by_tag.method is Method.SQUASHFS
    assert "(resources.memory)" in by_resources.reason
    assert "(tag memory)" in by_tag.reason


def test_what_the_machine_says_of_its_memory_wins_over_the_files() -> None:
    choice = chosen(machine=Machine(memory=4096, said_by="iPXE"), resources={"memory": 512})

    assert choice.method is Method.INITRAMFS


def test_auto_without_known_memory_goes_by_size_and_firmware() -> None:
    large = replace(ROOT, unpacked=1025 * MIB)
    packed = replace(
        ROOT, artefacts={**ROOT.artefacts, "image": Artefact("/image", 513 * MIB, "4" * 64)}
    )

    assert chosen().method is Method.INITRAMFS
    assert chosen(large).method is Method.SQUASHFS
    assert chosen(packed, Machine(bios=True)).method is Method.SQUASHFS
    assert chosen(packed, Machine(bios=False)).method is Method.INITRAMFS


def test_auto_takes_the_one_way_that_an_image_has() -> None:
    no_archive = replace(ROOT, artefacts={k: v for k, v in ROOT.artefacts.items() if k != "image"})
    small = Machine(memory=64, said_by="iPXE")

    assert chosen(FILES).method is Method.INITRAMFS
    assert chosen(no_archive).method is Method.SQUASHFS
    assert chosen(machine=small, kernel_version="6.1").method is Method.INITRAMFS


def test_a_squashfs_that_nothing_in_the_image_can_fetch_is_refused_with_the_reason() -> None:
    unlike = replace(LIVE, features=frozenset(("warewulf",)))

    with pytest.raises(MethodError, match="has no squashfs"):
        chosen(FILES, method=Method.SQUASHFS)
    with pytest.raises(MethodError, match=r"no initramfs of its own for kernel 6\.1\.9"):
        chosen(method=Method.SQUASHFS, kernel_version="6.1")
    with pytest.raises(MethodError, match="without live-boot and without dracut's livenet"):
        chosen(replace(ROOT, kernels=(unlike,)), method=Method.SQUASHFS)


def test_a_kernel_that_the_image_does_not_have_is_refused_with_those_it_has() -> None:
    with pytest.raises(MethodError, match=r"no kernel '5\.10'; its kernels: 6\.12\.1, 6\.1\.9"):
        chosen(kernel_version="5.10")
    with pytest.raises(MethodError, match="no kernel; its kernels: none"):
        chosen(replace(ROOT, kernels=(), artefacts={"image": ROOT.artefacts["image"]}))
    with pytest.raises(MethodError, match="a kernel and nothing else"):
        chosen(replace(FILES, artefacts={"kernel": FILES.artefacts["kernel"]}))


def test_a_boot_without_a_token_gets_the_root_in_ram_unless_the_node_insists() -> None:
    auto = replace(NODE, resources={"memory": 512})
    insists = replace(NODE, method=Method.SQUASHFS)

    got = methods.without_token(auto, ROOT, methods.choose(auto, ROOT))

    assert got.method is Method.INITRAMFS
    with pytest.raises(MethodError, match="DHCP exchange"):
        methods.without_token(insists, ROOT, methods.choose(insists, ROOT))


def test_each_method_has_the_arguments_that_its_initramfs_understands() -> None:
    livenet = replace(LIVE, features=frozenset(("livenet",)))

    def arguments(image: Image, method: Method) -> tuple[str, ...]:
        return methods.arguments(chosen(image, method=method), image)

    assert arguments(ROOT, Method.INITRAMFS) == ("rdinit=/sbin/init",)
    assert arguments(FILES, Method.INITRAMFS) == ()
    assert arguments(ROOT, Method.SQUASHFS) == ("boot=bootd",)
    assert "root=bootd" in arguments(replace(ROOT, kernels=(livenet,)), Method.SQUASHFS)


def test_a_machine_is_asked_for_its_memory_only_where_that_decides() -> None:
    assert methods.undecided(NODE, ROOT)
    assert not methods.undecided(replace(NODE, method=Method.SQUASHFS), ROOT)
    assert not methods.undecided(replace(NODE, tags={"memory": "16G"}), ROOT)
    assert not methods.undecided(replace(NODE, kernel_version="6.1"), ROOT)
    assert not methods.undecided(NODE, FILES)


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.lists(st.text())))
def test_whatever_stands_as_memory_there_is_a_method(memory: object) -> None:
    assert chosen(resources={"memory": memory}).method in (Method.INITRAMFS, Method.SQUASHFS)
