"""The errors that syncd raises, by what the caller can do about them.

Every message is one line: what happened, why and where; then what to do. No message holds a secret
value or the text of another library's exception, which can contain a response body.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncd.core.text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from syncd.core.findings import Finding


class SyncdError(Exception):
    """Base of all errors that syncd raises on purpose; `str()` is a message for users.

    Attributes:
        problem: What happened, why and where.
        remedy: What a person can do about it, or None where there is nothing to do.
        status: The status of the answer, or a command's exit code, that it stands for, or None.
    """

    status: int | None = None

    def __init__(self, problem: str, remedy: str | None = None) -> None:
        super().__init__(problem if remedy is None else f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy

    def answered(self, status: int | None) -> Self:
        """The same error, with the status that it stands for."""
        self.status = status
        return self

    @property
    def lines(self) -> tuple[str, ...]:
        """The messages, one for each problem, safe to show as one line each."""
        return (visible(str(self)),)


class ConfigurationError(SyncdError):
    """Something the user wrote must be corrected before syncd can go on.

    Attributes:
        findings: Every problem found, in order of appearance; each has its own remedy.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__("\n".join(str(finding) for finding in findings))
        self.findings = tuple(findings)

    @property
    def lines(self) -> tuple[str, ...]:
        """The findings, safe to show as one line each."""
        return tuple(map(str, self.findings))


class TemporaryError(SyncdError):
    """The other side or the machine fails now; trying again may help.

    Attributes:
        retry_after: Seconds that the other side asked to wait, or None.
    """

    def __init__(
        self, problem: str, remedy: str | None = None, *, retry_after: float | None = None
    ) -> None:
        super().__init__(problem, remedy)
        self.retry_after = retry_after


class RefusedError(SyncdError):
    """The other side refused; only a person can change that."""


class StateError(SyncdError):
    """The state directory cannot be used, and syncd must not run without it."""


class ListenError(SyncdError):
    """The API cannot listen on an address, because it is in use or not available."""
