"""``bootd tls``: what it makes, as openssl and curl see it."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from bootd.cli import certificates, cli
from bootd.cli.certificates import BITS
from bootd.config.load import load
from bootd.model import HttpSettings, TlsSettings
from tests.http_site import serving

LOOPS = ("uvloop",)
Run = Callable[..., Result]
FILES = ("ca.key", "ca.pem", "cert.pem", "key.pem")


@pytest.fixture(scope="module")
def pool() -> list[RSAPrivateKey]:
    """Keys made beforehand: each takes a fifth of a second."""
    return [certificates._key() for _ in range(2)]


@pytest.fixture
def run(tmp_path: Path, pool: list[RSAPrivateKey], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``bootd tls …`` on a configuration of its own; nodes reach it by 127.0.0.1."""
    monkeypatch.setattr(certificates, "_key", cycle(pool).__next__)
    config = tmp_path / "bootd.yaml"
    config.write_text("interfaces: [lo]\nstate_dir: state\nrun_dir: run\n")
    (tmp_path / "state").mkdir()

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["--config", str(config), "tls", *arguments])

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``bootd tls init`` makes, for tests that only read it."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "bootd.yaml").write_text("interfaces: [lo]\n")
    words = ["--config", str(folder / "bootd.yaml"), "tls", "init", "--name", "boot.example"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    return folder / "tls"


def openssl(*words: str | Path, text: str = "") -> str:
    done = subprocess.run(
        ["openssl", *words], input=text, capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout + done.stderr


def test_the_certificate_is_what_ipxe_can_use(made: Path) -> None:
    text = openssl("x509", "-in", made / "cert.pem", "-noout", "-text")

    assert f"Public-Key: ({BITS} bit)" in text
    assert "Signature Algorithm: sha256WithRSAEncryption" in text
    assert "Subject: CN = 127.0.0.1" in text
    assert "IP Address:127.0.0.1, DNS:127.0.0.1, DNS:boot.example" in text
    assert "OCSP" not in text
    assert (made / "cert.pem").read_bytes().endswith((made / "ca.pem").read_bytes())


def test_the_authority_signed_it_and_may_sign_no_other(made: Path) -> None:
    ca = made / "ca.pem"
    text = openssl("x509", "-in", ca, "-noout", "-text")

    assert "CA:TRUE, pathlen:0" in text
    words = ("-x509_strict", "-purpose", "sslserver", "-verify_ip", "127.0.0.1")
    assert "OK" in openssl("verify", "-CAfile", ca, *words, made / "cert.pem")
    assert "error" in openssl("verify", "-CAfile", ca, "-verify_ip", "10.9.9.9", made / "cert.pem")


def test_keys_are_for_their_owner_only_and_the_servers_for_the_daemons_user(
    run: Run, tmp_path: Path
) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path / "state", 1234, 1234)

    assert run("init").exit_code == 0

    modes = {name: (tmp_path / "tls" / name).stat().st_mode & 0o777 for name in FILES}
    assert modes == {"ca.key": 0o600, "ca.pem": 0o644, "cert.pem": 0o644, "key.pem": 0o600}
    owners = [(tmp_path / name).stat().st_uid for name in ("state", "tls/key.pem", "tls/ca.key")]
    assert owners == [owners[0], owners[0], os.geteuid()]


def test_nothing_is_overwritten_without_force(run: Run, tmp_path: Path) -> None:
    run("init")
    before = [(tmp_path / "tls" / name).read_bytes() for name in FILES]

    again = run("init")

    assert again.exit_code == 1
    assert "there already" in again.output
    assert [(tmp_path / "tls" / name).read_bytes() for name in FILES] == before
    assert run("init", "--force").exit_code == 0
    assert [(tmp_path / "tls" / name).read_bytes() for name in FILES] != before


def test_a_renewal_keeps_the_authority(run: Run, tmp_path: Path) -> None:
    run("init")
    tls = tmp_path / "tls"
    authority, old = (tls / "ca.pem").read_bytes(), (tls / "cert.pem").read_bytes()

    done = run("renew", "--address", "10.9.0.1", "--days", "7")

    assert done.exit_code == 0
    assert (tls / "ca.pem").read_bytes() == authority
    assert (tls / "cert.pem").read_bytes() != old
    words = ("-CAfile", tls / "ca.pem", "-verify_ip", "10.9.0.1", tls / "cert.pem")
    assert "OK" in openssl("verify", *words)


def test_a_renewal_without_an_authority_says_what_makes_one(run: Run) -> None:
    done = run("renew")

    assert done.exit_code == 1
    assert "bootd tls init" in done.output


def test_a_renewal_with_another_authoritys_key_is_refused(
    run: Run, made: Path, tmp_path: Path
) -> None:
    run("init")
    (tmp_path / "tls" / "ca.key").write_bytes((made / "ca.key").read_bytes())

    done = run("renew")

    assert done.exit_code == 1
    assert "the key does not belong to the certificate" in done.output


def test_a_folder_that_cannot_be_written_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tls").write_text("in the way")

    done = run("init")

    assert done.exit_code == 1
    assert f"{tmp_path}/tls" in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--address", "10.0.0.300"], "--address"),
        (["--address", "fe80::1"], "--address"),
        (["--name", "a name"], "'a name' is not a DNS name"),
        (["--name", "bücher"], "is not a DNS name"),
        (["--days", "0"], "--days"),
    ],
)
def test_what_cannot_stand_in_a_certificate_is_wrong_input(
    run: Run, tmp_path: Path, words: list[str], said: str
) -> None:
    done = run("init", *words)

    assert done.exit_code == 2
    assert said in done.output
    assert not (tmp_path / "tls").exists()


def test_the_settings_that_it_prints_are_taken(run: Run, tmp_path: Path) -> None:
    printed = run("init").stdout
    lines = printed.split("      http:\n")[1].splitlines()
    config = tmp_path / "bootd.yaml"
    config.write_text(config.read_text() + f"nodes: []\nhttp:\n  {lines[0].strip()}\n")

    tls = load(str(config)).settings.http.tls

    assert tls is not None
    assert tls.certificate == str(tmp_path / "tls" / "cert.pem")
    assert f"curl --cacert {tmp_path}/tls/ca.pem https://127.0.0.1:9874/healthz" in printed
    assert "bootd tls loader" in printed


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_openssl_trusts_a_server_that_has_it(
    version: str, made: Path, tmp_path: Path
) -> None:
    settings = TlsSettings(0, str(made / "cert.pem"), str(made / "key.pem"))
    async with serving(tmp_path / "x", http=HttpSettings(port=0, tls=settings)) as service:
        said = await asyncio.to_thread(
            openssl, "s_client", "-connect", f"127.0.0.1:{service.server.tls_port}", version,
            "-CAfile", made / "ca.pem", "-verify_ip", "127.0.0.1", "-verify_return_error",
        )  # fmt: skip

    assert "Verify return code: 0 (ok)" in said


async def test_curl_trusts_it_with_the_authority_and_not_without(
    made: Path, tmp_path: Path
) -> None:
    settings = TlsSettings(0, str(made / "cert.pem"), str(made / "key.pem"))
    async with serving(tmp_path / "x", http=HttpSettings(port=0, tls=settings)) as service:
        url = f"https://127.0.0.1:{service.server.tls_port}/healthz"
        trusting = await asyncio.create_subprocess_exec(
            "curl", "-s", "--cacert", str(made / "ca.pem"), url, stdout=subprocess.PIPE
        )
        assert (await trusting.communicate())[0] == b"ok\n"
        other = await asyncio.create_subprocess_exec("curl", "-s", url)
        assert await other.wait() == 60  # the peer's certificate is not trusted
