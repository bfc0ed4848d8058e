"""What a provider hands over: a complete set of files, and when to ask again.

This is the one place where secret values pass through syncd. The types here show paths and
modes, never contents, and nothing keeps them once they are written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

DEFAULT_MODE = 0o644
"""Permission bits of a file whose object names none (Secrets Store CSI driver and providers)."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of a generation.

    Attributes:
        path: Relative to the target, checked by `syncd.providers.manifest.path_problem`.
        content: The secret. Never shown by `repr`, never compared by `==` of a log line.
        mode: Permission bits, at most 0777.
        volatile: Top-level JSON keys that differ on every read without meaning a change, such as
            Vault's `request_id`: written, but left out of the comparison.
    """

    path: str
    content: bytes = field(repr=False)
    mode: int = DEFAULT_MODE
    volatile: frozenset[str] = frozenset()

    def same_content(self, other: bytes) -> bool:
        """Whether `other` means the same as this file's content."""
        if self.content == other:
            return True
        if not self.volatile:
            return False
        try:
            ours, theirs = json.loads(self.content), json.loads(other)
        except (ValueError, RecursionError):
            return False
        if not isinstance(ours, dict) or not isinstance(theirs, dict):
            return False
        for key in self.volatile:
            ours.pop(key, None)
            theirs.pop(key, None)
        return bool(ours == theirs)


@dataclass(frozen=True, slots=True)
class Payload:
    """Everything that a target shall hold.

    Attributes:
        files: All files; what is not among them goes away.
        due: Seconds after which a lease, token or certificate wants the next fetch, where that
            may be sooner than the poll interval; else None.
    """

    files: tuple[File, ...]
    due: float | None = None
