"""TLS from files that rotate: when the context is built again, and which files are refused."""

from __future__ import annotations

import os
import shutil
import ssl
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from support.tls import Authority, replace

from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.net import rotation, tls
from syncd.net.tls import MAX_PEM_SIZE, RotatingContext, Trust

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the file system ticks between any two changes."""
    monkeypatch.setattr(rotation, "_UNSETTLED", 0)


def rotating(**files: Path | str) -> RotatingContext:
    options: dict[str, Any] = {name: str(path) for name, path in files.items()}
    return RotatingContext(Trust(**options))


@pytest.mark.usefixtures("settled")
def test_the_context_is_built_again_only_when_files_change(tmp_path: Path) -> None:
    """The same object as long as CA, certificate and key are the same."""
    authority = Authority(tmp_path)
    cert, key = tmp_path / "client.pem", tmp_path / "client.key"
    authority.write_client("one", cert, key)
    context = rotating(ca_file=authority.file, client_cert=cert, client_key=key)
    first = context.current()
    assert context.current() is first
    assert not context.is_fixed
    authority.write_client("two", cert, key)
    assert context.current() is not first


def test_a_change_within_the_clocks_tick_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that were read just after a change are read once more: their times prove nothing."""
    monkeypatch.setattr(tls, "signature", lambda status: (status.st_ino,))
    file, other = Authority(tmp_path).file, Authority(tmp_path, "other")
    context = rotating(ca_file=file)
    before = context.current().get_ca_certs()
    file.write_bytes(other.pem)
    assert context.current().get_ca_certs() != before


@pytest.mark.usefixtures("settled")
def test_a_swap_between_certificate_and_key_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context is only used if its files are the same before and after."""
    authority, second = Authority(tmp_path), Authority(tmp_path, "second")
    file = tmp_path / "trusted.pem"
    replace(file, authority.pem)
    build, built = RotatingContext._build, []

    def swapping(self: RotatingContext) -> ssl.SSLContext:
        built.append(build(self))
        if len(built) == 1:
            replace(file, second.pem)
        return built[-1]

    monkeypatch.setattr(RotatingContext, "_build", swapping)
    context = rotating(ca_file=file)
    assert context.current() is built[1]
    assert context.current() is built[1]


def test_a_ca_file_replaces_the_systems_cas(tmp_path: Path) -> None:
    """Only the CA that is named is trusted, also where a directory is named besides."""
    file = Authority(tmp_path).file
    for context in (rotating(ca_file=file), rotating(ca_file=file, ca_directory="/nowhere")):
        assert len(context.current().get_ca_certs()) == 1


@pytest.mark.usefixtures("settled")
def test_every_file_of_a_directory_is_trusted(tmp_path: Path) -> None:
    """With any name; another file in it is noticed."""
    directory = tmp_path / "cas"
    directory.mkdir()
    (directory / "below").mkdir()
    shutil.copy(Authority(tmp_path).file, directory / "one.crt")
    context = rotating(ca_directory=directory)
    assert len(context.current().get_ca_certs()) == 1
    shutil.copy(Authority(tmp_path, "other").file, directory / "two")
    assert len(context.current().get_ca_certs()) == 2


def test_the_systems_cas_are_loaded_once() -> None:
    """Without files the context is built once; chain and host name are verified."""
    context = RotatingContext(Trust())
    before = context.is_fixed
    first = context.current()
    assert (before, context.is_fixed) == (False, True)
    assert (first.check_hostname, first.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert context.current() is first


def test_a_bundle_is_found_where_openssls_paths_do_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an OpenSSL that came with Python and not with the distribution."""
    nowhere = ssl.get_default_verify_paths()._replace(cafile="", capath=str(tmp_path))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: nowhere)
    for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    file = str(Authority(tmp_path).file)
    monkeypatch.setattr(tls, "_CA_BUNDLES", ("/nowhere", file))
    assert len(RotatingContext(Trust()).current().get_ca_certs()) == 1
    (tmp_path / "0123abcd.0").touch()
    assert not RotatingContext(Trust()).current().get_ca_certs()


def test_the_environment_names_cas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSL_CERT_FILE and SSL_CERT_DIR, as for every program that uses OpenSSL."""
    monkeypatch.setenv("SSL_CERT_FILE", str(Authority(tmp_path).file))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    assert len(RotatingContext(Trust()).current().get_ca_certs()) == 1


def test_verification_can_be_skipped() -> None:
    """Then no CA is read, and a file that cannot be read does not matter."""
    context = RotatingContext(Trust(ca_file="/nowhere", skip_verify=True))
    assert context.current().verify_mode == ssl.CERT_NONE
    assert context.is_fixed


def test_bad_certificates_are_refused(tmp_path: Path) -> None:
    """No PEM, a key of another certificate, an encrypted key: refused, and nothing hangs."""
    authority = Authority(tmp_path)
    cert, key = tmp_path / "client.pem", tmp_path / "client.key"
    authority.write_client("one", cert, key)
    pem = key.read_bytes()
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("canary")
    with pytest.raises(RefusedError, match=rf"cannot use ca_file {garbage}: no certificate"):
        rotating(ca_file=garbage).current()
    authority.write_client("two", tmp_path / "other.pem", key)
    with pytest.raises(RefusedError, match=r"client_cert .* with client_key .*: key values mismat"):
        rotating(client_cert=cert, client_key=key).current()
    encrypted = load_pem_private_key(pem, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"canary"),
    )
    key.write_bytes(encrypted)
    with pytest.raises(RefusedError, match="the key is encrypted; write the key without"):
        rotating(client_cert=cert, client_key=key).current()
    with pytest.raises(TemporaryError, match=r"cannot read client_key .*: No such file"):
        rotating(client_cert=cert, client_key=tmp_path / "none").current()


def test_what_is_not_a_pem_file_is_refused(tmp_path: Path) -> None:
    """A FIFO or something huge neither blocks nor is read."""
    fifo, huge = tmp_path / "fifo", tmp_path / "huge"
    os.mkfifo(fifo)
    huge.touch()
    os.truncate(huge, MAX_PEM_SIZE + 1)
    for path, problem in ((fifo, "not a regular file"), (huge, "larger than 4 MiB")):
        with pytest.raises(
            RefusedError, match=rf"cannot use ca_file {path}: {problem}; correct ca_file"
        ):
            rotating(ca_file=path).current()


@pytest.mark.parametrize(
    ("attribute", "option"),
    [("ca_file", "vaultCACertPath"), ("ca_directory", "vaultCADirectory")],
)
def test_messages_name_the_users_option(attribute: str, option: str) -> None:
    """A manifest has other names than a configuration."""
    trust = Trust(**{attribute: "/nowhere"}, option_names={attribute: option})  # type: ignore[arg-type]
    with pytest.raises(SyncdError, match=f"cannot read {option} /nowhere: No such file"):
        RotatingContext(trust).current()
