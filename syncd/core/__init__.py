"""What it means: the pure rules. Nothing here opens a file, a socket or a clock."""
