"""The client of the daemon's socket: why it cannot be reached, and what to do about it."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from syncd.commands.client import Client, UnreachableError

if TYPE_CHECKING:
    from pathlib import Path


def test_no_socket(tmp_path: Path) -> None:
    """The daemon runs without a socket, or elsewhere: both remedies are named."""
    with (
        Client(str(tmp_path / "absent")) as client,
        pytest.raises(UnreachableError, match="No such file") as raised,
    ):
        client.get("/v1/status", dict)
    assert raised.value.remedy is not None
    assert all(name in raised.value.remedy for name in ("api.socket", "--socket", "$SYNCD_SOCKET"))


def test_a_daemon_that_has_ended(tmp_path: Path) -> None:
    """The path is right, so the remedy does not question it."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(path)
    with Client(path) as client, pytest.raises(UnreachableError, match="refused") as raised:
        client.get("/v1/status", dict)
    assert raised.value.remedy == "start it"


def test_a_socket_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the permission to connect, the group of the socket is what counts."""
    path = str(tmp_path / "s")

    class Refused(socket.socket):
        def connect(self, address: object) -> None:
            raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(socket, "socket", Refused)
    with Client(path) as client, pytest.raises(UnreachableError, match="denied") as raised:
        client.get("/v1/status", dict)
    assert raised.value.remedy is not None
    assert "api.socket_group" in raised.value.remedy


def test_a_queue_that_is_full(tmp_path: Path) -> None:
    """`connect` fails at once where the queue of the socket is full: it is tried again."""
    path = str(tmp_path / "s")

    queue: list[socket.socket] = []

    def serve(listening: socket.socket) -> None:
        answered = False
        while not answered:
            connection, _ = listening.accept()
            with connection:
                answered = connection.recv(4096).startswith(b"GET")
                if answered:
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(8)
        with suppress(BlockingIOError):
            while True:
                queue.append(socket.socket(socket.AF_UNIX))
                queue[-1].setblocking(False)
                queue[-1].connect(path)
        for waiting in queue:
            waiting.close()
        serving = threading.Timer(0.05, serve, [listening])
        serving.start()
        with Client(path) as client:
            assert client.get("/v1/status", dict) == {}
        serving.join()
