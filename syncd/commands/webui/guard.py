"""Who may use the page: one browser, which has the one-time token.

Every user of this machine can connect to a port on loopback, and every web page that the browser
has open can send requests there. So

- `Host` must be a name of loopback, by any port (ssh may forward one): a page whose own name
  resolves to 127.0.0.1 is refused (DNS rebinding);
- `Origin` and `Sec-Fetch-Site` (Fetch Metadata, W3C) must be those of the page itself. A server on
  another port of this machine is another origin, but the same site, and so `SameSite=Strict` alone
  does not keep its pages out;
- the token is exchanged once for a cookie. Cookies have no port, so a browser sends them to all
  servers of this host; the cookie's path has a random part, which only this page's URLs have.

The token is in the URL's fragment, which browsers do not send: no log and no `Referer` gets it.
"""

from __future__ import annotations

import re
import secrets
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Final

from syncd.core.address import is_loopback

if TYPE_CHECKING:
    from collections.abc import Mapping

_HOST: Final = re.compile(r"(?:\[([0-9a-fA-F:]+)\]|([^\s:\[\]]+))(?::\d{1,5})?")
_NAME: Final = "syncd_ui"


class Guard:
    """The token, the cookie and the path of one run.

    Attributes:
        path: The first part of every URL, with a slash at both ends.
        token: For the URL that is printed; None once it is used.
    """

    def __init__(self) -> None:
        self.path = f"/{secrets.token_urlsafe(12)}/"
        self.token: str | None = secrets.token_urlsafe(32)
        self._session: str | None = None

    def exchange(self, token: str) -> str | None:
        """The value of `Set-Cookie` for the token; None if it is wrong, or used already."""
        if self.token is None or not _equal(token, self.token):
            return None
        self.token = None
        self._session = secrets.token_urlsafe(32)
        return f"{_NAME}={self._session}; Path={self.path}; HttpOnly; SameSite=Strict"

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Whether a request has the cookie."""
        if self._session is None:
            return False
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(_NAME)
        except CookieError:
            return False
        return found is not None and _equal(found.value, self._session)


def names_loopback(headers: Mapping[str, str]) -> bool:
    """Whether `Host` is a name or an address of loopback; a request without one is refused."""
    found = _HOST.fullmatch(headers.get("host", ""))
    return found is not None and is_loopback(found[1] or found[2])


def from_page(headers: Mapping[str, str], *, certainly: bool = False) -> bool:
    """Whether a request comes from the page itself, or from no web page.

    Args:
        headers: Of the request.
        certainly: Whether to refuse it, too, if the browser does not say where it comes from.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None and origin.lower() != f"http://{headers.get('host', '')}".lower():
        return False
    if site is not None and site != "same-origin":
        return False
    return origin is not None or not certainly


def _equal(given: str, expected: str) -> bool:
    return secrets.compare_digest(given.encode(errors="replace"), expected.encode())
