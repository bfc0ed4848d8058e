"""Tables fit the terminal, and colour states only where colours are wanted."""

from __future__ import annotations

import io

import pytest

from syncd.commands.table import Screen

HEAD = ("SECRET", "STATE", "PROBLEM")
ROWS = [("client-secret", "missing", "there is no file " + "x" * 90), ("b", "present", "-")]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_width_nothing_is_cut_off() -> None:
    """For programs that read the output."""
    lines = Screen().table(HEAD, ROWS)
    assert lines[0].split() == list(HEAD)
    assert lines[1].endswith("x" * 90)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_lines_fit_the_width(width: int) -> None:
    """The widest column gives way; the others stay whole."""
    lines = Screen(width).table(HEAD, ROWS)
    assert max(map(len, lines)) <= width
    assert lines[1].startswith("client-secret  missing  there")
    assert lines[1].endswith("…")


def test_states_are_coloured_on_a_terminal() -> None:
    """The state alone, and columns stay aligned."""
    _, missing, present = Screen(80, coloured=True).table(HEAD, ROWS)
    assert "\x1b[31mmissing\x1b[0m" in missing
    assert "\x1b[32mpresent\x1b[0m" in present


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_who_wants_no_colours_gets_none(environ: dict[str, str], coloured: bool) -> None:
    """NO_COLOR counts when it is not empty (no-color.org)."""
    assert Screen.of(Terminal(), environ).coloured is coloured


def test_a_pipe_gets_neither_colours_nor_a_width() -> None:
    """Unless COLUMNS asks for one."""
    assert Screen.of(io.StringIO(), {}) == Screen()
    assert Screen.of(io.StringIO(), {"COLUMNS": "70"}).width is not None
