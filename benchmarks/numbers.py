"""Samples and their statistics. Nothing here measures anything."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least this share of all do not exceed (nearest rank).

    Args:
        samples: At least one.
        share: Between 0 and 1.
    """
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(slots=True)
class Pair:
    """Samples of ours and of the peer, taken in turn.

    Attributes:
        ours: One for each measurement.
        peer: The same of the peer; empty where there is none.
    """

    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)

    def take(self, ours: Callable[[], float], peer: Callable[[], float] | None, times: int) -> None:
        """Takes samples in turn, so that a noisy moment hits both.

        Args:
            ours: Measures ours once.
            peer: Measures the peer once.
            times: How often.
        """
        for _ in range(times):
            self.ours.append(ours())
            if peer is not None:
                self.peer.append(peer())


class Record(TypedDict):
    """A row as `results.json` has it.

    `bound` is the most that `bounded` may be: the ratio, or ours in `unit`. `others` is what other
    processes used of one processor meanwhile.
    """

    name: str
    ours: float
    peer: float | None
    ratio: float | None
    bound: float | None
    unit: str
    ok: bool
    bounded: str | None
    against: str | None
    ours_p99: float | None
    peer_p99: float | None
    samples: int
    others: float


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: medians, and whether the bound holds.

    Attributes:
        name: What was measured.
        unit: Of ours and of the peer.
        ours: Samples of ours, one at least.
        peer: Samples of the peer.
        against: What the peer is.
        bound: The most that the ratio, or ours, may be.
        bounded: Which of them the bound is for.
        spread: Whether the 99th percentile says something: latencies, not memory.
    """

    name: str
    unit: str
    ours: Sequence[float]
    peer: Sequence[float] = ()
    against: str | None = None
    bound: float | None = None
    bounded: Literal["ratio", "ours"] = "ratio"
    spread: bool = False

    @property
    def ratio(self) -> float | None:
        """Ours by the peer's, or None without one."""
        return median(self.ours) / median(self.peer) if self.peer and median(self.peer) else None

    @property
    def ok(self) -> bool:
        """Whether the bound holds; a bound on a ratio that could not be taken does not."""
        if self.bound is None:
            return True
        value = self.ratio if self.bounded == "ratio" else median(self.ours)
        return value is not None and value <= self.bound

    def record(self, others: float = 0.0) -> Record:
        """The row as `results.json` has it, with what `others` used of one processor."""
        p99 = [
            percentile(side, 0.99) if self.spread and side else None
            for side in (self.ours, self.peer)
        ]
        return Record(
            name=self.name,
            ours=_rounded(median(self.ours)),
            peer=_rounded(median(self.peer)) if self.peer else None,
            ratio=None if self.ratio is None else _rounded(self.ratio),
            bound=self.bound,
            unit=self.unit,
            ok=self.ok,
            bounded=None if self.bound is None else self.bounded,
            against=self.against,
            ours_p99=None if p99[0] is None else _rounded(p99[0]),
            peer_p99=None if p99[1] is None else _rounded(p99[1]),
            samples=len(self.ours),
            others=round(others, 2),
        )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
