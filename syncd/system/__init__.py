"""The operating system: files, memory, and what the process denies itself."""
