"""A limit by timerfd(2): readable when it is over, and not before."""

from __future__ import annotations

import os
import select
from contextlib import closing

import pytest
from support.waiting import DEADLINE

from syncd.system.alarm import Alarm


def is_over(clock: Alarm, within: float) -> bool:
    return bool(select.select([clock], [], [], within)[0])


def test_a_limit_ends() -> None:
    """Once; the next one is as good, and none is over before it began."""
    with closing(Alarm()) as clock:
        assert not is_over(clock, 0)
        for seconds in (0.001, 0.002):
            clock.set(seconds)
            assert is_over(clock, DEADLINE)
            clock.set(0)
            assert not is_over(clock, 0)


def test_a_limit_is_put_off_and_taken_back() -> None:
    """What was set last counts; seconds and their parts alike."""
    with closing(Alarm()) as clock:
        for seconds in (0.001, 3600.5):
            clock.set(seconds)
        assert not is_over(clock, 0.05)
        clock.set(0.001)
        clock.set(0)
        assert not is_over(clock, 0.05)


def test_what_the_system_refuses_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a sandbox without timers."""
    clock = Alarm()
    clock.close()
    with pytest.raises(OSError, match=os.strerror(9)):
        clock.set(1)
    monkeypatch.setattr(os, "O_CLOEXEC", 1 << 30)
    with pytest.raises(OSError, match=os.strerror(22)):
        Alarm()
