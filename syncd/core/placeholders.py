"""Placeholders: `${X}`, `$X`, `$(X)`, `{{ .Values.x }}`, `<CLIENT_ID>`. Pure.

What a deployment, or the reader of a tutorial, was meant to fill in is valid text in many places,
and fails only when it is used.
"""

from __future__ import annotations

import re
from typing import Final

_PLACEHOLDER: Final = re.compile(
    r"\$\{(?P<name>\w+)[^{}]*\}"  # shells, Compose
    r"|\{\{(?:(?!\{\{|\}\}).)*\}\}"  # Helm, Ansible, Jinja
    r"|\$\([A-Za-z_]\w*\)"  # `env` and `args` of Kubernetes
    r"|\$[A-Z_][A-Z0-9_]{2,}\b"  # shells
    r"|(?P<words><[A-Za-z][A-Za-z0-9_ .-]{2,62}>)"  # documentation
    r"|#\{[A-Za-z_][\w.-]*\}"  # Azure Pipelines, Octopus
    r"|__[A-Z][A-Z0-9_]*__"  # Azure Pipelines
    r"|<%[^<>%]*%>"  # ERB, EJS
)
"""No alternative goes on over the start of another placeholder: a long text of such starts would
otherwise take time by its square, in which no other thread runs.
"""

_NAME: Final = re.compile(r"<[A-Z]+(?:_[A-Z0-9]+)+>")
"""One that is no part of a secret."""

FILL_IN: Final = (
    "write the value itself, or fill it in (envsubst, Helm) before syncd reads the file"
)
"""What to do about one."""


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
    if found["words"] and _NAME.fullmatch(found["words"]):
        return found["words"]
    return f"${{{found['name']}}}" if found["name"] else "a placeholder"


def unfilled(value: object) -> tuple[str, str] | None:
    """What is wrong with a value that holds a placeholder, and what to do; None for others."""
    placeholder = placeholder_in(value) if isinstance(value, str) else None
    if placeholder is None:
        return None
    return f"holds {placeholder}, which syncd does not replace", FILL_IN


def correction(text: bytes, otherwise: str) -> str:
    """What to do about a file that cannot be parsed: a placeholder without quotes is no value."""
    if holds_placeholder(text.decode(errors="replace")):
        return "fill in its placeholders (envsubst, Helm) before syncd reads it"
    return otherwise
