"""Text to tree: JSON and YAML as plain values that keep what a decoder would lose.

Both parsers report duplicate keys instead of letting the last one win. That of JSON is here, that
of YAML in `syncd.core.yaml_text`; typed decoding of the tree is in `syncd.core.decode`.
"""

from __future__ import annotations

import json
import re
from typing import Any

from syncd.core.errors import SyncdError

LARGEST_JSON = 750_000
"""Brackets, braces and commas of JSON, which bound its values: a byte of text can take a hundred
bytes of memory. Those in strings count, too, since that is known before anything is parsed."""


class TreeError(SyncdError):
    """The text is not JSON or YAML; the message names the place and quotes nothing of the text."""


class Node(dict[str, Any]):
    """A mapping that knows which of its keys were written more than once.

    Attributes:
        duplicates: The keys that occur again, in order; the first value is the one that is kept.
    """

    __slots__ = ("duplicates",)

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__()
        self.duplicates: list[str] = []
        for key, value in pairs:
            if key in self:
                self.duplicates.append(key)
            else:
                self[key] = value


class Scalar(str):
    """A YAML scalar as written, for formats with their own rules for scalars.

    Attributes:
        value: Its value by the core schema: a string, number or boolean, or None.
        plain: Whether it is written without quotes, not as a block and not as `!!str`.
    """

    __slots__ = ("plain", "value")

    value: str | float | bool | None
    plain: bool


def parse_json(text: bytes) -> Any:  # noqa: ANN401 - a tree of JSON values has no narrower type
    """Parses JSON (RFC 8259), objects as `Node`.

    Raises:
        TreeError: Not UTF-8 or not JSON; names line and column. Or it has too many values.
    """
    if sum(map(text.count, (b"{", b"[", b","))) > LARGEST_JSON:
        raise TreeError(f"too many values: {LARGEST_JSON:,} brackets, braces and commas at most")
    try:
        tree = json.loads(
            text.decode("utf-8-sig"), object_pairs_hook=Node, parse_constant=_no_constant
        )
        if b"\\u" in text:
            json.dumps(tree, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise TreeError(f"not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise TreeError("not valid JSON: an escape is half of a surrogate pair") from None
    except json.JSONDecodeError as error:
        raise TreeError(
            f"not valid JSON at line {error.lineno} column {error.colno}: {calm(error.msg)}"
        ) from None
    except RecursionError:
        raise TreeError("nested too deeply") from None
    except ValueError:
        raise TreeError("not valid JSON: a number out of range, NaN or Infinity") from None
    return tree


def values(tree: Any) -> Any:  # noqa: ANN401 - a tree has no narrower type
    """The tree with every `Scalar` replaced by its value."""
    if isinstance(tree, Scalar):
        return tree.value
    if isinstance(tree, dict):
        return {key: values(item) for key, item in tree.items()}
    if isinstance(tree, list):
        return [values(item) for item in tree]
    return tree


def _no_constant(_name: str) -> None:
    raise ValueError


def calm(problem: str | None) -> str:
    """A parser's message without what it quotes of the text, which may be a misplaced secret."""
    return re.sub(r"['\"].*", "…", problem or "syntax error", flags=re.DOTALL)
