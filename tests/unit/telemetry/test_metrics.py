"""The metrics: every promised name is exposed, with the promised labels."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from support.mail import APP, TIME, sample

from syncd import __version__
from syncd.core.model import Change, ChangeKind, Entry, Known, State
from syncd.telemetry.metrics import Metrics

CONTRACT = {
    "syncd_build_info": {"version"},
    "syncd_secrets": {"state"},
    "syncd_config_reload_ok": set(),
    "syncd_vault_config_valid": set(),
    "syncd_last_scan_timestamp_seconds": set(),
    "syncd_unreadable_roots": set(),
    "syncd_scans_total": {"reason"},
    "syncd_scan_duration_seconds": set(),
    "syncd_changes_total": {"change"},
    "syncd_deliveries_total": {"consumer", "outcome"},
    "syncd_delivery_pending": {"consumer"},
    "syncd_delivery_latency_seconds": {"consumer"},
    "syncd_subscribers": set(),
    "syncd_credentials_total": {"outcome"},
    "syncd_provision_total": {"provider", "outcome"},
    "syncd_provision_last_success_timestamp_seconds": {"provider"},
}


def known(name: str, state: State) -> Known:
    return Known(Entry(name, f"/run/{name}", (APP,)), state, None, None, TIME)


def exposed(metrics: Metrics, accept: str = "") -> dict[str, set[str]]:
    """Names and labels as a scraper sees them."""
    body, _ = metrics.exposition(accept)
    found: dict[str, set[str]] = {}
    for line in body.decode().splitlines():
        if line.startswith("syncd_"):
            name, labels = re.match(r"([a-z_]+)(\{.*\})?", line).groups()  # type: ignore[union-attr]
            name = re.sub(r"_(bucket|sum|count)$", "", name)
            found.setdefault(name, set()).update(set(re.findall(r"(\w+)=", labels or "")) - {"le"})
    return found


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_every_promised_name_is_exposed(accept: str) -> None:
    """All names of the contract with their labels, and no other `syncd_` series."""
    metrics = Metrics()
    metrics.consumer("hook").retried()
    metrics.provider("openbao").succeeded()
    assert exposed(metrics, accept) == CONTRACT


def test_a_relay_exposes_nothing_about_a_mount() -> None:
    """The alert rules would take a zero for a scan that stopped and a vault config that is bad."""
    about_a_mount = {name for name in CONTRACT if re.search("scan|vault_config|changes", name)}
    metrics = Metrics(mount=False)
    metrics.consumer("hook")
    exposed_names = exposed(metrics).keys()
    assert about_a_mount
    assert not about_a_mount & exposed_names
    assert {"syncd_secrets", "syncd_deliveries_total", "syncd_build_info"} <= exposed_names


def test_what_is_known_beforehand_starts_at_zero() -> None:
    """Alerts on `rate()` see the first increment."""
    metrics = Metrics()
    metrics.consumer("hook")
    for name, labels in (
        ("syncd_scans_total", {"reason": "overflow"}),
        ("syncd_changes_total", {"change": "removed"}),
        ("syncd_secrets", {"state": "unreadable"}),
        ("syncd_deliveries_total", {"consumer": "hook", "outcome": "rejected"}),
    ):
        assert sample(metrics, name, labels) == 0
    assert sample(metrics, "syncd_build_info", {"version": __version__}) == 1


def test_secrets_are_counted_by_state() -> None:
    """No name of a secret unless asked for."""
    items = [known("a", State.PRESENT), known("b", State.PRESENT), known("c", State.MISSING)]
    metrics = Metrics()
    metrics.set_inventory(items)
    metrics.set_inventory(items[1:])
    assert sample(metrics, "syncd_secrets", {"state": "present"}) == 1
    assert sample(metrics, "syncd_secrets", {"state": "missing"}) == 1
    assert b'"c"' not in metrics.exposition()[0]
    named = Metrics(secret_names=True)
    named.set_inventory(items)
    named.set_inventory(items[1:])
    assert sample(named, "syncd_secrets", {"state": "missing", "secret": "c"}) == 1
    assert sample(named, "syncd_secrets", {"state": "present", "secret": "a"}) is None


def test_changes_and_scans_are_counted() -> None:
    """Per kind, per reason, with duration and time."""
    metrics = Metrics()
    entry = Entry("a", "/run/a", (APP,))
    metrics.changed([Change(ChangeKind.MODIFIED, entry, "k1:0", "k1:1")] * 2)
    metrics.scanned("inotify", 0.003)
    metrics.set_vault_config_valid(valid=True)
    metrics.set_subscribers(3)
    assert sample(metrics, "syncd_changes_total", {"change": "modified"}) == 2
    assert sample(metrics, "syncd_scans_total", {"reason": "inotify"}) == 1
    assert sample(metrics, "syncd_scan_duration_seconds_sum") == 0.003
    assert (sample(metrics, "syncd_last_scan_timestamp_seconds") or 0) > 1e9
    assert sample(metrics, "syncd_vault_config_valid") == 1
    assert sample(metrics, "syncd_subscribers") == 3


def test_failed_provisioning_moves_no_timestamp() -> None:
    """Staleness is measured from the last success."""
    metrics = Metrics()
    provider = metrics.provider("openbao")
    provider.failed()
    provider.refused()
    name = "syncd_provision_last_success_timestamp_seconds"
    assert sample(metrics, name, {"provider": "openbao"}) == 0
    provider.succeeded()
    assert (sample(metrics, name, {"provider": "openbao"}) or 0) > 1e9
    for outcome in ("failed", "refused", "success"):
        labels = {"provider": "openbao", "outcome": outcome}
        assert sample(metrics, "syncd_provision_total", labels) == 1
    metrics.forget_provider("openbao")
    metrics.forget_provider("never-there")
    assert b"openbao" not in metrics.exposition()[0]


def test_forgotten_consumer_leaves_no_series() -> None:
    """A consumer that left the configuration is no longer exposed."""
    metrics = Metrics()
    metrics.consumer("hook").delivered(0.1)
    metrics.forget_consumer("hook")
    metrics.forget_consumer("never-there")
    assert b"hook" not in metrics.exposition()[0]


def test_adoptions_are_counted_and_timed() -> None:
    """From zero on, and absent after verification is no longer configured."""
    metrics = Metrics()
    adoption = metrics.adoption("aidbox")
    labels = {"consumer": "aidbox"}
    for outcome in ("adopted", "rejected"):
        at = {**labels, "outcome": outcome}
        assert sample(metrics, "syncd_adoptions_total", at) == 0
    adoption.adopted(0.3)
    adoption.rejected()
    assert sample(metrics, "syncd_adoption_seconds_sum", labels) == 0.3
    assert sample(metrics, "syncd_adoptions_total", {**labels, "outcome": "rejected"}) == 1
    metrics.forget_adoption("aidbox")
    metrics.forget_adoption("never-there")
    assert b"aidbox" not in metrics.exposition()[0]


def test_two_instances_do_not_meet() -> None:
    """Nothing is registered globally."""
    Metrics(), Metrics()


def test_imports_lightly() -> None:
    """Metrics bring in neither the network client nor the ledger."""
    script = (
        "import sys, syncd.telemetry.metrics;"
        "print([m for m in ('httpx2', 'anyio', 'sqlite3', 'structlog') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


def test_the_version_of_each_secret_only_where_names_are_asked_for() -> None:
    """One series for each secret, with the version that it has now."""
    named, entry = Metrics(secret_names=True), Entry("a", "/s/a", ())
    for version in ("k1:1", "k1:2"):
        named.set_inventory([Known(entry, State.PRESENT, version, None, None)])
    gone = Known(Entry("b", "/s/b", ()), State.MISSING, None, None, None)
    named.set_inventory([Known(entry, State.PRESENT, "k1:2", None, None), gone])
    info = "syncd_secret_version_info"
    assert sample(named, info, {"secret": "a", "version": "k1:2"}) == 1
    assert sample(named, info, {"secret": "a", "version": "k1:1"}) is None
    assert sample(named, info, {"secret": "b", "version": "none"}) == 1
    for other in (Metrics(), Metrics(secret_names=True, mount=False)):
        other.set_inventory([gone])
        assert info.encode() not in other.exposition()[0]
