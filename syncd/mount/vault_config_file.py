"""The vault config as a file that changes: read again when it may have changed.

Aidbox loads the file once; syncd follows it, so that a changed name, scope or path takes effect and
is reported. After a broken edit the last valid vault config stays in force.

Like a secret, it is taken when two readings, `settle` apart, are the same; and its file system may
not answer.
"""

from __future__ import annotations

import hashlib
import os
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from syncd.config.extra import join
from syncd.core.errors import ConfigurationError
from syncd.core.findings import Finding, finding
from syncd.core.vault_config import decode_vault_config
from syncd.mount.way import Watched, follow
from syncd.system.errnos import reason, remedy
from syncd.system.files import read_file
from syncd.system.threads import Call, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from syncd.core.model import Entry

LIMIT: Final = 4.0
"""Seconds after which a file that does not answer counts as unreadable."""

_LARGEST: Final = 32 << 20
_REARMS: Final = 5


def read_vault_config(path: str) -> tuple[bytes, os.stat_result]:
    """Reads a vault config.

    Returns:
        The content, and the file's status from before it was read.

    Raises:
        ConfigurationError: It cannot be read, is not a regular file, or is larger than 32 MiB.
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

    Args:
        path: Where Aidbox reads it.
        settle: Seconds between two readings that must be the same.
        extra: The entries of `watch.extra`, by name.

    Attributes:
        path: Where Aidbox reads it.
        entries: Those of the last valid one, which is in force, and the extra ones, by name.
        findings: What the last reading found, errors and warnings.
        valid: Whether the file as it is now is the one in force.
        postponed: Whether the file must be read again soon, because it is being written.
        watched: What must be watched for the file to change.
    """

    def __init__(
        self, path: str, settle: float, extra: Mapping[str, Entry] = MappingProxyType({})
    ) -> None:
        self.path = path
        self.entries: Mapping[str, Entry] = extra
        self.findings: tuple[Finding, ...] = ()
        self.valid = False
        self.postponed = False
        self.watched = Watched()
        self._extra = extra
        self._settle = settle
        self._digest = b""
        self._candidate: tuple[bytes, float] | None = None
        self._reading: Call[bytes] | None = None

    async def load(self) -> None:
        """Reads the file for the first time.

        Raises:
            ConfigurationError: It cannot be read or used; holds every problem.
        """
        await self.refresh(at_rest=False)
        if not self.valid:
            raise ConfigurationError(self.findings)

    async def refresh(
        self, *, at_rest: bool = True, arm: Callable[[Watched], object] = lambda _watched: None
    ) -> bool:
        """Reads the file again; returns whether the result differs from the last one.

        Args:
            at_rest: Take new content only when it was the same at a reading before.
            arm: Is called with what must be watched, in a thread and before the file is read.
        """
        if self._reading is None:
            self._reading = Call(self._read, arm)
        if not await self._reading.wait(LIMIT):
            message = "its file system does not answer"
            hint = "check the mount that the file lies on"
            return self._reject((finding("vault-config-unreadable", self.path, "", message, hint),))
        reading, self._reading = self._reading, None
        self.postponed = False
        try:
            text = reading.result()
        except ConfigurationError as error:
            return self._reject(error.findings)
        digest = hashlib.sha256(text).digest()
        if digest == self._digest:
            self._candidate = None
            return False
        if at_rest and not self._was_there(digest):
            self.postponed = True
            return False
        # in a thread: a large file takes seconds, in which probes and deliveries go on
        entries, findings = await run(decode_vault_config, text, self.path)
        self._digest, self._candidate = digest, None
        joined, conflicts = join(entries or {}, self._extra, self.path)
        self.findings = (*findings, *conflicts)
        self.valid = entries is not None and not conflicts
        if self.valid:
            self.entries = joined
        return True

    def _was_there(self, digest: bytes) -> bool:
        now = time.monotonic()
        if self._candidate is None or self._candidate[0] != digest:
            self._candidate = (digest, now)
        return now - self._candidate[1] >= self._settle

    def _read(self, arm: Callable[[Watched], object]) -> bytes:
        for _ in range(_REARMS):
            watched = self._way()
            arm(watched)
            # a link that was swapped before its directory was watched gave no hint
            if self._way() == watched:
                break
        self.watched = watched
        return read_vault_config(self.path)[0]

    def _way(self) -> Watched:
        watched = Watched()
        directory, _, name = follow(self.path, watched).rpartition("/")
        watched.add_files(directory or "/", frozenset((name,)))
        return watched

    def _reject(self, findings: tuple[Finding, ...]) -> bool:
        if self.findings == findings:
            return False
        # no digest: the same content is read and reported again once the file can be read
        self._digest, self.valid, self.findings = b"", False, findings
        return True
