"""A double of Aidbox for the cluster: what a pod needs to start, and which secret it works with.

Of the vendor's documentation it implements: `BOX_WEB_PORT`; `BOX_INIT_BUNDLE`, without whose file
Aidbox refuses to start; `BOX_VAULT_CONFIG`, read once; `GET /health`. `GET /secret` answers with a
hash of the first secret's content.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

BORN = time.monotonic()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    path_of_secret: ClassVar[str] = ""

    def do_GET(self) -> None:
        if self.path == "/health":
            uptime = time.monotonic() - BORN
            checks = {"uptime": [{"observedValue": uptime}]}
            self.answer({"status": "pass", "about": {"version": "2605"}, "checks": checks})
        else:
            with open(self.path_of_secret, "rb") as file:
                self.answer({"secret": sha256(file.read()).hexdigest()})

    def answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
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
        Handler.path_of_secret = next(iter(entries.values()))["path"]
    port = int(os.environ.get("BOX_WEB_PORT", "8080"))
    ThreadingHTTPServer(("", port), Handler).serve_forever()


main()
