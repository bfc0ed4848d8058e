"""What the API reports of the daemon: reasons, and lists of problems that stay short."""

from __future__ import annotations

from datetime import UTC, datetime

from syncd.api.attention import readiness
from syncd.api.report import (
    ConsumerReport,
    ProviderReport,
    StatusReport,
    status_report,
)
from syncd.api.status import DaemonStatus, MountStatus, RelayStatus
from syncd.api.subscribers import View
from syncd.core.health import ConsumerHealth, ProviderHealth
from syncd.core.model import Entry, Grant, Known, Scope, State
from syncd.ledger.reads import Pending

MOUNT = MountStatus(None, "inotify", None, "/vault-config.json", False, 60.0)
APP, OTHER = Scope("Client", "app"), Scope("IdentityProvider")


def known(name: str, scope: Scope) -> Known:
    return Known(Entry(name, f"/run/{name}", (scope,)), State.PRESENT, "k1:00", None, None)


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


def test_a_limited_scope_hides_when_others_change() -> None:
    """Times, counts and errors that also depend on other secrets are left out of the status."""
    consumer = ConsumerHealth("T1", "secret: x", 3, "T2", 9)
    provider = ProviderHealth("T3", "secret: y", 4, "T4", "/run", 12, "T5")
    scanned = MountStatus("2026-01-01T00:00:00.000Z", "poll", "secret: z", "/v", True, 1.0)
    state = DaemonStatus(
        ready=True,
        inventory={"mine": known("mine", APP), "other": known("other", OTHER)},
        source=scanned,
        failure="cannot use the ledger",
        consumers={"hook": (Grant(), consumer)},
        providers={"vault": provider},
    )

    def report(grant: Grant, **pending: Pending) -> StatusReport:
        return status_report(
            state,
            {"hook": pending},
            View(grant),
            position=("e", 7),
            subscribers=1,
            now=datetime.now(UTC),
        )

    hidden = report(Grant([APP]), other=Pending(None, 1))
    assert hidden.last_scan is None
    assert hidden.watch_problem is None
    assert hidden.consumers == {"hook": ConsumerReport("ok", 0, None, None, 0, None)}
    assert hidden.providers == {
        "vault": ProviderReport("failing", "/run", None, None, None, None, 1, None)
    }
    assert hidden.attention == ("provider vault is failing",)
    mine = report(Grant([APP]), mine=Pending(None, 1), other=Pending(None, 2))
    assert mine.consumers == {"hook": ConsumerReport("failing", 1, None, None, 1, None)}
    assert mine.attention == ("consumer hook is failing", "provider vault is failing")
    whole = report(Grant(), other=Pending(None, 1))
    assert whole.consumers == {"hook": ConsumerReport("failing", 1, "T1", "secret: x", 3, "T2")}
    assert whole.last_scan == "2026-01-01T00:00:00.000Z"
    assert whole.providers["vault"].files == 12
    assert whole.attention[0] == "cannot use the ledger"
