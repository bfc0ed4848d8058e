"""Using the ledger from several loops, and what is reported while it cannot be used."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import structlog

from syncd.core.errors import StateError
from syncd.core.timing import Backoff
from syncd.mount.read import LIMIT
from syncd.system.threads import Call

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_T = TypeVar("_T")
log = structlog.get_logger()


class LedgerUse:
    """Says once that the ledger cannot be used, and once that all can use it again.

    Attributes:
        failure: Why it cannot be used, or None.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self._failing: set[str] = set()
        self._backoff = Backoff(first=0.2, cap=10.0)
        self._rng = Random()  # noqa: S311 - jitter

    async def call(
        self, user: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Calls a function of the ledger, whose disk may not answer either.

        Args:
            user: Whose call it is; what failed for it counts until it succeeds.
            function: What to call, in a thread.
            *args: Its arguments.
            **kwargs: Its arguments by name.

        Raises:
            StateError: The ledger cannot be used.
        """
        call = Call(partial(function, *args, **kwargs))
        while not await call.wait(LIMIT):
            self.hang(user)
        result = call.result()
        self.recover(user)
        return result

    def hang(self, user: str) -> None:
        """A call of a user does not return."""
        problem = "cannot use the ledger: its file system does not answer"
        self.fail(user, StateError(problem, "check the disk of state_dir"))

    def fail(self, user: str, error: StateError) -> None:
        """A call of a user failed."""
        self._failing.add(user)
        if self.failure != str(error):
            log.error("ledger.unusable", problem=str(error))
        self.failure = str(error)

    def pause(self) -> float:
        """After how many seconds to try again; longer each time, until all have recovered."""
        return self._backoff.next(self._rng)

    def recover(self, user: str) -> None:
        """A user can use the ledger, or does so no longer."""
        self._failing.discard(user)
        if self.failure is not None and not self._failing:
            log.info("ledger.recovered")
            self.failure = None
            self._backoff.reset()
