"""Readers of the ledger: they see every commit, change nothing, and are in nobody's way."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.mail import Mail, change

from syncd.core.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[Mail]:
    mail = Mail(str(tmp_path))
    yield mail
    mail.close()


def test_a_reader_sees_every_commit(mail: Mail) -> None:
    """Each answer is as of the last commit, also for what its owner did since it was opened."""
    reader = mail.ledger.reader()
    assert reader.span() == (0, 0)
    event = mail.ledger.append(change("a", 1, None), mail.grants)
    assert reader.events_after(0, 10) == [event] == mail.ledger.events_after(0, 10)
    assert reader.pending() == mail.ledger.pending() != {}
    assert reader.span() == (0, 1)
    mail.ledger.acknowledge("hook", [event])
    assert reader.pending() == {}
    reader.close()


def test_a_reader_is_in_nobodys_way(mail: Mail) -> None:
    """While it holds its connection, and even a transaction, commits and prunings go on."""
    reader = mail.ledger.reader()
    mail.ledger.append(change("a", 1, None), mail.grants)
    with reader._file.held() as db:
        db.execute("BEGIN")
        assert db.execute("SELECT count(*) FROM event").fetchone() == (1,)
        mail.ledger.append(change("a", 2, 1), mail.grants)
        assert mail.ledger.prune(1, "2000-01-01T00:00:00.000Z") == 1
        assert db.execute("SELECT count(*) FROM event").fetchone() == (1,)
        db.execute("COMMIT")
    assert [event.sequence for event in reader.events_after(0, 10)] == [2]
    reader.close()


def test_a_reader_cannot_write(mail: Mail) -> None:
    """A mistake in the API cannot change the ledger."""
    reader = mail.ledger.reader()
    with pytest.raises(StateError, match="it is read-only"):
        reader._file.read("DELETE FROM meta")
    reader.close()


def test_the_log_is_empty_at_the_end(tmp_path: Path) -> None:
    """The reader is closed first, so that the ledger's close leaves one file."""
    mail = Mail(str(tmp_path))
    reader = mail.ledger.reader()
    mail.ledger.append(change("a", 1, None), mail.grants)
    assert reader.span() == (0, 1)
    reader.close()
    mail.close()
    assert not os.path.exists(tmp_path / "ledger.sqlite3-wal")


def test_a_reader_that_cannot_be_opened(tmp_path: Path) -> None:
    """The error is one line, as all of the ledger's."""
    mail = Mail(str(tmp_path))
    path, mail.ledger._path = mail.ledger._path, str(tmp_path / "no" / "such")
    with pytest.raises(StateError, match=r"cannot open .*: a file cannot be opened"):
        mail.ledger.reader()
    mail.ledger._path = path
    mail.close()
