"""Placeholders of template languages: `${X}`, `$X`, `$(X)`, `{{ .Values.x }}`. Pure.

What a deployment was meant to fill in is valid text in many places, and fails only when it is used.
"""

from __future__ import annotations

import re
from typing import Final

_PLACEHOLDER: Final = re.compile(
    r"\$\{(?P<name>\w+)[^{}]*\}|\{\{(?:(?!\{\{|\}\}).)*\}\}|\$\([A-Za-z_]\w*\)|\$[A-Z_][A-Z0-9_]{2,}\b"
)
"""Of shells and Compose, of Helm, Ansible and Jinja, and of Kubernetes' `env` and `args`.

No alternative goes on over the start of another placeholder: a long text of such starts would
otherwise take time by its square, in which no other thread runs.
"""


def holds_placeholder(text: str) -> bool:
    """Whether a text holds a placeholder; a lone dollar or brace is text."""
    return _PLACEHOLDER.search(text) is not None


def placeholder_in(text: str) -> str | None:
    """The first placeholder of a text, to be shown: as `${NAME}` without a default, or in words.

    A default can be a secret (`${TOKEN:-…}`), and what looks like another kind a part of one.
    """
    found = _PLACEHOLDER.search(text)
    if found is None:
        return None
    return f"${{{found['name']}}}" if found["name"] else "a placeholder"
