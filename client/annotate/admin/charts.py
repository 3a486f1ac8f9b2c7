"""Geometry of the chart of strengths: where points, bars and lines go, in the units of the SVG. The template draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polyhead.client.annotate.statistics.strength import ELO, Strength

WIDTH, NAMES, RIGHT, LINE, TOP, BOTTOM = 720, 230, 40, 36, 14, 34
_STEPS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True)
class Mark:
    """One contestant: its point and the ends of its bar. `low` None: no interval."""

    name: str
    y: int
    x: float
    low: float | None
    high: float | None
    label: str


@dataclass(frozen=True)
class Tick:
    x: float
    label: str


@dataclass(frozen=True)
class Chart:
    width: int
    height: int
    left: int
    bottom: int  # y of the axis
    marks: list[Mark]
    ticks: list[Tick]


def strength_chart(fitted: Sequence[Strength]) -> Chart | None:
    """In Elo points, the strongest on top. None of nothing."""
    if not fitted:
        return None
    lows = [ELO * each.interval.low if each.interval else each.elo for each in fitted]
    highs = [ELO * each.interval.high if each.interval else each.elo for each in fitted]
    step = next((each for each in _STEPS if (max(highs) - min(lows)) / each <= 7), _STEPS[-1])
    first, last = step * (int(min(lows) // step)), step * (int(-(-max(highs) // step)))
    last = last if last > first else first + step

    def place(elo: float) -> float:
        return round(NAMES + (elo - first) / (last - first) * (WIDTH - NAMES - RIGHT), 1)

    marks = [
        Mark(
            each.name, TOP + LINE // 2 + LINE * number, place(each.elo), place(low) if each.interval else None,
            place(high) if each.interval else None, f"{each.elo:+.0f}",
        )
        for number, (each, low, high) in enumerate(zip(fitted, lows, highs, strict=True))
    ]  # fmt: skip
    num_ticks = min(40, round((last - first) / step) + 1)
    ticks = [Tick(place(first + step * number), f"{first + step * number}") for number in range(num_ticks)]
    bottom = TOP + LINE * len(fitted)
    return Chart(WIDTH, bottom + BOTTOM, NAMES, bottom, marks, ticks)
