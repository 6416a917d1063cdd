"""SSH host keys: made once, kept, never replaced, never given to others."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bootd.overlay import hostkeys
from bootd.overlay.cache import OverlayCache
from bootd.overlay.hostkeys import HostKeys
from bootd.overlay.links import TemplateValueError
from bootd.overlay.render import render
from bootd.overlay.template import RenderError
from bootd.registry import Registry
from tests.overlay_nodes import BARE, PLAIN, RICH, SERVER, registry, rendered

N001 = replace(PLAIN, overlays_system=("ssh",), resources={"ssh": {"key_types": ["ecdsa"]}})


@pytest.fixture(autouse=True)
def small_rsa(monkeypatch: pytest.MonkeyPatch) -> None:
    """RSA keys of a size that tests have time for."""
    monkeypatch.setattr(hostkeys, "RSA_BITS", 1024)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*_key")}


def test_a_nodes_keys_are_made_once_and_kept(tmp_path: Path) -> None:
    first = HostKeys(tmp_path).host_keys(PLAIN)
    again = HostKeys(tmp_path).host_keys(PLAIN)

    assert [key.type for key in first] == ["ed25519", "ecdsa", "rsa"]
    assert first == again
    assert len(files(tmp_path / "keys/ssh")) == 3


def test_keys_are_files_that_only_their_owner_reads(tmp_path: Path) -> None:
    HostKeys(tmp_path).host_keys(N001)

    folder = tmp_path / "keys/ssh/n001"
    assert folder.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == {"ssh_host_ed25519_key": 0o600, "ssh_host_ecdsa_key": 0o600}


def test_ssh_keygen_reads_the_same_public_half(tmp_path: Path) -> None:
    for key in HostKeys(tmp_path).host_keys(N001):
        file = tmp_path / f"keys/ssh/n001/ssh_host_{key.type}_key"
        shown = subprocess.run(
            ["ssh-keygen", "-y", "-f", file], capture_output=True, check=True, text=True
        ).stdout

        assert key.public.split()[:2] == shown.split()[:2]
        assert key.private.encode() == file.read_bytes()


def test_a_key_that_the_operator_puts_there_is_used(tmp_path: Path) -> None:
    file = tmp_path / "keys/ssh/n001/ssh_host_ed25519_key"
    file.parent.mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file], check=True)

    (public,) = HostKeys(tmp_path).public_keys([N001])

    assert public.split() == file.with_suffix(".pub").read_text().split()[:2]


def test_a_file_that_is_no_key_is_an_error_that_names_it(tmp_path: Path) -> None:
    keys = HostKeys(tmp_path)
    keys.host_keys(N001)
    (tmp_path / "keys/ssh/n001/ssh_host_ecdsa_key").write_text("no key")

    with pytest.raises(TemplateValueError, match=r"n001/ssh_host_ecdsa_key is not a private key"):
        keys.host_keys(N001)


def test_a_replaced_key_is_seen(tmp_path: Path) -> None:
    keys = HostKeys(tmp_path)
    (before,) = keys.public_keys([N001])
    (tmp_path / "keys/ssh/n001/ssh_host_ed25519_key").unlink()

    (after,) = keys.public_keys([N001])

    assert before != after


def test_a_whole_clusters_keys_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    nodes = [replace(N001, name=f"n{number:03}") for number in range(50)]

    public = HostKeys(tmp_path).public_keys(nodes)

    assert len(set(public)) == 50
    assert len([path for path in (tmp_path / "keys/ssh").rglob("*") if path.is_file()]) == 50
    assert HostKeys(tmp_path).public_keys(nodes) == public


def test_two_who_make_a_key_at_once_agree_on_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = HostKeys(tmp_path)
    make = hostkeys._new

    def make_late(kind: str) -> bytes:
        monkeypatch.setattr(hostkeys, "_new", make)
        other.host_keys(N001)
        return make(kind)

    monkeypatch.setattr(hostkeys, "_new", make_late)

    assert HostKeys(tmp_path).host_keys(N001) == other.host_keys(N001)


def test_without_making_nothing_is_written_and_placeholders_are_given(tmp_path: Path) -> None:
    keys = HostKeys(tmp_path, make=False)

    (ed25519, _) = keys.host_keys(N001)

    assert ed25519.private == "(made when the node first boots)\n"
    assert keys.public_keys([N001]) == ["ssh-ed25519 (made when the node first boots)"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error_with_node_and_reason(tmp_path: Path) -> None:
    (tmp_path / "keys").touch()

    with pytest.raises(RenderError, match=r"node n001: SSH host keys: .*keys/ssh.*: Not a dir"):
        rendered(N001, "ssh", secrets=HostKeys(tmp_path))


@pytest.mark.parametrize(
    ("types", "says"),
    [("rsa", "is not a list"), ([], "is not a list"), (["dsa"], "'dsa' is not one of ed25519")],
)
def test_wrong_key_types_are_told(types: object, says: str, tmp_path: Path) -> None:
    node = replace(N001, resources={"ssh": {"key_types": types}})

    with pytest.raises(TemplateValueError, match=says):
        HostKeys(tmp_path).host_keys(node)


@pytest.mark.parametrize("name", ["../n001", ".", "a/b", "a\0b"])
def test_a_name_that_leads_away_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(TemplateValueError, match="cannot name a folder"):
        HostKeys(tmp_path).host_keys(replace(N001, name=name))


def world(state_dir: Path) -> Registry:
    made = registry([N001, replace(RICH, overlays_system=("ssh",)), BARE])
    return replace(made, settings=replace(made.settings, state_dir=str(state_dir)))


async def test_the_cache_gives_real_keys_and_names_every_node_that_has_some(tmp_path: Path) -> None:
    given = world(tmp_path)
    cache = OverlayCache()
    try:
        archive = await cache.get(given, given.nodes["n001"], "system", SERVER)
    finally:
        cache.close()

    assert archive.data.count(b"BEGIN OPENSSH PRIVATE KEY") == 2
    assert b"\nrich,rich-boot,10.0.0.16 ssh-ed25519 AAAA" in archive.data
    assert sorted(files(tmp_path / "keys/ssh")) == [
        "n001/ssh_host_ecdsa_key",
        "n001/ssh_host_ed25519_key",
        "rich/ssh_host_ed25519_key",
    ]


def test_rendering_for_people_shows_no_key_and_makes_none(tmp_path: Path) -> None:
    given = world(tmp_path)

    entries = render(given, given.nodes["n001"], "system", SERVER)

    assert not [entry for entry in entries if b"OPENSSH" in entry.content]
    assert list(tmp_path.iterdir()) == []
