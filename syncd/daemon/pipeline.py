"""From a commit to the consumers: their mailboxes, their delivery loops, and other listeners.

Every engine has a pipeline: what makes the commits is the engine's part.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import structlog

from syncd.api.actions import TargetReport, TestReport
from syncd.config.settings import (
    Aidbox,
    Exec,
    Nats,
    Settings,
    Webhook,
    credential_files,
    grant_of,
)
from syncd.consumers.delivery import Delivery
from syncd.consumers.factory import mailboxes, open_consumer, open_state_writer
from syncd.core.errors import RefusedError
from syncd.core.event_data import SECRET_CHANGED
from syncd.core.events import Stamp
from syncd.core.timing import rfc3339
from syncd.net.rotation import signature
from syncd.system.threads import run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from syncd.config.settings import ConsumerSettings, RelaySettings
    from syncd.core.events import Commit
    from syncd.core.health import ConsumerHealth
    from syncd.core.model import Grant, Known
    from syncd.core.record import Record
    from syncd.daemon.resources import Resources
    from syncd.ledger.ledger import Ledger

CREDENTIAL_INTERVAL: Final = 2.0
"""Seconds between two looks at the credential files of a consumer that fails."""

EXAMINE_INTERVAL: Final = 60.0
"""Seconds between two looks at consumers that cannot work."""

_LEDGER_THREADS: Final = 4
"""Threads in which delivery loops wait for the ledger, which serves one at a time."""

log = structlog.get_logger()


class Pipeline:
    """The consumers of one configuration.

    Attributes:
        consumers: The consumers, by name.
        stamp: The attributes that this installation adds to its events.
        deliveries: The loop of each consumer, by name; the engine runs them.
        states: What publishes the state of this installation; the engine runs them, too.
        grants: Every mailbox, and which events go into it.
        inventory: Every secret, as of the last commit.
        rng: Source of the jitter.
    """

    def __init__(self, settings: Settings | RelaySettings, resources: Resources) -> None:
        self._consumers = settings.consumers
        self._has_state = isinstance(settings, Settings)
        self._resources = resources
        self._has_ended = False
        self.rng = Random()  # noqa: S311 - jitter
        self.inventory: Mapping[str, Known] = {}
        self.grants = mailboxes(settings.consumers)
        threads = anyio.CapacityLimiter(_LEDGER_THREADS)
        self.stamp = make_stamp(resources.ledger, settings.instance)
        shared = isinstance(settings, Settings) and settings.fingerprint_key_file is not None
        self.consumers = {
            item.name: open_consumer(item, self.stamp, shared=shared) for item in settings.consumers
        }
        writers = [
            open_state_writer(
                item,
                instance=settings.instance or socket.gethostname(),
                ledger=resources.ledger,
                inventory=lambda: self.inventory,
                key_id=lambda: resources.state.keys.key_id,
                rng=self.rng,
            )
            for item in settings.consumers
        ]
        self.states = [writer for writer in writers if writer is not None]
        self.deliveries = {
            item.name: Delivery(
                self.consumers[item.name],
                resources.ledger,
                resources.metrics,
                self.rng,
                eager=isinstance(item, Aidbox),
                threads=threads,
            )
            for item in settings.consumers
        }

    async def forget_removed(self) -> None:
        """Deletes the mailboxes of consumers that are no longer configured.

        Raises:
            StateError: The ledger cannot be used.
        """
        ledger = self._resources.ledger
        gone = await anyio.to_thread.run_sync(ledger.forget_others, list(self.grants))
        for name, count in gone.items():
            log.warning("consumer.forgotten", consumer=name, undelivered=count)
        identities = {item.name: identity_of(item) for item in self._consumers}
        proven = await anyio.to_thread.run_sync(ledger.proven, identities)
        for name, delivery in self.deliveries.items():
            delivery.prove(proven=name in proven)

    async def examine(self, look: Callable[[], Mapping[str, tuple[str, ...]]]) -> None:
        """Looks for reasons why consumers cannot work, again and again while there are some.

        Args:
            look: Finds them, by consumer; blocks. A mistake in it ends the examination alone.
        """
        before: Mapping[str, tuple[str, ...]] = {}
        while True:
            try:
                found = await run(look)
            except Exception as error:  # noqa: BLE001 - it must never end the daemon
                log.error("check.failed", error=type(error).__name__, hint="run syncd check")
                return
            for name, delivery in self.deliveries.items():
                delivery.examined(found.get(name, ()))
                for line in found.get(name, ()):
                    if line not in before.get(name, ()):
                        log.warning("consumer.unusable", consumer=name, problem=line)
            if not found:
                return
            before = found
            await anyio.sleep(EXAMINE_INTERVAL)

    def unwritten(self) -> dict[str, tuple[Record, ...]]:
        """Attempts that are not in the ledger yet; see `syncd.api.actions`."""
        return {name: item.unwritten() for name, item in self.deliveries.items()}

    def retry(self, consumer: str) -> int:
        """Tries what waits now; see `syncd.api.actions`."""
        log.info("delivery.retry_requested", consumer=consumer)
        return self.deliveries[consumer].retry()

    async def test(self, consumer: str) -> TestReport:
        """Sends a ping now; see `syncd.api.actions`."""
        ident, begin = secrets.token_hex(4), time.monotonic()
        tested = await self.deliveries[consumer].ping(ident)
        seconds = round(time.monotonic() - begin, 4)
        error = None if tested.error is None else str(tested.error)
        log.info("consumer.tested", consumer=consumer, status=tested.status, problem=error)
        return TestReport(
            consumer,
            self.stamp.ping_id(ident),
            error is None,
            tested.address,
            tested.tls,
            tested.status,
            seconds,
            error,
            tested.answer,
            tuple(
                TargetReport(item.address, item.status, str(item.error) if item.error else None)
                for item in tested.targets
            ),
        )

    async def resend(self, consumer: str, secret: str | None) -> tuple[str, ...]:
        """Sends the newest state again; see `syncd.api.actions`."""
        if not self._has_state:
            problem = "a relay has no state of its own"
            raise RefusedError(problem, "resend from the syncd that watches the mount")
        ledger, at = self._resources.ledger, rfc3339(time.time())
        names = await anyio.to_thread.run_sync(
            ledger.resend, consumer, self.grants[consumer], secret, at
        )
        log.info("delivery.resend_requested", consumer=consumer, secrets=len(names))
        if not names:
            if not self.grants[consumer].takes(SECRET_CHANGED):
                problem = f"{consumer} takes no changes of secrets"
                raise RefusedError(problem, "add changed to its types")
            what = "no secret" if secret is None else f"no state of {secret}"
            raise RefusedError(f"{consumer} may see {what}", "correct the name or the scope")
        self.deliveries[consumer].wake()
        return names

    async def watch_credentials(self) -> None:
        """Retries a failing consumer at once when one of its credential files changes."""
        files = {
            item.name: [path for _, path in credential_files(item)] for item in self._consumers
        }
        seen: dict[str, list[object]] = {}
        while any(files.values()):
            await anyio.sleep(CREDENTIAL_INTERVAL)
            for name, paths in files.items():
                if not (paths and self.deliveries[name].health.failures):
                    seen.pop(name, None)
                    continue
                now = await run(_signatures, paths)
                if name not in seen:
                    log.debug("delivery.credentials_watched", consumer=name)
                if seen.setdefault(name, now) != now:
                    seen[name] = now
                    log.info("delivery.retry_now", consumer=name, reason="a credential changed")
                    self.deliveries[name].retry()

    def end(self) -> None:
        """Hands over no more: what is committed from now on is the following pipeline's."""
        self._has_ended = True
        for delivery in self.deliveries.values():
            delivery.end()

    def post(self, commit: Commit) -> None:
        """Begins the delivery to idle consumers, in the thread that has committed.

        Each commit is then to be announced by `committed`.
        """
        for delivery in self.deliveries.values():
            delivery.post(commit.events)

    def committed(self, commit: Commit) -> None:
        """Wakes the delivery loops and calls the listeners. In the event loop only."""
        self.inventory = commit.inventory
        if commit.events and not self._has_ended:
            for delivery in self.deliveries.values():
                delivery.wake(commit.events)
        for state in self.states:
            state.committed(commit)
        for listener in self._resources.listeners:
            listener(commit)

    def health(self) -> dict[str, tuple[Grant, ConsumerHealth]]:
        """The scope and the health of each consumer, by name."""
        return {
            item.name: (grant_of(item), self.deliveries[item.name].health)
            for item in self._consumers
        }

    def release(self, following: Pipeline) -> None:
        """Ends the metrics of consumers that the following pipeline does not have."""
        for name in self.deliveries.keys() - following.deliveries.keys():
            self._resources.metrics.forget_consumer(name)


def _signatures(paths: Sequence[str]) -> list[object]:
    """What tells two states of files apart."""
    found: list[object] = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            found.append(error.errno)
        else:
            found.append(signature(status))
    return found


def identity_of(consumer: ConsumerSettings) -> str:
    """What a proof is about: the kind and the address, which may hold a token, as a hash."""
    if isinstance(consumer, Exec):
        address: object = consumer.command
    else:
        address = consumer.urls if isinstance(consumer, Aidbox | Nats) else consumer.url
    more = (consumer.socket if isinstance(consumer, Webhook) else None,)
    return blake2b(
        repr((type(consumer).__name__, address, more)).encode(), digest_size=12
    ).hexdigest()


def make_stamp(ledger: Ledger, instance: str | None) -> Stamp:
    """The attributes that an installation adds to its events; its name defaults to the host's."""
    return Stamp(ledger.epoch, f"/syncd/{instance or socket.gethostname()}")
