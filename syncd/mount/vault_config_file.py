"""The vault config as a file that changes: read again when it may have, last good one kept.

Aidbox loads the file once; syncd follows it, so that a changed name, scope or path is noticed, said
and acted upon, and a broken edit does not stop what worked.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from syncd.core.errors import ConfigurationError
from syncd.core.findings import Finding, finding
from syncd.core.vault_config import VaultConfig, decode_vault_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncd.core.model import Entry

_LARGEST: Final = 64 << 20


class VaultConfigFile:
    """A vault config and the findings of its last reading.

    Attributes:
        path: Where Aidbox reads it.
        config: The last good one.
        findings: What the last reading found, errors and warnings.
        valid: Whether the file as it is now is the one in force.
        postponed: Whether the last reading left the file alone because it is being written.
    """

    def __init__(self, path: str, settle: float) -> None:
        self.path = path
        self.config = VaultConfig({})
        self.findings: tuple[Finding, ...] = ()
        self.valid = False
        self.postponed = False
        self._settle = settle
        self._digest = b""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The entries in force, by name."""
        return self.config.entries

    async def load(self) -> None:
        """Reads the file for the first time.

        Raises:
            ConfigurationError: It cannot be read or used; holds every problem.
        """
        await self.refresh(at_rest=False)
        if not self.valid:
            raise ConfigurationError(self.findings)

    async def refresh(self, *, at_rest: bool = True) -> bool:
        """Reads the file again if it may have changed.

        Args:
            at_rest: Leave a file alone that was written to within the settle time.

        Returns:
            Whether the reading came out differently from the last one.
        """
        self.postponed = False
        # one trip to a thread: cancelled between opening and closing, it would leak the file
        text = await anyio.to_thread.run_sync(self._read, at_rest)
        if text is None:
            self.postponed = True
            return False
        if isinstance(text, str):
            return self._reject("vault-config-unreadable", text)
        digest = hashlib.sha256(text).digest()
        if digest == self._digest:
            return False
        self._digest = digest
        config, findings = decode_vault_config(text, self.path)
        self.findings = tuple(findings)
        self.valid = config is not None
        if config is not None:
            self.config = config
        return True

    def _read(self, at_rest: bool) -> bytes | str | None:  # noqa: FBT001 - run_sync's
        """The content, or why there is none, or None for a file that is being written."""
        try:
            with open(self.path, "rb", opener=_open_at_once) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    return "is not a file"
                if status.st_size > _LARGEST:
                    return "is larger than 64 MiB"
                if at_rest and 0 <= time.time() - status.st_mtime < self._settle:
                    return None
                return file.read()
        except OSError as error:
            return f"cannot be read: {error.strerror}"

    def _reject(self, code: str, message: str) -> bool:
        hint = "set vault_config or BOX_VAULT_CONFIG to the JSON file that Aidbox reads"
        found = finding(code, self.path, "", message, hint)
        if self.findings == (found,):
            return False
        self._digest, self.valid, self.findings = b"", False, (found,)
        return True


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file; a FIFO would keep others waiting for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)
