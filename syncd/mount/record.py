"""Comparing scans with the inventory, and recording what changed in the ledger.

Every root is scanned on its own, and all share one inventory and one ledger: comparison and commit
are one step, and one at a time. Names that a scan did not look at keep what is known of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING

import msgspec

from syncd.core.changes import Plan, plan
from syncd.core.events import Commit
from syncd.core.model import Known
from syncd.core.timing import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncd.core.model import Entry, Grant, Observation
    from syncd.ledger.ledger import Ledger


class Recorded(msgspec.Struct, frozen=True):
    """The result of a comparison.

    Attributes:
        plan: What changed.
        before: The inventory before it.
        commit: What was committed, or None where nothing changed.
    """

    plan: Plan
    before: Mapping[str, Known]
    commit: Commit | None


class Recorder:
    """The inventory, in step with the ledger. Methods block and may be called from any thread.

    Args:
        ledger: Where changes are committed.
        vault_config: Subject of a vault config event.
        consumers: Names of the mailboxes to fill, and what each consumer may see.
        post: Called after each commit of events, in the thread that made it.

    Attributes:
        inventory: Every secret, as of the last commit.
        entries: The vault config's, by name, that scans are made for.
    """

    def __init__(
        self,
        ledger: Ledger,
        vault_config: str,
        consumers: Mapping[str, Grant],
        post: Callable[[Commit], None],
    ) -> None:
        self.inventory: Mapping[str, Known] = {}
        self.entries: Mapping[str, Entry] = {}
        self._ledger = ledger
        self._vault_config = vault_config
        self._consumers = consumers
        self._post = post
        self._lock = Lock()
        self._resumed: str | None = None
        self._settled: set[str] = set()

    @property
    def fresh(self) -> bool:
        """Whether the baseline is not recorded yet."""
        return self._ledger.fresh

    def load(self) -> None:
        """Reads the inventory from the ledger.

        Raises:
            StateError: The ledger cannot be used.
        """
        self.inventory = self._ledger.inventory()
        # a reload interrupts nothing
        self._resumed, self._ledger.resumed = self._ledger.resumed, None

    def version_of(self, name: str) -> str | None:
        """The version of a secret, or None."""
        known = self.inventory.get(name)
        return None if known is None else known.version

    def replace_entries(
        self, entries: Mapping[str, Entry], observations: Mapping[str, Observation]
    ) -> Recorded:
        """Puts other entries in force; scans for the ones before are void from then on.

        Raises:
            StateError: The ledger cannot be used.
        """
        with self._lock:
            self.entries = entries
            recorded = self._record(observations, time.monotonic())
        return self._posted(recorded)

    def record(
        self,
        entries: Mapping[str, Entry],
        observations: Mapping[str, Observation],
        started: float,
    ) -> Recorded | None:
        """Records a scan.

        Args:
            entries: The entries that the scan was made for, the very mapping.
            observations: What it saw, by name.
            started: When it began (monotonic clock, seconds).

        Returns:
            None where other entries are in force: a path may have changed.

        Raises:
            StateError: The ledger cannot be used. The inventory is as before, so the next scan
                finds the same changes again.
        """
        with self._lock:
            if entries is not self.entries:
                return None
            recorded = self._record(observations, started)
        return self._posted(recorded)

    def _posted(self, recorded: Recorded) -> Recorded:
        if recorded.commit is not None and recorded.commit.events:
            self._post(recorded.commit)
        return recorded

    def _record(self, observations: Mapping[str, Observation], started: float) -> Recorded:
        before, now = self.inventory, rfc3339(time.time())
        planned = plan(before, self.entries, observations, now)
        since = None if self._resumed is None else self._since(planned, observations)
        if not (self._ledger.fresh or planned.touched or planned.dropped):
            return Recorded(planned, before, None)
        events = self._ledger.record(
            planned, before, self._vault_config, now, self._consumers, since=since
        )
        self.inventory = planned.inventory
        return Recorded(planned, before, Commit(tuple(events), planned.inventory, started))

    def _since(self, planned: Plan, observations: Mapping[str, Observation]) -> str | None:
        """When the daemon ran last, if a change is one that the first look at a secret found."""
        changed = {change.entry.name for change in planned.changes}
        is_late = changed - self._settled or (planned.vault_config and not self._settled)
        since = self._resumed if is_late else None
        self._settled.update(name for name, seen in observations.items() if seen.settled)
        if self.entries.keys() <= self._settled:
            self._resumed = None
        return since
