"""Curves as pictures: polylines on two logarithmic axes, as one SVG file each. Pure; safe in any thread.

A picture loads nothing, and can be read in light and dark. On such axes work that costs the same for each
unit is a straight line, and what bends upward costs more than its share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 76, 20, 44, 86
TICK_PIXELS = 44
"""Ticks of the horizontal axis are at least so far apart."""

STYLE = """
svg { color-scheme: light dark; --page: #ffffff; --ink: #1b1f24; --line: #c8ced6;
  --c0: #2f7fd1; --c1: #d98324; --c2: #2b9a66; --c3: #a252b8; --c4: #c4455f; --c5: #6b7785; }
@media (prefers-color-scheme: dark) { svg { --page: #14171b; --ink: #e6e9ed; --line: #3a424c; } }
text { font: 13px system-ui, sans-serif; fill: var(--ink); } .title { font-weight: 600; font-size: 15px; }
.line { fill: none; stroke-width: 2; } .grid { stroke: var(--line); stroke-width: 1; }
"""
COLOURS = 6


@dataclass(frozen=True)
class Series:
    """One line: its name and its points, none of them zero or less."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Picture:
    """A curve, or several with the same axes."""

    title: str
    x_label: str
    y_label: str
    x_text: Callable[[float], str]
    y_text: Callable[[float], str]
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Axis:
    """Maps values onto pixels, logarithmically."""

    least: float
    most: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        span = math.log(self.most / self.least)
        share = math.log(value / self.least) / span if span else 0.5
        return self.begin + share * (self.end - self.begin)


def decades(least: float, most: float) -> list[float]:
    """Return the powers of ten from the last that is not above `least` to the first not below `most`."""
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def render_svg(picture: Picture) -> str:
    """Return a picture with at least one point. Raises ValueError without any."""
    points = [point for series in picture.series for point in series.points]
    if not points:
        raise ValueError(f"{picture.title}: there is nothing to draw")
    xs = sorted({x for x, _ in points})
    ys = decades(min(y for _, y in points), max(y for _, y in points))
    across, up = Axis(xs[0], xs[-1], LEFT, WIDTH - RIGHT), Axis(ys[0], ys[-1], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(picture.title)}</title><style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="var(--page)"/>',
        f'<text class="title" x="{LEFT}" y="22">{escape(picture.title)}</text>',
        f'<text x="{LEFT}" y="38">{escape(picture.y_label)}</text>',
        *_horizontal_lines(ys, up, picture.y_text),
        *_ticks(xs, across, picture.x_text),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 38, picture.x_label, "middle"),
        *(_line(index, series, across, up) for index, series in enumerate(picture.series)),
        *_legend(picture.series),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _horizontal_lines(values: Sequence[float], up: Axis, text: Callable[[float], str]) -> list[str]:
    return [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(value):.1f}" y2="{up(value):.1f}"/>'
        + _text(LEFT - 8, up(value) + 4, text(value), "end")
        for value in values
    ]


def _ticks(values: Sequence[float], across: Axis, text: Callable[[float], str]) -> list[str]:
    drawn: list[str] = []
    last = -math.inf
    for value in values:
        if across(value) - last >= TICK_PIXELS:
            last = across(value)
            drawn.append(_text(last, HEIGHT - BOTTOM + 18, text(value), "middle"))
    return drawn


def _line(index: int, series: Series, across: Axis, up: Axis) -> str:
    colour = f"var(--c{index % COLOURS})"
    places = [(across(x), up(y)) for x, y in sorted(series.points)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places)
    return f'<polyline class="line" stroke="{colour}" points="{line}"/>{dots}'


def _legend(series: Sequence[Series]) -> list[str]:
    step = (WIDTH - LEFT - RIGHT) / max(1, len(series))
    return [
        f'<rect x="{LEFT + index * step:.0f}" y="{HEIGHT - 27}" width="12" height="12" '
        f'fill="var(--c{index % COLOURS})"/>'
        + _text(LEFT + index * step + 18, HEIGHT - 16, line.name, "start")
        for index, line in enumerate(series)
    ]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
