"""Domain types and rules; no I/O and no clock."""
