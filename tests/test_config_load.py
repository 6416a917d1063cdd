"""Files to registry: every broken file is told with its place, and nothing ever hangs."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd.config import files, validate
from bootd.config.load import load, load_settings
from bootd.config.source import MAX_BYTES
from bootd.image.store import ImageStore
from bootd.model import ConfigError, DhcpMode, ImageSettings
from bootd.registry import Registry
from tests.broken_config import BROKEN, Broken

SETTINGS = "state_dir: state\nrun_dir: run\n"


class Site:
    """A configuration folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "bootd.yaml"
        self.config.write_text(SETTINGS)
        (folder / "nodes.yaml").write_text("nodes: {}\n")

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def load(self) -> Registry:
        return load(str(self.config))

    def faults(self) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self.load()
        return list(caught.value.faults)

    def image(self, name: str) -> None:
        kernel, initramfs = self.folder / "kernel", self.folder / "initramfs"
        kernel.write_bytes(b"MZ" + bytes(600))
        initramfs.write_bytes(b"070701" + bytes(600))
        ImageStore(self.folder / "state").import_files(name, kernel, initramfs)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_broken_files_are_told_with_every_fault_and_its_place(site: Site, case: Broken) -> None:
    site.write("nodes.yaml", case.nodes)
    if case.bootd is not None:
        site.write("bootd.yaml", case.bootd)

    found = site.faults()

    assert len(found) == len(case.faults), found
    for fault, expected in zip(found, case.faults, strict=True):
        if expected.endswith("…"):
            assert fault.startswith(expected[:-1])
        else:
            assert fault == expected


# ---- what is read --------------------------------------------------------------------------------


def test_a_whole_site_loads(site: Site) -> None:
    site.image("debian-12")
    site.write(
        "nodes.yaml",
        """\
profiles:
  default: {image: debian-12, kernel: {args: [quiet]}, overlays: {system: [base, motd]}}
nodes:
  "n[001-128]": {profiles: [default]}
""",
    )
    site.write("nodes.d/one.yaml", "nodes:\n  n001: {mac: 52:54:00:12:34:56, ip: 10.0.0.11/24}\n")
    site.write("nodes.d/ignored.yaml~", "nodes: [\n")
    site.write("overlays/motd/rootfs/etc/motd.j2", "Welcome to {{ node.name }}\n")
    site.write("templates/extra.ipxe.j2", "#!ipxe\nexit\n")

    registry = site.load()

    assert len(registry.nodes) == 128
    node = registry.by_mac[registry.nodes["n001"].macs[0]]
    assert (node.name, node.image, node.overlays_system) == ("n001", "debian-12", ("base", "motd"))
    assert registry.images["debian-12"].name == "debian-12"
    assert "motd" in registry.overlays
    assert registry.templates["extra.ipxe.j2"].source == "templates/extra.ipxe.j2"
    assert str(node.origins["mac"]) == "nodes.d/one.yaml:2:15"
    assert registry.default is not None
    assert registry.generation == 1


def test_a_site_without_nodes_or_images_loads(site: Site) -> None:
    site.write("nodes.yaml", "# nothing yet\n")

    registry = site.load()

    assert (len(registry.nodes), len(registry.images)) == (0, 0)
    assert "default.ipxe.j2" in registry.templates


def test_a_node_without_an_image_is_no_fault(site: Site) -> None:
    site.write("nodes.yaml", "nodes: {n1: {mac: 52:54:00:00:00:01}}\n")

    assert site.load().nodes["n1"].image is None


def test_a_template_of_the_site_stands_in_for_the_distributions(site: Site) -> None:
    site.write("templates/default.ipxe.j2", "#!ipxe\necho ours\n")

    registry = site.load()

    assert registry.templates["default.ipxe.j2"].text == "#!ipxe\necho ours\n"
    assert registry.templates["hold.ipxe.j2"].text


def test_relative_paths_count_from_the_folder_of_the_settings(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write("bootd.yaml", "state_dir: ../state\nnodes: [nodes.yaml]\nhttp: {port: 80}\n")
    monkeypatch.chdir(site.folder.parent)

    settings = load_settings(f"{site.folder.name}/bootd.yaml")

    assert settings.config_file == str(site.config)
    assert settings.state_dir == str(site.folder.parent / "state")
    assert settings.nodes == (str(site.folder / "nodes.yaml"),)
    assert settings.overlays == (str(site.folder / "overlays"),)
    assert settings.http.port == 80


def test_every_setting_reaches_its_place(site: Site) -> None:
    site.write(
        "bootd.yaml",
        """\
interfaces: [eth1]
dhcp: {mode: reservation, port: 6767, pxe_port: 4012, client_port: 6868, unknown: ignore,
       relays: [10.1.0.1, 10.2.0.0/24], lease_time: 12h}
tftp: {enabled: false, port: 6969, max_transfers: 7, max_per_client: 2, max_blksize: 1024,
       max_windowsize: 4, single_port: true}
http: {port: 8080, max_image_transfers: 12, admin_networks: [10.0.0.0/8]}
security: {boot_window: 1h30m, asset_key: required}
images: {keep: 5, max_size: 8G, compression: gzip}
log: {level: debug, format: json}
""",
    )

    settings = load_settings(str(site.config))

    assert settings.interfaces == ("eth1",)
    assert settings.dhcp.mode is DhcpMode.RESERVATION
    assert (settings.dhcp.port, settings.dhcp.pxe_port, settings.dhcp.client_port) == (
        6767,
        4012,
        6868,
    )
    assert (settings.dhcp.unknown, settings.dhcp.lease_time) == ("ignore", 43200)
    assert [str(n) for n in settings.dhcp.relays] == ["10.1.0.1/32", "10.2.0.0/24"]
    assert isinstance(settings.dhcp.lease_time, int)
    assert not settings.tftp.enabled
    assert settings.tftp.single_port
    assert (settings.tftp.max_transfers, settings.tftp.max_per_client) == (7, 2)
    assert (settings.tftp.max_blksize, settings.tftp.max_windowsize) == (1024, 4)
    assert (settings.http.port, settings.http.max_image_transfers) == (8080, 12)
    assert [str(n) for n in settings.http.admin_networks] == ["10.0.0.0/8"]
    assert (settings.security.boot_window, settings.security.asset_key) == (5400.0, "required")
    assert settings.images == ImageSettings(keep=5, max_size=8 << 30, compression="gzip")
    assert (settings.log.level, settings.log.format) == ("debug", "json")


# ---- what cannot be read -------------------------------------------------------------------------


def test_settings_that_are_not_there_are_one_clear_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(str(tmp_path / "bootd.yaml"))

    assert caught.value.faults == (
        f"bootd.yaml:1:1: {tmp_path}/bootd.yaml cannot be read: no such file or directory",
    )


def test_nodes_that_are_gone_are_a_fault_and_not_an_empty_cluster(site: Site) -> None:
    (site.folder / "nodes.yaml").unlink()

    assert site.faults() == ["nodes.yaml:1:1: cannot be read: no such file or directory"]


@pytest.mark.parametrize("name", ["nodes.yaml", "nodes.d/x.yaml", "bootd.yaml"])
@pytest.mark.parametrize("kind", ["folder", "fifo", "loop", "dangling", "device", "huge", "zero"])
def test_a_path_that_is_no_file_is_a_fault_and_never_a_hang(
    site: Site, name: str, kind: str
) -> None:
    path = site.folder / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    match kind:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path.name)
        case "dangling":
            path.symlink_to("nowhere")
        case "device":
            path.symlink_to("/dev/zero")
        case "huge":
            with path.open("wb") as file:
                file.truncate(MAX_BYTES + 1)
        case "zero":
            path.touch()

    found = site.faults()

    assert len(found) == 1
    assert found[0].startswith(f"{name}:1:1: ")


def test_what_an_unreadable_file_defines_is_not_told_as_missing(site: Site) -> None:
    site.write("nodes.d/profiles.yaml", "profiles: {gpu: [\n")
    site.write("nodes.yaml", "nodes: {n1: {profiles: [gpu]}, n2: {mac: zz}}\n")

    found = site.faults()

    assert [fault.split(": ")[0] for fault in found] == [
        "nodes.yaml:1:42",
        "nodes.d/profiles.yaml:2:1",
    ]


def test_faults_of_all_files_are_told_at_once(site: Site) -> None:
    site.write("bootd.yaml", SETTINGS + "dhcp: {mode: x}\n")
    site.write("nodes.yaml", "nodes: {n1: {mac: zz}}\n")
    site.write("nodes.d/more.yaml", "nodes: {n2: {boot: x}}\n")
    site.write("overlays/bad name/rootfs/x", "")

    found = site.faults()

    assert [fault.split(":")[0] for fault in found[:3]] == [
        "bootd.yaml",
        "nodes.yaml",
        "nodes.d/more.yaml",
    ]
    assert "bad name" in found[3]


def test_a_name_in_two_files_names_both_places(site: Site) -> None:
    site.write("nodes.yaml", "profiles: {p: {}}\nnodes: {n1: {}}\n")
    site.write("nodes.d/more.yaml", "profiles: {p: {}}\nnodes: {n1: {}}\n")

    assert site.faults() == [
        "nodes.d/more.yaml:1:12: profiles.p: p is defined twice; the other place is"
        " nodes.yaml:1:12",
        "nodes.d/more.yaml:2:9: nodes.n1: n1 is defined twice; the other place is nodes.n1 at"
        " nodes.yaml:2:9",
    ]


def test_templates_that_do_not_render_are_told_with_file_and_line(site: Site) -> None:
    site.image("debian-12")
    site.write("nodes.yaml", "nodes: {n1: {image: debian-12, overlays: {system: [motd]}}}\n")
    site.write("templates/default.ipxe.j2", "#!ipxe\necho {{ nothing }}\n")
    site.write("overlays/motd/rootfs/etc/motd.j2", "one\n{{ node.nothing }}\n")

    assert site.faults() == [
        "templates/default.ipxe.j2:2:1: nodes.n1: 'nothing' is undefined",
        "overlays/motd/rootfs/etc/motd.j2:2:1: nodes.n1: a node has no 'nothing'",
    ]


def test_what_one_node_names_in_vain_hides_no_fault_of_the_others_templates(site: Site) -> None:
    site.image("debian-12")
    site.write(
        "nodes.yaml",
        "nodes:\n"
        "  n1: {image: debian-12, overlays: {system: [motd]}}\n"
        "  n2: {image: debian-13}\n"
        "  n3: {overlays: {runtime: [mtd]}}\n"
        "  n4: {template: none}\n",
    )
    site.write("templates/default.ipxe.j2", "#!ipxe\necho {{ nothing }}\n")
    site.write("overlays/motd/rootfs/etc/motd.j2", "{{ tags.rack }}\n")

    assert [fault.partition(": ")[0] for fault in site.faults()] == [
        "nodes.yaml:3:15",
        "nodes.yaml:4:29",
        "nodes.yaml:5:18",
        "templates/default.ipxe.j2:2:1",
        "overlays/motd/rootfs/etc/motd.j2:1:1",
    ]


def test_a_template_is_faulty_once_where_it_does_not_compile(site: Site) -> None:
    site.image("debian-12")
    site.write("nodes.yaml", "nodes: {n1: {image: debian-12}, n2: {image: debian-12}}\n")
    site.write("templates/default.ipxe.j2", "#!ipxe\n{% if %}\n")

    (fault,) = site.faults()

    assert fault.startswith("templates/default.ipxe.j2:2:1: Expected an expression")


def test_a_template_that_fails_for_one_kind_of_node_is_found_among_thousands(site: Site) -> None:
    site.write(
        "nodes.yaml",
        'nodes:\n  "n[1-5000]": {overlays: {system: [motd]}, tags: {rack: r1}}\n'
        "  odd: {overlays: {system: [motd]}}\n",
    )
    site.write("overlays/motd/rootfs/etc/motd.j2", "{{ node.name }} {{ tags.rack }}\n")

    assert any("odd" in fault for fault in site.faults())


def test_a_certificate_that_cannot_be_used_is_a_fault(site: Site) -> None:
    site.write("bootd.yaml", SETTINGS + "http: {tls: {certificate: cert.pem, key: key.pem}}\n")
    missing = site.faults()
    site.write("cert.pem", "nonsense\n")
    site.write("key.pem", "nonsense\n")

    assert missing == [
        f"bootd.yaml:3:27: http.tls.certificate: {site.folder}/cert.pem: no such file or directory"
    ]
    assert "are not a usable pair" in site.faults()[0]


def test_a_damaged_image_is_a_fault(site: Site) -> None:
    site.image("debian-12")
    (kernel,) = (site.folder / "state/images/debian-12").glob("2*/kernel")
    kernel.unlink()

    assert any("debian-12" in fault for fault in site.faults())


def test_a_node_may_name_a_generation_that_is_not_active(site: Site) -> None:
    site.image("debian-12")
    (first,) = (path.name for path in (site.folder / "state/images/debian-12").glob("2*"))
    site.image("debian-12")
    site.write(
        "nodes.yaml",
        f"""nodes:
  n1: {{mac: "52:54:00:00:00:01", image: debian-12@{first}}}
  n2: {{mac: "52:54:00:00:00:02", image: debian-12}}
""",
    )

    registry = site.load()

    assert registry.images[registry.nodes["n1"].image or ""].generation == first
    assert registry.images[registry.nodes["n2"].image or ""].generation > first


@pytest.mark.parametrize("image", ["debian-12@20200101-000000-ab12", "debian-12@active"])
def test_a_generation_that_is_not_there_is_a_fault(site: Site, image: str) -> None:
    site.image("debian-12")
    site.write("nodes.yaml", f'nodes: {{n1: {{mac: "52:54:00:00:00:01", image: {image}}}}}\n')

    (fault,) = site.faults()

    assert f"there is no image '{image}'" in fault


def test_a_damaged_generation_that_a_node_names_is_a_fault(site: Site) -> None:
    site.image("debian-12")
    (first,) = (site.folder / "state/images/debian-12").glob("2*")
    site.image("debian-12")
    (first / "manifest.json").write_text("{")
    image = f"debian-12@{first.name}"
    site.write("nodes.yaml", f'nodes: {{n1: {{mac: "52:54:00:00:00:01", image: {image}}}}}\n')

    assert any("is not JSON" in fault for fault in site.faults())


# ---- files that are being written ----------------------------------------------------------------


def test_a_file_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "nodes.yaml"
    pieces = ["nodes:\n  n1: {}\n  n", "2: {}\n  n3", ": {}\n"]
    path.write_text(pieces.pop(0))

    def write_on(_seconds: float) -> None:
        if pieces:
            with path.open("a") as file:
                file.write(pieces.pop(0))

    assert files.read(str(path), write_on) == b"nodes:\n  n1: {}\n  n2: {}\n  n3: {}\n"


def test_a_file_that_is_replaced_meanwhile_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text("old")

    def replace(_seconds: float) -> None:
        path.unlink(missing_ok=True)
        path.write_text("new\n")

    assert files.read(str(path), replace) == b"new\n"


def test_a_file_that_does_not_stop_changing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text("x")

    def grow(_seconds: float) -> None:
        with path.open("a") as file:
            file.write("x")

    with pytest.raises(files.Unreadable, match="does not stop changing"):
        files.read(str(path), grow)


def test_a_file_that_vanishes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text("x")

    with pytest.raises(files.Unreadable, match="no such file"):
        files.read(str(path), lambda _seconds: path.unlink(missing_ok=True))


def test_a_file_without_a_last_line_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text("nodes: {}")

    assert files.read(str(path)) == b"nodes: {}"


def test_more_faults_than_anyone_reads_are_counted(site: Site) -> None:
    site.write("nodes.yaml", "nodes:\n" + "".join(f"  n{i}: {{mac: z}}\n" for i in range(1500)))

    found = site.faults()

    assert len(found) == 1001
    assert found[-1] == "and more: only the first 1000 faults are told"


def test_one_file_has_no_more_entries_than_the_limit(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "MAX_NODES", 3)
    site.write("nodes.yaml", "nodes: {n1: , n2: , n3: , n4: }\n")

    assert site.faults() == ["nodes.yaml:1:8: nodes: 4 entries; at most 3 are read"]


def test_ports_of_services_that_are_off_may_be_anyones(site: Site) -> None:
    site.write("bootd.yaml", "dhcp: {mode: off, port: 69}\ntftp: {enabled: false, port: 4011}\n")

    assert load_settings(str(site.config)).dhcp.mode is DhcpMode.OFF


def test_a_template_that_cannot_be_read_is_a_fault(site: Site) -> None:
    os.mkfifo(site.folder / "fifo")
    (site.folder / "templates").mkdir()
    (site.folder / "templates/x.j2").symlink_to("../fifo")
    (site.folder / "templates/y.j2").write_bytes(b"\xff")

    assert site.faults() == [
        "templates/x.j2:1:1: a FIFO, not a file",
        "templates/y.j2:1:1: not UTF-8 text",
    ]


# ---- the collector -------------------------------------------------------------------------------


def test_the_garbage_collector_runs_again_after_a_load(site: Site) -> None:
    site.load()
    assert gc.isenabled()

    site.write("nodes.yaml", "nodes: [\n")
    site.faults()
    assert gc.isenabled()


def test_what_a_large_load_leaves_is_not_walked_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bootd.config.load.FREEZE_ABOVE", 100)
    site.write(
        "nodes.yaml", "nodes:\n" + "".join(f"  n{i}: {{tags: {{a: b}}}}\n" for i in range(100))
    )
    try:
        registry = site.load()
        assert gc.get_freeze_count() > 100
        assert site.load().nodes == registry.nodes
    finally:
        gc.unfreeze()


def test_a_collector_that_was_off_stays_off(site: Site) -> None:
    gc.disable()
    try:
        site.load()
        assert not gc.isenabled()
    finally:
        gc.enable()


# ---- anything at all -----------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        *("nodes", "profiles", "n1", "n[1-3]", "default", "mac", "ip", "image", "kernel", "args"),
        *("overlays", "system", "network", "boot", "tags", "52:54:00:00:00:01", "10.0.0.1/24"),
        *("~x", ":", ",", "[", "]", "{", "}", "-", "?", "&", "*", "!", "|", ">", "'", '"', "#"),
        *("1", "true", " ", "\n", "\n  ", "\n    ", ": ", "\\x00", "é"),
    ]
)


@given(st.one_of(st.lists(WORDS, max_size=40).map("".join), st.text(max_size=80)))
def test_any_text_loads_or_is_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    site = Site(tmp_path_factory.mktemp("any"))
    (site.folder / "nodes.yaml").write_bytes(text.encode("utf-8", "surrogatepass") + b"\n")
    try:
        site.load()
    except ConfigError as error:
        faults = error.faults
    else:
        return
    assert faults
    assert all(fault.splitlines() == [fault] for fault in faults)


def test_what_is_right_in_a_faulty_entry_is_checked_as_well(site: Site) -> None:
    """All faults at once: a wrong address must not hide that the MAC is another node's."""
    site.image("demo")
    site.write(
        "nodes.yaml",
        "nodes:\n"
        "  n1: {mac: 52:54:00:12:34:56}\n"
        "  n2: {mac: 52:54:00:12:34:56, ip: 10.0.0.300/24, image: dmo}\n"
        "  n3: {profils: [x], profiles: [gpu]}\n",
    )

    assert site.faults() == [
        "nodes.yaml:3:13: nodes.n2.mac: 52:54:00:12:34:56 is also mac of n1 (nodes.yaml:2:13)",
        "nodes.yaml:3:36: nodes.n2.ip: '10.0.0.300/24' is not an IPv4 address with prefix length, "
        "like 10.0.0.11/24",
        "nodes.yaml:3:58: nodes.n2.image: there is no image 'dmo'; did you mean 'demo'?",
        "nodes.yaml:4:8: nodes.n3.profils: unknown key 'profils'; did you mean 'profiles'?",
        "nodes.yaml:4:33: nodes.n3.profiles[0]: there is no profile 'gpu'",
    ]


def test_a_template_that_no_node_uses_yet_must_compile(site: Site) -> None:
    site.write("templates/rescue.ipxe.j2", "#!ipxe\n{% if node %}\n")

    (fault,) = site.faults()
    assert "rescue.ipxe.j2:" in fault
