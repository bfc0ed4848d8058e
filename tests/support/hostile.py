"""Names that other programs can choose, and what of them must not reach a terminal or a log raw."""

from __future__ import annotations

HOSTILE = {
    "escape": "\x1b[2J\x1b]0;PWNED\x07\x1b[8m",
    "line": "x\n0 errors, 0 warnings",
    "return": "x\rerror",
    "c1": "x\x9b31m",
    "separators": "x\u2028y\u2029z\x85w\x0b\x0c\x1c",
    "bidi": "abc\u202etxt.exe\u2066",
    "invisible": "a\u200bb\ufeff\u00ad",
    "astral": "a\U000e0041b",
    "delete": "a\x7fb",
}
"""By the kind of character; each fits into a file's name and into JSON."""

NOT_UTF8 = "caf\udce9\udcff"
"""The name of a file with bytes that are not UTF-8, as Python has it (PEP 383)."""


def assert_safe(output: bytes | str) -> None:
    """Output has nothing but printable characters and the line ends that syncd writes."""
    text = output.decode() if isinstance(output, bytes) else output
    raw = sorted({character for character in text if not character.isprintable()} - {"\n"})
    assert raw == [], f"raw in the output: {raw}"
