"""They lie in files: reading a mount safely, watching it, and the loop that reconciles the two."""
