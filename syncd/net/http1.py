"""HTTP/1.1: a request as bytes, and the usual answer; connections are the part of `syncd.net.pool`.

An event costs little but for its request, and h11 was a third of that. So the usual exchange does
without it: a request whose headers need no correction, and a success that has arrived whole with
headers that say nothing of the connection. Everything else is h11's, which then gets the same
request and the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import h11
import msgspec

from syncd.net.url import Url

# RFC 9110, section 5: names are tokens, values visible ASCII with single spaces between their ends
_PLAIN_NAMES: Final = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]*")
_PLAIN_FIELDS: Final = re.compile(r"(?:[-!#$%&'*+.^_`|~0-9A-Za-z]+: [!-~]+(?: [!-~]+)*\r\n)*")
_PLAIN_TARGET: Final = re.compile(r"[!-~]+")
_OF_CONNECTION: Final = frozenset(
    ("connection", "content-length", "expect", "host", "te", "transfer-encoding", "upgrade")
)
_PLAIN_SUCCESS: Final = re.compile(
    rb"HTTP/1\.1 (2[0-9]{2})(?: [\t -~]*)?\r\n((?:[-!#$%&'*+.^_`|~0-9A-Za-z]+:[\t -~]*\r\n)*)\r\n"
)
_NOT_PLAIN: Final = re.compile(
    rb"^(?:connection|retry-after|trailer|transfer-encoding|upgrade):", re.IGNORECASE | re.MULTILINE
)
_LENGTH: Final = re.compile(rb"^content-length:([^\r]*)\r$", re.IGNORECASE | re.MULTILINE)
_LONGEST_LENGTH: Final = 9
_NO_CONTENT: Final = 204


class Request(msgspec.Struct, frozen=True):
    """What is sent.

    Attributes:
        method: HTTP method.
        url: Where to.
        headers: All but `Host` and `Content-Length`.
        content: The body, or None for a request without one.
        address: IP address to connect to; None for that of the URL's host.
    """

    method: str
    url: Url
    headers: Mapping[str, str]
    content: bytes | None = None
    address: str | None = None

    def encode(self, protocol: h11.Connection) -> bytes:
        """Head and body, to be written at once.

        Raises:
            h11.LocalProtocolError: It is no HTTP, such as a header with a line end.
        """
        headers = [("host", self.url.authority), *self.headers.items()]
        if self.content is not None:
            headers.append(("content-length", str(len(self.content))))
        parts = [
            protocol.send(h11.Request(method=self.method, target=self.url.target, headers=headers)),
            protocol.send(h11.Data(data=self.content)) if self.content else b"",
            protocol.send(h11.EndOfMessage()),
        ]
        return b"".join(part for part in parts if part)

    def encode_plainly(self) -> bytes | None:
        """What `encode` returns, made without h11; None where it is for h11 to judge."""
        fields = "".join([f"{name}: {value}\r\n" for name, value in self.headers.items()])
        plain = (
            _PLAIN_FIELDS.fullmatch(fields)
            and fields.count("\n") == len(self.headers)  # none is two
            and _PLAIN_NAMES.fullmatch("".join(self.headers))
            and _PLAIN_TARGET.fullmatch(self.url.target)
            and _PLAIN_TARGET.fullmatch(self.url.authority)
            and _OF_CONNECTION.isdisjoint(map(str.lower, self.headers))
        )
        if not plain or self.method != "POST" or self.content is None:
            return None
        first = f"POST {self.url.target} HTTP/1.1\r\nhost: {self.url.authority}\r\n"
        head = f"{first}{fields}content-length: {len(self.content)}\r\n\r\n"
        return head.encode("ascii") + self.content


def parse_plain_success(data: bytes) -> tuple[int, bytes] | None:
    """Status and body of an answer to a POST; None for what h11 must judge.

    It is a 2xx that is whole, has no header that concerns the connection or is a request to wait,
    and one length that says where it ends.
    """
    head = _PLAIN_SUCCESS.match(data)
    if head is None or _NOT_PLAIN.search(head[2]):
        return None
    status, end, length = int(head[1]), head.end(), 0
    lengths: list[bytes] = _LENGTH.findall(head[2])
    if lengths:
        only = lengths[0].strip(b" \t")
        if len(lengths) > 1 or not only.isdigit() or len(only) > _LONGEST_LENGTH:
            return None
        length = int(only)
    if bool(lengths) == (status == _NO_CONTENT) or len(data) != end + length:
        return None
    return status, data[end:]
