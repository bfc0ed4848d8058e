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


def test_the_queries_of_the_guide(need: Callable[..., None], tmp_path: Path) -> None:
    """One replica of three has an old version: two versions are counted, the replica is named."""
    need("promtool")
    with open(f"{ROOT}/docs/fleet.md") as file:
        count, which = re.findall(r"```promql\n(.*?)```", file.read(), re.DOTALL)
    series = {"a": "k1:2", "b": "k1:2", "c": "k1:1"}
    name = 'syncd_secret_version_info{{instance="{}", job="app", secret="s", version="{}"}}'
    document = {
        "tests": [
            {
                "input_series": [
                    {"series": name.format(*item), "values": "1x9"} for item in series.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": count,
                        "eval_time": "5m",
                        "exp_samples": [{"labels": '{job="app", secret="s"}', "value": 2}],
                    },
                    {
                        "expr": which,
                        "eval_time": "5m",
                        "exp_samples": [{"labels": name.format("c", "k1:1"), "value": 1}],
                    },
                ],
            }
        ]
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(document))
    subprocess.run(["promtool", "test", "rules", "test.yaml"], cwd=tmp_path, check=True)


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
    metrics.fleet().set({"live": 1}, {"converged": 1})
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
