"""The output of `syncd history`: for each rotation, what happened when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from syncd.api.rotations import HistoryReport
from syncd.commands.client import Client
from syncd.core.text import escape_json, visible
from syncd.core.timing import seconds_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncd.api.rotations import HistoryEntry, RotationReport
    from syncd.commands.table import Screen

_SHOWN = 11
"""Characters of a version that tell it from others at a glance."""


def query(path: str, secrets: Sequence[str], consumer: str | None, most: int) -> HistoryReport:
    """Asks the daemon at a socket.

    Raises:
        SyncdError: It cannot be reached, or refuses.
    """
    parameters: dict[str, str | list[str]] = {"secret": list(secrets), "limit": str(most)}
    if consumer is not None:
        parameters["consumer"] = consumer
    with Client(path) as client:
        return client.get("/v1/history", HistoryReport, parameters)


def as_json(found: HistoryReport) -> str:
    """For scripts."""
    return msgspec.json.format(escape_json(msgspec.json.encode(found)), indent=2).decode()


def as_text(found: HistoryReport, screen: Screen) -> str:
    """A paragraph for each rotation, the newest last."""
    if not found.rotations:
        return "no rotations"
    return "\n\n".join("\n".join(_paragraph(item, screen)) for item in found.rotations)


def _paragraph(rotation: RotationReport, screen: Screen) -> list[str]:
    versions = f"{_short(rotation.previous_version)} -> {_short(rotation.version)}"
    source = () if rotation.source is msgspec.UNSET else (rotation.source,)
    head = (rotation.secret, *source, rotation.change, versions, rotation.event or "")
    began = seconds_of(rotation.detected_at)
    rows = [("", "", "detected", "")]
    times = [rotation.detected_at]
    for entry in rotation.entries:
        rows.append((_after(entry, began), visible(entry.consumer), entry.outcome, _detail(entry)))
        times.append(entry.at)
    for name in rotation.pending:
        rows.append(("", visible(name), "pending", ""))
        times.append("")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [screen.fit(visible("  ".join(head)).rstrip())]
    for at, (after, consumer, outcome, detail) in zip(times, rows, strict=True):
        shown = outcome.ljust(widths[2])
        room = 2 + 24 + 2 + widths[0] + 2 + widths[1] + 2 + widths[2] + 2
        lines.append(
            f"  {at:24}  {after:>{widths[0]}}  {consumer:{widths[1]}}  "
            f"{screen.state(outcome, shown)}  {screen.fit(detail, room)}".rstrip()
        )
    return lines


def _after(entry: HistoryEntry, began: float) -> str:
    seconds = seconds_of(entry.at) - began
    return f"+{seconds:.3f} s" if seconds >= 0 else ""  # the clock was set back


def _detail(entry: HistoryEntry) -> str:
    parts = [] if entry.status is None else [str(entry.status)]
    if entry.attempts > 1:
        parts.append(f"{entry.attempts} times until {entry.until}")
    if entry.reason is not None:
        parts.append(visible(entry.reason))
    return "  ".join(parts)


def _short(version: str | None) -> str:
    if version is None:
        return "none"
    return version if len(version) <= _SHOWN else version[:_SHOWN] + "…"
