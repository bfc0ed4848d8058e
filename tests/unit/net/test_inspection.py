"""Reading one credential as a consumer would."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest
from support.tls import Authority

from syncd.core.errors import RefusedError, TemporaryError
from syncd.net.inspection import inspect

if TYPE_CHECKING:
    from pathlib import Path


def test_what_can_be_used_passes(tmp_path: Path) -> None:
    """Of each kind of file."""
    authority = Authority(tmp_path)
    cert, key = tmp_path / "client.pem", tmp_path / "client.key"
    authority.write_client("syncd", cert, key)
    signing_key, other = tmp_path / "signing.key", tmp_path / "other"
    signing_key.write_text("whsec_" + base64.b64encode(b"0" * 32).decode())
    other.write_text("secret\n")
    inspect("ca_file", str(authority.file))
    inspect("client_cert", str(cert), str(key))
    inspect("client_key", str(key))
    inspect("signing_key_file", str(signing_key))
    for option in ("bearer_token_file", "password_file", "client_secret_file"):
        inspect(option, str(other))


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("ca_file", "cannot use ca_file .*: no certificate"),
        ("signing_key_file", "does not hold whsec_<base64>"),
        ("bearer_token_file", "not one line of visible ASCII"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, option: str, problem: str) -> None:
    """With the option's name, and nothing of the content."""
    file = tmp_path / "file"
    file.write_text("canary canary")
    with pytest.raises(RefusedError, match=problem) as caught:
        inspect(option, str(file))
    assert "canary" not in str(caught.value)


def test_a_key_that_belongs_to_another_certificate_is_refused(tmp_path: Path) -> None:
    """A key that is missing is a finding of its own."""
    authority = Authority(tmp_path)
    cert, key = tmp_path / "client.pem", tmp_path / "client.key"
    authority.write_client("one", cert, tmp_path / "one.key")
    authority.write_client("two", tmp_path / "two.pem", key)
    with pytest.raises(RefusedError, match="key values mismatch"):
        inspect("client_cert", str(cert), str(key))
    key.unlink()
    inspect("client_cert", str(cert), str(key))
    with pytest.raises(TemporaryError, match="cannot read client_key"):
        inspect("client_key", str(key))
