"""The state of this installation in a key-value bucket of NATS: one document, always the newest.

Written when something changed, and as a heartbeat: an installation whose document is older than its
`ttl` is silent. Several changes within `COALESCE` seconds are one document. It is apart from the
delivery of events: it has a connection of its own, and one never waits for the other. Nothing is
kept for later, since the next document has everything.

syncd creates no bucket.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import msgspec
import structlog

from syncd import __version__
from syncd.config.settings import grant
from syncd.core.attempts import Attempts
from syncd.core.errors import SyncdError
from syncd.core.event_data import SECRET_ADOPTED, SECRET_REJECTED, AdoptionData
from syncd.core.installation import (
    SILENT_AFTER,
    Installation,
    InstalledSecret,
    bucket_subject,
)
from syncd.core.timing import jittered, rfc3339
from syncd.net.nats import Connection
from syncd.telemetry.unexpected import unexpected

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from syncd.config.settings import Nats
    from syncd.core.events import Commit
    from syncd.core.model import Known
    from syncd.ledger.ledger import Ledger

COALESCE: Final = 0.25
"""Seconds from a change to its document, which are also the least between two."""

log = structlog.get_logger()


class StateWriter:
    """Keeps the document of this installation in the bucket.

    Args:
        settings: Of a consumer with a `state_bucket`.
        instance: Name of the installation.
        ledger: Knows earlier adoptions, and the first scan.
        inventory: Every secret, as of the last commit.
        key_id: The name of the fingerprint key in use.
        rng: Source of the jitter.
    """

    def __init__(
        self,
        settings: Nats,
        *,
        instance: str,
        ledger: Ledger,
        inventory: Callable[[], Mapping[str, Known]],
        key_id: Callable[[], str],
        rng: Random,
    ) -> None:
        assert settings.state_bucket is not None
        self.name = settings.name
        self._bucket = settings.state_bucket
        self._subject = bucket_subject(settings.state_bucket, instance)
        self._heartbeat = float(settings.state_heartbeat)
        self._grant = grant(settings.scope)
        self._instance = instance
        self._ledger = ledger
        self._inventory = inventory
        self._key_id = key_id
        self._rng = rng
        self._connection = Connection(settings, f"syncd {self.name} state")
        self._attempts = Attempts()
        self._adoptions: dict[str, dict[str, AdoptionData]] = {}
        self._baseline: str | None = None
        self._changed = anyio.Event()
        self._written = anyio.Event()

    def committed(self, commit: Commit) -> None:
        """Notifies the writer of a commit. In the event loop only."""
        for event in commit.events:
            if isinstance(event.data, AdoptionData):
                self._adopt(event.data)
        self._changed.set()
        if self._written.is_set():
            self._written = anyio.Event()

    @property
    def unfinished(self) -> str | None:
        """Why the last commit is not in the bucket, one line, or None if it is."""
        if self._written.is_set():
            return None
        return self._attempts.last_error or "the time is over before it was written"

    async def drained(self) -> None:
        """Returns when a document was written after the last commit."""
        while not self._written.is_set():
            await self._written.wait()

    async def run(self) -> None:
        """Writes until cancelled."""
        try:
            while True:
                self._changed = anyio.Event()
                try:
                    if self._baseline is None:
                        await anyio.to_thread.run_sync(self._restore)
                    await self._write()
                except SyncdError as error:
                    await self._fail(error)
                    continue
                except Exception as error:  # noqa: BLE001 - a bug in it must not end the daemon
                    await self._fail(unexpected(error))
                    continue
                self._succeed()
                with anyio.move_on_after(jittered(self._heartbeat, self._rng)):
                    await self._changed.wait()
                # what changes meanwhile is in the same document, and deliveries come first
                await anyio.sleep(COALESCE)
        finally:
            await self._connection.aclose()

    def _restore(self) -> None:
        for event in self._ledger.events_of((SECRET_ADOPTED, SECRET_REJECTED)):
            if isinstance(event.data, AdoptionData):
                self._adopt(event.data)
        self._baseline = self._ledger.baseline()

    def _adopt(self, data: AdoptionData) -> None:
        # not changed in place: a thread may be reading it
        known = self._adoptions.get(data.secret, {})
        self._adoptions[data.secret] = {**known, data.consumer: data}

    async def _write(self) -> None:
        # ten thousand secrets take tens of milliseconds, in which the event loop goes on
        document = await anyio.to_thread.run_sync(self._encode, self._inventory(), time.time())
        (error,) = await self._connection.publish([(self._subject, {}, document)])
        if error is not None:
            raise error

    def _encode(self, inventory: Mapping[str, Known], now: float) -> bytes:
        return msgspec.json.encode(self.document(inventory, now))

    def document(self, inventory: Mapping[str, Known], now: float) -> Installation:
        """The document of an inventory at a time (seconds since the epoch)."""
        return Installation(
            self._instance,
            __version__,
            rfc3339(now),
            self._key_id(),
            SILENT_AFTER * self._heartbeat,
            {
                name: self._secret(known)
                for name, known in inventory.items()
                if self._grant.sees(known.entry.scopes)
            },
        )

    def _secret(self, known: Known) -> InstalledSecret:
        found = self._adoptions.get(known.entry.name, {}).values()
        return InstalledSecret(
            known.version,
            known.state,
            known.changed_at if known.changed_at != self._baseline else None,
            known.entry.scopes,
            {
                f"{data.consumer} {replica.address}": replica.adopted
                for data in found
                if data.version == known.version
                for replica in data.replicas
            },
        )

    async def _fail(self, error: SyncdError) -> None:
        failure = self._attempts.fail(error, self._rng)
        if failure.is_news:
            report = log.error if self._attempts.is_refused else log.warning
            report("state.failing", consumer=self.name, bucket=self._bucket, reason=str(error))
        await anyio.sleep(failure.delay)

    def _succeed(self) -> None:
        failures = self._attempts.succeed(time.time())
        if failures:
            log.info("state.recovered", consumer=self.name, after_failures=failures)
        log.debug("state.written", consumer=self.name)
        if not self._changed.is_set():
            self._written.set()
