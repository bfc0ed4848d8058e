"""Installations in memory: ten thousand, of which a secret takes about 17 bytes.

They have the same names, keys and versions, so each of these is kept once.
"""

from __future__ import annotations

from array import array
from math import isnan

import msgspec


class Layout(msgspec.Struct, weakref=True, eq=False):
    """The secrets of an installation, shared by all that have the same.

    Attributes:
        places: The place of each secret in the columns of a `Member`, by name.
    """

    places: dict[str, int]


class Member(msgspec.Struct):
    """One installation; what it has of its secrets is in columns, see `Layout`.

    Attributes:
        instance: Its name.
        key: Names its fingerprint key.
        heard: When its document was stored, seconds since the epoch.
        ttl: Seconds after which it is silent.
        content: Distinguishes what it has from what it had.
        layout: Its secrets.
        versions: The version of each, or None.
        arrived: When it arrived, seconds since the epoch; NaN where it was there from the start.
        adopted: A bit for each: whether every replica that was verified accepts it, and one was.
    """

    instance: str
    key: str
    heard: float
    ttl: float
    content: int
    layout: Layout
    versions: tuple[str | None, ...]
    arrived: array[float]
    adopted: int

    def is_silent(self, now: float) -> bool:
        """Whether it should have written again by now (seconds since the epoch)."""
        return now - self.heard > self.ttl

    def states(self) -> dict[str, tuple[str | None, float | None, bool]]:
        """Version, arrival and adoption of each secret, by name."""
        return {
            name: (
                self.versions[place],
                None if isnan(self.arrived[place]) else self.arrived[place],
                bool(self.adopted >> place & 1),
            )
            for name, place in self.layout.places.items()
        }
