"""Medians, ratios and verdicts, with numbers whose answers are known."""

from __future__ import annotations

import json
import math

import pytest

from polyhead.client.bench.results import Check, Row, Series, at_least, at_most, beats, best, named, times_better

OURS = Series("polyhead", (90.0, 110.0, 100.0))
FAST = Series("llama.cpp Q8_0", (70.0, 80.0, 90.0))
SLOW = Series("llama.cpp F32", (40.0, 50.0, 60.0))
GONE = Series("vLLM f32", (), "it ended with status 1: no such wheel")


def test_median_and_spread() -> None:
    assert OURS.median == 100.0
    assert OURS.spread == (90.0, 110.0)
    assert math.isnan(GONE.median)


def test_better_is_up_for_rates_and_down_for_times() -> None:
    assert times_better(OURS, FAST, is_rate=True) == pytest.approx(1.25)
    assert times_better(OURS, FAST, is_rate=False) == pytest.approx(0.8)
    assert math.isnan(times_better(OURS, GONE, is_rate=True))


def test_the_best_is_of_those_that_were_measured() -> None:
    assert best([SLOW, GONE, FAST], is_rate=True) is FAST
    assert best([SLOW, GONE, FAST], is_rate=False) is SLOW
    assert best([GONE], is_rate=True) is None
    assert named([SLOW, GONE, FAST], "llama.cpp") == [SLOW, FAST]


def test_a_goal_is_met_missed_or_open() -> None:
    """Exactly on the goal is met; what was not measured is neither met nor missed."""
    assert [check.verdict for check in (at_least("", 1.25, 1.25), at_least("", 1.24, 1.25), at_least("", None, 1.25))] == [
        "met",
        "MISSED",
        "open",
    ]
    assert [at_most("", reached, 1.85).is_met for reached in (1.85, 1.86, math.nan)] == [True, False, None]
    assert beats("", OURS, [SLOW, GONE, FAST], True, 1.25) == Check("", 1.25, True)
    assert beats("", OURS, [GONE], True, 1.25).is_met is None
    assert beats("", GONE, [FAST], True, 1.25).is_met is None


def test_json_goes_and_comes_back() -> None:
    """A resumed run reads what an earlier one wrote. No NaN, which is not JSON."""
    row = Row("P1", "decode", "tokens/s", True, (OURS, FAST, GONE), (at_least("a", 1.25, 1.0), at_least("b", None, 1.0)), ("a note",))
    text = json.dumps(row.as_json(), allow_nan=False)
    assert Row.from_json(json.loads(text)) == row
    plain = json.loads(text)["series"]
    assert [each.get("ours_is_better_by") for each in plain] == [None, 1.25, None]
    assert [each["median"] for each in plain] == [100.0, 80.0, None]
