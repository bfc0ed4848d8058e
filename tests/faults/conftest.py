"""Figures that the tests of faults count, in a section of their own at the end of the run.

`SYNCD_SOAK=1` (`make soak`) runs the same tests at full size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.faults import SOAK, Books

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_FIGURE = "figure"


@pytest.fixture
def books() -> Iterator[Books]:
    with Books() as books:
        yield books


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Records a counted figure of a test, such as `lost 0 of 50, kills 12`."""
    return lambda figure: record_property(_FIGURE, figure)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """At full size a test takes as long as it takes."""
    if SOAK:
        for item in items:
            item.add_marker(pytest.mark.timeout(3 * 3600))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the figures, whichever worker counted them."""
    figures = [
        (report.nodeid.rpartition("/")[2], value)
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        for name, value in report.user_properties
        if name == _FIGURE
    ]
    if figures:
        terminalreporter.section("counted")
        for test, figure in sorted(figures):
            terminalreporter.line(f"{test}: {figure}")
