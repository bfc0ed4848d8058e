"""Secrets come in: manifests, the vaults' clients, and the loop that refreshes."""
