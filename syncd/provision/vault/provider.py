"""The provider for Vault and OpenBao: a manifest's objects, read in one pass.

The first error ends the pass, so that a payload is always the whole set. Objects with the same
method, path, query and arguments share one response per pass, so that a dynamic user and its
password match. Leased responses are reused (`syncd.provision.vault.lease`), all others are read
again in each pass.

Reads are made in parallel, over a few connections. Writes follow when all reads have succeeded, one
after the other: a pass that fails at a read should not have issued a certificate.

When the server limits requests (429), the next pass continues where this one ended: with a quota
that is smaller than a pass, the first objects would otherwise use it up each time.
"""

from __future__ import annotations

import math
import threading
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.payload import Payload
from syncd.net.requests_session import CONNECTIONS
from syncd.provision.vault.auth import Login
from syncd.provision.vault.dry_run import examine
from syncd.provision.vault.http import Connection, ThrottledError
from syncd.provision.vault.lease import Leases, Request
from syncd.provision.vault.objects import READS
from syncd.provision.vault.refusal import refuse, refuse_write
from syncd.provision.vault.response import to_file
from syncd.system.threads import spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from syncd.config.auth import VaultAuth
    from syncd.core.payload import File
    from syncd.net.tls import Trust
    from syncd.provision.dry_run import Examined
    from syncd.provision.vault.http import Answer
    from syncd.provision.vault.objects import VaultClass, VaultObject
    from syncd.provision.vault.response import Response

    _Wanted = Mapping[Request, VaultObject]

LONGEST_DETOUR = 600.0
"""Seconds for which a pass reuses what earlier passes read before they were throttled."""


class _TokenLostError(Exception):
    """The token expired during a pass, and its leases with it: start the pass again."""

    def __init__(self, another: str) -> None:
        super().__init__()
        self.another = another


class _AnswerError(Exception):
    """An answer that is no success: no further read begins."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


class VaultProvider:
    """Fetches the objects of one manifest from one server.

    Args:
        name: Its name in status, metrics and log.
        vault: The manifest.
        auth: The login.
        address: URL of the server.
        trust: The configuration of TLS.
        clock: Monotonic clock, seconds.
    """

    def __init__(
        self,
        name: str,
        vault: VaultClass,
        auth: VaultAuth,
        *,
        address: str,
        trust: Trust,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._vault = vault
        self._clock = clock
        self._connection = Connection(address, vault.namespace, trust)
        self._login = Login(auth, vault, self._connection, clock=clock)
        self._leases = Leases(self._connection, clock)
        self._logins = 0
        self._without_result: dict[Request, int] = {}
        self._read: dict[Request, Response] = {}
        self._began = 0.0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"VaultProvider({self.name!r}, {self._connection.address!r})"

    def fetch(self) -> Payload:
        """Reads every object; see `syncd.provision.refresh.Provider`."""
        with self._lock:
            now = self._clock()
            if not self._read or now - self._began > LONGEST_DETOUR:
                self._read, self._began = {}, now
            throttled = False
            try:
                token = self._login.token()
                try:
                    files = self._pass(token)
                except _TokenLostError as lost:
                    self._read = {}
                    files = self._pass(lost.another)
            except ThrottledError:
                throttled = True
                raise
            finally:
                # only a throttled pass is continued; any other one reads everything again
                if not throttled:
                    self._read = {}
            due = min(self._login.due, self._leases.due) - self._clock()
            return Payload(files, None if math.isinf(due) else due)

    def examine(self) -> Iterator[Examined]:
        """A dry run; see `syncd.provision.dry_run.Examiner`."""
        token = self._login.token()
        try:
            for wanted in self._vault.objects:
                yield examine(self._connection, self._login, wanted, token)
        finally:
            self._login.revoke()

    def interrupt(self) -> None:
        """Ends the fetch under way; see `syncd.provision.refresh.Provider`."""
        self._connection.interrupt()

    def resume(self) -> None:
        """Allows fetches again; see `syncd.provision.refresh.Provider`."""
        self._connection.resume()

    def close(self) -> None:
        """Closes connections and forgets leases; see `syncd.provision.refresh.Provider`."""
        self._connection.close()
        self._leases.forget()

    def _pass(self, token: str) -> tuple[File, ...]:
        # leases are revoked with the token that they were created with
        if self._login.logins != self._logins:
            self._leases.forget()
            self._logins = self._login.logins
        missing: dict[Request, VaultObject] = {}
        for wanted in self._vault.objects:
            if wanted.request in self._without_result:
                refuse_write(wanted, self._without_result[wanted.request])
            if wanted.request in self._read or wanted.request in missing:
                continue
            response = self._leases.reuse(wanted, token)
            if response is None:
                missing[wanted.request] = wanted
            else:
                self._read[wanted.request] = response
        reads = {at: wanted for at, wanted in missing.items() if wanted.method in READS}
        self._read_all(reads, token)
        for at, wanted in missing.items():
            if at not in reads:
                self._accept(wanted, self._request(wanted, token), token)
        return tuple(to_file(self._read[item.request], item) for item in self._vault.objects)

    def _read_all(self, reads: _Wanted, token: str) -> None:
        """Reads in parallel. What was read before one of them failed is kept where it is leased."""

        def read(wanted: VaultObject) -> Answer:
            answer = self._request(wanted, token)
            if not answer.is_success:
                raise _AnswerError(answer)
            return answer

        failures: list[Exception] = []
        results = spread(read, reads.values(), CONNECTIONS)
        for wanted, result in zip(reads.values(), results, strict=True):
            try:
                answer = result.answer if isinstance(result, _AnswerError) else result
                if isinstance(answer, Exception):
                    failures.append(answer)
                elif answer is not None:  # else it did not begin
                    self._accept(wanted, answer, token)
            except (TemporaryError, RefusedError) as error:
                failures.append(error)
        if failures:
            # a quota is not what is wrong with an object that the server refuses
            failures.sort(key=lambda error: isinstance(error, ThrottledError))
            raise failures[0]

    def _request(self, wanted: VaultObject, token: str) -> Answer:
        return self._connection.request(
            wanted.method,
            wanted.secret_path,
            f"read {wanted.path}",
            query=wanted.query,
            body=wanted.arguments,
            token=token,
        )

    def _accept(self, wanted: VaultObject, answer: Answer, token: str) -> None:
        """Takes the response to an object's request, or raises what is wrong with it."""
        if answer.status == HTTPStatus.FORBIDDEN:  # the token expired, or the policy denies
            another = self._login.recover()
            if another is not None:
                raise _TokenLostError(another)
        is_write = wanted.method not in READS
        if not answer.is_success or (answer.status == HTTPStatus.NO_CONTENT and not is_write):
            refuse(self._connection, wanted, answer, token)
        response = None
        if answer.status != HTTPStatus.NO_CONTENT:
            where = f"{wanted.method} {wanted.secret_path}"
            response = self._connection.parse(answer, f"read {wanted.path} ({where})")
        if response is None or (is_write and response.content is None):
            self._without_result[wanted.request] = answer.status
            refuse_write(wanted, answer.status)
        self._leases.keep(wanted, response)
        self._read[wanted.request] = response
