"""URLs of HTTP servers, as requests need them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

import msgspec

if TYPE_CHECKING:
    from typing import Self

_PORTS: Final = {"http": 80, "https": 443}
_IN_PATH: Final = "/%:@!$&'()*+,;=~"
_IN_QUERY: Final = f"{_IN_PATH}?"


class Url(msgspec.Struct, frozen=True, gc=False):
    """An absolute URL without credentials and fragment.

    Attributes:
        scheme: `http` or `https`.
        host: A name in ASCII or an IP address, without brackets.
        port: Where the server listens.
        target: Path and query in ASCII, at least `/`.
    """

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """The URL that a text is.

        Raises:
            ValueError: It is none.
        """
        parts = urlsplit(text)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError("not an http or https URL")
        host = parts.hostname
        if not host.isascii():
            host = host.encode("idna").decode()  # a UnicodeError is a ValueError
        target = quote(parts.path or "/", safe=_IN_PATH)
        if parts.query:
            target += "?" + quote(parts.query, safe=_IN_QUERY)
        return cls(parts.scheme, host, parts.port or _PORTS[parts.scheme], target)

    @property
    def authority(self) -> str:
        """Host and port as in the header `Host` (RFC 9112, section 3.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme and authority: all of it that is fit to be shown."""
        return f"{self.scheme}://{self.authority}"

    def below(self, target: str) -> Url:
        """The URL of a path and query below this one's path."""
        path = self.target.partition("?")[0].rstrip("/")
        return msgspec.structs.replace(self, target=path + target)
