"""The convergence of a fleet, as a relay watches and announces it.

It reads the bucket with the state of every installation, and commits `io.syncd.secret.converged`
and `.diverged` to the relay's ledger as events of its own; `syncd.core.announcements` decides when.
What was announced is committed together with the events, so that a restart neither repeats nor
loses one.

While the bucket cannot be read nothing converges. Time goes on: installations become silent, and
secrets diverge.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import aclosing
from random import Random
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel
import anyio.to_thread
import structlog

from syncd.api.status import FleetStatus
from syncd.core.announcements import fleet_data, judge
from syncd.core.attempts import Attempts
from syncd.core.errors import StateError, SyncdError
from syncd.core.event_data import SECRET_CONVERGED, FleetData
from syncd.core.events import Commit, Event
from syncd.core.timing import Backoff, Pace, rfc3339
from syncd.net.fleet_bucket import FleetBucket
from syncd.telemetry.unexpected import unexpected

if TYPE_CHECKING:
    from collections.abc import Collection

    from syncd.config.settings import RelaySource
    from syncd.core.announcements import Standing
    from syncd.core.convergence import Convergence
    from syncd.daemon.pipeline import Pipeline
    from syncd.ledger.ledger import Ledger
    from syncd.telemetry.metrics import FleetMetrics

TICK: Final = 1.0
"""Seconds between two looks at what time has changed: silence and deadlines."""

_COUNT_INTERVAL: Final = 5.0
_BACKOFF_CAP: Final = 15.0
_NEW_BUCKET: Final = 180.0
_NAMED: Final = 5

log = structlog.get_logger()


class FleetWatch:
    """Reads the bucket, judges, and announces.

    Args:
        source: Server and bucket of the relay.
        ledger: Where events are committed; used in worker threads only.
        metrics: Of the fleet.
        pipeline: Gets what was committed.
    """

    def __init__(
        self, source: RelaySource, ledger: Ledger, metrics: FleetMetrics, pipeline: Pipeline
    ) -> None:
        assert source.state_bucket is not None
        self._name = source.state_bucket
        self._limit = float(source.converge_within)
        self._bucket = FleetBucket(source, self._name, "syncd relay fleet", scoped=True)
        self._ledger = ledger
        self._metrics = metrics
        self._pipeline = pipeline
        self._attempts = Attempts(Backoff(cap=_BACKOFF_CAP))
        self._rng = Random()  # noqa: S311 - jitter
        self._standings: dict[str, Standing] = {}
        self._life: str | None = None
        self._touched: set[str] = set()
        self._news = anyio.Event()
        self._is_current = False
        self._was_read = False
        self._held_until = 0.0
        self._failure: str | None = "the bucket is not read yet"
        self._unrecorded: str | None = None
        self._diverged: dict[str, str] = {}
        self._instances: Counter[str] = Counter()
        self._counted_at = -_COUNT_INTERVAL

    async def run(self) -> None:
        """Watches until cancelled.

        Raises:
            StateError: The ledger cannot be used at the start.
        """
        read = self._ledger.standings
        self._standings, self._life = await anyio.to_thread.run_sync(read)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._read)
            tasks.start_soon(self._judge)

    def status(self) -> FleetStatus:
        """The state of the fleet now; what was announced before a restart is not the state."""
        held = f"bucket {self._name} is a new one, and installations may have yet to write to it"
        return FleetStatus(
            bucket=self._name,
            failure=self._failure or self._unrecorded or (held if self._held_until else None),
            instances=dict(self._instances),
            secrets=dict(self._tally()) if self._instances else {},
            diverged=dict(self._diverged),
        )

    async def _read(self) -> None:
        try:
            while True:
                try:
                    async with aclosing(self._bucket.changes()) as changes:
                        async for touched in changes:
                            self._take(touched)
                except SyncdError as error:
                    await self._fail(error)
                except Exception as error:  # noqa: BLE001 - a bug of the library must not end the relay
                    await self._fail(unexpected(error))
        finally:
            await self._bucket.aclose()

    def _take(self, touched: set[str]) -> None:
        self._touched |= touched
        self._metrics.read()
        if not self._is_current:
            if self._life not in (None, self._bucket.life) and not self._was_read:
                # it may have lost installations that are still there, and that write in time
                self._held_until = time.time() + _NEW_BUCKET
                log.warning("fleet.bucket_new", bucket=self._name, waits=_NEW_BUCKET)
            failures = self._attempts.succeed(time.time())
            log.info("fleet.following", bucket=self._name, after_failures=failures)
            self._touched |= self._standings.keys() | set(self._bucket.fleet.names)
            self._is_current = self._was_read = True
            self._failure = None
        if touched:
            self._news.set()

    async def _fail(self, error: SyncdError) -> None:
        self._is_current, self._failure = False, str(error)
        failure = self._attempts.fail(error, self._rng)
        if failure.is_news:
            report = log.error if self._attempts.is_refused else log.warning
            report("fleet.failing", bucket=self._name, reason=self._failure)
        await anyio.sleep(failure.delay)

    async def _judge(self) -> None:
        pace = Pace()
        while True:
            self._news = anyio.Event()
            with anyio.move_on_after(TICK):
                await self._news.wait()
            if not self._was_read:
                continue
            began = time.monotonic()
            unrecorded: str | None = None
            try:
                await self._look()
            except StateError as error:
                unrecorded = str(error)
            except Exception as error:  # noqa: BLE001 - a bug in it must not end the relay
                unrecorded = str(unexpected(error))
            if unrecorded is not None and unrecorded != self._unrecorded:
                log.error("fleet.not_recorded", reason=unrecorded)
            self._unrecorded = unrecorded
            now = time.monotonic()
            # ten thousand installations that all rotate are judged now and then, not each
            await anyio.sleep(pace.rest(now, now - began))

    async def _look(self) -> None:
        """Judges what may have changed, and commits what follows."""
        fleet, now = self._bucket.fleet, time.time()
        if self._held_until and now >= self._held_until:
            self._held_until = 0.0
            self._touched |= set(fleet.names)
        self._touched |= fleet.silenced(now)
        self._touched |= {
            name
            for name, standing in self._standings.items()
            if standing.since is not None and (standing.due(self._limit) or now + 1) <= now
        }
        names, self._touched = self._touched, set()
        try:
            await self._announce(sorted(names), now)
        except Exception:
            self._touched |= names  # with what was touched meanwhile
            raise
        self._count(now)

    async def _announce(self, names: Collection[str], now: float) -> None:
        fleet, current = self._bucket.fleet, self._is_current and not self._held_until
        changed: dict[str, Standing | None] = {}
        events: list[Event] = []
        behind: dict[str, str] = {}
        for name in names:
            found, before = fleet.convergence(name, now), self._standings.get(name)
            judged = judge(found, before, now, self._limit, current=current)
            standing = judged.standing
            if standing is not None and standing.has_diverged and not found.converged:
                found = fleet.convergence(name, now, found.deviates or found.version)
                behind[name] = _behind(found)
            if judged.standing != before:
                changed[name] = judged.standing
            if judged.announce is not None:
                data = fleet_data(found, fleet.scopes(name), judged.previous)
                events.append(Event(0, rfc3339(now), judged.announce, name, data))
            await anyio.lowlevel.checkpoint()
        life = self._life if self._held_until else self._bucket.life
        if changed or life != self._life:
            committed = await anyio.to_thread.run_sync(
                self._ledger.announce, events, changed, life, self._pipeline.grants
            )
            self._life = life
            self._adopt(changed)
            self._report(committed)
        for name in names:
            self._diverged.pop(name, None)
        self._diverged |= behind

    def _adopt(self, changed: dict[str, Standing | None]) -> None:
        for name, standing in changed.items():
            if standing is None:
                self._standings.pop(name, None)
            else:
                self._standings[name] = standing

    def _report(self, events: list[Event]) -> None:
        for event in events:
            data = event.data
            assert isinstance(data, FleetData)
            if event.type != SECRET_CONVERGED:
                log.warning("fleet.diverged", secret=event.subject)
            else:
                log.info("fleet.converged", secret=event.subject)
                if data.version != data.previous_version:
                    self._metrics.converged(data.seconds)
        if events:
            inventory = self._pipeline.inventory
            self._pipeline.committed(Commit(tuple(events), inventory, time.monotonic()))

    def _count(self, now: float) -> None:
        if time.monotonic() - self._counted_at < _COUNT_INTERVAL:
            return
        self._counted_at = time.monotonic()
        fleet = self._bucket.fleet
        silent = len(fleet.silent(now))
        self._instances = Counter(
            live=len(fleet.members) - silent, silent=silent, unreadable=len(fleet.unreadable)
        )
        self._metrics.set(self._instances, self._tally())

    def _tally(self) -> Counter[str]:
        """How many secrets have converged, are spreading, and have diverged."""
        tally = Counter(converged=0, spreading=0, diverged=0)
        for standing in self._standings.values():
            if standing.absent is None:
                spreading = "converged" if standing.since is None else "spreading"
                tally["diverged" if standing.has_diverged else spreading] += 1
        return tally


def _behind(found: Convergence) -> str:
    more = f" and {len(found.lagging) - _NAMED} more" if len(found.lagging) > _NAMED else ""
    missing = ", ".join(found.lagging[:_NAMED]) + more
    return f"{found.have} of {found.instances} installations have it; waiting for {missing}"
