"""What one would use instead of syncd: small programs that the harness starts."""
