"""Documentation, alert rules, dashboard and metrics agree on every name."""

from __future__ import annotations

import json
import re

import yaml
from support.documents import document

from syncd.core.model import Entry, Known, State
from syncd.telemetry.metrics import Metrics

OPERATING = document("docs/operating.md")
RUNBOOK = document("docs/alerts.md")
RULES = [
    rule
    for group in yaml.safe_load(document("observability/alerts.yaml"))["groups"]
    for rule in group["rules"]
]
PANELS = json.loads(document("observability/grafana-dashboard.json"))["panels"]


def exposed() -> set[str]:
    """The names of all series, those of histograms without their suffix."""
    metrics = Metrics(secret_names=True)
    metrics.set_inventory([Known(Entry("a", "/s/a", ()), State.PRESENT, "k1:1", None, None)])
    metrics.set_not_after({"a": 1.0})
    metrics.consumer("c").delivered(0.1)
    metrics.adoption("c").adopted(0.1)
    metrics.provider("p").succeeded()
    metrics.fleet().set({"live": 1}, {"converged": 1})
    names = re.findall(r"^(syncd_\w+)", metrics.exposition()[0].decode(), re.MULTILINE)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def used(text: str) -> set[str]:
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"syncd_\w+", text)}


def test_every_metric_is_documented() -> None:
    """One row per name in the table of metrics, and no row without a metric."""
    assert set(re.findall(r"^\| `(syncd_\w+)", OPERATING, re.MULTILINE)) == exposed()


def test_every_alert_is_documented_and_has_a_runbook() -> None:
    """One row, one section, and a link to it; no row or section without a rule."""
    alerts = [rule["alert"] for rule in RULES]
    assert re.findall(r"^\| `(Syncd\w+)` \|", OPERATING, re.MULTILINE) == alerts
    assert re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE) == alerts
    for rule in RULES:
        path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert path == "file:///usr/share/doc/syncd/docs/alerts.md"
        assert anchor == rule["alert"].lower()


def test_rules_and_dashboard_ask_for_metrics_that_exist() -> None:
    """And every metric about trouble is in one of them."""
    rules = set().union(*(used(rule["expr"]) for rule in RULES))
    panels = set().union(*(used(target["expr"]) for panel in PANELS for target in panel["targets"]))
    assert rules <= exposed()
    assert panels <= exposed()
    assert exposed() - rules - panels == set()
