"""What every test runs under: asyncio alone, no blocking call in the event loop, no value shown.

Values that tests plant hold a canary. The output of each test and of the processes that it started
is searched for it at the test's end, so that a leak fails even a test of something else.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import settings
from support.accounts import reachable  # noqa: F401 - a fixture
from support.receiver import Receiver
from support.world import CANARY, World

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

# how long an example takes depends on what else the machine does
settings.register_profile("syncd", deadline=None)
settings.load_profile("syncd")

# the width of pytest's own output, which its workers would hand down to syncd
os.environ.pop("COLUMNS", None)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell that runs the tests in the background ignores it, and processes of tests inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_blocking() -> Iterator[None]:
    with blockbuster_ctx("syncd"):
        yield


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "teardown" and report.passed:
        printed = [item for item in report.sections if "Captured log" not in item[0]]
        shown = [title for title, text in printed if CANARY.decode() in text]
        if shown:
            report.outcome = "failed"
            report.longrepr = f"a planted value was shown: {', '.join(shown)}"
    return report
