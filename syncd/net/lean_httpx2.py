"""httpx2 as syncd uses it. Import its names from here: the first import must be the lean one."""

from syncd.system.lean_import import import_httpx2

import_httpx2()
from httpx2 import (  # noqa: E402 - see lean_import
    URL,
    AsyncHTTPTransport,
    InvalidURL,
    Limits,
    Request,
    Response,
    TimeoutException,
    TransportError,
)

__all__ = [
    "URL",
    "AsyncHTTPTransport",
    "InvalidURL",
    "Limits",
    "Request",
    "Response",
    "TimeoutException",
    "TransportError",
]
