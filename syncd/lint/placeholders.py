"""`syncd check`: placeholders of template languages that nobody filled in.

syncd replaces nothing in its configuration. A `${HOST}` that a deployment was meant to fill in is
valid text in many places, and fails only when it is used: for a webhook, at the first rotation.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from syncd.core.findings import finding, key_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from syncd.config.settings import RelaySettings, Settings
    from syncd.core.findings import Finding

    _Path = tuple[str | int, ...]

_PLACEHOLDER: Final = re.compile(
    r"\$\{[^{}]*\}|\{\{.*?\}\}|\$\([A-Za-z_][A-Za-z0-9_]*\)|\$[A-Z_]{3,}\b"
)
"""Of shells and Compose, of Helm, Ansible and Jinja, and of Kubernetes' `env` and `args`."""


def check_placeholders(settings: Settings | RelaySettings, source: str) -> list[Finding]:
    """One finding for each value with a placeholder."""
    hint = "write the value itself, or fill it in (envsubst, Helm) before syncd reads the file"
    return [
        finding(
            "value-uninterpolated",
            source,
            key_path(*at),
            f"holds {found}, which syncd does not replace",
            hint,
        )
        for at, found in _placeholders(settings, ())
    ]


def _placeholders(tree: object, at: _Path) -> Iterator[tuple[_Path, str]]:
    if isinstance(tree, str):
        found = _PLACEHOLDER.search(tree)
        if found:
            yield at, found[0]
    elif isinstance(tree, msgspec.Struct):
        for key, item in msgspec.structs.asdict(tree).items():
            yield from _placeholders(item, (*at, key))
    elif isinstance(tree, dict):
        for key, item in tree.items():
            yield from _placeholders(item, (*at, key))
    elif isinstance(tree, tuple | list):
        for index, item in enumerate(tree):
            yield from _placeholders(item, (*at, index))
