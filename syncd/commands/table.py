"""Tables for a terminal: cells that fit its width, and colours for states.

Colours follow the terminal: none where output is not one, where `NO_COLOR` is set
(https://no-color.org), or where `TERM` is `dumb`. Where output is not a terminal, nothing is cut
off, for programs that read it; `COLUMNS` sets a width in any case.
"""

from __future__ import annotations

import os
import shutil
from typing import IO, TYPE_CHECKING, Final

import msgspec

from syncd.core.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_GAP: Final = "  "
_NARROWEST: Final = 8
"""Characters that a column keeps at least."""

_RED, _YELLOW, _GREEN = "31", "33", "32"
_COLOURS: Final = {
    **dict.fromkeys(("missing", "unreadable", "failing", "rejecting", "rejected"), _RED),
    **dict.fromkeys(("not_adopted", "stale"), _RED),
    **dict.fromkeys(("missing!", "unreadable!", "present!", "not sent"), _RED),
    **dict.fromkeys(("unproven", "starting", "pending", "retried"), _YELLOW),
    **dict.fromkeys(("ok", "present", "ready", "adopted", "delivered", "recreated"), _GREEN),
}


class Screen(msgspec.Struct, frozen=True):
    """What is written to.

    Attributes:
        width: Characters in a line; None for no limit.
        coloured: Whether states are coloured.
    """

    width: int | None = None
    coloured: bool = False

    @classmethod
    def of(cls, stream: IO[str], environ: Mapping[str, str] = os.environ) -> Screen:
        """What a stream leads to."""
        is_terminal = stream.isatty()
        plain = "NO_COLOR" in environ and environ["NO_COLOR"] != ""
        width = None
        if is_terminal or environ.get("COLUMNS", "").isdigit():
            width = shutil.get_terminal_size().columns
        return cls(width, is_terminal and not plain and environ.get("TERM") != "dumb")

    def state(self, text: str, padded: str | None = None) -> str:
        """A state in its colour; `padded` is the text to show, if another."""
        shown = text if padded is None else padded
        colour = _COLOURS.get(text.strip())
        return f"\x1b[{colour}m{shown}\x1b[0m" if self.coloured and colour else shown

    def alarm(self, text: str) -> str:
        """A line about trouble."""
        return f"\x1b[{_RED}m{text}\x1b[0m" if self.coloured else text

    def fit(self, text: str, indent: int = 0) -> str:
        """A line that is cut off at the width."""
        return _cut(text, None if self.width is None else self.width - indent)

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
        """The lines of a table; the widest columns give way where it does not fit."""
        table = [head, *([visible(cell) for cell in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        if self.width is not None:
            room = self.width - len(_GAP) * (len(widths) - 1)
            while sum(widths) > room and max(widths) > _NARROWEST:
                widths[widths.index(max(widths))] -= 1
        lines = []
        for number, row in enumerate(table):
            cells = []
            for cell, width in zip(row, widths, strict=True):
                padded = _cut(cell, width).ljust(width)
                cells.append(self.state(cell, padded) if number else padded)
            lines.append(_GAP.join(cells).rstrip())
        return lines


def _cut(text: str, width: int | None) -> str:
    if width is None or len(text) <= width:
        return text
    return text[: max(0, width - 1)] + "…"
