"""Durable state: the ledger, its database file and the state directory."""
