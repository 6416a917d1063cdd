"""A Debian or Ubuntu suite, made by mmdebstrap with the packages of a profile."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from bootd.config.source import parse
from bootd.image import tools
from bootd.image.disk import ImageError, ImageInputError
from bootd.image.sources.oci import architecture

UBUNTU: Final = ("bionic", "focal", "jammy", "noble", "plucky", "questing", "resolute")
DEBIAN: Final = (
    "bullseye", "bookworm", "trixie", "forky", "sid", "stable", "oldstable", "testing", "unstable",
)  # fmt: skip
"""Suites that need no ``suite:`` before them."""
_SUITE = re.compile(r"[a-z][a-z0-9-]{1,40}", re.ASCII)
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(?::[a-z0-9-]+)?(?:[/=][\w.+:~-]+)?", re.ASCII)
_VARIANTS: Final = ("minbase", "apt", "buildd", "important", "debootstrap", "standard", "essential")
_KEYS: Final = ("description", "variant", "components", "packages", "debian", "ubuntu")
_KEYRING: Final = "/usr/share/keyrings/{}-archive-keyring.gpg"
_CLEAN: Final = 'rm -f "$1"/etc/ssh/ssh_host_*_key "$1"/etc/ssh/ssh_host_*_key.pub'
"""Whoever can fetch the image could read them; each node has its own by overlay ssh."""
_MAX_PROFILE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Profile:
    """What goes into a suite's image: packages for both distributions, and for each."""

    name: str
    description: str = ""
    variant: str = "minbase"
    components: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    debian: tuple[str, ...] = ()
    ubuntu: tuple[str, ...] = ()

    def of(self, vendor: str, arch: str) -> tuple[str, ...]:
        """The packages for ``debian`` or ``ubuntu``; ``{arch}`` in them is the architecture."""
        own = self.ubuntu if vendor == "ubuntu" else self.debian
        return tuple(p.replace("{arch}", arch) for p in (*self.packages, *own))


@dataclass(frozen=True, slots=True)
class Wanted:
    """A suite as it was asked for."""

    suite: str
    profile: str = "minimal"
    mirrors: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    architecture: str = ""


def vendor(suite: str) -> str:
    """Whose suite it is."""
    return "ubuntu" if suite in UBUNTU else "debian"


def is_suite(text: str) -> bool:
    """Whether a bare word is the name of a suite."""
    return text in UBUNTU or text in DEBIAN


def profiles() -> dict[str, Profile]:
    """The distribution's profiles by name."""
    found = {}
    for file in (resources.files("bootd") / "data" / "images").iterdir():
        name = file.name.removesuffix(".yaml")
        if name != file.name:
            found[name] = decode(file.read_bytes(), file.name, name)
    return dict(sorted(found.items()))


def profile(name: str) -> Profile:
    """A distribution profile by its name, or one of the site by its file's path.

    Raises `ImageInputError`.
    """
    if "/" not in name and not name.endswith((".yaml", ".yml")):
        known = profiles()
        if name not in known:
            raise ImageInputError(
                f"there is no profile {name!r}; profiles: {', '.join(known)}, or a file's path"
            )
        return known[name]
    try:
        with Path(name).open("rb") as file:
            data = file.read(_MAX_PROFILE)
    except OSError as error:
        raise ImageInputError(f"{name}: the profile cannot be read: {error.strerror}") from None
    return decode(data, name, Path(name).stem)


def decode(data: bytes, place: str, name: str) -> Profile:
    """Read a profile. Raises `ImageInputError` with file and line."""
    document = parse(data, place)
    if document.faults:
        raise ImageInputError("\n".join(str(fault) for fault in document.faults))
    raw = document.value
    if not isinstance(raw, dict):
        raise ImageInputError(f"{place}: a profile is a map with `packages:`")

    def refuse(key: str, what: str) -> ImageInputError:
        return ImageInputError(f"{document.origin((key,))}: {key}: {what}")

    for key in raw:
        if key not in _KEYS:
            raise refuse(key, f"unknown key; known: {', '.join(_KEYS)}")
    lists = {}
    for key in ("components", "packages", "debian", "ubuntu"):
        values = raw.get(key) or []
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise refuse(key, "is not a list of names")
        for value in values:
            if not _PACKAGE.fullmatch(value.replace("{arch}", "amd64")):
                raise refuse(key, f"{value!r} is no package's name")
        lists[key] = tuple(values)
    variant = raw.get("variant", "minbase")
    if variant not in _VARIANTS:
        raise refuse("variant", f"{variant!r} is not one of {', '.join(_VARIANTS)}")
    return Profile(name, str(raw.get("description", "")), variant, **lists)


def bootstrap(wanted: Wanted, root: Path, say: Callable[[str], None]) -> None:
    """Let mmdebstrap make the suite in the empty folder `root`. Raises `ImageError`."""
    if not _SUITE.fullmatch(wanted.suite):
        raise ImageInputError(f"{wanted.suite[:80]!r} is not the name of a suite, like bookworm")
    for package in wanted.include:
        if not _PACKAGE.fullmatch(package):
            raise ImageInputError(f"{package[:80]!r} is no package's name")
    chosen = profile(wanted.profile)
    whose = vendor(wanted.suite)
    if not wanted.mirrors and not Path(_KEYRING.format(whose)).exists():
        raise ImageError(
            f"suite {wanted.suite}: the keys that sign {whose.capitalize()}'s packages are not "
            f"here: apt-get install {whose}-archive-keyring"
        )
    arch = architecture(wanted.architecture)
    packages = dict.fromkeys((*chosen.of(whose, arch), *wanted.include))
    options = [f"--variant={chosen.variant}", "--mode=root", f"--customize-hook={_CLEAN}"]
    if packages:
        options.append(f"--include={','.join(packages)}")
    if wanted.architecture:
        options.append(f"--architectures={arch}")
    if chosen.components:
        options.append(f"--components={','.join(chosen.components)}")
    say(f"making {wanted.suite} with {len(packages)} packages of profile {chosen.name}")

    def told(line: str) -> None:
        if line.startswith(("I: ", "W: ")):
            say(line[3:])

    # What it mounts below the root is seen by itself only: even a SIGKILL leaves no mount behind.
    tools.run(
        "unshare", "--mount", "--", tools.find("mmdebstrap"), "--format=directory", *options, "--",
        wanted.suite, str(root), *wanted.mirrors, what=f"suite {wanted.suite}", say=told,
    )  # fmt: skip
