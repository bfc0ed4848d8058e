"""What a sidecar does not load."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import sys
import syncd.telemetry.metrics as metrics
import syncd.daemon.daemon, syncd.daemon.engine
unwanted = {"http.server", "wsgiref.simple_server"}
unwanted |= {"syncd.provision.factory", "syncd.provision.plan"}
print(sorted(unwanted & sys.modules.keys()))
import http.server, wsgiref.simple_server
assert issubclass(wsgiref.simple_server.WSGIServer, http.server.HTTPServer)
print(b"syncd_build_info" in metrics.Metrics().exposition("")[0])
"""


def test_a_sidecar_loads_no_servers_and_no_provisioning() -> None:
    """And whoever wants them gets the real ones, while metrics work."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == ["[]", "True"], done.stderr
