"""`syncd wait --delivered`: waits until consumers have acknowledged what the daemon has seen.

For a pipeline on one machine that rotates a secret and then retires the old one; `syncd fleet wait`
does the same for many installations. What the daemon has not scanned yet it cannot know.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

from syncd.api.report import SecretsReport
from syncd.commands.client import Client, UnreachableError
from syncd.core.adoption import AdoptionState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from syncd.api.report import ConsumerPosition, SecretReport

_INTERVAL: Final = 0.5


class Delivered(msgspec.Struct, frozen=True):
    """What to wait for.

    Attributes:
        secrets: Names; all secrets if there is none.
        consumer: The consumer that counts; every one if None.
        adopted: Whether adoption must be proven, too.
    """

    secrets: tuple[str, ...] = ()
    consumer: str | None = None
    adopted: bool = False

    def missing(self, reported: Iterable[SecretReport]) -> list[str]:
        """One line for each secret and consumer that is behind."""
        known = {item.secret: item for item in reported}
        lines = [
            f"secret {name}: the daemon does not know it"
            for name in self.secrets
            if name not in known
        ]
        counted = {name: self._counted(item) for name, item in sorted(known.items())}
        # unless they are named, secrets that no such consumer may see are no concern of this
        wanted = self.secrets or [name for name in counted if counted[name]]
        for name in wanted or (() if self.consumer is None else counted):
            if name in known:
                lines += [f"secret {name}: {line}" for line in self._behind(counted[name])]
        return lines

    def _counted(self, item: SecretReport) -> dict[str, ConsumerPosition]:
        return {
            name: at
            for name, at in item.consumers.items()
            if self.consumer is None or name == self.consumer
        }

    def _behind(self, counted: dict[str, ConsumerPosition]) -> Iterator[str]:
        if not counted:
            name = "" if self.consumer is None else f" {self.consumer}"
            yield f"there is no consumer{name} that may see it"
            return
        for name, at in counted.items():
            if at.pending:
                yield f"consumer {name} has not acknowledged the newest version"
        if self.adopted:
            yield from self._unproven(counted)

    def _unproven(self, counted: dict[str, ConsumerPosition]) -> Iterator[str]:
        found = {name: at.adoption for name, at in counted.items() if at.adoption is not None}
        for name, adoption in found.items():
            if adoption.state not in (AdoptionState.ADOPTED, AdoptionState.NOT_VERIFIABLE):
                why = "" if adoption.problem is None else f": {adoption.problem}"
                yield f"adoption by consumer {name} is {adoption.state.value}{why}"
        states = {adoption.state for adoption in found.values()}
        if not states:
            yield "no consumer has verified the adoption of this version"
        elif states == {AdoptionState.NOT_VERIFIABLE} and self.secrets:
            yield "its adoption cannot be verified: its scope is not one Client"


def wait(path: str, goal: Delivered, limit: float, report: Callable[[str], object]) -> list[str]:
    """Waits until that is so, at most so many seconds.

    Args:
        path: The daemon's socket.
        goal: What to wait for.
        limit: Seconds; 0 looks once.
        report: Is called with each new line of what is missing.

    Returns:
        What is missing, one line each; empty when nothing is.

    Raises:
        UnreachableError: The daemon could not be reached even once.
        DeniedError: It refused.
    """
    end, missing, told = time.monotonic() + limit, [""], set[str]()
    reached = False
    while True:
        try:
            with Client(path) as client:
                missing = goal.missing(client.get("/v1/secrets", SecretsReport).secrets)
                reached = True
        except UnreachableError:
            if not reached and time.monotonic() >= end:
                raise
        if not missing:
            return []
        for line in filter(None, missing):
            if line not in told:
                report(line)
                told.add(line)
        left = end - time.monotonic()
        if left <= 0:
            return missing
        time.sleep(min(_INTERVAL, left))
