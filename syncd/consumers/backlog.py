"""What a consumer's mailbox holds that is being delivered, and which of it comes next.

Pure: events, outcomes and times in, batches out; `syncd.consumers.delivery` performs them. The
ledger has the truth, this is a part of it, so what is dropped here is taken again. The rules:

- *Lane*: the events of one secret (or the changes of one vault config). Of each lane one event at
  a time is delivered, the oldest; what comes meanwhile waits for it. Lanes do not wait for each
  other.
- *The receiver's trouble* stops every lane. When its wait is over, one delivery is tried, of lanes
  that have not failed where there are any, and of fewer events with each failure: an event that
  makes the receiver hang looks like a receiver that hangs, until others get through.
- *An event's trouble* holds its lane alone. It is also what a failure of the receiver is taken for
  that others contradict: delivered meanwhile, or since the lane's last failure.
- *Events that failed together* are tried in halves, until the one that is at fault is alone.
- A failed lane is tried again alone, in half of the deliveries at most. When that succeeds, two
  others that failed for the same reason are tried at once, and so on.
- When many fail in a row and none succeeds, it is most likely not their fault. They are then
  tried one after the other, with a pause, lest a receiver that refuses everything be flooded.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import TYPE_CHECKING, Final

from syncd.consumers.lanes import Batch, Lane, Trouble, lane_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from random import Random

    from syncd.core.events import Event

DOUBT: Final = 16
"""Failures in a row after which it is doubtful that the events are at fault."""

DOUBT_PAUSE: Final = 0.1
"""Seconds between two attempts then."""

_FEW: Final = 128
_PAGE: Final = 1024
"""Events in memory that have not been tried, at most, or as many as a batch may have."""

_RELEASED: Final = 2
_SOURCES: Final = ("failed", "fresh", "groups")


class Backlog:
    """The lanes of one consumer.

    Args:
        max_batch: Events in a batch, at most.
        max_in_flight: Batches at a time, at most.
        rng: Source of the jitter.

    Attributes:
        cursor: The ledger's sequence up to which every event is known.
        more: Whether the ledger may hold more behind the cursor.
        generation: Changes when the cursor goes back, so that what was read by then is outdated.
        in_flight: Batches that are being delivered.
        halted: Failures in a row of the receiver.
        resume: When the receiver is tried again (monotonic, seconds).
    """

    def __init__(self, max_batch: int, max_in_flight: int, rng: Random) -> None:
        self._max_batch = max_batch
        self._max_in_flight = max_in_flight
        self._rng = rng
        self.cursor = 0
        self.more = True
        self.generation = 0
        self.in_flight = 0
        self.halted = 0
        self.resume = -math.inf
        self._lanes: dict[str, Lane] = {}
        self._fresh: deque[str] = deque()
        self._wanted: dict[str, None] = {}
        self._again: deque[str] = deque()
        self._groups: deque[list[Event]] = deque()
        self._held: list[tuple[float, int, str]] = []
        self._pushed = 0
        self._in_flight_again = 0
        self._turn = 0
        self._successes = 0
        self._in_a_row = 0
        self._next_in_doubt = -math.inf

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known that is still to deliver."""
        return not self._lanes and not self.more

    def is_calm(self, now: float) -> bool:
        """Whether what is added from now on is delivered at once, whenever that is."""
        in_doubt = self.halted or self._in_a_row >= DOUBT or now < self.resume
        return self.is_empty and not self.in_flight and not in_doubt

    @property
    def is_untroubled(self) -> bool:
        """Whether no lane has failed since it last succeeded."""
        return all(lane.trouble is None for lane in self._lanes.values())

    def waiting(self) -> dict[str, int]:
        """How many events wait for which reason of their own."""
        found: dict[str, int] = {}
        for lane in self._lanes.values():
            if lane.trouble is not None and lane.trouble.reason:
                count = len(lane.slots) + (lane.event is not None)
                found[lane.trouble.reason] = found.get(lane.trouble.reason, 0) + count
        return found

    def troubled(self) -> tuple[int, float | None]:
        """The most failures of a lane, and when the first of them is due."""
        own = [t for lane in self._lanes.values() if (t := lane.trouble) is not None and t.reason]
        failures = max((trouble.backoff.failures for trouble in own), default=0)
        return failures, min((trouble.due for trouble in own), default=None)

    def failures(self, event: Event) -> int:
        """Failures of an event's lane since it last succeeded."""
        trouble = self._lanes[lane_of(event)].trouble
        return 0 if trouble is None else trouble.backoff.failures

    def due(self, now: float) -> float | None:
        """When something can be tried that cannot now; None if that is not a matter of time."""
        if now < self.resume:
            return self.resume
        times = [self._next_in_doubt] if self._in_a_row >= DOUBT else []
        times += [self._held[0][0]] if self._held else []
        return min((time for time in times if time > now), default=None)

    # from the ledger

    def wanted(self, now: float) -> tuple[int, list[str]]:
        """What to read now: how many events behind the cursor, and which slots again."""
        if now < self.resume:
            return 0, []
        most = max(self._max_batch, self._max_in_flight)
        while self._held and self._held[0][0] <= now and len(self._wanted) < most:
            due, _, key = heapq.heappop(self._held)
            lane = self._lanes.get(key)
            if lane is None or lane.trouble is None or lane.trouble.due != due or lane.in_flight:
                continue
            if lane.event is None:
                self._wanted[key] = None
        # whole batches, so that none is smaller than it could be
        batches = max(min(self._max_in_flight, _PAGE // self._max_batch), _FEW // self._max_batch)
        room = self._max_batch * max(1, batches)
        room = room if self.more and len(self._fresh) <= room // 2 else 0
        return room, [slot for key in self._wanted for slot in sorted(self._lanes[key].slots)]

    def take(self, events: Sequence[Event], limit: int, newest: int) -> None:
        """Adds events from behind the cursor.

        Args:
            events: In the order of their sequences.
            limit: How many were asked for.
            newest: The ledger's last sequence, before they were read.
        """
        self.more = len(events) == limit
        self._add(events)
        if not self.more:
            self.cursor = max(self.cursor, newest)

    def offer(self, events: Sequence[Event], first: int, last: int) -> bool:
        """Adds what was just committed, without a look at the ledger, where that is safe.

        It is where the mailbox was empty, and nothing else was committed since the last look.

        Args:
            events: What the consumer may see of the commit.
            first: The first sequence of the commit.
            last: Its last sequence.
        """
        if not self.is_empty or first != self.cursor + 1 or len(events) > _PAGE:
            return False
        if len({event.slot for event in events}) < len(events):
            return False  # the mailbox joins them
        self._add(events)
        self.cursor = last
        return True

    def _add(self, events: Sequence[Event]) -> None:
        for event in events:
            self.cursor = event.sequence
            key = lane_of(event)
            lane = self._lanes.get(key)
            if lane is None:
                self._lanes[key] = Lane(event)
                self._fresh.append(key)
            elif lane.event is None or lane.in_flight:
                if lane.event is None or lane.event.sequence != event.sequence:
                    lane.slots.add(event.slot)
            elif lane.event.slot == event.slot and not lane.slots:
                lane.event = event  # it took the place of the older one
            else:
                lane.slots |= {lane.event.slot, event.slot}
                lane.event = None
                self._wanted[key] = None

    def read_again(self, slots: Iterable[str], events: Sequence[Event]) -> None:
        """Adds what the ledger holds now in slots that were wanted."""
        found: dict[str, list[Event]] = {}
        for event in events:
            found.setdefault(lane_of(event), []).append(event)
        asked = set(slots)
        for key in [key for key in self._wanted if self._lanes[key].slots <= asked]:
            del self._wanted[key]
            lane = self._lanes[key]
            if key not in found:  # acknowledged, or no longer in the consumer's scope
                del self._lanes[key]
                continue
            lane.event, *later = found[key]
            lane.slots = {event.slot for event in later}
            (self._fresh if lane.trouble is None else self._again).append(key)

    # to the consumer

    def next(self, now: float) -> Batch | None:
        """The batch to deliver now, or None."""
        in_doubt = self._in_a_row >= DOUBT
        limit = 1 if self.halted or in_doubt else self._max_in_flight
        if now < self.resume or self.in_flight >= limit:
            return None
        if in_doubt and now < self._next_in_doubt:
            return None
        events, again = self._choose(max(1, self._max_batch >> self.halted))
        if not events:
            return None
        self._next_in_doubt = now + DOUBT_PAUSE
        self.in_flight += 1
        self._in_flight_again += again
        return Batch(events, again, self._successes)

    def _choose(self, size: int) -> tuple[list[Event], bool]:
        """Events of the next source that has some, and whether they failed before."""
        for _ in range(len(_SOURCES)):
            self._turn = (self._turn + 1) % len(_SOURCES)
            source = _SOURCES[self._turn]
            if source == "groups" and self._groups:
                return self._groups.popleft(), False
            if source == "fresh" and (events := self._pop(self._fresh, size)):
                return events, False
            if source == "failed" and self._may_repeat():
                return self._pop(self._again, size, apart=True), True
        return [], False

    def _may_repeat(self) -> bool:
        if self._in_flight_again >= max(1, self._max_in_flight // 2):
            return False
        if self.halted and any(map(self._is_ready, self._fresh)):
            return False
        return any(map(self._is_ready, self._again))

    def _is_ready(self, key: str) -> bool:
        lane = self._lanes.get(key)
        return lane is not None and lane.event is not None and not lane.in_flight

    def _pop(self, queue: deque[str], size: int, *, apart: bool = False) -> list[Event]:
        """Events of the first lanes; with `apart` one that failed by itself stays alone."""
        events: list[Event] = []
        while queue and len(events) < size:
            key = queue[0]
            if self._is_ready(key):
                alone = apart and bool(self._reason(key))
                if alone and events:
                    break
                events.append(self._event(key))
                self._lanes[key].in_flight = True
                size = 1 if alone else size
            queue.popleft()  # else it has moved on
        return events

    def _event(self, key: str) -> Event:
        event = self._lanes[key].event
        assert event is not None
        return event

    def _reason(self, key: str) -> str:
        trouble = self._lanes[key].trouble
        return "" if trouble is None else trouble.reason

    # outcomes

    def succeeded(self, events: Sequence[Event], now: float) -> int:
        """Events were acknowledged; returns the failures of their lanes before that."""
        if not events:
            return 0
        self._successes += 1
        self._in_a_row = self.halted = 0
        failures = 0
        for event in events:
            lane = self._lanes[lane_of(event)]
            trouble, lane.trouble = lane.trouble, None
            if trouble is not None:
                failures = max(failures, trouble.backoff.failures)
                if trouble.reason:
                    self._release(trouble.reason, now)
        return failures

    def _release(self, reason: str, now: float) -> None:
        released = 0
        for key, lane in self._lanes.items():
            trouble = lane.trouble
            if trouble is None or trouble.reason != reason or trouble.due <= now:
                continue
            if lane.in_flight or lane.event is not None:
                continue
            self._hold(key, now)
            released += 1
            if released == _RELEASED:
                return

    def retry(self, now: float) -> None:
        """Makes everything that waits for a time due: a person asks, or a credential changed."""
        self.resume = self._next_in_doubt = -math.inf
        for key, lane in self._lanes.items():
            if lane.trouble is not None and not lane.in_flight and lane.event is None:
                self._hold(key, now)

    def recorded(self, events: Sequence[Event]) -> None:
        """Acknowledged events have left the ledger."""
        for event in events:
            key = lane_of(event)
            lane = self._lanes[key]
            lane.event, lane.in_flight = None, False
            if lane.slots:
                self._wanted[key] = None
            else:
                del self._lanes[key]

    def blames_events(self, batch: Batch) -> bool:
        """Whether others contradict that the receiver is the reason why a batch failed."""
        if self._successes > batch.successes:
            return True
        troubles = [self._lanes[lane_of(event)].trouble for event in batch.events]
        return all(t is not None and t.successes < self._successes for t in troubles)

    def failed(
        self, events: Sequence[Event], reason: str, now: float, *, refused: bool, answered: bool
    ) -> float:
        """Events failed for a reason of their own, together.

        Args:
            events: At least one.
            reason: One line.
            now: Monotonic clock.
            refused: Whether only a person can change that.
            answered: Whether the receiver answered, and is in no trouble itself.

        Returns:
            Seconds until the next attempt: 0 where they are tried in halves.
        """
        self._in_a_row += 1
        if answered:
            self.halted = 0
        if len(events) > 1:
            half = len(events) // 2
            self._groups += [list(events[:half]), list(events[half:])]
            return 0.0
        key = lane_of(events[0])
        trouble = self._put_back(key)
        trouble.reason, trouble.successes = reason, self._successes
        backoff = trouble.backoff
        delay = backoff.at_cap(self._rng) if refused else backoff.next(self._rng)
        self._hold(key, now + delay)
        return delay

    def stopped(self, batch: Batch, now: float, delay: float) -> None:
        """The receiver failed: nothing is tried for some seconds, and then the rest before this."""
        for event in batch.events:
            key = lane_of(event)
            self._put_back(key).successes = self._successes
            self._hold(key, now)
        self.halted += 1
        self.resume = max(self.resume, now + delay)
        self.start_over(now)

    def start_over(self, now: float) -> None:
        """Drops what is not in flight, because the ledger may hold something else by then."""
        dropped = {key for key in (*self._fresh, *self._again) if self._is_ready(key)}
        dropped |= {lane_of(event) for group in self._groups for event in group}
        for key in (*dropped, *self._wanted):
            if self._lanes[key].trouble is None:
                del self._lanes[key]
            else:
                self._put_back(key)
                self._hold(key, now)
        self._fresh.clear()
        self._again.clear()
        self._wanted.clear()
        self._groups.clear()
        self.cursor, self.more = 0, True
        self.generation += 1

    def _put_back(self, key: str) -> Trouble:
        """Makes a lane one that must be read again."""
        lane = self._lanes[key]
        if lane.event is not None:
            lane.slots.add(lane.event.slot)
        lane.event, lane.in_flight = None, False
        lane.trouble = lane.trouble or Trouble()
        return lane.trouble

    def _hold(self, key: str, due: float) -> None:
        trouble = self._lanes[key].trouble
        assert trouble is not None
        trouble.due = due
        self._pushed += 1
        heapq.heappush(self._held, (due, self._pushed, key))

    def landed(self, batch: Batch) -> None:
        """A batch is no longer in flight; its outcome follows, or it is given up."""
        self.in_flight -= 1
        self._in_flight_again -= batch.again
