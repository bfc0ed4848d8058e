"""Loads requests without what it loads for itself and never needs here.

requests imports a detector of character sets for bodies that name none. Vaults answer in JSON,
which is UTF-8, so a stub takes its place while requests is imported: 3 MiB less of resident memory
(charset-normalizer 3.4, measured), a fifteenth of the daemon. Others still get the real one.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Final

_DETECTORS: Final = ("chardet", "charset_normalizer")


def import_requests() -> None:
    """Imports requests; call it before importing whatever imports requests."""
    if "requests" in sys.modules or any(name in sys.modules for name in _DETECTORS):
        return
    stub = ModuleType("charset_normalizer")
    vars(stub).update(__version__="3.4.0", detect=lambda _body: {"encoding": None})
    sys.modules["charset_normalizer"] = stub
    sys.modules["chardet"] = None  # type: ignore[assignment] # the import system's "not there"
    try:
        importlib.import_module("requests")
    finally:
        for name in _DETECTORS:
            del sys.modules[name]
