"""From a vault to files: manifests, fetching, and publishing as the CSI driver does."""
