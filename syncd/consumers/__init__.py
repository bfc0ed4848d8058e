"""Consumers: one delivery loop for each, and the kinds of consumers that there are."""

from syncd.lean_import import import_httpx2

import_httpx2()  # before any module of this package
