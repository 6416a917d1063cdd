"""Boot loaders and other small public files from disk: safely opened, read once, shared.

A file is one immutable ``bytes`` per version (device, inode, size, times). Whoever holds a
`LoadedFile` keeps that version to the end, whatever happens to the file meanwhile, and two thousand
clients of one loader read the disk once. The disk is touched in worker threads only; whether a file
is still the one in memory is seen without, where the kernel can tell so from its own memory.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from bootd import loaders

MAX_FILE: Final = 256 * 1024 * 1024
"""Bytes of the largest file served from memory; images go by HTTP, from disk."""
KEPT: Final = 64 * 1024 * 1024
"""Bytes of files kept in memory when nobody is being sent them."""

_DEBIAN: Final = (
    "/usr/lib/ipxe",
    "/usr/share/ipxe",
    "/usr/lib/shim",
    "/usr/lib/grub/x86_64-efi-signed",
    "/usr/lib/grub/arm64-efi-signed",
)


_BOOT: Final = "/boot"
_IN_BOOT: Final = frozenset({"ipxe.efi"})
"""What Debian's package ``ipxe`` keeps in /boot and has a link to in /usr/lib/ipxe: a link that
leaves its folder is not followed, and nothing else in /boot is for everyone."""


def search_path(state_dir: str) -> tuple[Path, ...]:
    """Where loaders are looked for: the site's own folder, then where Debian's packages are."""
    return (Path(state_dir) / "tftp", *map(Path, _DEBIAN))


def _folders(search: Sequence[str], name: str) -> Sequence[str]:
    """The folders where `name` may be: those of `search`, and /boot before the links to it."""
    if name not in _IN_BOOT or _DEBIAN[0] not in search:
        return search
    at = search.index(_DEBIAN[0])
    return (*search[:at], _BOOT, *search[at:])


_PACKAGES: Final[Mapping[str, str]] = {
    "shim": "shim-signed grub-efi-amd64-signed (for arm64: grub-efi-arm64-signed)",
    "grub": "grub-efi-amd64-signed (for arm64: grub-efi-arm64-signed)",
}


def missing(search: Sequence[Path], choice: str) -> str:
    """What a node with this ``loader`` would ask for in vain, and what to do, as a sentence; empty
    where there is what one kind of machine needs. Looks at the disk, by the daemon's own rules."""
    chains = loaders.chains(choice)
    roots = [str(root) for root in search]
    looks = [[_look(roots, names) for names in chain] for chain in chains]
    if any(all(look == "" for look in chain) for chain in looks):
        return ""
    number = next(n for n, look in enumerate(looks[0]) if look != "")
    lacking, why = chains[0][number], looks[0][number]
    if why is not None:
        return why
    own = f"put it into {search[0]}"
    package = _PACKAGES.get(choice, "ipxe") if choice in loaders.CHOICES else ""
    return f"there is no {lacking[0]}: " + (f"apt install {package}, or {own}" if package else own)


def _look(search: Sequence[str], names: Sequence[str]) -> str | None:
    """What `LoaderFiles.get` would say of these names: empty where it has one, a sentence where it
    would refuse it, None where there is none."""
    for name in names:
        for root in _folders(search, name):
            try:
                descriptor = open_beneath(root, name)
            except NotFound:
                continue
            except Refused as refused:
                return f"{root}/{name} is not served: {refused.sentence}"
            try:
                _may_be_served(os.fstat(descriptor), name, MAX_FILE)
            except Refused as refused:
                return f"{root}/{name} is not served: {refused.sentence}"
            finally:
                os.close(descriptor)
            return ""
    return None


_SENTENCES: Final[Mapping[str, str]] = {
    "outside": "it is a link that leaves its folder; put the file itself there",
    "not-a-file": "it is no regular file",
    "not-readable": "it is not readable for everyone (chmod o+r)",
    "too-large": "it is too large",
    "changing": "somebody is writing it",
    "busy": "the server has no descriptors or memory left",
    "io-error": "it cannot be read from the disk",
}


class NotFound(Exception):
    """No folder of the search path has a file of that name."""


class Refused(Exception):
    """There is something of that name, and it is not served; `reason` is one word.

    ``outside`` (a link that leaves the folder), ``not-a-file``, ``not-readable`` (to everyone),
    ``too-large``, ``changing`` (someone writes it in place), ``busy`` (no descriptor or memory
    left) or ``io-error``. `sentence` says it to people, `transient` that asking again may help.
    """

    def __init__(self, reason: str, name: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.reason = reason
        self.name = name
        self.sentence = _SENTENCES[reason]
        self.transient = reason in ("changing", "busy")


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one content of a file from the next."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Version:
        """The version that `fstat` sees."""
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LoadedFile:
    """One version of one file, whole."""

    path: str
    data: bytes = field(repr=False)
    version: Version

    @property
    def mtime(self) -> float:
        """When it was last written, in seconds since 1970."""
        return self.version.mtime_ns / 1e9

    @property
    def etag(self) -> str:
        """A strong validator for HTTP, in its quotes."""
        return f'"{self.version.size:x}-{self.version.mtime_ns:x}-{self.version.inode:x}"'


class LoaderFiles:
    """Files by name beneath the folders of `search`; the first folder that has one wins.

    `max_file` and `kept` are bytes. For the event loop's thread only.
    """

    def __init__(
        self, search: Sequence[Path], *, max_file: int = MAX_FILE, kept: int = KEPT
    ) -> None:
        self.search = tuple(str(root) for root in search)
        self._max_file = max_file
        self._max_kept = kept
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="bootd-files")
        self._known: WeakValueDictionary[str, LoadedFile] = WeakValueDictionary()
        self._kept: OrderedDict[str, LoadedFile] = OrderedDict()
        self._kept_bytes = 0
        self._flights: dict[tuple[str, ...], asyncio.Future[LoadedFile]] = {}

    async def get(self, *names: str) -> LoadedFile:
        """The first of these names that exists, as it is on disk now.

        Names are clean relative paths (`loaders.clean`), the best first (`loaders.candidates`).
        Requests that meet share one look at the disk. Raises `NotFound`, or `Refused` where the
        first thing found may not be served.
        """
        unchanged = self._unchanged(names)
        if unchanged is not None:
            return unchanged
        flight = self._flights.get(names)
        if flight is None:
            known = {path: file for path in self._paths(names) if (file := self._known.get(path))}
            loop = asyncio.get_running_loop()
            flight = loop.run_in_executor(self._pool, self._find, names, known)
            self._flights[names] = flight
            flight.add_done_callback(lambda done: self._landed(names, done))
        return await asyncio.shield(flight)

    def is_own(self, file: LoadedFile) -> bool:
        """True for a file of the first folder: the site's own, not a package's."""
        return file.path.startswith(f"{self.search[0]}/")

    def peek(self, *names: str) -> LoadedFile | None:
        """What is in memory for the first of these names that is; the disk is not asked."""
        return next((file for path in self._paths(names) if (file := self._known.get(path))), None)

    def close(self) -> None:
        """Let the worker threads go; a read in progress ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _unchanged(self, names: Sequence[str]) -> LoadedFile | None:
        """The file, if it is in memory and the kernel knows without asking the disk that it is the
        same and nothing was put before it: the usual case, and a fifth of a thread's cost."""
        if not any(path in self._known for path in self._paths(names)):
            return None
        for name in names:
            for root in _folders(self.search, name):
                try:
                    status = _cached_status(root, name)
                except FileNotFoundError:
                    continue
                except OSError:
                    return None
                had = self._known.get(f"{root}/{name}")
                if had is None or had.version != Version.of(status):
                    return None
                self._keep(had)
                return had
        return None

    def _paths(self, names: Sequence[str]) -> list[str]:
        return [f"{root}/{name}" for name in names for root in _folders(self.search, name)]

    def _landed(self, names: tuple[str, ...], flight: asyncio.Future[LoadedFile]) -> None:
        del self._flights[names]
        if not flight.cancelled() and flight.exception() is None:
            self._keep(flight.result())

    def _keep(self, file: LoadedFile) -> None:
        self._known[file.path] = file
        old = self._kept.pop(file.path, None)
        if old is not None:
            self._kept_bytes -= len(old.data)
        if len(file.data) > self._max_kept:
            return
        self._kept[file.path] = file
        self._kept_bytes += len(file.data)
        while self._kept_bytes > self._max_kept:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= len(dropped.data)

    # ---- in a worker thread ----------------------------------------------------------------------

    def _find(self, names: Sequence[str], known: Mapping[str, LoadedFile]) -> LoadedFile:
        for name in names:
            for root in _folders(self.search, name):
                try:
                    descriptor = open_beneath(root, name)
                except NotFound:
                    continue
                try:
                    return self._load(descriptor, name, f"{root}/{name}", known)
                except OSError as exc:
                    raise Refused("io-error", name) from exc
                finally:
                    os.close(descriptor)
        raise NotFound(names[0])

    def _load(
        self, descriptor: int, name: str, path: str, known: Mapping[str, LoadedFile]
    ) -> LoadedFile:
        for _ in range(3):
            status = os.fstat(descriptor)
            _may_be_served(status, name, self._max_file)
            version = Version.of(status)
            had = known.get(path)
            if had is not None and had.version == version:
                return had
            data = _read(descriptor, status.st_size)
            if len(data) == status.st_size and Version.of(os.fstat(descriptor)) == version:
                return LoadedFile(path, data, version)
        raise Refused("changing", name)


def _may_be_served(status: os.stat_result, name: str, max_file: int) -> None:
    """Raises `Refused` where what was opened is nothing for everyone, or more than `max_file`."""
    if not stat.S_ISREG(status.st_mode):
        raise Refused("not-a-file", name)
    if not status.st_mode & stat.S_IROTH:
        raise Refused("not-readable", name)
    if status.st_size > max_file:
        raise Refused("too-large", name)


def _read(descriptor: int, size: int) -> bytes:
    """Up to `size` bytes from the start; fewer where the file has become shorter."""
    data = os.pread(descriptor, size, 0)
    if len(data) == size:
        return data
    parts = [data]  # one read gives at most 2 GiB, and a signal or NFS may cut it short
    offset = len(data)
    while parts[-1]:
        parts.append(os.pread(descriptor, size - offset, offset))
        offset += len(parts[-1])
    return b"".join(parts)


# ---- opening beneath a folder --------------------------------------------------------------------

# O_NONBLOCK: opening a FIFO must not wait for its writer, nor a device for its line.
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_SYS_OPENAT2: Final = 437  # the same on every architecture that Debian has but alpha
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_BENEATH: Final = 0x08
_RESOLVE_CACHED: Final = 0x20  # Linux 5.12; before, EINVAL

_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
_REASONS: Final[Mapping[int, str]] = {
    errno.EXDEV: "outside",
    errno.ELOOP: "outside",
    errno.EACCES: "not-readable",
    errno.ENXIO: "not-a-file",  # a socket
    errno.EMFILE: "busy",
    errno.ENFILE: "busy",
    errno.ENOMEM: "busy",
    errno.EAGAIN: "busy",
}


class _OpenHow(ctypes.Structure):
    """``struct open_how`` of openat2(2)."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def open_beneath(root: str, name: str) -> int:
    """A descriptor for reading `name`, resolved so that no ``..`` or link leaves `root`.

    Links that stay beneath are followed. Blocks as long as the disk does, never on a FIFO; the
    caller closes it and checks what kind of file it is. Raises `NotFound` or `Refused`.
    """
    try:
        folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return _open(folder, name)
        finally:
            os.close(folder)
    except OSError as exc:
        if exc.errno in _ABSENT:
            raise NotFound(name) from exc
        raise Refused(_REASONS.get(exc.errno or 0, "io-error"), name) from exc


_HOW: Final = _OpenHow(_FLAGS, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
_LOOK_AT: Final = _OpenHow(
    os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS | _RESOLVE_CACHED
)
_LOOK_AT_FOLDER: Final = _OpenHow(os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, _RESOLVE_CACHED)
_AT_FDCWD: Final = -100


def _cached_status(root: str, name: str) -> os.stat_result:
    """What `name` beneath `root` is, from the kernel's memory. Raises `OSError`: EAGAIN where that
    would not do, `FileNotFoundError` where it knows that there is none."""
    folder = _openat2(_AT_FDCWD, root, _LOOK_AT_FOLDER)
    try:
        descriptor = _openat2(folder, name, _LOOK_AT)
    finally:
        os.close(folder)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _openat2(folder: int, name: str, how: _OpenHow) -> int:
    descriptor = int(
        _syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(folder),
            ctypes.c_char_p(os.fsencode(name)),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
    )
    if descriptor < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), name)
    return descriptor


def _open(folder: int, name: str) -> int:
    for _ in range(8):
        try:
            return _openat2(folder, name, _HOW)
        except OSError as exc:
            error = exc.errno or 0
        if error in (errno.ENOSYS, errno.EPERM):  # before Linux 5.6, or a container's seccomp
            return walk(folder, name)
        if error != errno.EAGAIN:  # EAGAIN: something was renamed meanwhile, so it cannot tell
            break
    raise OSError(error, os.strerror(error), name)


def walk(folder: int, name: str) -> int:
    """What openat2 does, component by component, but links are not followed at all."""
    *parents, last = name.split("/")
    if ".." in parents or last == "..":
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), name)
    current = os.dup(folder)
    try:
        for part in parents:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            deeper = os.open(part, flags, dir_fd=current)
            os.close(current)
            current = deeper
        return os.open(last, _FLAGS | os.O_NOFOLLOW, dir_fd=current)
    finally:
        os.close(current)
