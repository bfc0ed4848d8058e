"""Requests and answers as bytes: what is done without h11 is what h11 does."""

from __future__ import annotations

import h11
from hypothesis import example, given, strategies as st

from syncd.net.http1 import Request, parse_plain_success
from syncd.net.url import Url

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

NAMES = st.sampled_from(
    [
        "x-env",
        "authorization",
        "Host",
        "connection",
        "content-length",
        "te",
        "bad name",
        "",
        "x\n",
        "x: y",
    ]
)
VALUES = st.one_of(
    st.sampled_from(["a", "a b", " a", "a ", "a  b", "", "a\tb", "a\r\nx: y", "\xe9", "\u20ac"]),
    st.text(max_size=5),
)


@given(st.dictionaries(NAMES, VALUES, max_size=3), st.binary(max_size=5))
@example({"x-env": "a\r\nx: y"}, b"")
@example({"x: y": "a"}, b"")
def test_what_is_sent_without_h11_is_what_h11_sends(
    headers: dict[str, str], content: bytes
) -> None:
    """To the byte; what h11 refuses or corrects is left to it."""
    sent = Request("POST", Url.parse("http://127.0.0.1/x?y"), headers, content)
    plain = sent.encode_plainly()
    if plain is not None:
        assert plain == sent.encode(h11.Connection(h11.CLIENT))
    elif headers.keys() <= {"x-env", "authorization"} and set(headers.values()) <= {"a", "a b"}:
        raise AssertionError("h11 is asked about a plain request")


LINES = st.sampled_from(
    [
        *(
            b"content-length: 0",
            b"Content-Length:2",
            b"content-length: 2, 2",
            b"content-length: +2",
        ),
        *(b"content-length: 2\t", b"content-length: x", b"transfer-encoding: chunked", b"x: y"),
        *(
            b"connection: close",
            b"Connection: keep-alive",
            b"retry-after: 1",
            b" folded",
            b"x y: z",
        ),
        *(b": a", b"x:\x00", b"x: \xe9", b"upgrade: h2c", b"trailer: x", b"x: content-length: 9"),
    ]
)
STARTS = st.sampled_from(
    [
        *(b"HTTP/1.1 200 OK", b"HTTP/1.1 200 ", b"HTTP/1.1 200", b"HTTP/1.1 204 No Content"),
        *(b"HTTP/1.1 100 Continue", b"HTTP/1.0 200 OK", b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK"),
        *(b"HTTP/1.1 500 Sorry", b"HTTP/2 200 OK", b"HTTP/1.1 205 Reset", b"http/1.1 200 OK"),
    ]
)


@given(
    STARTS, st.lists(LINES, max_size=3), st.sampled_from([b"", b"o", b"ok", b"ok\r\n", b"2\r\n"])
)
def test_a_success_that_is_read_without_h11_is_what_h11_reads(
    start: bytes, lines: list[bytes], rest: bytes
) -> None:
    """Whole, with the same status and body, and over a connection that stays open."""
    data = b"\r\n".join([start, *lines, b"", rest])
    found = parse_plain_success(data)
    if found is None:
        return
    protocol = h11.Connection(h11.CLIENT)
    Request("POST", Url.parse("http://127.0.0.1/x"), {}, b"body").encode(protocol)
    protocol.receive_data(data)
    head, body = protocol.next_event(), b""
    while isinstance(event := protocol.next_event(), h11.Data):
        body += event.data
    assert isinstance(head, h11.Response)
    assert isinstance(event, h11.EndOfMessage)
    assert found == (head.status_code, body)
    assert not [name for name, _ in head.headers if name == b"retry-after"]
    protocol.start_next_cycle()
    assert protocol.trailing_data == (b"", False)


def test_usual_answers_are_read_without_h11() -> None:
    """With a reason or without, a body or none."""
    assert parse_plain_success(OK) == (200, b"ok")
    assert parse_plain_success(b"HTTP/1.1 204 No Content\r\nserver: x\r\n\r\n") == (204, b"")
    assert parse_plain_success(b"HTTP/1.1 202 \r\nContent-Length: 0\r\n\r\n") == (202, b"")
