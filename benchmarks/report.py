"""The table, the verdict, and what is written down: results, plot, the page's figures."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Final

from benchmarks.others import BUSY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.numbers import Record

_COLUMNS: Final = ("what", "ours", "p99", "peer", "p99", "ratio", "bound", "", "against")
_BEGIN: Final = "<!-- figures: written by make bench -->"
_END: Final = "<!-- end of figures -->"


def _cells(row: Record) -> tuple[str, ...]:
    return (
        row["name"],
        f"{_number(row['ours'])} {row['unit']}",
        _number(row["ours_p99"]),
        f"{_number(row['peer'])} {row['unit']}" if row["peer"] is not None else "",
        _number(row["peer_p99"]),
        _number(row["ratio"]),
        _bound(row),
        _judgement(row),
        row["against"] or "",
    )


def _judgement(row: Record) -> str:
    said = "" if row["bound"] is None else "ok" if row["ok"] else "MISSED"
    return f"{said} (busy machine)".lstrip() if row["others"] > BUSY else said


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"  # noqa: PLR2004 - four digits


def _bound(row: Record) -> str:
    if row["bound"] is None:
        return ""
    bound = f"≤ {row['bound']:g}"
    return f"{bound} times" if row["bounded"] == "ratio" else f"{bound} {row['unit']}"


def table(rows: Sequence[Record]) -> str:
    """The rows in columns, for a terminal."""
    lines = [_COLUMNS, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, len(_COLUMNS) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(machine: Mapping[str, object], rows: Sequence[Record]) -> str:
    """The same for the page, with the machine."""
    taken = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in machine.items())
    rule = ("---", "--:", "--:", "--:", "--:", "--:", "--:", "---", "---")
    lines = [_COLUMNS, rule, *map(_cells, rows)]
    return f"Taken on: {taken}.\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict(rows: Sequence[Record]) -> int:
    """The exit code: 1 when a bound is missed, 75 when that may be due to others (EX_TEMPFAIL)."""
    missed = [row for row in rows if not row["ok"]]
    if all(row["others"] > BUSY for row in missed):
        return os.EX_TEMPFAIL if missed else 0
    return 1


def results(machine: Mapping[str, object], rows: Sequence[Record]) -> str:
    """What `results.json` holds."""
    return json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n"


def fill_in(page: str, figures: str) -> str:
    """The page with these figures between its marks.

    Raises:
        ValueError: It has no marks.
    """
    filled, count = re.subn(
        rf"(?s){re.escape(_BEGIN)}.*{re.escape(_END)}",
        lambda _: f"{_BEGIN}\n\n{figures}\n\n{_END}",
        page,
    )
    if count != 1:
        raise ValueError(f"the page has no place for figures: {_BEGIN} … {_END}")
    return filled
