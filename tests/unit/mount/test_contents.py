"""What is kept of contents between scans."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from structlog.testing import capture_logs
from support.pem import certificate, private_key

from syncd.config.settings import ExtraFile, Watch
from syncd.core.model import Entry, Scope
from syncd.mount.contents import Contents, formats_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

    from syncd.core.content import Facts

IDP = (Scope("IdentityProvider", "idp"),)


def entries(*names: str, scopes: tuple[Scope, ...] = IDP) -> dict[str, Entry]:
    return {name: Entry(name, f"/m/{name}", scopes) for name in names}


def ends(contents: Contents, known: dict[str, Entry]) -> Mapping[str, float]:
    contents.judge(known, 1.8e9)
    return contents.not_after


def wrong(contents: Contents, known: dict[str, Entry]) -> Mapping[str, str]:
    contents.judge(known, 1.8e9)
    return contents.problems


def test_only_certificates_and_keys_are_described() -> None:
    """Of other files nothing is kept, also after one of them was a certificate."""
    contents = Contents()
    contents.see("a", "k1:1", b"password")
    assert not contents.facts
    contents.see("a", "k1:2", certificate(not_after=2e9))
    assert ends(contents, entries("a")) == {"a": 2e9}
    assert ends(contents, entries("b")) == {}
    contents.see("a", "k1:3", b"password")
    assert not contents.facts


def test_a_content_that_cannot_be_described_ends_no_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as on a machine without descriptors for an import; it is tried again."""
    contents = Contents()
    contents.see("a", "k1:1", certificate())

    def fail(content: bytes) -> Facts:
        raise OSError(errno.EMFILE, content.decode())

    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr("syncd.mount.contents.describe", fail)
        contents.see("a", "k1:2", certificate(1))
    assert not contents.facts
    assert [entry["event"] for entry in logs] == ["secret.not_examined"]
    assert "BEGIN" not in str(logs)
    contents.see("a", "k1:2", certificate(1))
    assert contents.facts


def test_a_content_is_described_once() -> None:
    """The version says that it is the one before."""
    contents = Contents(every=True)
    contents.see("a", "k1:1", b"password")
    before = contents.facts["a"]
    contents.see("a", "k1:1", b"password")
    assert contents.facts["a"] is before
    contents.see("a", "k1:2", b"{}")
    assert contents.facts["a"] is not before


def test_problems_of_an_entries() -> None:
    """An expired certificate, and a pair of one resource that does not match."""
    contents = Contents()
    contents.see("old", "k1:1", certificate(2, not_after=1e9))
    contents.see("crt", "k1:1", certificate(0))
    contents.see("key", "k1:1", private_key(1))
    known = entries("crt", "key") | entries("old", scopes=(Scope("IdentityProvider"),))
    found = wrong(contents, known)
    assert found["crt"] == "does not belong to the private key key"
    assert found["old"].startswith("expired ")
    assert found.keys() == {"crt", "old"}
    contents.see("more", "k1:1", certificate(1))
    known |= entries("more")
    assert wrong(contents, known).keys() == {"old"}  # which of the two belongs is unknown


def test_it_is_judged_when_something_is_new() -> None:
    """A certificate or key, other entries, or the time; and not for any other change."""
    contents, known, now = Contents(), entries("a", "b"), 1.8e9
    contents.see("a", "k1:1", certificate(not_after=now + 86400 * 40))
    assert contents.is_due(known, now)
    contents.judge(known, now)
    contents.see("b", "k1:1", b"password")
    contents.see("a", "k1:1", certificate(not_after=now + 86400 * 40))
    assert not contents.is_due(known, now + 86400 * 9)
    assert contents.is_due(entries("a"), now)
    assert contents.is_due(known, now + 86400 * 11)
    contents.see("a", "k1:2", b"password")
    assert contents.is_due(known, now)
    contents.judge(known, now)
    assert contents.not_after == {}
    assert not contents.is_due(known, now * 2)


def test_problems_of_files_outside_the_vault_config() -> None:
    """A pair lies in one directory; a format that the configuration names is judged."""
    files = (ExtraFile(path="/t/crt"), "/t/key", ExtraFile(path="/n", name="n", format="json"))
    contents = Contents(formats_of(Watch(extra=files)))
    contents.see("/t/crt", "k1:1", certificate(0))
    contents.see("/t/key", "k1:1", private_key(1))
    contents.see("n", "k1:1", b"{")
    paths = {"/t/crt": "/t/crt", "/t/key": "/t/key", "n": "/n"}
    known = {name: Entry(name, path, (), extra=True) for name, path in paths.items()}
    assert wrong(contents, known) == {
        "/t/crt": "does not belong to the private key /t/key",
        "n": "is not a JSON object",
    }
