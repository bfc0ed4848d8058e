"""Reads one credential file as it will be read for use, and forgets it."""

from __future__ import annotations

import os

from syncd.net.credentials import CredentialFiles, Keyring, SecretFile, parse_signing_key
from syncd.net.tls import RotatingContext, Trust, stat_pem_file


def inspect(option: str, path: str, partner: str | None = None) -> None:
    """Reads one credential as a consumer would. Blocks.

    Args:
        option: The option that names the file.
        path: The file.
        partner: For `client_cert`, the private key that belongs to it.

    Raises:
        TemporaryError: The file is missing, empty or cannot be read.
        RefusedError: It does not hold what it should.
    """
    if option == "ca_file":
        RotatingContext(Trust(ca_file=path)).current()
    elif option in ("client_cert", "client_key"):
        stat_pem_file(option, path)
        # a key that is missing is a finding of its own
        if partner is not None and os.path.exists(partner):
            RotatingContext(Trust(client_cert=path, client_key=partner)).current()
    elif option == "bearer_token_file":
        Keyring(CredentialFiles(bearer_token=path)).read()
    else:
        content = SecretFile(option, path).read(again=False)
        if option == "signing_key_file":
            parse_signing_key(path, content)
