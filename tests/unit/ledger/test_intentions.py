"""Intentions outlive the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.mail import Mail

if TYPE_CHECKING:
    from pathlib import Path


def test_an_intention_is_kept_until_it_is_settled(tmp_path: Path) -> None:
    """Also by a ledger that is opened again after a copy of the file, as after a power cut."""
    mail = Mail(str(tmp_path / "state"))
    mail.ledger.intend("aidbox/d1", "{}")
    mail.ledger.intend("aidbox/d1", '{"id": "d1"}')
    mail.ledger.intend("aidbox/d2", "{}")
    copy = tmp_path / "copy"
    copy.mkdir(mode=0o700)
    for name in ("ledger.sqlite3", "fingerprint.key"):  # without the log: only what is synced
        (copy / name).write_bytes((tmp_path / "state" / name).read_bytes())
        (copy / name).chmod(0o600)
    after = Mail(str(copy))
    assert after.ledger.intended() == {"aidbox/d1": '{"id": "d1"}', "aidbox/d2": "{}"}
    after.close()
    mail.ledger.settle("aidbox/d1")
    mail.ledger.settle("aidbox/d3")
    assert mail.ledger.intended() == {"aidbox/d2": "{}"}
    mail.close()
