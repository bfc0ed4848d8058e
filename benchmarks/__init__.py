"""Measures syncd against what one would use instead, in one run: `make bench`."""
