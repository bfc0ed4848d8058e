"""The page, and the policy under which a browser shows it.

The page is one file without a build. Its style and its script are allowed by their hashes (Content
Security Policy Level 3, section 6.7.3), so that nothing else is ever run, and the page may connect
to its own server only. Trusted Types keep the script itself from making markup of a text.
"""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from typing import Final

_INLINE: Final = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)

COMMON: Final = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Headers of every answer."""


def load() -> str:
    """The page, as it is in the package."""
    return files(__package__).joinpath("page.html").read_text("utf-8")


def policy(page: str) -> str:
    """The value of `Content-Security-Policy` for a page."""
    hashes: dict[str, list[str]] = {"style": [], "script": []}
    for kind, content in _INLINE.findall(page):
        digest = b64encode(sha256(content.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(hashes['script'])}",
            f"style-src {' '.join(hashes['style'])}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
