"""A plot of latency against the number of secrets, as SVG: two logarithmic axes, a few curves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH: Final = 720
HEIGHT: Final = 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 40, 60
_COLOURS: Final = ("#1f6feb", "#d1570c", "#2da44e", "#8250df")


@dataclass(slots=True)
class Curve:
    """A line of the plot.

    Attributes:
        label: What it shows.
        points: Number of secrets, median and 99th percentile.
    """

    label: str
    points: list[tuple[float, float, float]] = field(default_factory=list)


def svg(title: str, x_label: str, y_label: str, curves: Sequence[Curve]) -> str:
    """Medians as lines, 99th percentiles as dashed ones.

    Args:
        title: Above the plot.
        x_label: Below the horizontal axis.
        y_label: Beside the vertical axis.
        curves: What to draw; values above 0.
    """
    points = [point for curve in curves for point in curve.points]
    xs = _decades([x for x, _, _ in points])
    ys = _decades([y for _, *both in points for y in both])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">',
        '<g font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(WIDTH / 2, 22, title, "middle", size=15),
        _text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 14, x_label, "middle"),
        f'<g transform="rotate(-90 18 {HEIGHT / 2})">',
        _text(18, HEIGHT / 2, y_label, "middle"),
        "</g>",
    ]
    for value in xs:
        x = _x(value, xs)
        parts.append(_line(x, _TOP, x, HEIGHT - _BOTTOM))
        parts.append(_text(x, HEIGHT - _BOTTOM + 18, f"{value:,g}", "middle"))
    for value in ys:
        y = _y(value, ys)
        parts.append(_line(_LEFT, y, WIDTH - _RIGHT, y))
        parts.append(_text(_LEFT - 8, y + 4, f"{value:,g}", "end"))
    for number, curve in enumerate(curves):
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(_path(curve, 1, colour, xs, ys))
        parts.append(_path(curve, 2, colour, xs, ys, dashed=True))
        parts += [
            f'<circle cx="{_x(x, xs):.1f}" cy="{_y(middle, ys):.1f}" r="3.5" fill="{colour}"/>'
            for x, middle, _ in curve.points
        ]
        y = _TOP + 18 + 18 * number
        parts.append(f'<rect x="{_LEFT + 12}" y="{y - 9}" width="14" height="4" fill="{colour}"/>')
        parts.append(_text(_LEFT + 32, y, f"{curve.label}: median, and p99 dashed", "start"))
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _decades(values: Sequence[float]) -> list[float]:
    low = math.floor(math.log10(min(values)))
    high = max(low + 1, math.ceil(math.log10(max(values))))
    return [10.0**power for power in range(low, high + 1)]


def _x(value: float, axis: Sequence[float]) -> float:
    return _LEFT + _share(value, axis) * (WIDTH - _LEFT - _RIGHT)


def _y(value: float, axis: Sequence[float]) -> float:
    return HEIGHT - _BOTTOM - _share(value, axis) * (HEIGHT - _TOP - _BOTTOM)


def _share(value: float, axis: Sequence[float]) -> float:
    low, high = math.log10(axis[0]), math.log10(axis[-1])
    return (math.log10(value) - low) / (high - low)


def _text(x: float, y: float, text: str, anchor: str, *, size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="#24292f">{escape(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#d0d7de"/>'


def _path(
    curve: Curve,
    column: int,
    colour: str,
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    dashed: bool = False,
) -> str:
    steps = "L".join(f"{_x(p[0], xs):.1f} {_y(p[column], ys):.1f}" for p in curve.points)
    style = ' stroke-dasharray="5 4" opacity="0.6"' if dashed else ' stroke-width="2"'
    return f'<path d="M{steps}" fill="none" stroke="{colour}"{style}/>'
