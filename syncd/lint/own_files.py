"""The files that syncd itself uses, which no entry of the vault config has to name.

Credentials, manifests and what these name, sockets, the configuration: all of it that lies in a
watch root is no stray secret. A configuration with a mistake names them as well.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from syncd.config.load import config_file, read_tree
from syncd.core.tree import TreeError
from syncd.core.yaml_text import parse_yaml
from syncd.system.files import read_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from syncd.config.settings import Settings

LARGEST_MANIFEST: Final = 4 << 20
"""Bytes; a larger one cannot be used."""


def own_files(settings: Settings, config: str | None) -> set[str]:
    """Every path that a configuration has, and its own."""
    return {*_paths(settings), *(() if config is None else (config,))}


def written_files(file: str | None, environ: Mapping[str, str]) -> set[str]:
    """Every path that is written in a configuration with mistakes or its manifests, and its own."""
    config, tree = config_file(file, environ), read_tree(file, environ)
    found = {*_paths(tree), *(() if config is None else (config,))}
    entries = tree.get("provision")
    for entry in entries if isinstance(entries, list) else ():
        for path in _paths(entry.get("manifest")) if isinstance(entry, dict) else ():
            with suppress(OSError):
                found |= files_of_manifest(read_file(path, LARGEST_MANIFEST)[0])
    return found


def files_of_manifest(text: bytes) -> set[str]:
    """Every path in a manifest: certificates, keys and descriptions of clouds."""
    try:
        return {*_paths(parse_yaml(text))}
    except TreeError:
        return set()


def _paths(tree: object) -> Iterator[str]:
    if isinstance(tree, str):
        if tree.startswith("/"):
            yield tree
    elif isinstance(tree, msgspec.Struct):
        yield from _paths(msgspec.structs.astuple(tree))
    elif isinstance(tree, dict):
        yield from _paths(tuple(tree.values()))
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from _paths(item)
