"""The refresh loop: every provision entry is fetched, published and fetched again, on its own.

It promises:

- a provider that fails, hangs or is denied delays no other one and nothing else: each has a loop
  and a worker thread of its own;
- a failure leaves the files that are there untouched, shows in health, metrics and log, and is
  tried again with backoff until it succeeds: recovery needs nobody;
- a fleet does not arrive at once: intervals and backoff are jittered;
- whoever watches the target learns of a publication as of any other change of a mount.

How a vault is asked is the provider's part, how files are written the publisher's.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.lowlevel
import anyio.to_thread
import structlog

from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.timing import Backoff, jittered, rfc3339
from syncd.provision.publish import IN_MEMORY, filesystem
from syncd.telemetry.log import describe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable
    from random import Random

    from syncd.core.payload import Payload
    from syncd.provision.publish import Publisher
    from syncd.telemetry.metrics import Metrics

BACKOFF_FIRST = 1.0
BACKOFF_CAP = 300.0
"""Seconds between attempts while a provider fails, at most (specification, "Writing the files")."""
MAX_RETRY_AFTER = 3600.0
SOONEST = 1.0
"""Seconds between two passes at least, however short a lease is."""

log = structlog.get_logger()


class Provider(Protocol):
    """A vault's client, as the refresh loop needs it."""

    @property
    def name(self) -> str:
        """What status, metrics and log call this provider."""

    def fetch(self) -> Payload:
        """Fetches every file of the target; called in a worker thread, never two at a time.

        Blocks, with time limits of its own on every request.

        Returns:
            All files: the fetch of a part is a failure.

        Raises:
            TemporaryError: The vault or the way to it is in the way; carries `retry_after` where
                the vault said when to come back.
            RefusedError: The vault said no, or the answer does not fit the manifest: only a
                person can change that.
        """

    def interrupt(self) -> None:
        """Ends the fetch under way by an error, and others until `resume`. Any thread, at once."""

    def resume(self) -> None:
        """Fetches again after an interruption."""

    def close(self) -> None:
        """Lets go of connections and of what is kept in memory. The provider is not used again."""


@dataclass(frozen=True, slots=True)
class Health:
    """How a provider is doing.

    Attributes:
        target: Where its files go.
        files: How many there were in the last fetch; None before the first.
        last_success_at: When everything was last fetched and in place (RFC 3339, UTC), or None.
        last_change_at: When a fetch last changed something, in this process, or None.
        last_error: Why the last attempt failed, one line, or None if it did not.
        failures: Attempts that failed since the last success.
        next_attempt_at: When the next one is due, or None when none is (or one is under way).
    """

    target: str
    files: int | None
    last_success_at: str | None
    last_change_at: str | None
    last_error: str | None
    failures: int
    next_attempt_at: str | None


class Refresher:
    """The loop of one provision entry.

    Args:
        provider: Where the secrets come from.
        publisher: Where they go.
        interval: Seconds between fetches; 0 fetches once.
        metrics: Where to count.
        rng: Source of the jitter.
        key: What the provider was made of, to tell whether another loop may take it over.
        clock: Seconds since the epoch.
        sleep: Waits for some seconds.

    Attributes:
        provider: Where the secrets come from.
        key: As given.
    """

    def __init__(
        self,
        provider: Provider,
        publisher: Publisher,
        interval: float,
        metrics: Metrics,
        rng: Random,
        *,
        key: Hashable = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self.provider = provider
        self.key = key
        self._publisher = publisher
        self._interval = interval
        self._metrics = metrics.provider(provider.name)
        self._rng = rng
        self._clock = clock
        self._sleep = sleep
        self._limiter = anyio.CapacityLimiter(1)
        self._backoff = Backoff(BACKOFF_FIRST, BACKOFF_CAP)
        self._refusals: set[str] = set()
        self._woken = anyio.Event()
        self._attempted = anyio.Event()
        self._stopping = False
        self._files: int | None = None
        self._last_success_at: str | None = None
        self._last_change_at: str | None = None
        self._last_error: str | None = None
        self._next_attempt_at: str | None = None

    @property
    def health(self) -> Health:
        """How the provider is doing now."""
        return Health(
            self._publisher.target,
            self._files,
            self._last_success_at,
            self._last_change_at,
            self._last_error,
            self._backoff.failures,
            self._next_attempt_at,
        )

    def wake(self) -> None:
        """Asks for a fetch now, whatever the interval or the backoff. From the event loop."""
        self._woken.set()

    def has_files(self) -> bool:
        """Whether the target holds a generation, perhaps of an earlier process. Blocks a little."""
        return os.path.isdir(f"{self._publisher.target}/..data")

    async def attempted(self) -> None:
        """Returns when the first attempt has ended, well or not."""
        await self._attempted.wait()

    async def run(self) -> None:
        """Fetches and publishes until cancelled."""
        self._stopping = False
        self.provider.resume()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._interrupt_when_cancelled, True)
            while True:
                delay = await self._attempt()
                self._attempted.set()
                await self._rest(delay)

    async def run_once(self) -> bool:
        """Fetches and publishes once, trying again while that may help; whether it succeeded."""
        self.provider.resume()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._interrupt_when_cancelled, False)
            while True:
                delay = await self._attempt()
                if self._last_error is None or self._last_error in self._refusals:
                    break
                await self._rest(delay)
            tasks.cancel_scope.cancel()
        return self._last_error is None

    async def _interrupt_when_cancelled(self, silent: bool) -> None:  # noqa: FBT001 - for start_soon
        """A worker thread cannot be cancelled: whoever cancels must not wait for a dead vault.

        Args:
            silent: Whether the pass that is cut off is nobody's failure.
        """
        try:
            await anyio.sleep_forever()
        finally:
            self._stopping = silent
            self.provider.interrupt()

    async def _rest(self, delay: float | None) -> None:
        if delay is not None:
            self._next_attempt_at = rfc3339(self._clock() + delay)
        async with anyio.create_task_group() as tasks:
            if delay is not None:
                tasks.start_soon(self._set_after, delay)
            await self._woken.wait()
            tasks.cancel_scope.cancel()
        self._woken = anyio.Event()
        self._next_attempt_at = None

    async def _set_after(self, delay: float) -> None:
        await self._sleep(delay)
        self._woken.set()

    async def _attempt(self) -> float | None:
        """One fetch and publication; returns how long to wait for the next, or None for ever."""
        try:
            payload, changed, kind = await anyio.to_thread.run_sync(
                self._pass, limiter=self._limiter
            )
        except TemporaryError as error:
            if self._stopping:
                await anyio.lowlevel.checkpoint()  # cancelled: no failure of the provider's
            return self._retry(str(error), min(error.retry_after or 0.0, MAX_RETRY_AFTER))
        except RefusedError as error:
            return self._refuse(str(error))
        except Exception as error:  # noqa: BLE001 - a bug in one provider must not stop the others
            return self._refuse(f"{describe(error)}, a bug in syncd; please report it")
        if self._last_success_at is None:
            self._warn_of_disk(kind)
        self._succeed(payload, changed=changed)
        if not self._interval:
            return None
        delay = jittered(self._interval, self._rng)
        return delay if payload.due is None else min(delay, max(SOONEST, payload.due))

    def _pass(self) -> tuple[Payload, bool, str | None]:
        """Does the work, in a worker thread; the target's file system only the first time."""
        payload = self.provider.fetch()
        changed = self._publisher.publish(payload.files)
        first = self._last_success_at is None
        return payload, changed, filesystem(self._publisher.target) if first else None

    def _succeed(self, payload: Payload, *, changed: bool) -> None:
        now = rfc3339(self._clock())
        (log.info if changed or self._backoff.failures else log.debug)(
            "provision.published" if changed else "provision.unchanged",
            provider=self.provider.name,
            target=self._publisher.target,
            files=len(payload.files),
            after_failures=self._backoff.failures,
        )
        self._backoff.reset()
        self._refusals.clear()
        self._files = len(payload.files)
        self._last_error = None
        self._last_success_at = now
        if changed:
            self._last_change_at = now
        self._metrics.succeeded()

    def _warn_of_disk(self, kind: str | None) -> None:
        if kind is not None and kind not in IN_MEMORY:
            log.warning(
                "provision.target_on_disk",
                provider=self.provider.name,
                target=self._publisher.target,
                filesystem=kind,
                hint="secrets outlive a power cut there; mount a tmpfs",
            )

    def _retry(self, reason: str, at_least: float = 0.0) -> float:
        """Notes a failure that may heal; the warnings grow rarer as it lasts."""
        delay = self._backoff.next(self._rng, at_least=at_least)
        self._last_error = reason
        self._metrics.failed()
        failures = self._backoff.failures
        report = log.warning if failures & (failures - 1) == 0 else log.debug
        report("provision.failed", **self._failure(reason, delay))
        return delay

    def _refuse(self, reason: str) -> float:
        """Notes what only a person can change: an error once per reason."""
        delay = self._backoff.next(self._rng)
        self._last_error = reason
        self._metrics.refused()
        report = log.debug if reason in self._refusals else log.error
        self._refusals.add(reason)
        report("provision.refused", **self._failure(reason, delay))
        return delay

    def _failure(self, reason: str, delay: float) -> dict[str, str | int | float | None]:
        return {
            "provider": self.provider.name,
            "reason": reason,
            "failures": self._backoff.failures,
            "last_success_at": self._last_success_at,
            "retry_in": round(delay, 1),
        }
