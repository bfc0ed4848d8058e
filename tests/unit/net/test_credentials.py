"""Credential files: when they are read, what is refused, what is never shown."""

from __future__ import annotations

import base64
import builtins
import os
from typing import TYPE_CHECKING, Any

import pytest
from support.tls import replace

from syncd.core.errors import RefusedError, TemporaryError
from syncd.net import credentials as module, rotation
from syncd.net.credentials import MAX_SECRET_SIZE, CredentialFiles, Credentials, Keyring

if TYPE_CHECKING:
    from pathlib import Path

KEY = "whsec_" + base64.b64encode(b"canary-signing-key-0123456789abc").decode()


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the file system ticks between any two changes."""
    monkeypatch.setattr(rotation, "_UNSETTLED", 0)


def keyring(**files: Path | str) -> Keyring:
    return Keyring(CredentialFiles(**{k: str(v) for k, v in files.items()}))


def basic(credentials: Credentials) -> str:
    assert credentials.authorization is not None
    kind, _, encoded = credentials.authorization.partition(" ")
    assert kind == "Basic"
    return base64.b64decode(encoded).decode()


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_one_trailing_newline_is_not_part_of_a_password(tmp_path: Path, ending: str) -> None:
    """Editors and `echo` end a line; the password does not contain that."""
    (tmp_path / "password").write_bytes(b"p w " + ending.encode())
    credentials = keyring(username="syncd", password=tmp_path / "password").read()
    assert basic(credentials) == "syncd:p w "


@pytest.mark.parametrize("content", ["a\n\n", "a\nb\n", "a\r"])
def test_more_than_one_newline_is(tmp_path: Path, content: str) -> None:
    """Nothing else is stripped from a password."""
    (tmp_path / "password").write_bytes(content.encode())
    credentials = keyring(username="u", password=tmp_path / "password").read()
    assert basic(credentials) == "u:" + content


@pytest.mark.usefixtures("settled")
def test_unchanged_files_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is opened once, until it changes."""
    file = tmp_path / "token"
    file.write_text("one")
    opened = []
    real = builtins.open

    def watched(*arguments: Any, **options: Any) -> Any:
        opened.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr("builtins.open", watched)
    ring = keyring(bearer_token=file)
    for _ in range(3):
        assert ring.read().authorization == "Bearer one"
    assert len(opened) == 1
    replace(file, "two")
    assert ring.read().authorization == "Bearer two"
    ring.read(again=True)
    assert len(opened) >= 3


def test_data_swap_is_seen(tmp_path: Path) -> None:
    """A file behind a `..data` link that is swapped is another file."""
    for generation in ("..1", "..2"):
        (tmp_path / generation).mkdir()
        (tmp_path / generation / "token").write_text("token" + generation)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "token").symlink_to("..data/token")
    ring = keyring(bearer_token=tmp_path / "token")
    assert ring.read().authorization == "Bearer token..1"
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert ring.read().authorization == "Bearer token..2"


def test_change_within_the_clocks_tick_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was read just after a change is read once more: its times may lie."""
    monkeypatch.setattr(module, "signature", lambda status: (status.st_ino, status.st_size))
    file = tmp_path / "token"
    file.write_text("one")
    ring = keyring(bearer_token=file)
    assert ring.read().authorization == "Bearer one"
    file.write_text("two")
    assert ring.read().authorization == "Bearer two"


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
def test_malformed_signing_key_is_refused(tmp_path: Path, content: str) -> None:
    """Only `whsec_<base64>` of something is a signing key."""
    file = tmp_path / "key"
    file.write_text(content)
    with pytest.raises(RefusedError, match=rf"cannot use signing_key_file {file}: .*; write") as e:
        keyring(signing_key=file).read()
    assert "canary" not in str(e.value)
    assert e.value.__context__ is None


def test_unpadded_signing_key_is_taken(tmp_path: Path) -> None:
    """Padding may be missing, as in keys that other tools made."""
    file = tmp_path / "key"
    file.write_text(KEY.rstrip("=") + "\n")
    assert keyring(signing_key=file).read().signer is not None


@pytest.mark.parametrize("content", ["canary two", "canary\ncanary", "canaré", "canary\x00"])
def test_malformed_token_is_refused(tmp_path: Path, content: str) -> None:
    """A token that would break the header is refused without showing it."""
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(RefusedError, match="cannot use bearer_token_file") as e:
        keyring(bearer_token=file).read()
    assert "canar" not in str(e.value)


def test_missing_and_empty_files_may_come(tmp_path: Path) -> None:
    """What a mount may still deliver is a temporary error that names file and remedy."""
    file = tmp_path / "password"
    ring = keyring(username="u", password=file)
    with pytest.raises(TemporaryError, match=rf"cannot read password_file {file}: No such file.*;"):
        ring.read()
    file.write_bytes(b"")
    with pytest.raises(TemporaryError, match=rf"cannot use password_file {file}: it is empty;"):
        ring.read()
    file.write_bytes(b"here")
    assert basic(ring.read()) == "u:here"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
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
                keyring(bearer_token=path).read(again=reread)


def test_nothing_shows_a_secret(tmp_path: Path) -> None:
    """No repr of anything that holds a secret shows it."""
    key, password = tmp_path / "key", tmp_path / "password"
    key.write_text(KEY)
    password.write_text("canary-password")
    ring = keyring(signing_key=key, username="syncd", password=password)
    credentials = ring.read()
    shown = repr(ring) + repr(credentials) + str(credentials) + repr(ring._password)
    assert "Credentials(signer, authorization)" in shown
    for secret in ("canary", KEY[6:20], str(credentials.authorization)[6:]):
        assert secret not in shown
