"""The container's health check."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from syncd.commands.healthcheck import problem


def test_a_daemon_that_answers() -> None:
    """It is asked on loopback, and only 200 is healthy."""
    answers = [200, 503]
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(answers.pop(0))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environ = {"SYNCD_LISTEN": f"0.0.0.0:{server.server_port}"}
        assert problem(environ) is None
        found = problem(environ)
        server.shutdown()
    assert found is not None
    assert found.endswith("answers 503")
    assert asked == ["/healthz"] * 2


def test_no_daemon() -> None:
    """Nobody there is not healthy."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        found = problem({"SYNCD_LISTEN": f"127.0.0.1:{taken.getsockname()[1]}"})
    assert found is not None
    assert "ConnectionRefusedError" in found


@pytest.mark.parametrize("listen", ["", "127.0.0.1", ":9753", "host:port"])
def test_no_address(listen: str) -> None:
    """Without an address there is nothing to ask."""
    found = problem({"SYNCD_LISTEN": listen})
    assert found is not None
    assert "set SYNCD_LISTEN" in found
