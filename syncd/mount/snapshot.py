"""The result of a scan."""

from __future__ import annotations

import msgspec

from syncd.core.model import Observation
from syncd.mount.way import Watched


class Snapshot(msgspec.Struct):
    """The result of a scan.

    Attributes:
        observations: By secret name; entries under a mount that is away are unsettled.
        watched: What must be watched for these files to appear, change or go.
        retry_in: Seconds after which an unsettled observation may have settled, or None.
        empty: Names of secrets whose file is empty.
        newline_ended: Names of secrets whose file ends in a newline.
        world_readable: Names of secrets outside of AtomicWriter mounts that every user can read.
        failed: Why the whole root cannot be read, or None.
    """

    observations: dict[str, Observation] = {}
    watched: Watched = msgspec.field(default_factory=Watched)
    retry_in: float | None = None
    empty: list[str] = []
    newline_ended: list[str] = []
    world_readable: list[str] = []
    failed: str | None = None

    def retry_within(self, seconds: float) -> None:
        """Requests another scan after at most this many seconds."""
        self.retry_in = seconds if self.retry_in is None else min(self.retry_in, seconds)

    def add(self, other: Snapshot) -> None:
        """Adds the snapshot of another root."""
        self.observations.update(other.observations)
        for directory, names in other.watched.ways.items():
            self.watched.add_way(directory, *names)
        for directory, names in other.watched.files.items():
            self.watched.add_files(directory, names)
        if other.retry_in is not None:
            self.retry_within(other.retry_in)
        self.empty += other.empty
        self.newline_ended += other.newline_ended
        self.world_readable += other.world_readable
