"""What operators see: the log, the metrics, and what systemd is told."""
