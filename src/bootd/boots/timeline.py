"""Boots as they happen: what each machine asked for, got, and how it ended.

Pure: no clock, no socket, no logger. `now` is monotonic seconds (``loop.time()``); wall-clock times
for people are `now` plus the offset given to `Boots`. Memory is bounded by what the operator wrote
(nodes) plus a fixed number of unknown MACs.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Any, Final

from bootd import methods
from bootd.model import Arch, ClientKind, Image, Mac, Node
from bootd.registry import Registry

MAX_STEPS: Final = 64
"""Steps kept of one boot; past it the oldest but the first eight go."""
KEPT_BOOTS: Final = 3
"""Earlier boots kept for each node."""


SOON: Final = 120.0
"""Seconds after its loader in which a machine that begins anew did not run that loader."""
NO_SCRIPT: Final = (
    "its firmware had the loader and began anew, and no script was asked for: Secure Boot refuses "
    "a loader that is not signed (loader: shim, or switch it off), or the loader cannot reach the "
    "boot server"
)
"""Why such a boot has failed, as far as a server can tell."""


class Stage(StrEnum):
    """What a boot goes through, in order."""

    DHCP = "dhcp"
    LOADER = "loader"
    SCRIPT = "script"
    KERNEL = "kernel"
    INITRAMFS = "initramfs"
    IMAGE = "image"
    OVERLAY = "overlay"
    RUNTIME = "runtime"
    UP = "up"
    FAIL = "fail"


_ORDER: Final = {stage: number for number, stage in enumerate(Stage)}


@dataclass(slots=True)
class Step:
    """One thing a node asked for. Seconds are monotonic; `size` and `sent` are bytes.

    `outcome` is empty while it runs, then ``ok`` or a reason (``aborted``, ``timed-out``, …).
    """

    stage: Stage
    begun: float
    detail: str = ""
    size: int | None = None
    sent: int = 0
    ended: float | None = None
    outcome: str = ""
    moved: float | None = None
    """When `sent` last grew."""


@dataclass(slots=True)
class Refresh:
    """One refresh of a running node's overlay, as the node told: `at` is monotonic seconds,
    `result` ``ok``, ``unchanged`` or ``failed``, `digest` the archive's SHA-256, `changed` how many
    paths it wrote or removed, `hooks` how many commands failed, `error` a sentence."""

    at: float
    result: str
    digest: str = ""
    changed: int = 0
    hooks: int = 0
    error: str = ""


@dataclass(slots=True)
class Boot:
    """One boot of one machine, from its first DHCP packet to up or fail."""

    id: str
    mac: Mac
    node: str | None
    started: float
    seen: float
    kind: ClientKind | None = None
    arch: Arch | int | None = None
    address: IPv4Address | None = None
    """The address the machine has, as far as its DHCP exchange or a request told."""
    steps: list[Step] = field(default_factory=list)
    outcome: str = ""
    """Empty while booting, then ``up`` or ``failed``."""
    error: str = ""
    ended: float | None = None
    window: float = 0.0
    """Monotonic time until which a token may be given out (PRODUCT.md, Identity and secrets)."""
    image: Image | None = None
    """The generation that this boot's script was made for, and which it keeps: a kernel of one and
    an initramfs of the next do not fit."""
    server: str = ""
    """``http://10.0.0.1:9873``: where the machine found us."""
    given: dict[str, str] = field(default_factory=dict)
    """What it boots with, to be compared with what it would get now: SHA-256 of ``script`` (without
    token), ``kernel`` and other files, ``system`` and ``runtime`` overlay; ``args`` as they are."""
    refresh: Refresh | None = None
    """How the node's last refresh of its runtime overlay ended."""
    stale: tuple[str, ...] | None = None
    """What of `given` a boot would now give differently; None where nobody has looked."""

    @property
    def stage(self) -> Stage:
        """The furthest stage reached; `Stage.DHCP` before any."""
        if self.outcome == "up":
            return Stage.UP
        if self.outcome == "failed":
            return Stage.FAIL
        return max((step.stage for step in self.steps), key=_ORDER.__getitem__, default=Stage.DHCP)

    @property
    def state(self) -> str:
        """``booting``, ``up``, ``failed``; or ``local``: it was sent to its own disk, after which
        nothing more is heard of it."""
        last = self.steps[-1] if self.steps else None
        if not self.outcome and last is not None and last.stage is Stage.SCRIPT:
            # "local", "grub local", "pxelinux local": `bootd.configs`
            return "local" if last.detail.split()[-1:] == ["local"] else "booting"
        return self.outcome or "booting"

    def image_of(self, registry: Registry, node: Node) -> Image | None:
        """The image that `node` gets in this boot."""
        kept = self.image
        if kept is not None and kept.name == (node.image or "").partition("@")[0]:
            return kept
        image = registry.images.get(node.image) if node.image is not None else None
        return methods.files_for(node, image) if image is not None else None

    def reached(self, stage: Stage) -> bool:
        """True where a step of this stage or a later one was seen."""
        return any(_ORDER[step.stage] >= _ORDER[stage] for step in self.steps)


@dataclass(slots=True)
class _Machine:
    boot: Boot
    previous: deque[Boot] = field(default_factory=lambda: deque(maxlen=KEPT_BOOTS))


class Boots:
    """All machines' boots. Shells report here; status, timeline and tokens read here.

    `new_id` makes a boot id (8 bytes in hex); `window` is ``security.boot_window`` in seconds;
    `offset` is wall-clock minus monotonic seconds; `max_unknown` bounds MACs that no node names.
    """

    def __init__(
        self,
        *,
        new_id: Callable[[], str],
        window: float = 600.0,
        offset: float = 0.0,
        max_unknown: int = 1024,
    ) -> None:
        self._new_id = new_id
        self.window = window
        self.offset = offset
        self._max_unknown = max_unknown
        self._known: dict[Mac, _Machine] = {}
        self._unknown: OrderedDict[Mac, _Machine] = OrderedDict()
        self._unseen: set[Mac] = set()  # whose latest boot is known from an earlier process only
        self.uncompared: set[Mac] = set()
        """Whose boot has come up, or has got another overlay, and nobody has looked since whether a
        reboot would change it (`Boot.stale`)."""

    def of(self, mac: Mac) -> Boot | None:
        """The latest boot of this MAC, or None."""
        machine = self._known.get(mac) or self._unknown.get(mac)
        return machine.boot if machine is not None else None

    def history(self, mac: Mac) -> tuple[Boot, ...]:
        """All boots kept of this MAC, oldest first."""
        machine = self._known.get(mac) or self._unknown.get(mac)
        return (*machine.previous, machine.boot) if machine is not None else ()

    def __iter__(self) -> Iterator[Boot]:
        for machines in (self._known, self._unknown):
            for machine in list(machines.values()):
                yield machine.boot

    def kept(self) -> Iterator[Boot]:
        """All boots of nodes: everyone's latest one, then the ones before, newest first."""
        machines = list(self._known.values())
        yield from (machine.boot for machine in machines)
        for back in range(1, KEPT_BOOTS + 1):
            yield from (m.previous[-back] for m in machines if len(m.previous) >= back)

    def restore(self, boots: Iterable[Boot]) -> None:
        """Take boots that an earlier process kept, in the order of `kept`, where this one has seen
        none of their machine yet."""
        fresh: dict[Mac, _Machine] = {}
        for boot in boots:
            if boot.node is None or boot.mac in self._known:
                continue
            machine = fresh.get(boot.mac)
            if machine is None:
                fresh[boot.mac] = _Machine(boot)
            elif len(machine.previous) < KEPT_BOOTS:
                machine.previous.appendleft(boot)
        self._known.update(fresh)
        self._unseen |= fresh.keys()

    def missed(self, boot: Boot, boot_id: str, until: float) -> bool:
        """Whether a token of boot `boot_id`, good `until` then, tells of a boot that came after
        `boot` and was lost: this process was started in the middle of it, and the one before did
        not live to write it down."""
        if boot.id == boot_id or boot.mac not in self._unseen:
            return False
        # A token is good for `window` from its machine's last DHCP packet, and up to a second more.
        return until - 1 - self.window >= boot.seen

    def discover(
        self, mac: Mac, node: str | None, kind: ClientKind, arch: Arch | int | None, now: float
    ) -> Boot:
        """A DISCOVER arrived from a boot client: the boot it belongs to, new or going on."""
        boot = self.of(mac)
        if boot is None or self._restarted(boot, kind, now):
            if boot is not None and self._refused(boot, now):
                self.fail(boot, now, NO_SCRIPT)
            boot = self._start(Boot(self._new_id(), mac, node, now, now, kind, arch))
        elif node != boot.node:
            self._rename(boot, node)
        self._unseen.discard(mac)
        boot.seen = now
        boot.window = now + self.window
        return boot

    def adopt(self, mac: Mac, boot_id: str, node: str, window: float, now: float) -> Boot:
        """A valid token names a boot that this process did not see begin (it was restarted)."""
        boot = self.of(mac)
        if boot is not None and boot.id == boot_id:
            return boot
        return self._start(Boot(boot_id, mac, node, now, now, window=window))

    def running(self, mac: Mac, boot_id: str, node: str, now: float) -> Boot:
        """A node that proved who it is by its key runs, whatever this process saw of its boot."""
        boot = self.of(mac)
        if boot is None:
            boot = self._start(Boot(boot_id or self._new_id(), mac, node, now, now))
            boot.outcome, boot.ended = "up", now
            self.compare(boot)
        elif boot.outcome != "up" and boot.id == boot_id and now > boot.window:
            self.up(boot, now)  # nobody on the node reports, or nobody could
        boot.seen = now
        return boot

    def begin(
        self, mac: Mac, stage: Stage, now: float, *, detail: str = "", size: int | None = None
    ) -> Step | None:
        """A step begins; the shell counts ``step.sent`` up and calls `finish`. None: no boot."""
        boot = self.of(mac)
        if boot is None:
            return None
        step = Step(stage, now, detail, size)
        self._add(boot, step, now)
        return step

    def finish(self, step: Step | None, now: float, outcome: str = "ok") -> None:
        """A step ends. A None step (no boot known) is accepted and ignored."""
        if step is not None:
            step.ended = now
            step.outcome = outcome

    def note(
        self,
        mac: Mac,
        stage: Stage,
        now: float,
        *,
        detail: str = "",
        size: int | None = None,
        outcome: str = "ok",
    ) -> Boot | None:
        """A step that is over when it is reported. Equal ones in a row are kept as one."""
        boot = self.of(mac)
        if boot is None:
            return None
        last = boot.steps[-1] if boot.steps else None
        if last is not None and (last.stage, last.detail, last.outcome) == (stage, detail, outcome):
            boot.seen = last.ended = now
            return boot
        self._add(boot, Step(stage, now, detail, size, size or 0, now, outcome), now)
        return boot

    def up(self, boot: Boot, now: float) -> None:
        """The node reported that it is up: the boot ends well and its window closes."""
        self._add(boot, Step(Stage.UP, now, ended=now, outcome="ok"), now)
        boot.outcome, boot.error, boot.ended, boot.window = "up", "", now, now
        self.compare(boot)

    def compare(self, boot: Boot) -> None:
        """What a reboot would change for a running node has to be found out anew."""
        boot.stale = None
        self.uncompared.add(boot.mac)

    def fail(self, boot: Boot, now: float, error: str) -> None:
        """The node's script reported a failing step; it may yet retry and come up."""
        self._add(boot, Step(Stage.FAIL, now, error, ended=now, outcome="failed"), now)
        boot.outcome, boot.error, boot.ended = "failed", error, now

    def retrying(self, boot: Boot) -> None:
        """A boot that had reported a failure goes on: it is booting again."""
        if boot.outcome == "failed":
            boot.outcome, boot.ended = "", None

    def rename(self, names: Callable[[Mac], str | None]) -> None:
        """After a reload: `names` tells which node a MAC is now, so boots move with it."""
        for boot in list(self):
            node = names(boot.mac)
            if node != boot.node:
                self._rename(boot, node)

    def _restarted(self, boot: Boot, kind: ClientKind, now: float) -> bool:
        if boot.outcome == "up" or now > boot.window:
            return True
        if kind is ClientKind.IPXE:
            return boot.reached(Stage.SCRIPT)
        return boot.reached(Stage.LOADER)

    def _refused(self, boot: Boot, now: float) -> bool:
        """Whether a boot that is begun anew had its loader and nothing came of it."""
        return (
            not boot.outcome
            and boot.kind in (ClientKind.PXE, ClientKind.HTTP)
            and boot.stage is Stage.LOADER
            and now - boot.seen <= SOON
        )

    def _start(self, boot: Boot) -> Boot:
        machines = self._known if boot.node is not None else self._unknown
        old = self._known.pop(boot.mac, None) or self._unknown.pop(boot.mac, None)
        machine = _Machine(boot)
        if old is not None:
            machine.previous.extend((*old.previous, old.boot))
        self._unseen.discard(boot.mac)
        machines[boot.mac] = machine
        while len(self._unknown) > self._max_unknown:
            self._unknown.popitem(last=False)
        return boot

    def _rename(self, boot: Boot, node: str | None) -> None:
        machine = self._known.pop(boot.mac, None) or self._unknown.pop(boot.mac, None)
        boot.node = node
        if machine is not None:
            (self._known if node is not None else self._unknown)[boot.mac] = machine
        while len(self._unknown) > self._max_unknown:
            self._unknown.popitem(last=False)

    def _add(self, boot: Boot, step: Step, now: float) -> None:
        boot.seen = now
        boot.steps.append(step)
        if len(boot.steps) > MAX_STEPS:
            del boot.steps[8]

    def describe(self, boot: Boot, now: float) -> dict[str, Any]:
        """The boot as plain values for JSON: wall-clock seconds and bytes."""
        return {
            "boot": boot.id,
            "mac": boot.mac,
            "node": boot.node,
            "stage": boot.stage.value,
            "outcome": boot.state,
            "error": boot.error,
            "firmware": boot.kind.value if boot.kind is not None else None,
            "arch": int(boot.arch) if boot.arch is not None else None,
            "address": str(boot.address) if boot.address is not None else None,
            "started": round(boot.started + self.offset, 3),
            "seen": round(boot.seen + self.offset, 3),
            "age": round(now - boot.seen, 3),
            "seconds": round((boot.ended if boot.ended is not None else now) - boot.started, 3),
            "given": dict(boot.given),
            "stale": list(boot.stale) if boot.stale is not None else None,
            "refresh": describe_refresh(boot.refresh, now, self.offset),
            "steps": [self._describe_step(boot, step, now) for step in boot.steps],
        }

    def _describe_step(self, boot: Boot, step: Step, now: float) -> dict[str, Any]:
        seconds = (step.ended if step.ended is not None else now) - step.begun
        return {
            "stage": step.stage.value,
            "at": round(step.begun + self.offset, 3),
            "after": round(step.begun - boot.started, 3),
            "seconds": round(seconds, 3),
            "detail": step.detail,
            "bytes": step.sent,
            "size": step.size,
            "outcome": step.outcome or "running",
        }


def describe_refresh(refresh: Refresh | None, now: float, offset: float) -> dict[str, Any] | None:
    """A refresh as plain values for JSON; `offset` is wall-clock less monotonic seconds."""
    if refresh is None:
        return None
    return {
        "at": round(refresh.at + offset, 3),
        "age": round(now - refresh.at, 3),
        "result": refresh.result,
        "digest": refresh.digest,
        "changed": refresh.changed,
        "failed_hooks": refresh.hooks,
        "error": refresh.error,
    }
