"""Others ask: subscribers and operators over a Unix socket, probes and scrapers over TCP."""
