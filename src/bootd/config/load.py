"""The files on the server -> one validated `Registry`. Blocking: run it in a worker thread.

Everything is read, then everything is checked, then one value is made; any fault is a `ConfigError`
that carries all of them, and whoever called keeps what it had.
"""

from __future__ import annotations

import gc
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import resources
from itertools import islice
from pathlib import Path
from posixpath import normpath
from types import MappingProxyType
from typing import Final, TypeVar

from bootd import grub, pxelinux, scripts
from bootd.config import checks, claims, files, layers, merge
from bootd.config.faults import MAX_FAULTS, Fault, config_error
from bootd.config.schema import BootdFile, NodesFile
from bootd.config.settings import ports_in_conflict
from bootd.config.settings import settings as make_settings
from bootd.config.source import Document, dotted, parse
from bootd.config.validate import validate
from bootd.image.store import ImageStore
from bootd.model import (
    ConfigError,
    Node,
    Origin,
    Settings,
    Template,
    TlsSettings,
    UnknownPolicy,
)
from bootd.overlay import render, tree
from bootd.registry import Registry

RENDER_SECONDS: Final = 0.5
"""How long nodes' overlays are rendered to find templates that fail: 10,000 nodes must load in 3 s.
Nodes that differ in more than name and addresses come first."""
FREEZE_ABOVE: Final = 20_000
"""Objects that a load leaves from which on it is large: some thousand nodes."""

T = TypeVar("T")


def load(config_file: str, *, generation: int = 1, patience: float = RENDER_SECONDS) -> Registry:
    """Read and check everything that `config_file` leads to.

    `generation` numbers the registry; nodes' overlays are rendered for at most `patience` seconds
    to find templates that fail. Raises `ConfigError` with all faults, each a whole line
    ``file:line:col: where: what``.
    """
    with _collector_paused():
        return _Load(_absolute(config_file)).registry(generation, patience)


def load_settings(config_file: str) -> Settings:
    """Only the settings of `config_file`, for commands that need paths and ports.

    Raises `ConfigError`.
    """
    loading = _Load(_absolute(config_file))
    settings = loading.settings()
    loading.stop_on_faults()
    return settings


def _absolute(path: str) -> str:
    """Not resolved: a symlinked bootd.yaml counts its paths from where the link is."""
    return normpath(Path(path).absolute())


def _unlike_first(nodes: Mapping[str, Node]) -> dict[str, Node]:
    """`nodes`, those first that stand for a kind: other profiles, overlays, tags or devices."""
    kinds: dict[object, str] = {}
    for name, node in nodes.items():
        devices = tuple((d.name, d.ip is None, d.mac is None) for d in node.network.values())
        kind = (
            *(node.profiles, node.overlays_system, node.overlays_runtime, node.image, devices),
            *(tuple(node.tags), tuple(node.resources), node.boot, node.kernel_args),
        )
        kinds.setdefault(kind, name)
    return {name: nodes[name] for name in kinds.values()} | dict(nodes)


def _with_all_they_name(registry: Registry) -> Registry:
    """`registry` without the nodes whose image, template or overlays do not all exist."""

    def whole(node: Node) -> bool:
        overlays = (*node.overlays_system, *node.overlays_runtime)
        return (
            (node.image is None or node.image in registry.images)
            and f"{node.template}.ipxe.j2" in registry.templates
            and all(name in registry.overlays for name in overlays)
        )

    nodes = {name: node for name, node in registry.nodes.items() if whole(node)}
    default = registry.default if registry.default and whole(registry.default) else None
    return replace(registry, nodes=MappingProxyType(nodes), default=default)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without the garbage collector, which would walk what is being built again and again and hold
    the event loop each time.

    What a large load leaves is frozen: to walk it even once takes 0.1 s. It is freed as usual when
    the last reference goes; only reference cycles would stay, and a load leaves none. What others
    left in cycles since the last freeze is collected first.
    """
    was_enabled = gc.isenabled()
    if was_enabled and gc.get_freeze_count():
        gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if gc.get_count()[0] > FREEZE_ABOVE:
                gc.freeze()
            gc.enable()


@dataclass
class _Load:
    config_file: str
    faults: list[Fault] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    """Faults that other parts found, as whole lines."""

    def __post_init__(self) -> None:
        self.folder = self.config_file.rpartition("/")[0] or "/"
        self.bootd = Document(self._display(self.config_file))
        self.unread = False

    # ---- the stages ----

    def settings(self) -> Settings:
        """Read bootd.yaml. Parts with faults have their defaults."""
        document = self._read(self.config_file)
        if document is None:
            self.stop_on_faults()
        assert document is not None
        self.bootd = document
        checked, faults = validate(BootdFile, document)
        self.faults += faults
        self.faults += ports_in_conflict(checked, document)
        return make_settings(checked, self.config_file)

    def registry(self, generation: int, patience: float) -> Registry:
        """All stages, in order."""
        settings = self.settings()
        nodes, default = self._nodes(settings)
        overlays = self._part(lambda: tree.load(settings.overlays))
        named = {n.image for n in (*nodes.values(), default) if n and n.image and "@" in n.image}
        images = self._part(lambda: ImageStore(settings.state_dir).active(named))
        templates = self._templates(settings)
        self._certificate(settings.http.tls)
        if default is None and settings.dhcp.unknown is UnknownPolicy.DEFAULT:
            self._bootd_fault(("dhcp", "unknown"), "there is no profile 'default' to boot them")
        complete = overlays is not None and images is not None and not self.unread
        missing: list[Fault] = []
        if complete:
            used = [*nodes.values(), *([default] if default is not None else [])]
            missing = checks.references(
                used, images=images or {}, overlays=overlays or {}, templates=templates
            )
            self.faults += missing
        made = Registry(
            settings=settings,
            nodes=MappingProxyType(nodes),
            images=images or {},
            overlays=overlays or {},
            templates=templates,
            default=default,
            generation=generation,
        )
        if complete:
            # What a node names in vain is told already; the others' templates are tried as ever.
            tried = _with_all_they_name(made) if missing else made
            self.lines += [*scripts.check(tried), *grub.check(tried), *pxelinux.check(tried)]
            end = time.monotonic() + patience
            unlike = replace(tried, nodes=_unlike_first(tried.nodes))
            found = render.check(unlike, stop=lambda: time.monotonic() > end)
            self.lines += map(self._display, found)
        self.stop_on_faults()
        return made

    def stop_on_faults(self) -> None:
        """Raise what was found so far."""
        if self.faults or self.lines:
            found = config_error(self.faults).faults if self.faults else ()
            raise ConfigError([*found, *dict.fromkeys(self.lines)])

    # ---- nodes ----

    def _nodes(self, settings: Settings) -> tuple[dict[str, Node], Node | None]:
        profiles: dict[str, merge.Layer] = {}
        entries: list[tuple[str, merge.Layer]] = []
        for document in self._nodes_documents(settings):
            checked, faults = validate(NodesFile, document)
            self.faults += faults
            if len(self.faults) > MAX_FAULTS:
                self.stop_on_faults()
            for name, layer in layers.profiles(document, checked):
                first = profiles.setdefault(name, layer)
                if first is not layer:
                    what = f"{name} is defined twice; the other place is {first.origin}"
                    self.faults.append(Fault(layer.origin, layer.where, what))
            entries += layers.nodes(document, checked)
        if self.unread:
            return {}, None  # what a file that could not be read defines is not missing
        resolved = merge.resolve(profiles, entries)
        while entries:
            entries.pop()  # all at once would hold the event loop for 30 ms at 10,000 nodes
        self.faults += resolved.faults
        claimed = self._part(lambda: claims.load(settings.state_dir))
        nodes = claims.apply(resolved.nodes, claimed or {})
        self.faults += islice(checks.duplicates(nodes.values()), MAX_FAULTS + 1)
        return nodes, resolved.default

    def _nodes_documents(self, settings: Settings) -> Iterator[Document]:
        seen: dict[str, None] = {}
        for number, pattern in enumerate(settings.nodes):
            for path in files.find(pattern):
                if path in seen:
                    continue
                seen[path] = None
                document = self._read(path, ("nodes", number))
                if document is None or (document.value is None and document.faults):
                    self.unread = True
                if document is not None:
                    yield document

    # ---- the rest ----

    def _templates(self, settings: Settings) -> Mapping[str, Template]:
        """Boot script templates by name, the site's over the distribution's."""
        found: dict[str, Template] = {}
        distributed = Path(str(resources.files("bootd"))) / "data" / "templates"
        for folder in (*settings.templates, str(distributed)):
            for path in sorted(Path(folder).glob("*.j2")):
                if path.name not in found:
                    found[path.name] = self._template(path)
        return MappingProxyType(found)

    def _template(self, path: Path) -> Template:
        text = ""
        file = self._display(str(path))
        try:
            text = files.read(str(path)).decode()
        except files.Unreadable as error:
            self.faults.append(Fault(Origin(file, 1, 1), "", str(error)))
        except UnicodeDecodeError:
            self.faults.append(Fault(Origin(file, 1, 1), "", "not UTF-8 text"))
        return Template(name=path.name, text=text, source=file)

    def _certificate(self, tls: TlsSettings | None) -> None:
        """Certificate and key must fit now, not when the first node asks."""
        if tls is None:
            return
        for key in ("certificate", "key"):
            try:
                files.read(getattr(tls, key))
            except files.Unreadable as error:
                self._bootd_fault(("http", "tls", key), f"{getattr(tls, key)}: {error}")
                return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # With a passphrase callback OpenSSL cannot ask at a terminal, and wait.
            context.load_cert_chain(tls.certificate, tls.key, password=lambda: "")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or str(error)
            what = f"{tls.certificate} and {tls.key} are not a usable pair: {reason}"
            self._bootd_fault(("http", "tls", "certificate"), what)

    def _part(self, read: Callable[[], T]) -> T | None:
        """What another part reads; its faults are added to ours."""
        try:
            return read()
        except ConfigError as error:
            self.lines += map(self._display, error.faults)
            return None

    def _read(self, path: str, named: Sequence[str | int] = ()) -> Document | None:
        """One YAML file; a fault where it cannot be read, at the key of bootd.yaml that names it
        where one does."""
        file = self._display(path)
        try:
            data = files.read(path)
        except files.Unreadable as error:
            value = self.bootd.value
            if named and isinstance(value, dict) and named[0] in value:
                self._bootd_fault(named, f"{file} cannot be read: {error}")
            else:
                whole = f"{path} " if path == self.config_file else ""
                self.faults.append(Fault(Origin(file, 1, 1), "", f"{whole}cannot be read: {error}"))
            return None
        if not data.strip():
            what = (
                "the file is empty, as after a write that failed; `{}` or a comment means nothing"
            )
            self.faults.append(Fault(Origin(file, 1, 1), "", what))
            return None
        return parse(data, file)

    def _bootd_fault(self, path: Sequence[str | int], what: str) -> None:
        self.faults.append(Fault(self.bootd.origin(path), dotted(path), what))

    def _display(self, path: str) -> str:
        """A path, or a line that begins with one, as messages call it."""
        return files.display(path, self.folder)
