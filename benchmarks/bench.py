"""What every scenario is given: places to work in, and how much to measure."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from benchmarks.mounts import Mount

if TYPE_CHECKING:
    from types import TracebackType

_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a tmpfs, as the driver's mounts are


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to measure.

    Attributes:
        repetitions: How often everything is measured, ours and the peer in turn.
        latencies: Swaps in a repetition, by number of secrets.
        burst: Secrets that are rotated at once for events per second.
        crowd: Subscribers, and how many secrets are rotated for them at once.
        bulk: Secrets that are all rotated by one swap, and sit in memory.
        provisioned: Secrets in the vault, and in a small one.
        polled: Seconds between two looks at a vault, and rotations of one of its secrets at a time.
        idle: Seconds of a repetition in which nothing happens.
        attempts: How often a subject is measured while other processes are busy.
        rotations: Swaps, and secrets that each of them rotates, before memory is looked at.
        fleet: Installations of a fleet, from few to many.
        scale: Secrets in one mount, and consumers, of a large installation; None for none.
    """

    repetitions: int
    latencies: dict[int, int]
    burst: int
    crowd: tuple[int, int]
    bulk: int
    provisioned: tuple[int, int]
    polled: tuple[int, int]
    idle: float
    rotations: tuple[int, int]
    fleet: tuple[int, ...]
    scale: tuple[int, int] | None = None
    attempts: int = 3


FULL = Effort(
    repetitions=5,
    latencies={1: 60, 100: 60, 1000: 20, 10_000: 5},
    burst=2000,
    crowd=(1000, 100),
    bulk=10_000,
    provisioned=(500, 10),
    polled=(5, 150),
    idle=60,
    rotations=(1000, 1000),
    fleet=(100, 1000, 10_000),
    scale=(100_000, 200),
)
QUICK = Effort(
    repetitions=5,
    latencies={1: 20, 100: 20, 1000: 5, 10_000: 2},
    burst=500,
    crowd=(1000, 20),
    bulk=10_000,
    provisioned=(500, 10),
    polled=(2, 60),
    idle=5,
    rotations=(50, 1000),
    fleet=(100, 1000),
)
TINY = Effort(
    repetitions=2,
    latencies={1: 2, 10: 2},
    burst=5,
    crowd=(3, 2),
    bulk=20,
    provisioned=(3, 2),
    polled=(1, 2),
    idle=0.2,
    rotations=(3, 5),
    fleet=(3, 6),
    scale=(30, 3),
    attempts=1,
)
EFFORTS = {"full": FULL, "quick": QUICK, "tiny": TINY}


class Bench:
    """Places to work in, removed with the block.

    Mounts are on a tmpfs, as they are in a pod; state directories are on the disk.

    Args:
        effort: How much to measure.
    """

    def __init__(self, effort: Effort) -> None:
        self.effort = effort
        self.stack = ExitStack()
        self._number = 0
        self._memory = self._directory(_SHARED_MEMORY if os.path.isdir(_SHARED_MEMORY) else None)
        self._disk = self._directory(None)

    def _directory(self, base: str | None) -> str:
        directory = tempfile.mkdtemp(prefix="syncd-bench-", dir=base)
        self.stack.callback(shutil.rmtree, directory, ignore_errors=True)
        return directory

    def mount(self, count: int) -> Mount:
        """A new mount with so many secrets."""
        return Mount(self.tmpfs(), count)

    def tmpfs(self) -> str:
        """A new directory in memory."""
        self._number += 1
        path = f"{self._memory}/{self._number}"
        os.mkdir(path)
        return path

    def disk(self) -> str:
        """A new directory on the disk."""
        self._number += 1
        path = f"{self._disk}/{self._number}"
        os.mkdir(path)
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stack.close()


def rest(took: float) -> None:
    """Leaves the daemon alone for as long as it rests after a pass (`syncd.core.timing.Pace`).

    Rotations are minutes apart; what a swap that comes too early waits for is not latency.
    """
    time.sleep(max(0.02, 6 * took))
