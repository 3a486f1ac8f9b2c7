"""Line plots as SVG, legible on light and on dark pages. Knows numbers, labels and geometry, and nothing of what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 380, 270  # of one panel
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 44, 44  # around the field of a panel
CENTRE = (LEFT + WIDTH - RIGHT) / 2  # of the field
LABEL_WIDTH = 30  # of a number below the field
COLOURS = ("#2f7ed8", "#d9822b", "#3a9a5b", "#a355b8")  # with enough contrast against white and against black
INK = "#7d8590"  # likewise
Points = Sequence[tuple[float, float]]
Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Line:
    """One named series of points, by ascending x. One without points only takes its colour, so that others keep theirs in all panels."""

    name: str
    points: Points


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes. x is logarithmic (a factor of 2 a tick) where it is asked for; y starts at 0."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    is_log_x: bool = False


def svg(panels: Sequence[Panel], columns: int = 0) -> str:
    """The panels side by side, `columns` in a row; 0: all in one."""
    columns = min(columns, len(panels)) or len(panels)
    width, height = WIDTH * columns, HEIGHT * math.ceil(len(panels) / columns)
    style = f'font-family="system-ui, sans-serif" font-size="11" fill="{INK}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" {style}>']
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        parts += [f'<g transform="translate({column * WIDTH} {row * HEIGHT})">', *_panel(panel), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel) -> list[str]:
    xs = sorted({x for line in panel.lines for x, _ in line.points})
    top = nice_ticks(max((y for line in panel.lines for _, y in line.points), default=1.0))
    scale_x, scale_y = _x_scale(xs, panel.is_log_x), _y_scale(top[-1])
    parts = [_text(CENTRE, 16, panel.title, "middle", 'font-weight="600"')]
    for y in top:
        parts.append(f'<path d="M{LEFT} {scale_y(y):.1f}H{WIDTH - RIGHT}" stroke="{INK}" stroke-opacity=".25"/>')
        parts.append(_text(LEFT - 6, scale_y(y) + 4, label(y), "end"))
    for x in _x_ticks(xs, scale_x):
        parts.append(_text(scale_x(x), HEIGHT - BOTTOM + 15, label(x), "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(_text(CENTRE, HEIGHT - 10, panel.x_label, "middle"))
    parts.append(_text(14, middle, panel.y_label, "middle", f'transform="rotate(-90 14 {middle:.1f})"'))
    for index, line in enumerate(panel.lines):
        parts += _line(line, _colour(index), scale_x, scale_y)
    return [*parts, _names(panel.lines)] if len(panel.lines) > 1 else parts


def _names(lines: Sequence[Line]) -> str:
    """A row of names below the title, each in its line's colour."""
    names = [f'<tspan dx="10" style="fill:{_colour(index)}">{escape(line.name)}</tspan>' for index, line in enumerate(lines) if line.points]
    return f'<text x="{CENTRE:.1f}" y="32" text-anchor="middle">{"".join(names)}</text>'


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _line(line: Line, colour: str, scale_x: Scale, scale_y: Scale) -> list[str]:
    places = [(scale_x(x), scale_y(y)) for x, y in line.points]
    path = " ".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(places))
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places]
    return [f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>', *dots]


def _x_scale(xs: Sequence[float], is_log: bool) -> Scale:
    def place(x: float) -> float:
        return math.log2(x) if is_log else x

    low, high = (place(xs[0]), place(xs[-1])) if xs else (0.0, 1.0)
    width = (high - low) or 1.0
    return lambda x: LEFT + 8 + (place(x) - low) / width * (WIDTH - LEFT - RIGHT - 16)


def _x_ticks(xs: Sequence[float], scale_x: Scale) -> list[float]:
    """Those of the points, at most eight; where their labels would lie on each other, round numbers."""
    ticks = list(xs if len(xs) <= 8 else xs[:: math.ceil(len(xs) / 8)])
    if all(scale_x(after) - scale_x(before) >= LABEL_WIDTH for before, after in pairwise(ticks)):
        return ticks
    return [tick for tick in nice_ticks(xs[-1]) if xs[0] <= tick <= xs[-1]]


def _y_scale(most: float) -> Scale:
    return lambda y: HEIGHT - BOTTOM - y / most * (HEIGHT - TOP - BOTTOM)


def nice_ticks(most: float) -> list[float]:
    """From 0 in three to seven even steps of 1, 2 or 5 times a power of ten, the last at or above `most`."""
    if most <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(most / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if most / (factor * power) <= 7)
    return [step * index for index in range(math.ceil(most / step - 1e-9) + 1)]


def label(number: float) -> str:
    """Short, without needless zeros."""
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:,.0f}".replace(",", " ")


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'
