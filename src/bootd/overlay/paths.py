"""Where a path of an overlay leads on the node: pure."""

from __future__ import annotations

from typing import Final

from bootd.overlay.cpio import CpioError, check_path

_MERGED: Final = {
    **{name: f"usr/{name}" for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32")},
    "var/run": "run",
    "var/lock": "run/lock",
}
"""What is a symlink on every current image, and where it leads. The kernel would replace the link
by the archive's directory, and everything behind it would be gone: no /bin/sh, no boot."""


def fault(path: str) -> str | None:
    """Why `path` cannot stand in an overlay, or None where it can."""
    try:
        check_path(path)
    except CpioError as error:
        return str(error)
    if not path.isprintable():
        return f"{path!a} has an unprintable character in it"
    for link, target in _MERGED.items():
        if path == link or path.startswith(f"{link}/"):
            better = target + path.removeprefix(link)
            return f"/{link} is a symlink on the node and would be replaced: use {better}"
    return None
