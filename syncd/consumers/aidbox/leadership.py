"""Who may change Aidbox: one installation at a time, and what it has begun.

In a cluster that is decided by a Lease (`syncd.net.lease`), elsewhere by the state directory, which
one process has locked: then syncd runs once for all replicas. What was begun is kept where those
who could end it find it: in the Lease, or in the ledger.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from syncd.ledger.ledger import Ledger


class Term(Protocol):
    """The time in which this process is the one that may act."""

    @property
    def begun(self) -> Mapping[str, str]:
        """What was begun and not ended, by name."""

    async def begin(self, name: str, text: str) -> None:
        """Keeps what is begun, before its first step.

        Raises:
            StateError: The ledger cannot be used.
            TemporaryError: It cannot be kept now.
            RefusedError: It cannot be kept until a person changes something.
        """

    async def end(self, name: str) -> None:
        """Forgets what has ended; errors as for `begin`."""


class Leadership(Protocol):
    """The way to a term."""

    async def has_begun(self) -> bool:
        """Whether something was begun and not ended; errors as for `Term.begin`."""

    def hold(self) -> AbstractAsyncContextManager[Term]:
        """Waits for its turn, and has it until the block ends; errors as for `Term.begin`.

        A term that is lost ends the block by a `TemporaryError`.
        """


class LocalLeadership:
    """Within one process: by the lock of its state directory no other process has this ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = anyio.Lock()

    async def has_begun(self) -> bool:
        """Whether the ledger holds an intention."""
        return bool(await anyio.to_thread.run_sync(self._ledger.intended))

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[Term]:
        """A term; two consumers of one process have theirs one after the other."""
        async with self._lock:
            begun = await anyio.to_thread.run_sync(self._ledger.intended)
            yield _LocalTerm(self._ledger, begun)


class _LocalTerm:
    def __init__(self, ledger: Ledger, begun: dict[str, str]) -> None:
        self._ledger = ledger
        self._begun = begun

    @property
    def begun(self) -> Mapping[str, str]:
        return self._begun

    async def begin(self, name: str, text: str) -> None:
        await anyio.to_thread.run_sync(self._ledger.intend, name, text)
        self._begun[name] = text

    async def end(self, name: str) -> None:
        await anyio.to_thread.run_sync(self._ledger.settle, name)
        self._begun.pop(name, None)
