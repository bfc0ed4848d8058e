"""Watches the secret files of Aidbox and reports each change to its consumers."""

__version__ = "0.1.0"
