"""Scopes and lists of names as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncd.core.model import Scope

_NAMED: Final = 10


def scope_text(scope: Scope | list[Scope]) -> str:
    """`Type` or `Type/id`, or several of them; `-` for none."""
    several = scope if isinstance(scope, list) else [scope]
    return ", ".join(s.resource_type + (f"/{s.id}" if s.id else "") for s in several) or "-"


def listed(names: Sequence[str]) -> str:
    """Names in a line: the first ten, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
