"""Who gets a node's secrets: each way that an attacker may try, by its name."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator, Iterable
from ipaddress import IPv4Address
from pathlib import Path
from typing import get_args

import pytest
import structlog
from structlog.testing import capture_logs

from bootd import loaders
from bootd.boots.timeline import Stage
from bootd.boots.tokens import Claims, mint
from bootd.http.routes import (
    FIXED,
    PARTS,
    ROLES,
    STAGES,
    BootPart,
    File,
    Fixed,
    Provision,
    Public,
    Route,
    Runtime,
    route,
)
from bootd.model import HttpSettings, SecuritySettings
from tests.http_site import (
    HERE,
    HOUR,
    KERNEL,
    KEY,
    MAC,
    OTHER,
    SECRET,
    STRANGER,
    WALL,
    Reply,
    Service,
    serving,
)

LOOPS = ("uvloop",)
SCRIPT = "/ipxe/52-54-00-12-34-56"
ELSEWHERE = "127.0.0.2"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(tmp_path) as running:
        yield running


def assert_denied(reply: Reply, sentence: str) -> None:
    assert reply.status == 403
    assert sentence in reply.line
    assert SECRET not in reply.body


async def test_no_dhcp_packet_no_token(service: Service) -> None:
    text = (await service.get(SCRIPT)).text

    assert "/b/" not in text
    assert "no DHCP packet of this machine has been seen" in text


async def test_another_nodes_mac_gives_no_token(service: Service) -> None:
    """A node asks for its neighbour's script while the neighbour boots."""
    service.discover(MAC, address=IPv4Address("127.0.0.9"))

    text = (await service.get(SCRIPT)).text

    assert "/b/" not in text
    assert "an address that is not this machine's" in text


async def test_another_nodes_mac_gives_no_token_whatever_dhcp_said(service: Service) -> None:
    """The link is believed: whoever has the address now has another card."""
    service.discover(MAC, address=HERE)
    service.link.known[HERE] = OTHER

    assert "/b/" not in (await service.get(SCRIPT)).text


async def test_the_link_vouches_where_dhcp_named_no_address(service: Service) -> None:
    service.discover(MAC, address=None)
    assert "/b/" not in (await service.get(SCRIPT)).text

    service.link.known[HERE] = MAC

    assert "/b/" in (await service.get(SCRIPT)).text


async def test_no_token(service: Service) -> None:
    service.discover()

    for path in ("/b//system", "/b/system", "/system", "/system/52-54-00-12-34-56"):
        reply = await service.get(path)
        assert reply.status in (400, 403, 404)
        assert SECRET not in reply.body


async def test_another_nodes_token(service: Service) -> None:
    """It opens that node's boot from that node's address, and nothing else."""
    service.discover(OTHER, address=IPv4Address(ELSEWHERE))
    reply = await service.get("/ipxe/52-54-00-12-34-57", source=ELSEWHERE)
    token = reply.text.split("/b/")[1].split("/")[0]

    assert_denied(await service.get(f"/b/{token}/system"), "not this machine's")
    own = await service.get(f"/b/{token}/system", source=ELSEWHERE)
    assert SECRET + b"n002" in own.body
    assert SECRET + b"n001" not in own.body


async def test_from_another_address(service: Service) -> None:
    service.discover()
    token = await service.token()

    for part in ("system", "kernel", "up", "fail"):
        assert_denied(
            await service.get(f"/b/{token}/{part}", source=ELSEWHERE), "not this machine's"
        )


async def test_forwarding_headers_change_nothing(service: Service) -> None:
    service.discover()
    token = await service.token()

    for header in ("X-Forwarded-For", "X-Real-IP", "Forwarded", "Client-IP"):
        value = "for=127.0.0.1" if header == "Forwarded" else "127.0.0.1"
        reply = await service.get(f"/b/{token}/system", source=ELSEWHERE, headers={header: value})
        assert_denied(reply, "not this machine's")


async def test_the_operating_systems_address_may_differ_where_the_link_knows_the_card(
    service: Service,
) -> None:
    service.discover()
    token = await service.token()
    service.link.known[IPv4Address(ELSEWHERE)] = MAC

    assert (await service.get(f"/b/{token}/up", source=ELSEWHERE)).status == 200


async def test_replay_after_up(service: Service) -> None:
    service.discover()
    token = await service.token()
    await service.get(f"/b/{token}/up")

    for part in ("system", "kernel", "up", "fail"):
        assert_denied(await service.get(f"/b/{token}/{part}"), "has reported that it is up")


async def test_an_unprivileged_user_on_the_node_itself_gets_nothing(service: Service) -> None:
    """After up: same address, same card, and the MAC address is known; but the window is closed,
    and only a DHCP packet from a privileged port opens it."""
    service.discover()
    service.link.known[HERE] = MAC
    token = await service.token()
    await service.get(f"/b/{token}/up")

    text = (await service.get(SCRIPT)).text

    assert "/b/" not in text
    assert "the node has reported that it is up" in text


async def test_a_token_ends_when_the_node_boots_again(service: Service) -> None:
    service.discover()
    token = await service.token()
    service.discover()

    assert_denied(await service.get(f"/b/{token}/system"), "booted again since")


async def test_expired(service: Service) -> None:
    boot = service.discover()
    claims = Claims(MAC, boot.id, HERE, int(WALL - 1))

    assert_denied(await service.get(f"/b/{mint(KEY, claims)}/system"), "has expired")


async def test_a_token_dies_with_its_window_although_its_date_is_good(service: Service) -> None:
    boot = service.discover()
    token = await service.token()
    boot.window = 0

    assert_denied(await service.get(f"/b/{token}/system"), "window is closed")


async def test_forged(service: Service) -> None:
    boot = service.discover()
    claims = Claims(MAC, boot.id, HERE, int(WALL + HOUR))

    assert_denied(await service.get(f"/b/{mint(bytes(32), claims)}/system"), "not signed here")
    assert_denied(await service.get(f"/b/{'A' * 52}/system"), "not signed here")
    assert_denied(await service.get("/b/guess/system"), "this is no token")


async def test_guessing_does_not_lock_the_honest_node_out(service: Service) -> None:
    service.discover()
    token = await service.token()
    for number in range(200):
        raw = base64.urlsafe_b64encode(number.to_bytes(39, "big")).decode()
        assert (await service.get(f"/b/{raw}/system")).status == 403

    assert (await service.get(f"/b/{token}/system")).status == 200


async def test_a_node_that_was_taken_out_of_the_files_gets_nothing(service: Service) -> None:
    service.discover()
    token = await service.token()
    service.change("n001", mac=STRANGER)

    assert_denied(await service.get(f"/b/{token}/system"), "no node has this MAC address")


async def test_head_range_and_conditions_are_denied_as_get_is(service: Service) -> None:
    service.discover()
    token = await service.token()
    await service.get(f"/b/{token}/up")
    path = f"/b/{token}/system"

    assert (await service.get(path, method="HEAD")).status == 403
    for headers in ({"Range": "bytes=0-9"}, {"If-None-Match": "*"}, {"If-Match": "*"}):
        assert (await service.get(path, headers=headers)).status == 403
    override = {"X-HTTP-Method-Override": "GET", "X-Original-URL": "/healthz"}
    assert (await service.get(path, headers=override)).status == 403


@pytest.mark.parametrize(
    "path",
    ["//b//{}//system", "/b/{}/./system", "/%62/{}/%73ystem", "/b/{}/system?x=/healthz",
     "/b/{}/system/", "/b%2f{}%2fsystem", "/healthz/../b/{}/system", "/b/{};x/system",
     "/B/{}/system", "/b/{}/SYSTEM", "/b/{}/system%20", "/boot/b/{}/system"],
)  # fmt: skip
async def test_no_spelling_of_the_path_opens_what_is_closed(service: Service, path: str) -> None:
    service.discover()
    token = await service.token()
    await service.get(f"/b/{token}/up")

    reply = await service.get(path.format(token))

    assert reply.status in (400, 403, 404)
    assert SECRET not in reply.body


@pytest.mark.parametrize(
    "climb",
    ["..", "%2e%2e", "%2E.", "..%2f..", "%2e%2e%2f", "..%5c", "..\\", "....//", "..;", ".%00.",
     "%252e%252e", "%c0%ae%c0%ae", "%e0%80%ae%e0%80%ae", "..%00", "./..", "x/../..", "%2e%2e%5c",
     "%ef%bc%8e%ef%bc%8e"],
)  # fmt: skip
async def test_path_traversal_in_all_spellings(service: Service, climb: str) -> None:
    """A secret lies beside the folder of boot loaders, and a link in the folder leads to it."""
    (service.folder / "secret").write_bytes(SECRET)
    (service.folder / "tftp" / "link.efi").symlink_to("../secret")
    steps = [f"{climb}/secret", f"{climb}/{climb}/etc/passwd", "link.efi"]
    steps += [f"{climb}{service.folder}/secret", f"{service.folder}/secret"]

    for start in ("/", "//", "/boot/", "/boot//", f"/{DASHED}/", "/b/", "/grub/", "/provision/"):
        for step in steps:
            reply = await service.get(f"{start}{step}")
            assert reply.status in (400, 403, 404), start + step
            assert SECRET not in reply.body
            assert b"root:" not in reply.body
    assert (await service.get("/healthz")).status == 200


@pytest.mark.parametrize(
    "bomb",
    ["bytes=" + ",".join(f"{n}-" for n in range(1300)), "bytes=" + "0-,-1," * 1000,
     "bytes=0-" + "9" * 4000, "bytes=-" + "9" * 4000, "bytes=0-0" + ",0-0" * 1500],
)  # fmt: skip
async def test_range_bombs(service: Service, bomb: str) -> None:
    """Many ranges multiply nothing: it is the whole file, or one part of it, or a refusal."""
    for path in (f"/kernel/{DASHED}", f"/b/{'A' * 52}/system"):
        reply = await service.get(path, headers={"Range": bomb})
        assert reply.status in (200, 206, 400, 403, 416, 431)
        assert len(reply.body) <= len(KERNEL)


async def test_secrets_may_not_be_stored_by_caches(service: Service) -> None:
    service.discover()
    token = await service.token()

    assert (await service.get(SCRIPT)).headers["Cache-Control"] == "no-store"
    assert (await service.get(f"/b/{token}/system")).headers["Cache-Control"] == "no-store"


DASHED = "52-54-00-12-34-56"
PUBLIC: dict[str, int | None] = {
    "/healthz": 200,
    f"/ipxe/{DASHED}": 200,
    "/ipxe/no-mac": 200,
    f"/provision?wwid={DASHED}": 200,
    f"/kernel/{DASHED}": 200,
    f"/initramfs/{DASHED}": 200,
    "/blob/sha256/{digest}": 200,
    "/boot/snponly.efi": 200,
    f"/{DASHED}/snponly.efi": 200,
    f"/{DASHED}/autoexec.ipxe": 200,
    "/autoexec.ipxe": 200,
    f"/kernel?wwid={DASHED}": 200,
    f"/initramfs?wwid={DASHED}": 200,
    f"/ipxe?wwid={DASHED}": 200,
    f"/grub?wwid={DASHED}": None,
    f"/pxelinux.cfg/01-{DASHED}": None,
    f"/grub/grub.cfg-01-{DASHED}": None,
}
"""Everything that may be read without a token, and with what status; None: there need not be any
such thing."""
CLOSED = [
    *(f"/{part}/{DASHED}" for part in ("image", "squashfs", "system", "runtime")),
    f"/runtime/{DASHED}/report",
    f"/provision/{DASHED}?stage=system",
    *(f"/{stage}?wwid={DASHED}" for stage in STAGES if f"/{stage}?wwid={DASHED}" not in PUBLIC),
    *(f"/b/{'A' * 52}/{part}" for part in PARTS),
    *(f"/{name}" for name in FIXED if name != "healthz"),
    "/",
    "/kernel/no-mac",
    f"/boot/b/{'A' * 52}/kernel",
    "/files/etc/key",
    "/overlays/keys/etc/key",
    "/keys",
    "/nodes.yaml",
    "/bootd.yaml",
]


def kinds(asking: Route) -> tuple[str, object]:
    """What of a route decides who may have it."""
    match asking:
        case BootPart(_, part):
            return ("BootPart", part)
        case Provision(stage, _):
            return ("Provision", stage)
        case Public(role, _):
            return ("Public", role)
        case Runtime(_, report):
            return ("Runtime", report)
        case Fixed(name):
            return ("Fixed", name)
        case File(target):
            return ("File", type(target).__name__)
    return (type(asking).__name__, None)


def test_every_route_is_on_the_list() -> None:
    """A new route, or a new part of one, fails here until somebody decides who may read it."""
    parts: dict[str, Iterable[object]] = {
        "BootPart": PARTS,
        "Provision": STAGES.values(),
        "Public": ROLES,
        "Runtime": (False, True),
        "Fixed": (*FIXED, "index"),
        "File": [kind.__name__ for kind in get_args(loaders.Target) if kind is not loaders.Refused],
    }
    there = {
        (kind.__name__, part)
        for kind in get_args(Route)
        for part in parts.get(kind.__name__, [None])
    }

    listed = {kinds(route(path.replace("{digest}", "0" * 64))) for path in (*PUBLIC, *CLOSED)}

    assert listed == there


async def test_everything_that_may_be_read_without_a_token_is_on_this_list(
    tmp_path: Path,
) -> None:
    """Every route, unauthenticated, while a node boots: nothing secret comes."""
    closed_to_all = HttpSettings(port=0, admin_networks=())
    async with serving(tmp_path, http=closed_to_all) as service:
        service.discover(MAC, address=IPv4Address(ELSEWHERE))
        service.change(overlays_runtime=("keys",))
        digest = service.registry.images["debian"].artefacts["kernel"].sha256
        for path, status in PUBLIC.items():
            reply = await service.get(path.replace("{digest}", digest))
            assert reply.status == status or status is None, path
            assert SECRET not in reply.body
            assert b"/b/" not in reply.body
        for path in CLOSED:
            reply = await service.get(path)
            assert reply.status in (400, 401, 403, 404), path
            assert SECRET not in reply.body


@pytest.mark.parametrize(
    ("value", "query"),
    [
        ({"uuid": "01020304-0506-0708-090A-0B0C0D0E0F10"}, "uuid=0102030405060708090a0b0c0d0e0f10"),
        ({"serial": "CZ 1"}, "serial=CZ%201"),
        ({"asset_key": "blue"}, "assetkey=blue"),
    ],
)
async def test_a_machine_need_say_only_what_its_node_asks_for(
    service: Service, value: dict[str, str], query: str
) -> None:
    service.change(**value)
    service.discover()

    assert "/b/" not in (await service.get(SCRIPT)).text
    assert "/b/" in (await service.get(f"{SCRIPT}?{query}")).text
    assert "/b/" not in (await service.get(f"{SCRIPT}?{query}1")).text


async def test_a_node_with_an_asset_key_must_say_it(service: Service) -> None:
    service.change(asset_key="blue & horse", uuid="01020304-0506-0708-090A-0B0C0D0E0F10")
    service.discover()
    asking = (await service.get(SCRIPT)).text
    assert "/b/" not in asking
    assert "&assethex=${asset:hexraw} " in asking

    uuid, key = "uuid=01020304-0506-0708-090a-0b0c0d0e0f10", b"blue & horse".hex()
    wrong = (await service.get(f"{SCRIPT}?{uuid}&assethex={b'guess'.hex()}")).text
    garbage = (await service.get(f"{SCRIPT}?{uuid}&assethex=zz")).text
    other = (await service.get(f"{SCRIPT}?uuid=0&assethex={key}")).text
    right = (await service.get(f"{SCRIPT}?{uuid}&serialhex=&assethex={key}")).text

    assert "/b/" not in garbage
    assert "/b/" not in wrong
    assert "its asset key is not the one of this node" in wrong
    assert "its UUID is not the one of this node" in other
    assert "/b/" in right
    assert "blue" not in asking + wrong + other + right


async def test_who_has_not_said_all_that_its_node_names_is_asked_for_it(service: Service) -> None:
    """Warewulf's scripts say no serial number; and an empty one is said."""
    service.change(asset_key="horse", serial="CZ 1")
    service.discover()
    said = "assetkey=horse&uuid=0"

    assert "serialhex=${serial:hexraw}" in (await service.get(f"{SCRIPT}?{said}")).text
    assert "/b/" in (await service.get(f"{SCRIPT}?{said}&serial=CZ%201")).text
    assert "/b/" in (await service.get(f"{SCRIPT}?{said}&serialhex={b'CZ 1 '.hex()}")).text
    none = (await service.get(f"{SCRIPT}?{said}&serialhex=")).text
    assert "its serial number is not the one of this node" in none


async def test_where_asset_keys_are_required_a_node_without_one_gets_nothing(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, security=SecuritySettings(asset_key="required")) as service:
        service.discover()

        text = (await service.get(SCRIPT)).text

    assert "/b/" not in text
    assert "this node has no asset key" in text


async def test_a_secret_image_is_for_booting_nodes_only(service: Service) -> None:
    from dataclasses import replace

    image = replace(service.registry.images["debian"], secret=True)
    service.current.swap(replace(service.registry, images={"debian": image}))
    digest = image.artefacts["kernel"].sha256

    assert (await service.get("/kernel/52-54-00-12-34-56")).status == 403
    assert (await service.get(f"/blob/sha256/{digest}")).status == 404
    service.discover()
    assert (await service.get(f"/b/{await service.token()}/kernel")).body == KERNEL


async def test_a_restarted_daemon_accepts_the_token_of_a_boot_it_did_not_see(
    service: Service,
) -> None:
    token = mint(KEY, Claims(MAC, "00000000000000ff", HERE, int(WALL + HOUR)))

    assert SECRET in (await service.get(f"/b/{token}/system")).body

    boot = service.boots.of(MAC)
    assert boot is not None
    assert (boot.id, boot.node) == ("00000000000000ff", "n001")


async def test_neither_tokens_nor_queries_are_logged(service: Service) -> None:
    structlog.reset_defaults()
    with capture_logs() as lines:
        service.discover()
        token = await service.token()
        await service.get(f"/b/{token}/system?assetkey=hush")
        await service.get(f"/b/{token}/kernel")
        await service.get(f"/b/{token}/nothing")
        await service.get(f"/b/{token}/up")
        await service.get(f"/b/{token}/system")

    text = repr(lines)
    assert len(lines) >= 6
    assert token not in text
    assert "hush" not in text


async def test_a_refusal_is_logged_with_its_reason_and_the_service_goes_on(
    service: Service,
) -> None:
    structlog.reset_defaults()
    with capture_logs() as lines:
        await service.get(f"/b/{'A' * 52}/system")

    (line,) = [line for line in lines if line["event"] == "http.refused"]
    assert (line["outcome"], line["route"], line["peer"]) == ("forged", "system", "127.0.0.1")
    assert (await service.get("/healthz")).status == 200


async def test_a_refusal_stands_in_the_timeline_of_the_boot_that_it_held_up(
    service: Service,
) -> None:
    """And in the log under the node's name; but a stranger cannot write into the timeline."""
    boot = service.discover()
    token = await service.token()
    service.discover()
    structlog.reset_defaults()
    with capture_logs() as lines:
        await service.get(f"/b/{token}/system")
        await service.get(f"/system/{DASHED}")
        await service.get(f"/runtime/{DASHED}", source=ELSEWHERE)

    refused = [line for line in lines if line["event"] == "http.refused"]
    assert [(line["node"], line["mac"], line["outcome"]) for line in refused] == [
        ("n001", MAC, "other-boot"), ("n001", MAC, "not-switched"), ("n001", MAC, "no-key"),
    ]  # fmt: skip
    now = service.boots.of(MAC)
    assert now is not None
    assert now is not boot
    noted = [(step.detail, step.outcome) for step in now.steps if step.outcome != "ok"]
    assert noted == [("system", "other-boot"), ("system", "not-switched")]
    assert now.stage is Stage.DHCP


async def test_a_flood_of_refusals_does_not_flood_the_log(service: Service) -> None:
    structlog.reset_defaults()
    with capture_logs() as lines:
        began = time.monotonic()
        for _ in range(100):
            await service.get("/ipxe/zz")
        seconds = time.monotonic() - began

    assert len(lines) <= 21 * (1 + seconds // 10)
