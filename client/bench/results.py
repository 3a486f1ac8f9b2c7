"""What a measure ends with: series of numbers, one row a measure, and checks against the goals. Plain data and arithmetic."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

OURS = "polyhead"


@dataclass(frozen=True, slots=True)
class Series:
    """One system's numbers, one a run; or why there are none."""

    name: str
    values: tuple[float, ...] = ()
    error: str = ""

    @property
    def median(self) -> float:
        """NaN if nothing was measured."""
        return statistics.median(self.values) if self.values else math.nan

    @property
    def spread(self) -> tuple[float, float]:
        return (min(self.values), max(self.values)) if self.values else (math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class Check:
    """One goal and what was reached. `is_met` is None while something that it needs has not been measured."""

    goal: str
    reached: float | None
    is_met: bool | None

    @property
    def verdict(self) -> str:
        return {True: "met", False: "MISSED", None: "open"}[self.is_met]


@dataclass(frozen=True, slots=True)
class Row:
    """One measure: ours first, then the others."""

    id: str  # "P1"
    what: str
    unit: str
    is_rate: bool  # more is better, as tokens a second; else less is better, as seconds
    series: tuple[Series, ...] = ()
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    is_contest: bool = True  # the others are rivals; else points of a curve, or variants

    @property
    def ours(self) -> Series:
        return self.series[0]

    @property
    def others(self) -> tuple[Series, ...]:
        return self.series[1:]

    @property
    def rivals(self) -> tuple[Series, ...]:
        """The others without our own variants."""
        return tuple(each for each in self.others if not each.name.startswith(OURS))

    def times_better(self, other: Series) -> float:
        """How many times better ours is: above 1 we win, whichever way the unit counts."""
        return times_better(self.ours, other, self.is_rate)

    def as_json(self) -> dict[str, Any]:
        plain = asdict(self)
        for entry, series in zip(plain["series"], self.series, strict=True):
            entry["median"] = finite(series.median)
            entry["values"] = [finite(value) for value in series.values]
            if self.is_contest and series is not self.ours:
                entry["ours_is_better_by"] = finite(self.times_better(series))
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Row:
        """What `as_json` wrote; derived numbers are derived again."""
        series = tuple(Series(each["name"], tuple(each["values"]), each["error"]) for each in plain["series"])
        checks = tuple(Check(**each) for each in plain["checks"])
        return cls(plain["id"], plain["what"], plain["unit"], plain["is_rate"], series, checks, tuple(plain["notes"]), plain["is_contest"])


def finite(number: float | None) -> float | None:
    """JSON has no NaN."""
    return number if number is not None and math.isfinite(number) else None


def times_better(ours: Series, other: Series, is_rate: bool) -> float:
    """NaN where one of them has no numbers."""
    above, below = (ours.median, other.median) if is_rate else (other.median, ours.median)
    return above / below if below else math.nan


def best(series: Iterable[Series], is_rate: bool) -> Series | None:
    """The best of those that were measured."""
    measured = [each for each in series if each.values]
    pick = max if is_rate else min
    return pick(measured, key=lambda each: each.median) if measured else None


def named(series: Sequence[Series], prefix: str) -> list[Series]:
    """Those of one engine, in all its precisions."""
    return [each for each in series if each.name.startswith(prefix)]


def at_least(goal: str, reached: float | None, target: float) -> Check:
    return _checked(goal, reached, lambda number: number >= target)


def at_most(goal: str, reached: float | None, target: float) -> Check:
    return _checked(goal, reached, lambda number: number <= target)


def _checked(goal: str, reached: float | None, holds: Any) -> Check:
    reached = finite(reached)
    return Check(goal, reached, None if reached is None else bool(holds(reached)))


def beats(goal: str, ours: Series, rivals: Sequence[Series], is_rate: bool, target: float) -> Check:
    """Ours against the best rival that was measured; open if ours or every rival was not."""
    rival = best(rivals, is_rate)
    return at_least(goal, times_better(ours, rival, is_rate) if rival else None, target)
