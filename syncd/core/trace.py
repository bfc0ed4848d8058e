"""Headers by which the logs of other systems lead to an event of syncd, and to each other.

Aidbox carries `X-Correlation-Id` and `traceparent` (https://www.w3.org/TR/trace-context/) into its
logs and its audit; receivers of webhooks can do the same.
"""

from __future__ import annotations

import hashlib
from random import Random

CORRELATION = "x-correlation-id"
TRACE = "traceparent"
_RNG = Random()  # noqa: S311 - an identifier is no secret, and the system's generator takes 20 µs


def trace_headers(event_id: str) -> dict[str, str]:
    """The headers of one request about an event.

    All requests about an event have one trace; each is a span of its own.
    """
    trace = hashlib.blake2b(event_id.encode(), digest_size=16).hexdigest()
    return {CORRELATION: event_id, TRACE: f"00-{trace}-{_RNG.getrandbits(64) or 1:016x}-01"}
