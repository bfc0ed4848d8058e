"""`python -m syncd.commands.healthcheck`: queries the daemon in this container, for HEALTHCHECK.

It requests `/healthz` at `$SYNCD_LISTEN`, which the image sets; a wildcard address is queried on
loopback. Exit code 0 is healthy, 1 is not.
"""

from __future__ import annotations

import http.client
import os
import sys
from typing import TYPE_CHECKING, Final

from syncd.core.address import parse_host_port

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT: Final = 4.0
"""Seconds; less than the image's timeout for the whole check."""

_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - connected to, not bound


def problem(environ: Mapping[str, str] = os.environ) -> str | None:
    """Why the daemon is not healthy, one line, or None."""
    listen = environ.get("SYNCD_LISTEN", "")
    address = parse_host_port(listen)
    if address is None:
        return "cannot reach the daemon: set SYNCD_LISTEN to its host:port"
    host, port = address
    connection = http.client.HTTPConnection(_LOOPBACK.get(host, host), port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"cannot reach the daemon at {listen}: {type(error).__name__}; see its log"
    finally:
        connection.close()
    return None if status == http.client.OK else f"the daemon at {listen} answers {status}"


if __name__ == "__main__":
    sys.exit(problem())  # a string goes to standard error and means 1
