"""Requests are bounded without a hand in their client: their threads are left alone."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest
from support.waiting import DEADLINE, wait_until

from syncd.core.errors import TemporaryError
from syncd.net import interruption as bounds
from syncd.net.interruption import MOST_ABANDONED, Interruption

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def release() -> Iterator[threading.Event]:
    release = threading.Event()
    yield release
    release.set()


def call(interruption: Interruption, request: object) -> object:
    return interruption.call(request, what="read f", server="http://v", check="check")  # type: ignore[arg-type] # any callable


def test_what_a_request_returns_or_raises_arrives() -> None:
    """From the thread that makes it."""
    interruption = Interruption()
    assert call(interruption, threading.current_thread) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        call(interruption, lambda: 1 / 0)


def test_an_interruption_ends_all_waiting_and_later_requests(release: threading.Event) -> None:
    """Until `resume`; the requests themselves go on without anyone."""
    interruption, ended, began = Interruption(), [], threading.Semaphore(0)

    def request() -> None:
        began.release()
        release.wait()

    def wait() -> None:
        with pytest.raises(TemporaryError, match="no answer before syncd stopped waiting"):
            call(interruption, request)
        ended.append(True)

    waiting = [threading.Thread(target=wait) for _ in range(3)]
    for thread in waiting:
        thread.start()
        assert began.acquire(timeout=DEADLINE)
    interruption.interrupt()
    for thread in waiting:
        thread.join(DEADLINE)
    assert ended == [True] * 3
    with pytest.raises(TemporaryError, match="stopped waiting"):
        call(interruption, lambda: None)
    assert interruption.pause(DEADLINE)
    interruption.resume()
    assert call(interruption, lambda: 1) == 1


def test_requests_that_do_not_end_are_few(
    release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds a thread; when they end, the provider goes on."""
    monkeypatch.setattr(bounds, "REQUEST_LIMIT", 0.01)
    interruption = Interruption()
    for _ in range(MOST_ABANDONED):
        with pytest.raises(TemporaryError, match="did not finish within"):
            call(interruption, release.wait)
    with pytest.raises(TemporaryError, match="does not end earlier requests"):
        call(interruption, partial(pytest.fail, "it was made"))
    release.set()
    monkeypatch.setattr(bounds, "REQUEST_LIMIT", DEADLINE)

    def goes_on() -> bool:
        try:
            return call(interruption, lambda: True) is True
        except TemporaryError:
            return False

    wait_until(goes_on, "the earlier requests have ended")
