"""Requests are bounded without a hand in requests or urllib3: their threads are left alone."""

from __future__ import annotations

import ast
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.waiting import DEADLINE, wait_until

from syncd.core.errors import RefusedError, TemporaryError
from syncd.net import requests_session
from syncd.net.requests_session import MOST_ABANDONED, Interruption, RotatingSession
from syncd.net.tls import Trust

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
    monkeypatch.setattr(requests_session, "REQUEST_LIMIT", 0.01)
    interruption = Interruption()
    for _ in range(MOST_ABANDONED):
        with pytest.raises(TemporaryError, match="did not finish within"):
            call(interruption, release.wait)
    with pytest.raises(TemporaryError, match="does not end earlier requests"):
        call(interruption, partial(pytest.fail, "it was made"))
    release.set()
    monkeypatch.setattr(requests_session, "REQUEST_LIMIT", DEADLINE)

    def goes_on() -> bool:
        try:
            return call(interruption, lambda: True) is True
        except TemporaryError:
            return False

    wait_until(goes_on, "the earlier requests have ended")


@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
def test_tls_is_configured_however_the_scheme_is_written(tmp_path: Path, scheme: str) -> None:
    """Else requests' own CAs would be trusted, and an answer of any length read."""
    session = RotatingSession(f"{scheme}://v", Trust(ca_file=str(tmp_path / "missing")))
    with pytest.raises(RefusedError, match="missing"):
        session.current()
    session = RotatingSession(f"{scheme}://v", Trust(skip_verify=True))
    adapter = session.current().get_adapter(f"{scheme}://v/v1/x")
    assert isinstance(adapter, requests_session._Adapter)
    session.close()


def test_no_private_part_of_another_library_is_used() -> None:
    """An upgrade of requests or urllib3 may change these without notice."""
    tree = ast.parse(Path(requests_session.__file__).read_bytes())
    own = {"self", "_Adapter", "_Body"}
    private = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in own)
    ]
    assert private == []
