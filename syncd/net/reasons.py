"""Why a vault could not be reached, in words of ours.

The exceptions of requests, urllib3 and the SDKs wrap each other in many ways, and their texts can
hold what was sent or received. So they are only searched for a cause that is known here.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import Final

import requests
import urllib3

from syncd.core.errors import RefusedError, TemporaryError

_CERTIFICATE_PROBLEMS: Final = {
    10: "has expired",
    18: "is self-signed and not trusted",
    19: "is signed by a CA that is not trusted",
    20: "is signed by a CA that is not trusted",
    21: "is signed by a CA that is not trusted",
    62: "is for another host name",
    64: "is for another IP address",
}
_TIMEOUTS: Final = (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
_BAD_ADDRESS: Final = (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)


def explain(
    error: BaseException, *, what: str, server: str, trust_remedy: str, address_remedy: str
) -> TemporaryError | RefusedError:
    """The error to raise for what went wrong on the way to a server.

    Args:
        error: What requests, urllib3, the socket or an SDK raised.
        what: What the request was for, as it shall stand in a message: `read client-secret`.
        server: Its address.
        trust_remedy: What to do about a certificate that is not valid.
        address_remedy: What to do about an address that is none.
    """
    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            problem = _CERTIFICATE_PROBLEMS.get(cause.verify_code, "is not valid")
            message = f"cannot {what}: the certificate of {server} {problem}; {trust_remedy}"
            return RefusedError(message)
        said = _said(cause)
        if said is not None:
            return unavailable(what, server, said)
    if any(isinstance(cause, _BAD_ADDRESS) for cause in causes):
        return RefusedError(f"cannot {what}: {server} is not a usable address; {address_remedy}")
    late = any(isinstance(cause, _TIMEOUTS) for cause in causes)
    return unavailable(what, server, "does not answer in time" if late else "broke off the answer")


def _said(cause: BaseException) -> str | None:
    if isinstance(cause, ssl.SSLError):
        return "does not speak TLS with us as configured"
    if isinstance(cause, socket.gaierror):
        return "has a name that is not known"
    if isinstance(cause, OSError) and cause.errno:
        return f"cannot be reached ({os.strerror(cause.errno)})"
    return None


def unavailable(what: str, server: str, said: str) -> TemporaryError:
    """A server that did not do its part; arguments as for `explain`."""
    return TemporaryError(
        f"cannot {what}: the server at {server} {said}; check that it is up and reachable"
    )


def gone(what: str, server: str) -> TemporaryError:
    """A request that syncd itself broke off; arguments as for `explain`."""
    return TemporaryError(
        f"cannot {what}: {server} did not answer before syncd had to stop waiting;"
        " check that it is up and reachable"
    )


def _causes(error: BaseException) -> list[BaseException]:
    """The exception and what it wraps, outermost first.

    requests and urllib3 wrap in `args` and `reason`, azure-core in `inner_exception`.
    """
    found: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        cause = waiting.pop(0)
        if not isinstance(cause, BaseException) or cause in found:
            continue
        found.append(cause)
        waiting += [cause.__cause__, cause.__context__, *cause.args]
        waiting += [getattr(cause, name, None) for name in ("reason", "inner_exception")]
    return found
