"""URLs as requests need them."""

from __future__ import annotations

import pytest

from syncd.net.url import Url


@pytest.mark.parametrize(
    ("text", "authority", "port", "target"),
    [
        ("http://a", "a", 80, "/"),
        ("https://a", "a", 443, "/"),
        ("HTTPS://A.Example:443/x", "a.example", 443, "/x"),
        ("http://a:8080/x/?b=c&d=%20#part", "a:8080", 8080, "/x/?b=c&d=%20"),
        ("http://[fd00::1]/x", "[fd00::1]", 80, "/x"),
        ("http://[fd00::1]:81", "[fd00::1]:81", 81, "/"),
        ("http://bücher.example/ä b?c=ö", "xn--bcher-kva.example", 80, "/%C3%A4%20b?c=%C3%B6"),
        ("http://user:canary@a/x", "a", 80, "/x"),
    ],
)
def test_parts(text: str, authority: str, port: int, target: str) -> None:
    """The default port is left out of the authority, and a target is ASCII."""
    url = Url.parse(text)
    assert (url.authority, url.port, url.target) == (authority, port, target)
    assert url.origin == f"{url.scheme}://{authority}"
    assert "[" not in url.host


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a:80",
        "ftp://a",
        "http://",
        "http:///x",
        "http://[::1",
        "http://a:99999",
        "http://a:b",
        f"http://{'ä' * 300}",
    ],
)
def test_no_url(text: str) -> None:
    """What cannot be requested is an error of one kind."""
    with pytest.raises(ValueError):  # noqa: PT011 - the message is nobody's
        Url.parse(text)


def test_below() -> None:
    """A path and query below a base, whose own query is dropped."""
    assert Url.parse("http://a/base/?x=1").below("/y?z=2").target == "/base/y?z=2"
    assert Url.parse("http://a").below("/y").target == "/y"
