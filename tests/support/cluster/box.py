"""A double of Aidbox for the cluster: what a pod needs to start and to be probed.

Of the vendor's documentation it implements: `BOX_WEB_PORT`; `BOX_INIT_BUNDLE`, without whose file
Aidbox refuses to start; `BOX_VAULT_CONFIG`, read once, at the start, whose files must then be
readable; `GET /health`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BORN = time.monotonic()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        uptime = time.monotonic() - BORN
        checks = {"uptime": [{"observedValue": uptime}]}
        content = {"status": "pass", "about": {"version": "2605"}, "checks": checks}
        body = json.dumps(content).encode()
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """No log."""


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    bundle = os.environ.get("BOX_INIT_BUNDLE")
    if bundle is not None and not os.path.exists(bundle.removeprefix("file://")):
        sys.exit(f"the init bundle {bundle} is not there")
    if os.environ.get("BOX_VAULT_CONFIG"):
        with open(os.environ["BOX_VAULT_CONFIG"]) as file:
            entries = json.load(file)["secret"]
        for entry in entries.values():
            with open(entry["path"], "rb") as file:
                file.read()
    port = int(os.environ.get("BOX_WEB_PORT", "8080"))
    ThreadingHTTPServer(("", port), Handler).serve_forever()


main()
