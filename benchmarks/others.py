"""What other processes take of the processors while something is measured.

Ratios hide a noisy machine only in part: a peer that waits suffers less from it than one that
computes. So each subject is measured again when others were busy, and what could not be measured
in peace is marked.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

BUSY: Final = 0.1
"""The most of one processor that others may use, on average."""

_CALM: Final = 20.0
_LOOK: Final = 0.5
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def _busy() -> float:
    """Processor time that was not idle, of all processors (proc(5): the first line of `stat`)."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _wait, irq, softirq, steal, *_ = map(
            int, file.readline().split()[1:]
        )
    return (user + nice + system + irq + softirq + steal) / _TICKS


def _own() -> float:
    """Processor time of this process and its descendants, with those that were waited for."""
    parents, times = {}, {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(name)] = int(fields[1])
            times[int(name)] = sum(map(int, fields[11:15])) / _TICKS
    return sum(times[pid] for pid in times if _descends(pid, parents))


def _descends(pid: int, parents: dict[int, int]) -> bool:
    while pid not in (0, os.getpid()):
        pid = parents.get(pid, 0)
    return pid != 0


@dataclass(frozen=True, slots=True)
class Meter:
    """Counts from when it is made.

    Attributes:
        began: Monotonic clock, seconds.
        busy: Processor time of all, seconds.
        own: That of this process and its descendants, seconds.
    """

    began: float = field(default_factory=time.monotonic)
    busy: float = field(default_factory=_busy)
    own: float = field(default_factory=_own)

    def others(self) -> float:
        """What others used of one processor on average since then; 1 is a whole one.

        Time that the hypervisor gave to other machines counts, too (proc(5): `steal`).
        """
        elapsed = time.monotonic() - self.began
        used = (_busy() - self.busy) - (_own() - self.own)
        return max(0.0, used / elapsed) if elapsed else 0.0


def in_peace(
    measure: Callable[[], T], say: Callable[[str], object], attempts: int = 3
) -> tuple[T, float]:
    """Measures, again while others are busy; returns the calmest result, and how busy they were.

    Args:
        measure: Measures once.
        say: Is told why it takes longer.
        attempts: How often it is measured, at most.
    """
    best: tuple[T, float] | None = None
    for attempt in range(attempts):
        if attempt:
            say(f"others used {best[1]:.0%} of a processor, measuring again" if best else "")
            _await_calm()
        meter = Meter()
        result = measure()
        others = meter.others()
        if best is None or others < best[1]:
            best = result, others
        if others <= BUSY:
            break
    assert best is not None
    return best


def _await_calm() -> None:
    """Waits until others are idle, but not for long."""
    deadline = time.monotonic() + _CALM
    while time.monotonic() < deadline:
        meter = Meter()
        time.sleep(_LOOK)
        if meter.others() <= BUSY:
            return
