"""Notifications to systemd (sd_notify(3)), without libsystemd.

Messages go to the datagram socket that `$NOTIFY_SOCKET` names: a path or, with a leading `@`, a
name in the abstract namespace. They are best effort, as with libsystemd: without systemd nothing
happens, and a socket that is absent or full is ignored.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import anyio

from syncd.core.text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping


class Notifier:
    """Notifies systemd of the service's state."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._status = ""
        self._interval = _watchdog_interval(environ) if address else None
        self._socket = None
        if address.startswith(("@", "/")):
            self._socket = socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            )

    def ready(self) -> None:
        """Reports the end of the start or of a reload."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Reports the beginning of a reload; `ready` must follow, even if the reload fails.

        `Type=notify-reload` matches it to its signal by the monotonic clock, in microseconds.
        """
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now}")

    def stopping(self) -> None:
        """Reports the beginning of the shutdown."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Sets the line in `systemctl status`; sent if it has changed."""
        if text != self._status:
            self._status = text
            # a line end would begin another assignment
            self._send(f"STATUS={visible(text)}")

    async def keep_watchdog(self) -> None:
        """Sends `WATCHDOG=1` at half of the watchdog's interval, if there is one, until cancelled.

        Runs in the event loop on purpose: when the loop hangs, systemd restarts the service.
        """
        while self._interval is not None:
            self._send("WATCHDOG=1")
            await anyio.sleep(self._interval / 2)

    def close(self) -> None:
        """Closes the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError:
            return


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """`$WATCHDOG_USEC` in seconds, if it is for this process (`$WATCHDOG_PID`)."""
    text = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = int(text) if text.isascii() and text.isdigit() else 0
    return microseconds / 1e6 or None
