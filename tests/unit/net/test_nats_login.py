"""What a connection to NATS presents: NKeys, credentials files, passwords, read when used."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from support.nats import Key, Operator
from support.tls import replace

from syncd.config.settings import NatsServer
from syncd.core.errors import RefusedError, TemporaryError
from syncd.net.nats_login import LoginFiles

if TYPE_CHECKING:
    from pathlib import Path


def files(**options: Any) -> LoginFiles:
    chosen: dict[str, Any] = {"urls": ("nats://127.0.0.1:4222",), **options}
    for option, value in options.items():
        chosen[option] = str(value) if hasattr(value, "__fspath__") else value
    return LoginFiles(NatsServer(**chosen))


def mistyped(seed: str) -> str:
    return f"{seed[:20]}{'B' if seed[20] == 'A' else 'A'}{seed[21:]}"


async def test_a_seed_signs_for_its_public_key(tmp_path: Path) -> None:
    """The NKey is the one of the seed, and its signature of a nonce verifies."""
    key = Key("U")
    (tmp_path / "seed").write_text(key.seed + "\n")
    login = await files(nkey_seed_file=tmp_path / "seed").read()
    assert login.public_key() == key.public
    raw = base64.b32decode(key.public + "=" * (-len(key.public) % 8))[1:-2]
    Ed25519PublicKey.from_public_bytes(raw).verify(base64.b64decode(login.sign("nonce")), b"nonce")


async def test_a_credentials_file_has_jwt_and_seed(tmp_path: Path) -> None:
    """As `nsc` writes them."""
    text = Operator().credentials()
    (tmp_path / "user.creds").write_text(text)
    login = await files(credentials_file=tmp_path / "user.creds").read()
    assert login.jwt == text.splitlines()[1]
    assert login.seed is not None


async def test_what_was_rotated_is_read_again(tmp_path: Path) -> None:
    """A new file in the place of the old one counts from the next use."""
    replace(tmp_path / "password", "one\n")
    found = files(user="syncd", password_file=tmp_path / "password")
    assert (await found.read()).password == "one"
    replace(tmp_path / "password", "two\n")
    assert (await found.read()).password == "two"
    assert found.paths == (str(tmp_path / "password"),)


@pytest.mark.parametrize(
    ("option", "content", "problem"),
    [
        ("nkey_seed_file", "SUAM", "does not hold a user's seed"),
        ("nkey_seed_file", Key("A").seed, "does not hold a user's seed"),
        ("nkey_seed_file", mistyped(Key("U").seed), "does not hold a user's seed"),
        ("nkey_seed_file", "not base32!", "does not hold a user's seed"),
        ("credentials_file", "no credentials", "does not hold a user's JWT and seed"),
        ("credentials_file", Key("U").seed, "does not hold a user's JWT and seed"),
        ("token_file", b"\xff\xfe", "is not UTF-8"),
    ],
    ids=["short", "account", "mistyped", "no-base32", "no-credentials", "seed-alone", "no-text"],
)
async def test_a_file_that_holds_something_else(
    tmp_path: Path, option: str, content: str | bytes, problem: str
) -> None:
    """One line names file and remedy, and quotes nothing of it."""
    replace(tmp_path / "file", content)
    with pytest.raises(RefusedError, match=problem) as caught:
        await files(**{option: tmp_path / "file"}).read()
    assert option in str(caught.value)
    assert str(tmp_path / "file") in str(caught.value)
    assert not isinstance(content, str) or content not in str(caught.value)


async def test_a_missing_file_may_come(tmp_path: Path) -> None:
    """So it is worth another try."""
    with pytest.raises(TemporaryError, match="cannot read token_file"):
        await files(token_file=tmp_path / "token").read()


async def test_nothing_held_is_shown(tmp_path: Path) -> None:
    """A login's `repr` names what it has."""
    replace(tmp_path / "token", "CANARY-5ecre7")
    login = await files(token_file=tmp_path / "token").read()
    assert repr(login) == "Login(token)"


def test_tls_is_asked_for_by_the_scheme_or_a_certificate() -> None:
    """A URL of scheme `tls`, a CA or a client certificate."""
    assert not files().tls
    assert files(urls=("tls://h:4222",)).tls
    assert files(ca_file="/ca.pem").tls
    assert files(client_cert="/c.pem", client_key="/k.pem").tls
