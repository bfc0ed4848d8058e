"""Scalars as Go's yaml.v3 resolves them, and as its `encoding/json` writes them. Pure.

The CSI providers read `objects` with yaml.v3 and send `secretArgs` as JSON. Where that differs from
YAML 1.2's core schema (`syncd.core.tree`): `0644` is octal, `0b1` and `-0x1` are integers, digits
may hold `_`, and a date is a timestamp, which JSON has in RFC 3339. In JSON a fraction of zero is
left out (`1.0` is `1`).

Sources: go-yaml/yaml v3 `resolve.go`; Go `strconv.ParseInt` with base 0, `time.Parse`,
`time.Time.MarshalJSON`.
"""

from __future__ import annotations

import calendar
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syncd.core.tree import Scalar

_WORDS = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(
        [sign + word for sign in ("", "+") for word in (".inf", ".Inf", ".INF")], math.inf
    ),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}
_INTEGER = re.compile(
    r"([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|0[oO]?([0-7]+)|(0|[1-9][0-9]{0,19}))"
)
_BASES = (16, 2, 8, 10)
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_LARGEST, _SMALLEST = (1 << 64) - 1, -(1 << 63)
_TIME = re.compile(
    r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})"
    r"(?:(?:[Tt]|( +))([0-9]{1,2}):([0-9]{1,2}):([0-9]{1,2})(?:[.,]([0-9]+))?"
    r"(Z|[-+](?:[01][0-9]|2[0-3]):[0-5][0-9])?)?",
    re.ASCII,
)
_INTEGRAL_BELOW = 1e21
"""From here on `encoding/json` writes an exponent."""


class NotJsonError(ValueError):
    """Infinity, or not a number: JSON has neither."""


def resolve(scalar: Scalar) -> object:
    """The value of a scalar: a string where it is quoted, a block or nothing else.

    A timestamp is the string that it is in JSON.
    """
    text = str(scalar)
    if not scalar.plain:
        return scalar.value
    if text in _WORDS:  # also the empty text
        return _WORDS[text]
    if text[0] in "+-0123456789":
        time = timestamp(text)
        return _number(text.replace("_", ""), text) if time is None else time
    return _number(text, text) if text[0] == "." else text


def json_value(tree: Any) -> Any:  # noqa: ANN401 - a tree has no narrower type
    """A tree of `Scalar` as values for JSON.

    Raises:
        NotJsonError: It holds a number that JSON cannot express.
    """
    if isinstance(tree, dict):
        return {key: json_value(item) for key, item in tree.items()}
    if isinstance(tree, list):
        return [json_value(item) for item in tree]
    value = resolve(tree)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotJsonError
        if value.is_integer() and abs(value) < _INTEGRAL_BELOW:
            return int(value)
    return value


def timestamp(text: str) -> str | None:
    """A timestamp in RFC 3339, in the shortest form; None for anything else."""
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    year, month, day = (int(part) for part in found.group(1, 2, 3))
    hour, minute, second = (int(part or 0) for part in found.group(5, 6, 7))
    blank, fraction, zone = found.group(4, 8, 9)
    if found[5] and bool(blank) == bool(zone):  # with T a zone, with a space none
        return None
    if not (1 <= month <= 12 and hour < 24 and minute < 60 and second < 60):  # noqa: PLR2004
        return None
    # year 0 is a leap year, as 2000 is; `calendar` starts with year 1
    if not 1 <= day <= calendar.monthrange(year or 2000, month)[1]:
        return None
    digits = (fraction or "")[:9].rstrip("0")
    zone = "Z" if zone is None or zone[1:] == "00:00" else zone
    date = f"{year:04}-{month:02}-{day:02}"
    return f"{date}T{hour:02}:{minute:02}:{second:02}{'.' * bool(digits)}{digits}{zone}"


def _number(digits: str, text: str) -> str | float:
    """An integer of 64 bits, else a float, else the text itself."""
    found = _INTEGER.fullmatch(digits)
    if found is not None:
        base, written = next(
            (base, group) for base, group in zip(_BASES, found.groups()[1:], strict=True) if group
        )
        value = int(written, base)
        value = -value if found[1] == "-" else value
        # `ParseUint`, which is tried after `ParseInt`, takes no sign
        if _SMALLEST <= value < -_SMALLEST or (not found[1] and value <= _LARGEST):
            return value
    if _FLOAT.fullmatch(digits):
        parsed = float(digits)
        return parsed if math.isfinite(parsed) else text
    return text
