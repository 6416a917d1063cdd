"""What a file name asks for: a loader from disk, or a text made for the machine."""

from __future__ import annotations

from dataclasses import dataclass, field

from bootd import files, loaders, scripts
from bootd.files import LoaderFiles
from bootd.loaders import Autoexec, GrubConfig, Loader, PxelinuxConfig, Static
from bootd.model import Mac, ServerAddress
from bootd.tftp.wire import ErrorCode


@dataclass(frozen=True, slots=True)
class Content:
    """What to send. `mac` is the machine's, where the path named it.

    `counts` says whether it is a step of a boot: iPXE's ``autoexec.ipxe`` is three lines on the way
    from the loader to the script, and neither.
    """

    name: str
    data: bytes = field(repr=False)
    mac: Mac | None = None
    counts: bool = True


class Missing(Exception):
    """Nothing to send. `reason` is one word; `text` goes to the client's screen.

    `code` None means silence, so that the client asks again. `optional` is true for what firmware
    only tries.
    """

    def __init__(
        self, reason: str, name: str, code: ErrorCode | None, mac: Mac | None, *, optional: bool
    ) -> None:
        shown = name.rpartition("/")[2] if reason == "not-found" else reason
        self.text = f"{'not found' if reason == 'not-found' else 'refused'}: {shown}"
        super().__init__(self.text)
        self.reason = reason
        self.name = name
        self.code = code
        self.mac = mac
        self.optional = optional


async def find(store: LoaderFiles, filename: bytes, server: ServerAddress) -> Content:
    """The content for a request's file name as sent. Raises `Missing`."""
    path = loaders.firmware_path(filename)
    target = loaders.route(path)
    match target:
        case Autoexec(mac):
            text = scripts.autoexec(server, mac)
            return Content("autoexec.ipxe", text.encode(), mac, counts=False)
        case Loader(name, mac):
            return await _load(store, loaders.candidates(name), mac)
        case Static(name):
            return await _load(store, (name,), None)
        case PxelinuxConfig(mac) | GrubConfig(mac):
            # The site's own file, for the machine or for all; nothing is made for these yet.
            return await _load(store, (_without_folder(path, mac),), mac)
    raise Missing(target.reason, path, ErrorCode.ACCESS_VIOLATION, None, optional=False)


def _without_folder(path: str, mac: Mac | None) -> str:
    """The path as it stands on disk, where one machine's folder is every machine's."""
    cleaned = loaders.clean(path)
    assert isinstance(cleaned, str), "it has been routed"
    first, _, rest = cleaned.partition("/")
    return rest if mac is not None and first not in ("grub", "pxelinux.cfg") and rest else cleaned


async def _load(store: LoaderFiles, names: tuple[str, ...], mac: Mac | None) -> Content:
    name, optional = names[0], loaders.optional(names[0])
    try:
        loaded = await store.get(*names)
    except files.NotFound:
        raise Missing("not-found", name, ErrorCode.NOT_FOUND, mac, optional=optional) from None
    except files.Refused as refused:
        code = None if refused.transient else ErrorCode.ACCESS_VIOLATION
        raise Missing(refused.reason, name, code, mac, optional=optional) from None
    return Content(name, loaded.data, mac)
