"""Why a connection failed, in syncd's words, and how long a server asked to wait.

The exceptions of HTTP clients, SDKs and nats-py wrap each other in many ways, and their texts can
hold what was sent or received. So an exception and its causes are only searched for a cause that
is known here: its class and error number become the reason, its text is dropped.

This module imports no client, nor ssl: a sidecar that fetches nothing must not pay for one.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from syncd.system import errnos

if TYPE_CHECKING:
    import ssl

CHECK_SERVER: Final = "check that the server is up and reachable"
CHECK_AIDBOX: Final = (
    "check that Aidbox is up and reachable at this port: BOX_WEB_PORT, 8080 by default and 8888 in "
    "the vendor's Helm guide"
)
"""The same for Aidbox."""
"""The remedy where nothing better is known."""

# X509_V_ERR_* of OpenSSL's x509_vfy.h
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_UNTRUSTED: Final = {
    2: "is signed by a CA that is not trusted",
    18: "is self-signed and not trusted",
    19: "is signed by a CA that is not trusted",
    20: "is signed by a CA that is not trusted",
    21: "is signed by a CA that is not trusted",
}
_PLAIN_ANSWERS: Final = frozenset(
    ("HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "WRONG_VERSION_NUMBER")
)
"""What OpenSSL calls an answer that is not TLS at all, such as `HTTP/1.1 400`; it depends on the
version. A server whose version of TLS is too old or too new has other names."""
_OF_NAME: Final = (socket.gaierror, UnicodeError)
"""The second for a label that is empty or too long (encodings.idna); no resolver is asked."""
_FOR_OTHER_NAME: Final = {62: "is for another host name", 64: "is for another IP address"}


class Reason(msgspec.Struct, frozen=True):
    """Why a connection failed.

    Attributes:
        problem: What went wrong, as a clause such as `Connection refused`.
        remedy: What a person can do about it.
        is_certificate: Whether the server was reached and its certificate is not accepted.
        is_known: Whether a cause was found; without one the connection was most often closed.
    """

    problem: str
    remedy: str
    is_certificate: bool = False
    is_known: bool = True

    @property
    def is_specific(self) -> bool:
        """Whether the remedy is for this cause, and not the general one."""
        return self.remedy != CHECK_SERVER


def reason_of(
    error: BaseException,
    *,
    address: str,
    ca: str = "ca_file",
    server_name: str | None = None,
    timeouts: tuple[type[BaseException], ...] = (),
) -> Reason:
    """Why a connection failed.

    Args:
        error: What a client raised.
        address: The option that holds the server's address, for remedies.
        ca: The option that names CAs to trust.
        server_name: The option that names the server in its certificate, where there is one.
        timeouts: Exceptions of the client that stand for a time limit, besides `TimeoutError`.
    """
    found = causes(error)
    tls = sys.modules.get("ssl")  # where it is not loaded, nothing can have failed in it
    for cause in found:
        if tls is not None and isinstance(cause, tls.SSLCertVerificationError):
            return _certificate_reason(cause, ca, address, server_name)
        if tls is not None and isinstance(cause, tls.SSLError):
            return _tls_reason(cause, address)
        if isinstance(cause, _OF_NAME) and not isinstance(cause, UnicodeDecodeError):
            return _resolver_reason(cause, address)
        if isinstance(cause, OSError) and cause.errno:
            return Reason(os.strerror(cause.errno), _socket_remedy(cause))
    if any(isinstance(cause, (TimeoutError, *timeouts)) for cause in found):
        return Reason("no answer in time", CHECK_SERVER)
    unknown = "the connection ended without a complete answer"
    return Reason(unknown, CHECK_SERVER, is_known=False)


def _tls_reason(error: ssl.SSLError, address: str) -> Reason:
    """Why TLS failed, but for the server's certificate."""
    # a constant of OpenSSL's, such as WRONG_VERSION_NUMBER; absent at an unexpected end
    constant = getattr(error, "reason", None) or "unexpected end"
    if constant in _PLAIN_ANSWERS:
        remedy = f"write http:// in {address}, or enable TLS on the server"
        return Reason("the server answers without TLS", remedy)
    detail = constant.lower().replace("_", " ")
    remedy = f"check that {address} is a TLS address and that both sides share a version"
    if "alert" in detail and ("certificate" in detail or "unknown ca" in detail):
        remedy = "configure a client certificate that the server accepts"
    return Reason(f"TLS failed: {detail}", remedy)


def _resolver_reason(error: socket.gaierror | UnicodeError, address: str) -> Reason:
    """Why a host name was not resolved (getaddrinfo(3))."""
    number = getattr(error, "errno", socket.EAI_NONAME)
    if number in (socket.EAI_SYSTEM, socket.EAI_MEMORY):
        problem = "the resolver lacks memory or descriptors"
        return Reason(problem, "free memory, or raise syncd's limits of memory and open files")
    if number in (socket.EAI_AGAIN, socket.EAI_FAIL):
        return Reason("the DNS does not answer", "check the DNS")
    return Reason("the host name cannot be resolved", f"correct {address} or the DNS")


def _socket_remedy(error: OSError) -> str:
    """What to do about an error of socket(2) or connect(2)."""
    if error.errno == errno.ENOENT:  # of a Unix socket
        return "start the server, or correct socket"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "let syncd's user connect there"
    if error.errno == errno.EADDRNOTAVAIL:
        return "check that the address is reachable from here and that local ports are free"
    if error.errno in errnos.SHORT:
        return errnos.remedy(error, path=CHECK_SERVER, access=CHECK_SERVER)
    return CHECK_SERVER


def _certificate_reason(
    error: ssl.SSLCertVerificationError, ca: str, address: str, server_name: str | None
) -> Reason:
    code, remedy = error.verify_code, "replace the certificate"
    if code in _UNTRUSTED:
        problem, remedy = _UNTRUSTED[code], f"set {ca} to its CA"
    elif code in _FOR_OTHER_NAME:
        problem, remedy = _FOR_OTHER_NAME[code], f"correct {address}, or {remedy}"
        if server_name is not None:
            remedy = (
                f"correct {address}, set {server_name} to the certificate's name, or replace the"
                " certificate"
            )
    elif code == _EXPIRED:
        problem, remedy = "has expired", "renew the certificate"
    elif code == _NOT_YET_VALID:
        problem, remedy = "is not valid yet", "set this machine's clock, or replace the certificate"
    else:
        problem = f"is not valid: {error.verify_message}"
    return Reason(f"the certificate {problem}", remedy, is_certificate=True)


def causes(error: BaseException) -> list[BaseException]:
    """The exception and what it wraps, outermost first.

    requests and urllib3 wrap in `args` and `reason`, azure-core in `inner_exception`, anyio in
    groups: one exception for each address of a host, of which the last is tried last.
    """
    found: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        cause = waiting.pop(0)
        if not isinstance(cause, BaseException) or cause in found:
            continue
        found.append(cause)
        if isinstance(cause, BaseExceptionGroup):
            waiting += reversed(cause.exceptions)
        waiting += [cause.__cause__, cause.__context__, *cause.args]
        waiting += [getattr(cause, name, None) for name in ("reason", "inner_exception")]
    return found


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait, from `Retry-After` (RFC 9110, section 10.2.3: seconds or a date).

    Args:
        value: The header's value.
        now: Seconds since the epoch.

    Returns:
        At least 0, or None for a missing or malformed value.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:15])
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - half a MiB, seldom used

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError):
        return None
