"""The command line: each command, and what turns its outcome into text and an exit code."""
