"""The result of a scan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from syncd.core.model import Observation


@dataclass(slots=True)
class Snapshot:
    """The result of a scan.

    Attributes:
        observations: By secret name; entries under a mount that is away are unsettled.
        watch: Directories to watch, each with the names that matter, or None for all.
        retry_in: Seconds after which an unsettled observation may have settled, or None.
        empty: Names of secrets whose file is empty.
        newline_ended: Names of secrets whose file ends in a newline.
        world_readable: Names of secrets outside of AtomicWriter mounts that every user can read.
    """

    observations: dict[str, Observation] = field(default_factory=dict)
    watch: dict[str, frozenset[str] | None] = field(default_factory=dict)
    retry_in: float | None = None
    empty: list[str] = field(default_factory=list)
    newline_ended: list[str] = field(default_factory=list)
    world_readable: list[str] = field(default_factory=list)

    def retry_within(self, seconds: float) -> None:
        """Requests another scan after at most this many seconds."""
        self.retry_in = seconds if self.retry_in is None else min(self.retry_in, seconds)

    def add(self, other: Snapshot) -> None:
        """Adds the snapshot of another root."""
        self.observations.update(other.observations)
        self.watch.update(other.watch)
        if other.retry_in is not None:
            self.retry_within(other.retry_in)
        self.empty += other.empty
        self.newline_ended += other.newline_ended
        self.world_readable += other.world_readable
