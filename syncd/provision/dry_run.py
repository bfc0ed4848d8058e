"""What a dry run of a provider finds: every file that a pass would write, and why one would fail.

A dry run logs in and examines each object. It writes no file, makes no credential, and keeps no
value. Each provider examines its own (`examine`); what comes of it is the linter's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from syncd.core.errors import RefusedError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Examined(msgspec.Struct, frozen=True):
    """One file of a dry run.

    Attributes:
        path: The file, relative to the target.
        mode: Permission bits.
        problem: Why a pass would fail at it, or None.
        warning: What is wrong with an object that can be read, and what to do; or None.
        note: What was examined instead of reading it; empty where it was read.
    """

    path: str
    mode: int
    problem: TemporaryError | RefusedError | None = None
    warning: tuple[str, str] | None = None
    note: str = ""


class Examiner(Protocol):
    """A provider that can be asked what a pass would do."""

    def examine(self) -> Iterator[Examined]:
        """Logs in and examines each object, in order. Blocks.

        Raises:
            TemporaryError: The vault cannot be reached for the login.
            RefusedError: It rejects the login.
        """

    def close(self) -> None:
        """Closes connections, and ends the login."""
