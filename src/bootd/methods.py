"""Which kernel a node boots, and how its root file system comes: pure decisions, with reasons.

``initramfs``: the kernel unpacks the whole root into memory, into a tmpfs that may take half of it.
``squashfs``: the image's own initramfs fetches the root compressed and keeps it so (`bootd.hooks`);
that needs one built with live-boot or dracut's livenet, and about a third of the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from bootd import warewulf
from bootd.model import Image, Kernel, Method, Node

LIVE_BOOT: Final = "live-boot"
LIVENET: Final = "livenet"
_LIVE: Final = frozenset((LIVE_BOOT, LIVENET))

SPARE: Final = 256 << 20
"""Bytes of memory beside the root file system, for the kernel and what runs."""
LARGE_FOR_BIOS: Final = 512 << 20
"""Bytes of an initramfs past which BIOS machines begin to fail: it has to fit below 4 GiB, twice,
between what firmware keeps for itself there (WIRE.md 3.4)."""
LARGE: Final = 1 << 30
"""Unpacked bytes that are too many for a machine of which nothing is known."""


class MethodError(ValueError):
    """This image cannot be booted as the node says; the message is a sentence."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What is known of the machine that asks: whether its firmware is BIOS, and its memory in MiB,
    with who said so; None where nobody did."""

    bios: bool | None = None
    memory: int | None = None
    said_by: str = ""


NOBODY: Final = Machine()
"""A machine of which nothing is known."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How a node boots: `method` is never ``auto``, `reason` is for people. With `staged` the
    initramfs fetches the root and the overlays by itself (`bootd.warewulf`)."""

    method: Method
    kernel: Kernel
    reason: str
    staged: bool = False


def choose(node: Node, image: Image, machine: Machine = NOBODY) -> Choice:
    """The kernel and the method by which `node` boots `image`. Raises `MethodError`."""
    kernel = _kernel(node, image)
    if warewulf.two_stage(node, kernel):
        return _two_stage(image, kernel)
    cannot = _no_squashfs(image, kernel)
    if node.method is Method.SQUASHFS:
        if cannot:
            raise MethodError(f"method squashfs: {cannot}")
        return Choice(Method.SQUASHFS, kernel, "the node says so")
    if image.archive is None and kernel.initramfs is None and cannot:
        raise MethodError(f"image {image.name} {image.generation} has a kernel and nothing else")
    if node.method is Method.INITRAMFS:
        return Choice(Method.INITRAMFS, kernel, "the node says so")
    if image.archive is None:
        if not cannot:
            return Choice(Method.SQUASHFS, kernel, "the image has its root as squashfs only")
        return Choice(Method.INITRAMFS, kernel, "the image is a kernel and its initramfs")
    if cannot:
        return Choice(Method.INITRAMFS, kernel, cannot)
    method, reason = _by_size(image, image.archive.size, _known(node, machine))
    return Choice(method, kernel, reason)


def _two_stage(image: Image, kernel: Kernel) -> Choice:
    if kernel.initramfs is None:
        raise MethodError(
            f"image {image.name} {image.generation} has no initramfs for kernel {kernel.version}: "
            "Warewulf's dracut module is in none"
        )
    reason = "its initramfs has Warewulf's dracut module, which fetches the root"
    return Choice(Method.INITRAMFS, kernel, reason, staged=True)


def narrowed(image: Image, kernel: Kernel) -> Image:
    """`image` with this kernel's files as its ``kernel`` and ``initramfs``."""
    own = {"kernel": kernel.kernel}
    if kernel.initramfs is not None:
        own["initramfs"] = kernel.initramfs
    rest = {r: a for r, a in image.artefacts.items() if r not in ("kernel", "initramfs")}
    if own | rest == image.artefacts and kernel.version == (image.kernel_version or ""):
        return image
    artefacts = MappingProxyType(own | rest)
    return replace(image, artefacts=artefacts, kernel_version=kernel.version or None)


def files_for(node: Node, image: Image) -> Image:
    """`image` with the files of the kernel that `node` names; as it is where it has none such."""
    kernel = image.kernel_for(node.kernel_version) if node.kernel_version else None
    return narrowed(image, kernel) if kernel is not None else image


def without_token(node: Node, image: Image, choice: Choice) -> Choice:
    """In place of a squashfs, for a boot without a token: what fetches it comes with the token.
    Raises `MethodError`."""
    if node.method is Method.SQUASHFS or image.archive is None:
        raise MethodError("method squashfs: only for a boot whose DHCP exchange was seen")
    return Choice(Method.INITRAMFS, choice.kernel, "this boot has no token for the squashfs")


def undecided(node: Node, image: Image) -> bool:
    """Whether the choice depends on the machine's memory and nobody wrote that down."""
    if node.method is not Method.AUTO or image.archive is None or _known(node, NOBODY).memory:
        return False
    kernel = image.kernel_for(node.kernel_version)
    return kernel is not None and not _no_squashfs(image, kernel)


def arguments(choice: Choice, image: Image) -> tuple[str, ...]:
    """The kernel arguments that the method needs; they come before the node's, which win."""
    if choice.method is Method.SQUASHFS:
        if LIVE_BOOT in choice.kernel.features:
            return ("boot=bootd",)
        return ("root=bootd", "rd.neednet=1", "ip=dhcp")
    if image.archive is None or choice.staged:
        return ()
    return (f"rdinit={image.init or '/sbin/init'}",)


def short_of_memory(node: Node, image: Image) -> str:
    """What `node` lacks to boot `image`, where its files say how much memory it has; else empty."""
    machine = _known(node, NOBODY)
    try:
        choice = choose(node, image)
    except MethodError:
        return ""
    if not machine.memory or image.archive is None or choice.staged:
        return ""
    if choice.method is Method.SQUASHFS:
        needed = (image.squashfs.size if image.squashfs is not None else 0) + SPARE
    else:
        needed = _for_initramfs(image, image.archive.size)
    if machine.memory << 20 >= needed:
        return ""
    return (
        f"has {machine.memory} MiB of memory ({machine.said_by}), method {choice.method.value} "
        f"needs {_mib(needed)}"
    )


def _known(node: Node, machine: Machine) -> Machine:
    """`machine`, with the memory that the node's files say (``16384``, ``16G``) where it did not
    say it itself."""
    if machine.memory:
        return machine
    for source, name in ((node.resources, "resources.memory"), (node.tags, "tag memory")):
        found = _mebibytes(source.get("memory"))
        if found:
            return Machine(machine.bios, found, name)
    return machine


def _mebibytes(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if value > 0 else None
    if not isinstance(value, str):
        return None
    text = value.strip().upper().removesuffix("B").removesuffix("I")
    factor = _FACTORS.get(text[-1:])
    number = text[:-1] if factor else text
    if not (number.isascii() and number.isdigit() and len(number) < 12):
        return None
    return int(number) * (factor or 1)


_FACTORS: Final[Mapping[str, int]] = {"M": 1, "G": 1 << 10, "T": 1 << 20}


def _kernel(node: Node, image: Image) -> Kernel:
    kernel = image.kernel_for(node.kernel_version)
    if kernel is not None:
        return kernel
    if not image.kernels and not node.kernel_version and "kernel" in image.artefacts:
        files: Mapping[str, Any] = image.artefacts
        return Kernel(image.kernel_version or "", files["kernel"], files.get("initramfs"))
    has = ", ".join(k.version for k in image.kernels if k.version) or "none"
    wanted = f"no kernel {node.kernel_version!r}" if node.kernel_version else "no kernel"
    raise MethodError(f"image {image.name} {image.generation} has {wanted}; its kernels: {has}")


def _no_squashfs(image: Image, kernel: Kernel) -> str:
    """Why the image cannot be booted by its squashfs; empty where it can."""
    what = f"image {image.name} {image.generation}"
    if image.squashfs is None:
        return f"{what} has no squashfs"
    if kernel.initramfs is None:
        return f"{what} has no initramfs of its own for kernel {kernel.version}"
    if not kernel.features & _LIVE:
        return (
            f"the initramfs of kernel {kernel.version} in {what} was built without live-boot and "
            "without dracut's livenet"
        )
    return ""


def _mib(size: int) -> str:
    return f"{-(-size >> 20)} MiB"


def _for_initramfs(image: Image, packed: int) -> int:
    """Bytes of memory. Unpacking needs both at once, and a tmpfs takes at most half of it."""
    unpacked = image.unpacked or 4 * packed
    return max(2 * unpacked, unpacked + packed + SPARE)


def _by_size(image: Image, packed: int, machine: Machine) -> tuple[Method, str]:
    """For an image that boots either way."""
    unpacked = image.unpacked or 4 * packed
    takes = f"{_mib(unpacked)} unpacked"
    if machine.memory:
        needed = _for_initramfs(image, packed)
        has = f"its {machine.memory} MiB of memory ({machine.said_by})"
        if machine.memory << 20 >= needed:
            return Method.INITRAMFS, f"{has} are enough for the root in RAM, {takes}"
        return Method.SQUASHFS, f"{has} are less than the {_mib(needed)} for a root of {takes}"
    if machine.bios and packed > LARGE_FOR_BIOS:
        return Method.SQUASHFS, f"an initramfs of {_mib(packed)} is too much for many a BIOS"
    if unpacked > LARGE:
        return Method.SQUASHFS, f"its memory is not known, and the root is {takes}"
    return Method.INITRAMFS, f"its memory is not known, and the root is small, {takes}"
