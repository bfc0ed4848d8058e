"""Text for a terminal, from names and messages that others wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from syncd.core.model import Scope


def printable(text: str) -> str:
    """Text that cannot move the cursor or recolour the terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def scope_text(scope: Scope | list[Scope]) -> str:
    """`Type` or `Type/id`, or several of them."""
    several = scope if isinstance(scope, list) else [scope]
    return ", ".join(s.resource_type + (f"/{s.id}" if s.id else "") for s in several)
