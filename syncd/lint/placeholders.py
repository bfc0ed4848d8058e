"""`syncd check`: placeholders of template languages in the configuration.

syncd replaces nothing in its configuration. A `${HOST}` that a deployment was meant to fill in is
valid text in many places, and fails only when it is used: for a webhook, at the first rotation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from syncd.config.settings import Exec
from syncd.core.findings import finding, key_path
from syncd.core.placeholders import placeholder_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from syncd.config.settings import RelaySettings, Settings
    from syncd.core.findings import Finding

    _Path = tuple[str | int, ...]


def check_placeholders(settings: Settings | RelaySettings, source: str) -> list[Finding]:
    """One finding for each value with a placeholder."""
    hint = "write the value itself, or fill it in (envsubst, Helm) before syncd reads the file"
    return [
        finding(
            "value-uninterpolated",
            source,
            key_path(*at),
            f"holds {placeholder}, which syncd does not replace",
            hint,
        )
        for at, placeholder in _placeholders(settings, ())
    ]


def _placeholders(tree: object, at: _Path) -> Iterator[tuple[_Path, str]]:
    if isinstance(tree, str):
        placeholder = placeholder_in(tree)
        if placeholder is not None:
            yield at, placeholder
    elif isinstance(tree, msgspec.Struct):
        for key, item in msgspec.structs.asdict(tree).items():
            if isinstance(tree, Exec) and key == "command":
                continue  # `$NAME` may be the command's own: a shell replaces it
            yield from _placeholders(item, (*at, key))
    elif isinstance(tree, dict):
        for key, item in tree.items():
            yield from _placeholders(item, (*at, key))
    elif isinstance(tree, tuple | list):
        for index, item in enumerate(tree):
            yield from _placeholders(item, (*at, index))
