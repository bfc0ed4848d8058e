"""Connections, which know nothing of events: HTTP, NATS, TLS and credentials from files."""

from syncd.system.lean_import import import_httpx2

import_httpx2()  # before any module of this package
