"""The refresh loop: every provision entry is fetched, published and fetched again, on its own.

It guarantees:

- a provider that fails, hangs or is denied delays neither other providers nor notifications: each
  entry has a loop and a worker thread of its own;
- a failure leaves the published files untouched, shows in health, metrics and log, and is tried
  again with backoff until it succeeds: no restart is needed;
- a fleet does not arrive at once: intervals and backoff are jittered.

How a vault is read is the provider's part, how files are written the publisher's. A publication is
noticed as any other change of a mount.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.lowlevel
import anyio.to_thread
import structlog
from msgspec.structs import asdict

from syncd.core.attempts import Attempts
from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.health import ProviderHealth
from syncd.core.timing import Backoff, jittered
from syncd.provision.publish import IN_MEMORY, filesystem
from syncd.telemetry.unexpected import unexpected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable
    from random import Random

    from syncd.core.attempts import Failure
    from syncd.core.payload import Payload
    from syncd.provision.publish import Publisher
    from syncd.telemetry.metrics import Metrics

BACKOFF_FIRST = 1.0
BACKOFF_CAP = 300.0
"""Seconds between attempts while a provider fails, at most (specification, "Writing the files")."""
MAX_RETRY_AFTER = 3600.0
SOONEST = 1.0
"""Seconds between two passes, at least: a lease may be shorter."""

log = structlog.get_logger()


class Provider(Protocol):
    """A vault's client, as the refresh loop needs it."""

    @property
    def name(self) -> str:
        """Its name in status, metrics and log."""

    def fetch(self) -> Payload:
        """Fetches every file of the target; called in a worker thread, never two at a time.

        Blocks, within the provider's own time limits for every request.

        Returns:
            All files; a provider that cannot fetch one of them raises.

        Raises:
            TemporaryError: The vault cannot be reached or cannot answer now; carries `retry_after`
                where it sent one.
            RefusedError: The vault refused, or its answer does not fit the manifest: only a person
                can change that.
        """

    def interrupt(self) -> None:
        """Ends a running fetch by an error, and later ones until `resume`. For any thread."""

    def resume(self) -> None:
        """Allows fetches again after `interrupt`."""

    def close(self) -> None:
        """Closes connections and forgets credentials and leases; the provider is not used again."""


class Refresher:
    """The loop of one provision entry.

    Args:
        provider: Fetches the secrets.
        publisher: Writes them.
        interval: Seconds between fetches; 0 fetches once.
        metrics: Counts the fetches.
        rng: Source of the jitter.
        key: Entry and manifest that the provider was made of: a loop with an equal key may take it
            over.
        clock: Seconds since the epoch.
        sleep: Waits for some seconds.
        monotonic: A monotonic clock, seconds.

    Attributes:
        provider: As passed, and so is `key`.
        key: As passed.
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
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.provider = provider
        self.key = key
        self._publisher = publisher
        self._interval = interval
        self._metrics = metrics.provider(provider.name)
        self._rng = rng
        self._clock = clock
        self._sleep = sleep
        self._monotonic = monotonic
        self._limiter = anyio.CapacityLimiter(1)
        self._attempts = Attempts(Backoff(BACKOFF_FIRST, BACKOFF_CAP))
        self._woken = anyio.Event()
        self._attempted = anyio.Event()
        self._stopping = False
        self._files: int | None = None
        self._last_change_at: str | None = None

    @property
    def health(self) -> ProviderHealth:
        """How the provider is doing now."""
        return ProviderHealth(
            **asdict(self._attempts.health),
            target=self._publisher.target,
            files=self._files,
            last_change_at=self._last_change_at,
        )

    def wake(self) -> None:
        """Starts the next fetch now, regardless of interval and backoff. From the event loop."""
        self._woken.set()

    def has_files(self) -> bool:
        """Whether the target holds a generation, perhaps of an earlier process. Blocks briefly."""
        return os.path.isdir(f"{self._publisher.target}/..data")

    async def attempted(self) -> None:
        """Returns when the first attempt has ended, successfully or not."""
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
        """Fetches and publishes once; whether it succeeded.

        Tries again after a temporary failure, not after a refusal.
        """
        self.provider.resume()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._interrupt_when_cancelled, False)
            while True:
                delay = await self._attempt()
                if self._attempts.last_error is None or self._attempts.is_refused:
                    break
                await self._rest(delay)
            tasks.cancel_scope.cancel()
        return self._attempts.last_error is None

    async def _interrupt_when_cancelled(self, silent: bool) -> None:  # noqa: FBT001 - for start_soon
        """Ends a fetch when the loop is cancelled, since a worker thread cannot be cancelled.

        Without it the end of the daemon would wait for a vault that hangs.

        Args:
            silent: Whether an interrupted pass is not to be counted as a failure.
        """
        try:
            await anyio.sleep_forever()
        finally:
            self._stopping = silent
            self.provider.interrupt()

    async def _rest(self, delay: float | None) -> None:
        if delay is not None:
            self._attempts.schedule(self._clock(), delay)
        async with anyio.create_task_group() as tasks:
            if delay is not None:
                tasks.start_soon(self._set_after, delay)
            await self._woken.wait()
            tasks.cancel_scope.cancel()
        self._woken = anyio.Event()
        self._attempts.next_attempt_at = None

    async def _set_after(self, delay: float) -> None:
        await self._sleep(delay)
        self._woken.set()

    async def _attempt(self) -> float | None:
        """Fetches and publishes; returns the seconds until the next attempt, None for no other.

        The interval counts from the start of a pass to the start of the next one.
        """
        started = self._monotonic()
        try:
            payload, changed, kind = await anyio.to_thread.run_sync(
                self._pass, limiter=self._limiter
            )
        except TemporaryError as error:
            if self._stopping:
                # the provider did not fail: raise the cancellation that interrupted it
                await anyio.lowlevel.checkpoint()
            at_least = min(error.retry_after or 0.0, MAX_RETRY_AFTER)
            return self._retry(str(error), at_least)
        except RefusedError as error:
            return self._refuse(str(error))
        except Exception as error:  # noqa: BLE001 - a bug in one provider must not stop the others
            found = unexpected(error)
            is_short = isinstance(found, TemporaryError)
            return self._retry(str(found), 0.0) if is_short else self._refuse(str(found))
        if kind is not None and kind not in IN_MEMORY:
            log.warning(
                "provision.target_on_disk",
                provider=self.provider.name,
                target=self._publisher.target,
                filesystem=kind,
                hint="secrets stay on disk after a power cut; mount a tmpfs at the target",
            )
        self._succeed(payload, changed=changed)
        if not self._interval:
            return None
        took = self._monotonic() - started
        delay = max(0.0, jittered(self._interval, self._rng) - took)
        if payload.due is not None:
            delay = min(delay, payload.due)
        return max(delay, min(SOONEST, self._interval))

    def _pass(self) -> tuple[Payload, bool, str | None]:
        """Blocks; before the first success also looks up the target's file system."""
        payload = self.provider.fetch()
        changed = self._publisher.publish(payload.files)
        first = self._attempts.last_success_at is None
        return payload, changed, filesystem(self._publisher.target) if first else None

    def _succeed(self, payload: Payload, *, changed: bool) -> None:
        failures = self._attempts.succeed(self._clock())
        self._files = len(payload.files)
        if changed:
            self._last_change_at = self._attempts.last_success_at
        self._metrics.succeeded()
        report = log.info if changed or failures else log.debug
        report(
            "provision.published" if changed else "provision.unchanged",
            provider=self.provider.name,
            target=self._publisher.target,
            files=self._files,
            after_failures=failures,
        )

    def _retry(self, reason: str, at_least: float) -> float:
        failure = self._attempts.retry(reason, self._rng, at_least=at_least)
        self._metrics.failed()
        self._report("provision.failed", log.warning, reason, failure)
        return failure.delay

    def _refuse(self, reason: str) -> float:
        failure = self._attempts.refuse(reason, self._rng)
        self._metrics.refused()
        self._report("provision.refused", log.error, reason, failure)
        return failure.delay

    def _report(
        self, event: str, report: Callable[..., None], reason: str, failure: Failure
    ) -> None:
        if not failure.is_news:
            report = log.debug
        report(
            event,
            provider=self.provider.name,
            reason=reason,
            failures=self._attempts.failures,
            last_success_at=self._attempts.last_success_at,
            retry_in=round(failure.delay, 1),
        )
