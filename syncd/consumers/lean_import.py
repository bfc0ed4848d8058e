"""Loads httpx2 without what it loads to learn its own version, which no request here tells.

It asks importlib.metadata, and that brings the parsers of packages' metadata along; a stand-in
takes its place meanwhile: 0.6 MiB less of resident memory (measured), a seventieth of a sidecar.
Whoever else imports that module gets the real one.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Final

_METADATA: Final = "importlib.metadata"


def import_httpx2() -> None:
    """Imports httpx2 and its transport; call it before anything else imports them.

    httpx2 itself would import the transport in the event loop, at the first request.
    """
    if "httpx2" in sys.modules:
        return
    missing = _METADATA not in sys.modules
    if missing:
        stub = ModuleType(_METADATA)
        vars(stub)["version"] = str
        sys.modules[_METADATA] = stub
    try:
        importlib.import_module("httpcore2")
        importlib.import_module("httpx2")
    finally:
        if missing:
            del sys.modules[_METADATA]
