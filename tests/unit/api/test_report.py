"""What the API reports of the daemon: reasons, and lists of problems that stay short."""

from __future__ import annotations

from datetime import UTC, datetime

from syncd.api.report import readiness, status_report
from syncd.api.status import DaemonStatus, MountStatus, RelayStatus
from syncd.api.subscribers import View
from syncd.core.model import Entry, Grant, Known, Scope, State

MOUNT = MountStatus(None, "inotify", None, "/vault-config.json", False, 60.0)
RELAY = RelayStatus(None, "syncd.>", 10.0)


def status(source: MountStatus | RelayStatus, *missing: str) -> DaemonStatus:
    """A daemon that has not started, with secrets that are missing."""
    inventory = {
        name: Known(
            Entry(name, f"/run/{name}", (Scope("Client"),)), State.MISSING, None, None, None
        )
        for name in missing
    }
    return DaemonStatus(ready=False, inventory=inventory, source=source, failure=None, consumers={})


def test_the_reasons_are_those_of_the_source() -> None:
    """A relay scans nothing and has no vault config."""
    assert readiness(status(RELAY)).reasons == ("the relay has not started",)
    scan, vault_config = readiness(status(MOUNT)).reasons
    assert scan == "the first scan is not done"
    assert "vault config" in vault_config


def test_many_problems_are_counted() -> None:
    """Five secrets are named; the others are a number."""
    names = [f"s{number}" for number in range(7)]
    report = status_report(
        status(RELAY, *names),
        {},
        View(Grant()),
        position=("e", 0),
        subscribers=0,
        now=datetime.now(UTC),
    )
    assert report.attention == (
        "the relay has not started",
        *(f"secret {name} is missing" for name in names[:5]),
        "2 more secrets are missing or have a problem",
    )
