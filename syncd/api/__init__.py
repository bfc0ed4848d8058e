"""From the ledger to clients: the HTTP API, event streams, probes, systemd credentials."""
