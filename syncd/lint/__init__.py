"""Checks of configuration, vault config, mounts and a live Aidbox, as findings."""
