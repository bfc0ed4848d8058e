"""Credential files: when they are read, what is refused, what is never shown."""

from __future__ import annotations

import base64
import builtins
import os
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from support.tls import Authority, replace

from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.net import credentials as module
from syncd.net.credentials import MAX_SECRET_SIZE, CredentialFiles, Credentials, Keyring

if TYPE_CHECKING:
    from pathlib import Path

KEY = "whsec_" + base64.b64encode(b"canary-signing-key-0123456789abc").decode()


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the file system ticks between any two changes."""
    monkeypatch.setattr(module, "_DOUBTFUL", 0)


def keyring(tls: bool = False, **files: Path | str) -> Keyring:
    return Keyring(CredentialFiles(**{k: str(v) for k, v in files.items()}), tls=tls)


def basic(credentials: Credentials) -> str:
    assert credentials.authorization is not None
    kind, _, encoded = credentials.authorization.partition(" ")
    assert kind == "Basic"
    return base64.b64decode(encoded).decode()


async def test_nothing_configured_needs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials there is nothing to read and no thread to visit."""
    monkeypatch.setattr("anyio.to_thread.run_sync", None)
    credentials = await keyring().current()
    assert (credentials.signer, credentials.authorization, credentials.tls) == (None, None, None)


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
async def test_one_trailing_newline_is_not_part_of_a_password(tmp_path: Path, ending: str) -> None:
    """Editors and `echo` end a line; the password does not contain that."""
    (tmp_path / "password").write_bytes(b"p w " + ending.encode())
    credentials = await keyring(username="syncd", password=tmp_path / "password").current()
    assert basic(credentials) == "syncd:p w "


@pytest.mark.parametrize("content", ["a\n\n", "a\nb\n", "a\r"])
async def test_more_than_one_newline_is(tmp_path: Path, content: str) -> None:
    """Nothing else is stripped from a password."""
    (tmp_path / "password").write_bytes(content.encode())
    credentials = await keyring(username="u", password=tmp_path / "password").current()
    assert basic(credentials) == "u:" + content


@pytest.mark.usefixtures("settled")
async def test_unchanged_files_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is opened once, until it changes."""
    file = tmp_path / "token"
    file.write_text("one")
    opened = []
    real = builtins.open

    def watched(*arguments: Any) -> Any:
        opened.append(arguments)
        return real(*arguments)

    monkeypatch.setattr("builtins.open", watched)
    ring = keyring(bearer_token=file)
    for _ in range(3):
        assert (await ring.current()).authorization == "Bearer one"
    assert len(opened) == 1
    replace(file, "two")
    assert (await ring.current()).authorization == "Bearer two"
    await ring.current(reread=True)
    assert len(opened) >= 3


async def test_data_swap_is_seen(tmp_path: Path) -> None:
    """A file behind a `..data` link that is swapped is another file."""
    for generation in ("..1", "..2"):
        (tmp_path / generation).mkdir()
        (tmp_path / generation / "token").write_text("token" + generation)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "token").symlink_to("..data/token")
    ring = keyring(bearer_token=tmp_path / "token")
    assert (await ring.current()).authorization == "Bearer token..1"
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert (await ring.current()).authorization == "Bearer token..2"


async def test_change_within_the_clocks_tick_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was read just after a change is read once more: its times may lie."""
    monkeypatch.setattr(module, "_signature", lambda status: (status.st_ino, status.st_size))
    file = tmp_path / "token"
    file.write_text("one")
    ring = keyring(bearer_token=file)
    assert (await ring.current()).authorization == "Bearer one"
    file.write_text("two")
    assert (await ring.current()).authorization == "Bearer two"


@pytest.mark.parametrize(
    "content",
    [
        base64.b64encode(b"canary" * 5).decode(),
        "whsec_",
        "whsec_!!!canary!!!",
        "whsec_canary\ncanary",
        "WHSEC_" + base64.b64encode(b"canary" * 5).decode(),
        "whsec_\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
    ],
)
async def test_malformed_signing_key_is_refused(tmp_path: Path, content: str) -> None:
    """Only `whsec_<base64>` of something is a signing key."""
    file = tmp_path / "key"
    file.write_text(content)
    with pytest.raises(RefusedError, match=rf"cannot use signing_key_file {file}: .*; write") as e:
        await keyring(signing_key=file).current()
    assert "canary" not in str(e.value)
    assert e.value.__context__ is None


async def test_unpadded_signing_key_is_taken(tmp_path: Path) -> None:
    """Padding may be missing, as in keys that other tools made."""
    file = tmp_path / "key"
    file.write_text(KEY.rstrip("=") + "\n")
    assert (await keyring(signing_key=file).current()).signer is not None


@pytest.mark.parametrize("content", ["canary two", "canary\ncanary", "canaré", "canary\x00"])
async def test_malformed_token_is_refused(tmp_path: Path, content: str) -> None:
    """A token that would break the header is refused without showing it."""
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(RefusedError, match="cannot use bearer_token_file") as e:
        await keyring(bearer_token=file).current()
    assert "canar" not in str(e.value)


async def test_missing_and_empty_files_may_come(tmp_path: Path) -> None:
    """What a mount may still deliver is a temporary error that names file and remedy."""
    file = tmp_path / "password"
    ring = keyring(username="u", password=file)
    with pytest.raises(TemporaryError, match=rf"cannot read password_file {file}: No such file.*;"):
        await ring.current()
    file.write_bytes(b"")
    with pytest.raises(TemporaryError, match=rf"cannot use password_file {file}: it is empty;"):
        await ring.current()
    file.write_bytes(b"here")
    assert basic(await ring.current()) == "u:here"


async def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A FIFO, a directory or something huge neither blocks nor is read."""
    fifo, directory, huge = tmp_path / "fifo", tmp_path / "directory", tmp_path / "huge"
    os.mkfifo(fifo)
    directory.mkdir()
    huge.write_bytes(b"x" * (MAX_SECRET_SIZE + 1))
    for path, reason in (
        (fifo, "regular"),
        (directory, "regular|Is a directory"),
        (huge, "larger than 64 KiB"),
    ):
        for reread in (False, True):
            with pytest.raises((RefusedError, TemporaryError), match=reason):
                await keyring(bearer_token=path).current(reread=reread)


@pytest.mark.usefixtures("settled")
async def test_context_is_built_again_only_when_files_change(tmp_path: Path) -> None:
    """The same context as long as CA, certificate and key are the same."""
    authority = Authority(tmp_path)
    cert, key = tmp_path / "client.pem", tmp_path / "client.key"
    authority.write_client("one", cert, key)
    ring = keyring(tls=True, ca=authority.file, client_cert=cert, client_key=key)
    first = (await ring.current()).tls
    assert first is not None
    assert (await ring.current()).tls is first
    authority.write_client("two", cert, key)
    assert (await ring.current()).tls is not first


async def test_ca_file_takes_the_place_of_the_systems(tmp_path: Path) -> None:
    """Whoever names a CA trusts that one and no other."""
    context = (await keyring(tls=True, ca=Authority(tmp_path).file).current()).tls
    assert context is not None
    assert len(context.get_ca_certs()) == 1


async def test_plain_connections_load_no_certificates(tmp_path: Path) -> None:
    """Without TLS neither the system's CAs nor configured files are touched."""
    assert (await keyring(ca=tmp_path / "missing.pem").current()).tls is None


async def test_system_certificates_are_loaded_once() -> None:
    """Without files of our own the context is built once, away from the event loop."""
    ring = keyring(tls=True)
    first = (await ring.current()).tls
    assert first is not None
    assert first.check_hostname
    assert (await ring.current()).tls is first


async def test_bad_certificates_are_refused(tmp_path: Path) -> None:
    """No PEM, a key of another certificate, an encrypted key: refused, and nothing hangs."""
    authority = Authority(tmp_path)
    cert, key = tmp_path / "client.pem", tmp_path / "client.key"
    authority.write_client("one", cert, key)
    pem = key.read_bytes()
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("canary")
    with pytest.raises(RefusedError, match=rf"cannot use ca_file {garbage}: no certificate"):
        await keyring(tls=True, ca=garbage).current()
    authority.write_client("two", tmp_path / "other.pem", key)
    with pytest.raises(RefusedError, match=r"client_cert .* with client_key .*: key values mismat"):
        await keyring(tls=True, client_cert=cert, client_key=key).current()
    encrypted = load_pem_private_key(pem, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"canary"),
    )
    key.write_bytes(encrypted)
    with pytest.raises(RefusedError, match="the key is encrypted"):
        await keyring(tls=True, client_cert=cert, client_key=key).current()
    with pytest.raises(TemporaryError, match="cannot read client_key"):
        await keyring(tls=True, client_cert=cert, client_key=tmp_path / "none").current()


async def test_nothing_shows_a_secret(tmp_path: Path) -> None:
    """No repr of anything that holds a secret shows it."""
    key, password = tmp_path / "key", tmp_path / "password"
    key.write_text(KEY)
    password.write_text("canary-password")
    ring = keyring(signing_key=key, username="syncd", password=password)
    credentials = await ring.current()
    shown = repr(ring) + repr(credentials) + str(credentials) + repr(ring._password)
    assert "Credentials(signer, authorization)" in shown
    for secret in ("canary", KEY[6:20], str(credentials.authorization)[6:]):
        assert secret not in shown


def test_errors_are_ours() -> None:
    """Both kinds are errors that callers of a consumer expect."""
    assert issubclass(RefusedError, SyncdError)
    assert issubclass(TemporaryError, SyncdError)
