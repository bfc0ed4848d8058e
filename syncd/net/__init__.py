"""Connections, which know nothing of events: HTTP, NATS, TLS and credentials from files."""
