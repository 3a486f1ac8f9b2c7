"""The units of a plan, one after the other: finished ones are passed by, and what is left is told in minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from polyhead.client.rlhf.evidence.plan import Work
from polyhead.client.rlhf.evidence.results import Results

W = TypeVar("W", bound=Work)


def in_turn(results: Results[Any], units: Sequence[W], work: Callable[[W], None], budget_minutes: float, say: Callable[[str], None]) -> int:
    """Do what has no result yet; no unit begins after the budget is spent. Returns how many are left."""
    left = [unit for unit in units if results.find(unit) is None]
    say(f"{len(units)} runs, {len(units) - len(left)} finished before")
    began_at, num_done = time.monotonic(), 0
    while left and (minutes := (time.monotonic() - began_at) / 60) < budget_minutes:
        unit, *left = left
        remaining = f", about {minutes / num_done * (len(left) + 1):.0f} minutes are left" if num_done else ""
        say(f"\nrun {len(units) - len(left)} of {len(units)}: {unit.name}{remaining}")
        work(unit)
        num_done += 1
    return len(left)
