"""Importing libraries without some of their imports, which syncd never uses.

While a library is imported, an empty module stands in for each of these; later imports get the real
one. It saves resident memory, of which a sidecar has 40 MiB.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SERVERS: Final = {
    "http.server": ("BaseHTTPRequestHandler",),
    "wsgiref.simple_server": ("make_server", "WSGIRequestHandler", "WSGIServer"),
}


def import_prometheus_client() -> None:
    """Imports prometheus-client; call it before anything else imports it.

    It subclasses the standard library's HTTP servers, which syncd never starts: 0.4 MiB less.
    """
    stand_ins = {
        module: {name: type(name, (), {}) for name in names} for module, names in _SERVERS.items()
    }
    with _standing_in(stand_ins):
        importlib.import_module("prometheus_client")


def import_requests() -> None:
    """Imports requests; call it before importing a library that imports requests.

    It imports a detector of character sets for bodies that declare none. Vaults respond with JSON,
    which is UTF-8: 3 MiB less (charset-normalizer 3.4), a fifteenth of a daemon that provisions.
    """
    detector = {"__version__": "3.4.0", "detect": lambda _body: {"encoding": None}}
    with _standing_in({"chardet": None, "charset_normalizer": detector}):
        importlib.import_module("requests")


def import_hvac() -> None:
    """Imports hvac's adapters; call it before anything else imports hvac.

    hvac's package imports a client with classes for every API of Vault's, of which syncd uses none:
    half the time of the import, and 3 MiB.
    """
    with _standing_in({"hvac.v1": {"Client": type("Client", (), {})}}):
        importlib.import_module("hvac.adapters")


@contextmanager
def _standing_in(modules: Mapping[str, Mapping[str, object] | None]) -> Iterator[None]:
    """Installs modules with these attributes where none are loaded; None for a missing module."""
    missing = [name for name in modules if name not in sys.modules]
    for name in missing:
        attributes, stub = modules[name], ModuleType(name)
        vars(stub).update(attributes or {})
        sys.modules[name] = stub if attributes is not None else None  # type: ignore[assignment] # the import system's "not there"
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]
