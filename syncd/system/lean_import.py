"""Importing libraries without some of their imports, which most processes of syncd never use.

While a library is imported, a stand-in takes the place of each of these modules. It has the names
that the library touches as it is imported, for parts of it that syncd does not call, and gets every
other name from the real module, which it imports when first asked. Later imports get the real one.

So a library that begins to touch more costs memory and breaks nothing, and the tests that list what
a daemon has loaded fail (tests/integration/system/test_lean_import.py). A sidecar has 36 MiB.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    _Names = Mapping[str, object]
    _Modules = Mapping[str, _Names | None]


class _Unused:
    """Stands for a class of a module that is not loaded: nothing is an instance of it."""


_CLASSES_OF_SSL: Final[_Names] = {"SSLContext": _Unused, "SSLSocket": _Unused}
_OF_ASYNCIO: Final[_Modules] = {"asyncio.sslproto": {}, "ssl": _CLASSES_OF_SSL}
_OF_HTTP_SERVERS: Final[_Modules] = {
    "configparser": {"RawConfigParser": _Unused},
    "email.utils": {"format_datetime": None, "formatdate": None},
    "html": {},
    "http.client": {},
    "logging.config": {},
    "mimetypes": {"guess_type": None},
    "ssl": {"CERT_NONE": 0, "PROTOCOL_TLS_SERVER": 0},
    "tempfile": {"SpooledTemporaryFile": _Unused},
    "uvicorn.main": {"Server": _Unused, "main": None, "run": None},
}
_SERVERS_AND_CLIENTS: Final[_Modules] = {
    "http.server": {"BaseHTTPRequestHandler": _Unused},
    "ssl": {
        **_CLASSES_OF_SSL,
        "PROTOCOL_TLS_CLIENT": 0,
        "PROTOCOL_TLS_SERVER": 0,
        "TLSVersion": _Unused,
    },
    "urllib.error": {"HTTPError": _Unused},
    "urllib.request": dict.fromkeys(
        (
            *("BaseHandler", "HTTPHandler", "HTTPRedirectHandler", "HTTPSHandler"),
            *("Request", "build_opener"),
        ),
        _Unused,
    ),
    "wsgiref.simple_server": dict.fromkeys(
        ("WSGIRequestHandler", "WSGIServer", "make_server"), _Unused
    ),
}


def import_daemon_libraries() -> None:
    """Imports what every daemon uses; call it before anything else imports asyncio or hashlib.

    - OpenSSL is 7 MiB. hashlib has every hash that syncd uses without it: BLAKE2b is Python's own
      in any case, and SHA-256 signs small requests. asyncio and anyio get the module ssl when a
      connection is to be encrypted, and what verifies certificates imports it (`syncd.net.tls`).
    - prometheus-client has servers and clients of its own, which syncd never starts: 1.5 MiB.
    - inotify-simple looks for libc with ctypes.util, which imports archives and runs ldconfig.
      Without a name, CDLL is the process itself, which has libc's functions (dlopen(3)).
    - aiofiles is used without its temporary files.
    """
    with _standing_in("hashlib", {"_hashlib": None}):
        importlib.import_module("hashlib")
        importlib.import_module("hmac")
    with _standing_in("asyncio", _OF_ASYNCIO):
        importlib.import_module("asyncio")
        importlib.import_module("anyio").connect_tcp  # noqa: B018 - anyio imports it when asked
    with _standing_in("prometheus_client", _SERVERS_AND_CLIENTS):
        importlib.import_module("prometheus_client")
    with _standing_in("inotify_simple", {"ctypes.util": {"find_library": lambda _name: None}}):
        importlib.import_module("inotify_simple")
    with _standing_in("aiofiles", {"aiofiles.tempfile": {}}):
        importlib.import_module("aiofiles")


def import_http_server() -> None:
    """Imports Starlette and uvicorn; call it before anything else imports them.

    Of uvicorn it is the protocol that is used, not the command line with its configuration of logs,
    which imports multiprocessing and more; of Starlette no pages for errors, no files and no forms:
    2.5 MiB less.
    """
    with _standing_in("uvicorn", _OF_HTTP_SERVERS):
        importlib.import_module("starlette.applications")
        importlib.import_module("uvicorn.protocols.http.h11_impl")


def import_requests() -> None:
    """Imports requests; call it before importing a library that imports requests.

    It imports a detector of character sets for bodies that declare none. Vaults respond with JSON,
    which is UTF-8: 3 MiB less (charset-normalizer 3.4), a fifteenth of a daemon that provisions.
    """
    detector = {"__version__": "3.4.0", "detect": lambda _body: {"encoding": None}}
    with _standing_in("requests", {"chardet": None, "charset_normalizer": detector}):
        importlib.import_module("requests")


def import_hvac() -> None:
    """Imports hvac's adapters; call it before anything else imports hvac.

    hvac's package imports a client with classes for every API of Vault's, of which syncd uses none:
    half the time of the import, and 3 MiB.
    """
    with _standing_in("hvac", {"hvac.v1": {"Client": _Unused}}):
        importlib.import_module("hvac.adapters")


class _StandIn(ModuleType):
    """A module that is imported when a name is asked for that is not among `names`."""

    def __init__(self, name: str, names: _Names) -> None:
        super().__init__(name)
        self._names: _Names = names

    def __getattr__(self, attribute: str) -> object:
        name = self.__name__
        if attribute.startswith("__") and attribute not in self._names:
            # the import system asks for __path__ and others
            raise AttributeError(attribute)
        if sys.modules.get(name, self) is self:
            if attribute in self._names:
                return self._names[attribute]
            sys.modules.pop(name, None)
        return getattr(importlib.import_module(name), attribute)


@contextmanager
def _standing_in(library: str, modules: _Modules) -> Iterator[None]:
    """Installs stand-ins with these names where none are loaded; None for a missing module."""
    stand_ins = {
        name: None if names is None else _StandIn(name, names)
        for name, names in modules.items()
        if name not in sys.modules
    }
    for name, stand_in in stand_ins.items():
        package, _, last = name.rpartition(".")
        # `import a.b` binds a, and looks for b in it; a library gets its own modules otherwise
        if stand_in is not None and package not in ("", library):
            setattr(importlib.import_module(package), last, stand_in)
    sys.modules.update(stand_ins)  # type: ignore[arg-type] # None is the import system's "not there"
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]
