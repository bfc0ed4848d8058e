"""Scopes as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from syncd.core.model import Scope


def scope_text(scope: Scope | list[Scope]) -> str:
    """`Type` or `Type/id`, or several of them; `-` for none."""
    several = scope if isinstance(scope, list) else [scope]
    return ", ".join(s.resource_type + (f"/{s.id}" if s.id else "") for s in several) or "-"
