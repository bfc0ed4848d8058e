"""Text that others wrote, made safe to show: file names, ids, subjects, messages of servers.

A name may hold anything but `/` and NUL. Raw, an escape character moves the cursor or retitles the
terminal, a line end or U+2028 forges a line of the log, a bidirectional control reorders what is
read, and a byte that is not UTF-8 cannot be written at all. Everything that `str.isprintable` does
not call printable is escaped: control, format, private and unassigned characters, line and
paragraph separators, spaces other than U+0020, and surrogates, which stand for such bytes
(PEP 383).

Text for people is escaped as Python writes it. JSON keeps its meaning: there the same characters
become escapes of JSON, which every decoder reads back. A byte that is not UTF-8 has no place in
JSON, and is escaped for people there, too.
"""

from __future__ import annotations

import re
from typing import Final

_FIRST_BYTE, _LAST_BYTE = "\udc80", "\udcff"
_SURROGATES: Final = re.compile("[\ud800-\udfff]")
_ASTRAL: Final = 0x10000
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text: str) -> str:
    r"""Text for people, in one line, that does nothing to a terminal.

    >>> print(visible("a\x1b[2J\nb\u2028\u202e\udcff"))
    a\x1b[2J\nb\u2028\u202e\xff
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def encodable(text: str) -> str:
    r"""Text that can be encoded as UTF-8: only what stands for other bytes is escaped.

    >>> print(encodable("a\udcff"))
    a\xff
    """
    return text if text.isascii() else _SURROGATES.sub(lambda found: _visible(found[0]), text)


def escape_json(encoded: bytes) -> bytes:
    r"""JSON that means the same, with escapes for what is not printable in its strings.

    Args:
        encoded: JSON in UTF-8, whose encoder has escaped the control characters of ASCII.

    >>> print(escape_json('"a\u2028\x7f"'.encode()).decode())
    "a\u2028\u007f"
    """
    if encoded.isascii() and b"\x7f" not in encoded:
        return encoded
    text = encoded.decode()
    if text.isprintable():
        return encoded
    return "".join(map(_json, text)).encode()


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    if character in _SHORT:
        return _SHORT[character]
    number = ord(character)
    if _FIRST_BYTE <= character <= _LAST_BYTE:
        number -= 0xDC00
    if number < 0x100:  # noqa: PLR2004 - two digits
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < _ASTRAL else f"\\U{number:08x}"


def _json(character: str) -> str:
    if character.isprintable() or character == "\n":
        return character
    number = ord(character)
    if number < _ASTRAL:
        return f"\\u{number:04x}"
    high, low = divmod(number - _ASTRAL, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
