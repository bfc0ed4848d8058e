"""Errors of one connection to NATS, as syncd's.

Texts of nats-py's errors are the server's and may hold anything, so each becomes one of syncd's by
its class, by a number of JetStream's API, or by a known phrase that it contains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import nats.errors
import nats.js.errors

from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.net.reasons import CHECK_SERVER, reason_of

if TYPE_CHECKING:
    from collections.abc import Sequence

_AUTH_PHRASES: Final = ("authorization violation", "authentication", "user not found", "revoked")
_LIMIT_PHRASES: Final = ("maximum connections exceeded", "maximum account active connections")

# err_code of JetStream's API (nats-server, server/errors.json)
_STORE_FAILED: Final = 10077
_NO_CONSUMER: Final = 10014
_NO_STREAM: Final = 10059
_MESSAGE_TOO_LARGE: Final = 10054
_NOT_ENABLED: Final = frozenset((10035, 10039, 10076))

_ELECT: Final = "wait if one is being elected, or restore the servers and the network between them"

_NO_ROOM: Final = ("JetStream has no room or no quorum", "add storage or start servers")
_API_PROBLEMS: Final = {
    10002: _NO_ROOM,
    10008: ("JetStream has no leader", _ELECT),
    10023: _NO_ROOM,
    10028: _NO_ROOM,
    10047: _NO_ROOM,
}
_PROBLEMS: Final = {
    nats.errors.UnexpectedEOF: "the connection was lost",
    nats.errors.StaleConnectionError: "pings are not answered",
    nats.errors.ConnectionClosedError: "the connection was lost",
}


class NatsErrors:
    """Makes the errors of one connection.

    Args:
        address: Hosts and ports of its servers.
        credential_files: Paths of the files that hold its credentials.
    """

    def __init__(self, address: str, credential_files: Sequence[str]) -> None:
        self._address = address
        self._credential_files = credential_files

    def temporary(self, problem: str, remedy: str = CHECK_SERVER) -> TemporaryError:
        """An error that trying again may resolve."""
        return TemporaryError(f"cannot use NATS at {self._address}: {problem}", remedy)

    def refused(self, problem: str, remedy: str) -> RefusedError:
        """An error that only a person can resolve."""
        return RefusedError(f"cannot use NATS at {self._address}: {problem}", remedy)

    def lost(self) -> TemporaryError:
        """The connection was lost."""
        return self.temporary("the connection was lost")

    def no_stream(self, subject: str) -> TemporaryError:
        """No stream stores a subject."""
        if subject.startswith("$KV."):
            bucket = subject.split(".")[1]
            return self.temporary(
                f"there is no bucket {bucket}",
                "create it, or wait if it is electing a leader",
            )
        return self.temporary(
            f"no stream takes subject {subject}",
            "create one that does, or wait if the stream is electing a leader",
        )

    def no_leader(self, stream: str) -> TemporaryError:
        """No server leads a stream, as far as the one that answers can see."""
        what = f"bucket {stream[3:]}" if stream.startswith("KV_") else f"stream {stream}"
        return self.temporary(f"{what} has no leader", _ELECT)

    def no_consumer(self) -> TemporaryError:
        """The consumer on the server, or what it had to deliver, is gone."""
        problem = "the consumer on the server is gone, or another server has it now"
        return self.temporary(problem, "wait: it is found or made again")

    def of_api(self, status: int, code: int, subject: str) -> SyncdError:
        """An error of JetStream's API.

        Args:
            status: Its `code`, like a status of HTTP.
            code: Its `err_code`.
            subject: What the request was about.
        """
        if code == _STORE_FAILED:
            return self.temporary(
                f"the stream of subject {subject} is full or cannot store",
                "raise its limits or let it discard old messages",
            )
        if code == _NO_STREAM:
            return self.no_stream(subject)
        if code == _NO_CONSUMER:
            return self.no_consumer()
        if code in _NOT_ENABLED:
            return self.refused("JetStream is not enabled", "enable it for this account")
        if code == _MESSAGE_TOO_LARGE:
            return RefusedError(
                f"cannot publish to {subject}: the message is larger than the stream allows",
                "raise its max_msg_size",
            )
        unknown = (f"JetStream answered {status}, error {code}", "see the server's log")
        return self.temporary(*_API_PROBLEMS.get(code, unknown))

    def of_request(self, error: BaseException, subject: str) -> SyncdError:
        """The error for what nats-py or a socket raised during a request about a subject."""
        # nats-py raises one or the other, without a number, for a request that nobody receives
        unheard = isinstance(error, nats.js.errors.ServiceUnavailableError) and not error.err_code
        if unheard or isinstance(error, nats.errors.NoRespondersError):
            return self.temporary(
                "JetStream does not answer, or the consumer on the server is gone",
                "enable JetStream, start its servers, or wait: the consumer is made again",
            )
        if isinstance(error, nats.js.errors.APIError):
            if not error.err_code:  # the status that ends a request for messages has no number
                return self.no_consumer()
            return self.of_api(error.code or 0, error.err_code, subject)
        return self.of_connection(error)

    def of_connection(
        self, error: BaseException, subjects: Sequence[str] = (), *, established: bool = False
    ) -> SyncdError:
        """The error for what nats-py or a socket raised.

        Args:
            error: What was raised, or what the server said.
            subjects: What was published to.
            established: Whether the server had accepted the login. When it ends a login that it
                had accepted, the files may hold a new one: the next connection decides.
        """
        text = _text(error)
        if isinstance(error, nats.errors.AuthorizationError) or any(
            phrase in text for phrase in _AUTH_PHRASES
        ):
            files = " or ".join(self._credential_files)
            remedy = f"replace them in {files}" if files else "configure credentials"
            if established:
                return self.temporary("the credentials are no longer accepted", remedy)
            return self.refused("the credentials are not accepted", remedy)
        return self._refusal(error, text, subjects) or self._outage(error, text)

    def _refusal(
        self, error: BaseException, text: str, subjects: Sequence[str]
    ) -> RefusedError | None:
        if is_of_permission(error):
            own = [subject for subject in subjects if f'"{subject.lower()}"' in text]
            what = "subscribe to _INBOX.>" if "subscription" in text else "publish to its subject"
            what = f"publish to {own[0]}" if own else what
            return self.refused(f"this user may not {what}", "grant this permission")
        if isinstance(error, nats.errors.SecureConnRequiredError):
            return self.refused(
                "the server does not offer TLS",
                "enable TLS there, or use nats:// and no certificates",
            )
        return None

    def _outage(self, error: BaseException, text: str) -> TemporaryError:
        if any(phrase in text for phrase in _LIMIT_PHRASES):
            return self.temporary(
                "the server has too many connections", "raise max_connections there"
            )
        for kind, problem in _PROBLEMS.items():
            if isinstance(error, kind):
                return self.temporary(problem)
        reason = reason_of(error, address="urls")
        if not reason.is_known:
            return self.temporary(f"the connection failed ({type(error).__name__})")
        return self.temporary(reason.problem, reason.remedy)


def server_error(said: str) -> nats.errors.Error:
    """nats-py's error for the reason that a server gives (`-ERR`), as the library makes it.

    The reasons: https://docs.nats.io/reference/reference-protocols/nats-protocol#err
    """
    if "authorization violation" in said.lower():
        return nats.errors.AuthorizationError()
    if "stale connection" in said.lower():
        return nats.errors.StaleConnectionError()
    return nats.errors.Error(f"nats: {said}")


def is_of_permission(error: BaseException) -> bool:
    """Whether it is about one subject; the connection goes on."""
    return "permissions violation" in _text(error)


def _text(error: BaseException) -> str:
    return str(error).lower() if isinstance(error, nats.errors.Error) else ""
