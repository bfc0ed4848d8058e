"""`syncd check`: placeholders of template languages in the configuration.

syncd replaces nothing in its configuration. A `${HOST}` that a deployment was meant to fill in is
valid text in many places, and fails only when it is used: for a webhook, at the first rotation.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from syncd.config.load import VARIABLES
from syncd.config.settings import Exec
from syncd.core.findings import finding, key_path
from syncd.core.nats_binding import without_places
from syncd.core.placeholders import unfilled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from syncd.config.settings import RelaySettings, Settings
    from syncd.core.findings import Finding

    _Path = tuple[str | int, ...]


def check_placeholders(
    settings: Settings | RelaySettings | Mapping[str, Any],
    source: str,
    environ: Mapping[str, str] = MappingProxyType({}),
) -> list[Finding]:
    """One finding for each value with a placeholder.

    Args:
        settings: The configuration, or what is written in one with mistakes.
        source: Where it was read.
        environ: The environment that it was read from; a value from there is reported there.
    """
    variables = {environ[name]: name for name in VARIABLES if name in environ}
    found = []
    for at, text, (message, hint) in _placeholders(settings, ()):
        place = source, key_path(*at)
        if text in variables:
            place = "environment", variables[text]
        found.append(finding("value-uninterpolated", *place, message, hint))
    return found


def _placeholders(tree: object, at: _Path) -> Iterator[tuple[_Path, str, tuple[str, str]]]:
    if isinstance(tree, str):
        # what is in angle brackets there is the subject's own
        text = without_places(tree) if at[-1:] == ("subject",) else tree
        problem = unfilled(text)
        if problem is not None:
            yield at, tree, problem
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
