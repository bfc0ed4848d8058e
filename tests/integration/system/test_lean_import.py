"""What a process that runs the daemon does not load."""

from __future__ import annotations

import subprocess
import sys

from support.waiting import DEADLINE

SIDECAR = """
import sys
import syncd.telemetry.metrics as metrics
import syncd.daemon.daemon, syncd.daemon.engine
import syncd.consumers.webhook, syncd.consumers.aidbox.consumer
unwanted = {"http.server", "wsgiref.simple_server"}
unwanted |= {"httpx2", "httpcore2", "importlib.metadata"}
unwanted |= {"syncd.provision.factory", "syncd.provision.plan"}
print(sorted(unwanted & sys.modules.keys()))
import http.server, wsgiref.simple_server
assert issubclass(wsgiref.simple_server.WSGIServer, http.server.HTTPServer)
print(b"syncd_build_info" in metrics.Metrics().exposition("")[0])
"""


def run(program: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_sidecar_loads_no_servers_no_provisioning_and_no_second_client() -> None:
    """Programs that import them get the real ones, while metrics work."""
    assert run(SIDECAR) == ["[]", "True"]
