"""From files to changes: watching, reading, comparing."""
