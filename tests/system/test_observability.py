"""Alert rules and dashboard: unit tests by promtool, expressions that Prometheus can parse."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING

import yaml

from syncd.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
DIRECTORY = f"{ROOT}/observability"


def test_the_alerts(need: Callable[..., None]) -> None:
    """They are valid, and fire and keep silent when they should."""
    need("promtool")
    for command in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts.test.yaml"]):
        subprocess.run(["promtool", *command], cwd=DIRECTORY, check=True)


def test_every_alert_is_tested() -> None:
    """For each one there is a case in which it fires and one in which it does not."""
    with open(f"{DIRECTORY}/alerts.yaml") as file:
        alerts = {r["alert"] for group in yaml.safe_load(file)["groups"] for r in group["rules"]}
    with open(f"{DIRECTORY}/alerts.test.yaml") as file:
        cases = [case for test in yaml.safe_load(file)["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


def test_the_dashboard(need: Callable[..., None], tmp_path: Path) -> None:
    """Its queries parse and ask for series that syncd has; its panels do not overlap."""
    need("promtool")
    with open(f"{DIRECTORY}/grafana-dashboard.json") as file:
        dashboard = json.load(file)
    metrics = Metrics()
    metrics.consumer("hook").delivered(0.1)
    metrics.provider("vault").succeeded()
    metrics.adoption("aidbox").adopted(0.1)
    exposed = set(re.findall(r"^(\w+)", metrics.exposition()[0].decode(), re.MULTILINE))
    queries: list[str] = []
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken
        assert all(x < 24 for x, _ in cells)
        taken |= cells
        queries += [target["expr"] for target in panel["targets"]]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for query in queries:
        names = re.findall(r"\b(?:syncd|process)_\w+", query)
        assert names
        assert set(names) <= exposed
    rules = [
        {"record": f"q:{index}", "expr": query.replace("$__rate_interval", "5m")}
        for index, query in enumerate(queries)
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    subprocess.run(["promtool", "check", "rules", path], check=True)
