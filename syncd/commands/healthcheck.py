"""`python -m syncd.commands.healthcheck`: whether the daemon here answers, for HEALTHCHECK.

It asks `/healthz` on the port of `$SYNCD_LISTEN`, which the image sets, from inside: an address
that means all of the machine's is asked on loopback. Exit code 0 is healthy, 1 is not.
"""

from __future__ import annotations

import http.client
import os
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT: Final = 4.0
"""Seconds; less than what the image gives the whole check."""

_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - asked about, not bound


def problem(environ: Mapping[str, str] = os.environ) -> str | None:
    """What is wrong, one line, or None when the daemon answers.

    Args:
        environ: The environment.
    """
    listen = environ.get("SYNCD_LISTEN", "")
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal():
        return "cannot ask the daemon: set SYNCD_LISTEN to its host:port"
    connection = http.client.HTTPConnection(_LOOPBACK.get(host, host), int(port), timeout=TIMEOUT)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"cannot ask the daemon at {listen}: {type(error).__name__}; see its log"
    finally:
        connection.close()
    return None if status == http.client.OK else f"the daemon at {listen} answers {status}"


if __name__ == "__main__":
    sys.exit(problem())  # a string goes to standard error and means 1
