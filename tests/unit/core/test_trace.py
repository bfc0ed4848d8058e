"""The headers by which logs are correlated."""

from __future__ import annotations

import re

from syncd.core.trace import trace_headers


def test_one_trace_per_event_and_one_span_per_request() -> None:
    """In the form of https://www.w3.org/TR/trace-context/."""
    first, again, other = map(trace_headers, ("5f0c2a91-42", "5f0c2a91-42", "5f0c2a91-43"))
    assert first["x-correlation-id"] == "5f0c2a91-42"
    ids = [
        re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-01", headers["traceparent"])
        for headers in (first, again, other)
    ]
    traces = [found and found[1] for found in ids]
    assert traces[0] == traces[1] != traces[2]
    assert len({found and found[2] for found in ids}) == 3
