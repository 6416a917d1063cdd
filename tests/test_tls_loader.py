"""``bootd tls loader``: copies of iPXE that trust the site's authority."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bootd import files
from bootd.cli import certificates, cli
from bootd.ipxe import IPXE_ORG
from tests.ipxe_programs import ARM64, HTTPS, program

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def authorities() -> list[bytes]:
    """Two authorities' certificates."""
    now = certificates.now()
    return [certificates.authority(name, 9, now).certificate_pem for name in ("one", "other")]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the boot loaders that the server's packages brought."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setattr(files, "_DEBIAN", (str(folder),))
    return folder


@pytest.fixture
def run(tmp_path: Path, packages: Path, authorities: list[bytes]) -> Run:
    """Runs ``bootd tls loader …`` on a server with an authority of its own."""
    config = tmp_path / "bootd.yaml"
    config.write_text("interfaces: [lo]\nstate_dir: state\nrun_dir: run\n")
    (tmp_path / "tls").mkdir()
    (tmp_path / "tls" / "ca.pem").write_bytes(authorities[0])

    def run(*arguments: str | Path) -> Result:
        words = ["tls", "loader", *map(str, arguments), "--config", str(config)]
        return CliRunner().invoke(cli, words)

    return run


@pytest.fixture
def tftp(tmp_path: Path) -> Path:
    return tmp_path / "state" / "tftp"


def trusts(pem: bytes) -> bytes:
    """SHA-256 of the certificate in DER form, made without what is tested."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode())).digest()


def test_the_servers_ipxe_is_copied_with_the_authoritys_fingerprint(
    run: Run, packages: Path, tftp: Path, authorities: list[bytes]
) -> None:
    originals = {
        "snponly.efi": program(),
        "ipxe.efi": program(HTTPS + b"drivers" + IPXE_ORG),
        "ipxe-arm64.efi": program(machine=ARM64),
    }
    for name, content in originals.items():
        (packages / name).write_bytes(content)

    done = run()

    assert done.exit_code == 0, done.output
    expected = {
        name: content.replace(IPXE_ORG, trusts(authorities[0]))
        for name, content in originals.items()
    }
    assert {path.name: path.read_bytes() for path in tftp.iterdir()} == expected
    assert {path.stat().st_mode & 0o777 for path in tftp.iterdir()} == {0o644}
    assert {path.name: path.read_bytes() for path in packages.iterdir()} == originals
    assert f"{tftp}/snponly.efi: {packages}/snponly.efi, trusting this authority\n" in done.stdout


def test_a_file_is_called_as_bootd_looks_for_it(run: Run, tmp_path: Path, tftp: Path) -> None:
    build = tmp_path / "bin-arm64-efi"
    build.mkdir()
    for name, machine in (("snponly.efi", ARM64), ("ipxe-amd64.efi", 0x8664)):
        (build / name).write_bytes(program(machine=machine))

    done = run(build / "snponly.efi", build / "ipxe-amd64.efi")

    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in tftp.iterdir()) == ["ipxe.efi", "snponly-arm64.efi"]
    assert "for nodes" not in done.output


def test_a_name_of_the_sites_own_is_kept(run: Run, tmp_path: Path, tftp: Path) -> None:
    (tmp_path / "ipxe-rack7.efi").write_bytes(program())

    done = run(tmp_path / "ipxe-rack7.efi")

    assert done.exit_code == 0, done.output
    assert (tftp / "ipxe-rack7.efi").exists()
    assert "for nodes with `loader: ipxe-rack7.efi`" in done.output


def test_a_second_run_changes_nothing(run: Run, packages: Path, tftp: Path) -> None:
    (packages / "snponly.efi").write_bytes(program())
    run()
    before = (tftp / "snponly.efi").stat()

    again = run()

    assert again.exit_code == 0
    assert again.stdout == f"{tftp}/snponly.efi: already trusts this authority\n"
    assert (tftp / "snponly.efi").stat() == before


def test_a_copy_that_trusts_an_older_authority_is_renewed(
    run: Run, packages: Path, tmp_path: Path, tftp: Path, authorities: list[bytes]
) -> None:
    (packages / "snponly.efi").write_bytes(program())
    run()
    (tmp_path / "tls" / "ca.pem").write_bytes(authorities[1])

    done = run()

    assert done.exit_code == 0, done.output
    assert trusts(authorities[1]) in (tftp / "snponly.efi").read_bytes()


def test_the_sites_own_untouched_ipxe_is_changed_where_it_is(
    run: Run, packages: Path, tftp: Path, authorities: list[bytes]
) -> None:
    (packages / "snponly.efi").write_bytes(program(b"iPXE of Debian 12"))
    tftp.mkdir(parents=True)
    (tftp / "snponly.efi").write_bytes(program())

    done = run()

    assert done.exit_code == 0, done.output
    expected = program().replace(IPXE_ORG, trusts(authorities[0]))
    assert (tftp / "snponly.efi").read_bytes() == expected


def test_another_program_is_replaced_with_force_only(
    run: Run, tmp_path: Path, tftp: Path, authorities: list[bytes]
) -> None:
    tftp.mkdir(parents=True)
    there = tftp / "snponly.efi"
    there.write_bytes(b"the site's own")
    new = tmp_path / "snponly.efi"
    new.write_bytes(program())

    refused = run(new)

    assert refused.exit_code == 1
    assert refused.stdout == ""
    assert f"{there}: there already" in refused.stderr
    assert "--force" in refused.stderr
    assert there.read_bytes() == b"the site's own"
    assert run(new, "--force").exit_code == 0
    assert trusts(authorities[0]) in there.read_bytes()


def test_copies_go_where_one_says(run: Run, packages: Path, tmp_path: Path, tftp: Path) -> None:
    (packages / "snponly.efi").write_bytes(program())
    (tmp_path / "stick").mkdir()

    assert run("--to", tmp_path / "stick").exit_code == 0

    assert (tmp_path / "stick" / "snponly.efi").exists()
    assert not tftp.exists()


def test_what_cannot_be_changed_is_told_and_the_others_are_copied(
    run: Run, packages: Path, tftp: Path
) -> None:
    (packages / "snponly.efi").write_bytes(program(b"iPXE of Debian 12"))
    (packages / "ipxe.efi").write_bytes(program())

    done = run()

    assert done.exit_code == 1
    assert done.stderr.startswith(f"{packages}/snponly.efi: it has no HTTPS")
    assert "Debian 13" in done.stderr
    assert [path.name for path in tftp.iterdir()] == ["ipxe.efi"]


def test_a_server_without_ipxe_is_told_so(run: Run, packages: Path) -> None:
    done = run()

    assert done.exit_code == 1
    assert f"no iPXE for UEFI in {packages.parent}/state/tftp and {packages}" in done.output


def test_a_file_that_is_not_there_is_wrong_input(
    run: Run, packages: Path, tmp_path: Path, tftp: Path
) -> None:
    (packages / "snponly.efi").write_bytes(program())

    assert run(packages / "snponly.efi", tmp_path / "gone.efi").exit_code == 2
    assert run("--to", tmp_path / "gone").exit_code == 2
    assert not tftp.exists()


def test_without_an_authority_it_says_what_makes_one(
    run: Run, packages: Path, tmp_path: Path
) -> None:
    (packages / "snponly.efi").write_bytes(program())
    (tmp_path / "tls" / "ca.pem").unlink()

    done = run()

    assert done.exit_code == 1
    assert "bootd tls init" in done.output


def test_an_authority_that_is_none_is_named(run: Run, packages: Path, tmp_path: Path) -> None:
    (packages / "snponly.efi").write_bytes(program())
    (tmp_path / "tls" / "ca.pem").write_text("no certificate")

    done = run()

    assert done.exit_code == 1
    assert f"{tmp_path}/tls/ca.pem: " in done.output
