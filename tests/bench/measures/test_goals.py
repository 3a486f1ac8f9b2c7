"""Goals worked out from made-up numbers: which of ours counts, which peer it is held against, when a soak is flat."""

from __future__ import annotations

import numpy as np
import pytest

from polyhead.client.bench.load import Phase
from polyhead.client.bench.measures.decoding import checked_seconds, decode_row
from polyhead.client.bench.measures.quality import Answers, quality_rows
from polyhead.client.bench.measures.soak import Part, pace_row, soak_row
from polyhead.client.bench.measures.swapping import Waits
from polyhead.client.bench.plan import Sizes
from polyhead.client.bench.results import Row, Series
from polyhead.client.bench.worker import WorkerFailed


def reached(row: Row) -> list[float | None]:
    return [check.reached for check in row.checks]


def test_the_best_of_ours_is_held_against_the_best_peer() -> None:
    """Two variants of ours are no rivals of each other; the second goal of P1 is against vLLM alone."""
    series = [
        Series("polyhead float32", (200.0,)),
        Series("polyhead int8", (300.0,)),
        Series("vLLM f32", (100.0,)),
        Series("llama.cpp F32", (150.0,)),
        Series("llama.cpp Q8_0", (250.0,)),
    ]
    row = decode_row(Sizes(), "P1", series, num_ours=2)
    assert row.ours.name == "polyhead int8"
    assert {each.name for each in row.others} == {"polyhead float32", "vLLM f32", "llama.cpp F32", "llama.cpp Q8_0"}
    assert reached(row) == [pytest.approx(1.2), pytest.approx(3.0)]
    assert [check.is_met for check in row.checks] == [False, True]


def test_a_goal_stays_open_where_ours_failed() -> None:
    row = decode_row(Sizes(), "P2", [Series("polyhead", (), "out of memory"), Series("vLLM f32", (100.0,))], num_ours=1)
    assert row.ours.error == "out of memory"
    assert [check.verdict for check in row.checks] == ["open"]


def test_a_short_answer_is_no_fast_answer() -> None:
    assert checked_seconds({"seconds": 2.0, "completions": [[1, 2], [3, 4]]}, 2, 2) == 2.0
    for completions in ([[1, 2], [3]], [[1, 2]], []):
        with pytest.raises(WorkerFailed, match="2 tokens were asked"):
            checked_seconds({"seconds": 1.0, "completions": completions}, 2, 2)


def test_a_soak_is_judged_once_it_has_settled() -> None:
    """The first three parts do not count. Of the rest, the last two are held against the first two."""
    flat = soak_row([Part(mib, 3, 100.0) for mib in (500, 800, 900, *[1000] * 7)], [], 50, 0, 10.0)
    assert [check.is_met for check in flat.checks] == [True] * 3
    growing = soak_row([Part(1000 + 20 * number, 3, 100.0) for number in range(10)], ["lost"], 50, 2, 10.0)
    assert [check.is_met for check in growing.checks] == [False] * 3
    assert reached(growing) == [pytest.approx(1170 / 1070), 1.0, 2.0]


def test_a_soaked_server_is_held_against_a_new_one() -> None:
    new = Series("a new server", (100.0, 102.0, 98.0))
    as_fast, slower = (pace_row([Series("polyhead", values), new], 10.0) for values in ((99.0, 90.0, 97.0), (89.0,)))
    assert [check.is_met for row in (as_fast, slower) for check in row.checks] == [True, False]
    assert reached(as_fast) == [pytest.approx(0.97)]


def test_quality_is_against_float32() -> None:
    exact = Answers(np.log(np.array([0.5, 0.25], np.float32)), np.array([7, 8]), [[1, 2, 3, 4], [5, 6, 7, 8]])
    other = Answers(np.log(np.array([0.5, 0.125], np.float32)), np.array([7, 9]), [[1, 2, 9, 4], [5, 6, 7, 8]])
    perplexity, choices, replies = quality_rows({"int8": other}, exact, 2, 4)
    assert [series.median for series in perplexity.series] == [pytest.approx(4.0), pytest.approx(8**0.5)]
    assert choices.ours.values == (0.5,)
    assert choices.notes == ("int8: log-probs differ by 0.35 on average, 0.69 at most",)
    assert replies.ours.values == (2.0, 4.0)
    assert replies.notes == ("int8: 1 of 2 replies equal, 87.5% of all tokens at their place",)


def test_waits_are_measured_against_the_calm_around_them() -> None:
    found = Waits()
    found.note(Phase([1.0, 1.0, 1.5]), Phase([1.0, 3.0]), Phase([1.0]))
    found.note(Phase([2.0, 2.0]), Phase([5.0]), Phase([2.0, 2.2]))  # streams have grown, and steps with them
    assert (found.longest, found.longest_calm, found.step_s) == (3.0, 1.5, 1.0)
