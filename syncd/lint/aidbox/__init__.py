"""Checks of a live Aidbox against the vault config."""
