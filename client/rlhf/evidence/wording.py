"""Intervals, verdicts and missing seeds in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from polyhead.client.rlhf.evidence.intervals import Interval

SHOWN = "yes"


def with_interval(interval: Interval, form: Callable[[float], str]) -> str:
    """0.50 (0.41 to 0.59)."""
    return f"{form(interval.mean)} ({form(interval.low)} to {form(interval.high)})"


def verdict_of(interval: Interval, sign: int = 1) -> str:
    """Of a claim that a difference has this sign: shown where its interval excludes 0."""
    if interval.low <= 0 <= interval.high:
        return "not shown"
    return SHOWN if interval.mean * sign > 0 else "the opposite"


def not_run(seeds: Mapping[str, Sequence[int]]) -> str:
    """What a plan has and no file: the seeds that are missing, by what is run; none are named where there is nothing to draw."""
    if not seeds:
        return "All that the plan has is here."
    by_seeds: dict[str, list[str]] = {}
    for name, own in seeds.items():
        missing = f" (seed{'s' * (len(own) > 1)} {', '.join(map(str, own))})" if own else ""
        by_seeds.setdefault(missing, []).append(name)
    return "Not run yet: " + "; ".join(f"{', '.join(names)}{missing}" for missing, names in by_seeds.items()) + "."
