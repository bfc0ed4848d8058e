"""The errors syncd raises, sorted by what the caller can do about them.

Every message is one line that says what is wrong, where, and what to do. No message ever holds a
secret value or the text of a foreign library's exception: those can carry response bodies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncd.core.findings import Finding


class SyncdError(Exception):
    """Base of all errors that syncd raises on purpose; `str()` is fit for a user's eyes."""


class ConfigurationError(SyncdError):
    """Something the user wrote must be mended before syncd can go on.

    Attributes:
        findings: Every problem found, in order of appearance.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(str(finding) for finding in self.findings))


class TemporaryError(SyncdError):
    """The other side or the machine is in the way right now; trying again may help.

    Attributes:
        retry_after: Seconds the other side asked us to wait, or None.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RefusedError(SyncdError):
    """The other side understood and said no; only a person can change that."""


class StateError(SyncdError):
    """The state directory cannot be used: syncd must not run without its memory."""


class ListenError(SyncdError):
    """An address of the API cannot be listened on: somebody else has it, or it is out of reach."""
