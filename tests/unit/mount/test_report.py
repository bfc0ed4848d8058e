"""What the log has of a pass: enough to act on, and never more than a screen."""

from __future__ import annotations

from structlog.testing import capture_logs

from syncd.core.findings import finding
from syncd.mount.contents import Contents
from syncd.mount.report import _LOGGED_FINDINGS, Reporter
from syncd.mount.vault_config_file import VaultConfigFile
from syncd.mount.watch import Watcher
from syncd.telemetry.metrics import Metrics


def test_many_findings_are_counted() -> None:
    """Errors come first, some in full; the number of the others is one line."""
    file = VaultConfigFile("/v", 0.1)
    file.findings = (
        *(finding("scope-list", "/v", str(number), "x", "y") for number in range(200)),
        finding("name-invalid", "/v", "", "x", "y"),
    )
    with capture_logs() as lines:
        Reporter(Metrics(), Watcher("poll"), Contents()).vault_config(file)
    assert len(lines) == _LOGGED_FINDINGS + 1
    assert (lines[0]["code"], lines[0]["log_level"]) == ("name-invalid", "error")
    assert lines[-1]["more"] == 201 - _LOGGED_FINDINGS
    file.findings = file.findings[:3]
    with capture_logs() as lines:
        Reporter(Metrics(), Watcher("poll"), Contents()).vault_config(file)
    assert len(lines) == 3
