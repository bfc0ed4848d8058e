"""Log, metrics and the service manager."""
