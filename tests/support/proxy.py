"""A real HTTP proxy for tests: it tunnels, or refuses to.

with Proxy() as proxy:
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    ...
    assert proxy.requests == ["CONNECT 127.0.0.1:8200 HTTP/1.1"]
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class Proxy:
    """Tunnels to where it is asked to, or answers each request itself.

    Args:
        answer: Status line and headers of its own answer; None to tunnel, empty to close.
    """

    def __init__(self, answer: str | None = None) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = f"http://{self.host}"
        self.requests: list[str] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            head = b""
            while b"\r\n\r\n" not in head:
                chunk = client.recv(1 << 16)
                if not chunk:
                    return
                head += chunk
            line = head.split(b"\r\n", 1)[0].decode()
            self.requests.append(line)
            if self._answer is not None:
                if self._answer:
                    body = b"<html>CANARY</html>"
                    lines = [
                        f"HTTP/1.1 {self._answer}",
                        "connection: close",  # or the next request comes on this one, and is lost
                        f"content-length: {len(body)}",
                    ]
                    client.sendall("\r\n".join([*lines, "", ""]).encode() + body)
                return
            host, _, port = line.split()[1].rpartition(":")
            with socket.create_connection((host, int(port))) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
                back.start()
                _pass_on(client, server)
                back.join()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(1 << 16):
            sink.sendall(chunk)
        sink.shutdown(socket.SHUT_WR)
