"""The vault config as a file that changes: read again when it may have changed.

Aidbox loads the file once; syncd follows it, so that a changed name, scope or path takes effect and
is reported. After a broken edit the last valid vault config stays in force.
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from syncd.core.errors import ConfigurationError
from syncd.core.findings import Finding, finding
from syncd.core.vault_config import decode_vault_config
from syncd.system.errnos import reason, remedy
from syncd.system.files import read_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncd.core.model import Entry

_LARGEST: Final = 64 << 20


def read_vault_config(path: str) -> tuple[bytes, os.stat_result]:
    """Reads a vault config.

    Returns:
        The content, and the file's status from before it was read.

    Raises:
        ConfigurationError: It cannot be read, is not a regular file, or is larger than 64 MiB.
    """
    try:
        return read_file(path, _LARGEST)
    except OSError as error:
        correction = "set vault_config or BOX_VAULT_CONFIG to the JSON file that Aidbox reads"
        access = f"let uid {os.geteuid()} read it and enter its directories"
        hint = remedy(error, path=correction, access=access)
        message = f"cannot be read: {reason(error)}"
        raise ConfigurationError(
            [finding("vault-config-unreadable", path, "", message, hint)]
        ) from None


class VaultConfigFile:
    """A vault config and the findings of its last reading.

    Attributes:
        path: Where Aidbox reads it.
        entries: Those of the last valid one, which is in force, by name.
        findings: What the last reading found, errors and warnings.
        valid: Whether the file as it is now is the one in force.
        postponed: Whether the last reading was put off because the file is being written.
    """

    def __init__(self, path: str, settle: float) -> None:
        self.path = path
        self.entries: Mapping[str, Entry] = {}
        self.findings: tuple[Finding, ...] = ()
        self.valid = False
        self.postponed = False
        self._settle = settle
        self._digest = b""

    async def load(self) -> None:
        """Reads the file for the first time.

        Raises:
            ConfigurationError: It cannot be read or used; holds every problem.
        """
        await self.refresh(at_rest=False)
        if not self.valid:
            raise ConfigurationError(self.findings)

    async def refresh(self, *, at_rest: bool = True) -> bool:
        """Reads the file again; returns whether the result differs from the last one.

        With `at_rest`, reading a file that was written within the settle time is postponed.
        """
        self.postponed = False
        # One trip to a thread: a cancellation between opening and closing would leak the file.
        try:
            text = await anyio.to_thread.run_sync(self._read, at_rest)
        except ConfigurationError as error:
            return self._reject(error.findings)
        if text is None:
            self.postponed = True
            return False
        digest = hashlib.sha256(text).digest()
        if digest == self._digest:
            return False
        self._digest = digest
        entries, findings = decode_vault_config(text, self.path)
        self.findings = tuple(findings)
        self.valid = entries is not None
        if entries is not None:
            self.entries = entries
        return True

    def _read(self, at_rest: bool) -> bytes | None:  # noqa: FBT001 - run_sync's
        text, status = read_vault_config(self.path)
        if at_rest and 0 <= time.time() - status.st_mtime < self._settle:
            return None
        return text

    def _reject(self, findings: tuple[Finding, ...]) -> bool:
        if self.findings == findings:
            return False
        # no digest: the same content is read and reported again once the file can be read
        self._digest, self.valid, self.findings = b"", False, findings
        return True
