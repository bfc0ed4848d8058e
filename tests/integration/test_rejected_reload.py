"""A configuration that was rejected at a reload is visible until one is accepted."""

from __future__ import annotations

import json
import signal
import socket
import urllib.request
from typing import TYPE_CHECKING

import pytest
from support.waiting import DEADLINE
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Iterator


def get(port: int, path: str) -> tuple[int, str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=DEADLINE) as answer:
        return answer.status, answer.read().decode()


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        world.publish(a=secret("0"))
        world.map("a")
        yield world


def test_a_rejected_reload_is_visible_everywhere(world: World) -> None:
    """In status and its exit code, in /readyz as a warning, and as a metric; then it is over."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    api = {"socket": f"{world.directory}/s", "listen": f"127.0.0.1:{port}"}
    world.configure(api=api)
    status = ("status", "--socket", api["socket"])
    with world.daemon() as daemon:
        assert world.run(*status).returncode == 0
        assert json.loads(get(port, "/readyz")[1]) == {"ready": True, "reasons": []}
        assert "syncd_config_reload_ok 1.0" in get(port, "/metrics")[1]

        world.configure(api=api, consumers=[{"name": "hook", "kind": "webhok"}])
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("daemon.reload_rejected")
        shown = world.run(*status)
        assert shown.returncode == 1
        assert "the last reload was rejected: " in shown.stdout
        assert "did you mean webhook?" in shown.stdout
        code, body = get(port, "/readyz")
        assert (code, json.loads(body)["ready"]) == (200, True)
        assert "reload was rejected" in json.loads(body)["warnings"][0]
        assert "webhok" not in body
        assert "syncd_config_reload_ok 0.0" in get(port, "/metrics")[1]

        world.configure(api=api)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("daemon.reloaded")
        daemon.wait_for("daemon.ready", 2)
        assert world.run(*status).returncode == 0
        assert "syncd_config_reload_ok 1.0" in get(port, "/metrics")[1]
