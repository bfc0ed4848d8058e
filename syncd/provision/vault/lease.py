"""Dynamic secrets: reused while their lease lasts and renewed, instead of created in every pass.

Dynamic are (measured on OpenBao 2.7, see docs/provisioning-vault.md):

- a response with a `lease_id`: reused for two thirds of `lease_duration`, then renewed or, where
  the renewal fails or has reached the maximum, read again;
- the response to a write that holds a certificate (PKI `issue` and `sign` have no lease unless the
  role asks for one): reused for two thirds of the time until its `notAfter`;
- the response to a write with a `lease_duration` and no `lease_id`: for two thirds of it.

KV v1 answers reads with a `lease_duration` that is only a hint (the mount's default, 32 days): it
has no `lease_id` and is read in every pass.
"""

from __future__ import annotations

import json
import math
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec

from syncd.core.timing import Lifetime
from syncd.provision.vault.response import Response, ResponseError, parse_response

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncd.provision.vault.http import Connection
    from syncd.provision.vault.objects import VaultObject

Request = tuple[str, str, str, str | None]


class _Lease(msgspec.Struct):
    response: Response
    lifetime: Lifetime


class Leases:
    """The dynamic secrets in use, by the request that created them.

    Args:
        connection: For renewals.
        clock: Monotonic clock, seconds.
    """

    def __init__(self, connection: Connection, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._clock = clock
        self._leases: dict[Request, _Lease] = {}

    @property
    def due(self) -> float:
        """When the first of them is to be renewed or replaced, on `clock`."""
        return min((lease.lifetime.due for lease in self._leases.values()), default=math.inf)

    def reuse(self, wanted: VaultObject, token: str) -> Response | None:
        """Returns the response to reuse, renewed when due; None if it has to be read.

        Raises:
            TemporaryError: The server cannot be reached for the renewal.
        """
        lease = self._leases.get(wanted.request)
        if lease is None:
            return None
        now = self._clock()
        if now < lease.lifetime.due:
            return lease.response
        if lease.lifetime.renewable and now < lease.lifetime.end:
            renewed = self._renew(wanted, lease, token)
            if renewed is not None:
                lease.lifetime = renewed
                return lease.response
        del self._leases[wanted.request]
        return None

    def keep(self, wanted: VaultObject, response: Response) -> None:
        """Keeps a response that was read, if it is to be reused."""
        seconds = self._lasting(wanted, response)
        if seconds > 0:
            renewable = bool(response.text("lease_id")) and response.flag("renewable")
            lifetime = Lifetime.granted(self._clock(), seconds, renewable=renewable)
            self._leases[wanted.request] = _Lease(response, lifetime)

    def forget(self) -> None:
        """Drops all leases: each ends with the token that it was created with."""
        self._leases.clear()

    def _lasting(self, wanted: VaultObject, response: Response) -> float:
        seconds = response.seconds("lease_duration")
        if response.text("lease_id"):
            return seconds
        if wanted.method in ("GET", "LIST", "HEAD"):
            return 0.0
        if seconds > 0:
            return seconds
        certificate = response.text("data", "certificate")
        return _not_after(certificate) - time.time() if certificate else 0.0

    def _renew(self, wanted: VaultObject, lease: _Lease, token: str) -> Lifetime | None:
        answer = self._connection.request(
            "PUT",
            "sys/leases/renew",
            f"renew the lease of {wanted.path}",
            body=json.dumps({"lease_id": lease.response.text("lease_id")}),
            token=token,
        )
        if answer.status != HTTPStatus.OK:
            return None
        try:
            renewed = parse_response(answer.body)
        except ResponseError:
            return None
        seconds = renewed.seconds("lease_duration")
        if seconds <= 0:
            return None
        renewable = renewed.flag("renewable")
        return lease.lifetime.renewed(self._clock(), seconds, renewable=renewable)


def _not_after(certificate: str) -> float:
    """When a PEM certificate expires, seconds since the epoch; 0 for anything else."""
    from cryptography import x509  # noqa: PLC0415 - 8 MiB that only PKI needs

    try:
        return x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc.timestamp()
    except ValueError:
        return 0.0
