"""Statistics against published examples."""

from __future__ import annotations

import random

import numpy as np
import pytest

from polyhead.client.annotate.statistics.agreement import (
    Choices,
    Level,
    agreeing_pairs,
    alpha_with_interval,
    bennett_s,
    krippendorff_alpha,
    linear,
    quadratic,
    weighted_kappa,
)
from polyhead.client.annotate.statistics.intervals import holm, resampled_sums, share_p_value, wilson
from polyhead.client.annotate.statistics.strength import Comparison, bradley_terry, win_matrix

# Krippendorff 2011, data "C": four coders, twelve units, 0 where a coder gave nothing
CODERS = ("1101", "2232", "3333", "3333", "2222", "1234", "4444", "1121", "2222", "0555", "0011", "0300")
UNITS = [[int(value) for value in unit if value != "0"] for unit in CODERS]
WIKIPEDIA = [[int(value) for value in unit] for unit in ("22", "11", "33", "334", "444", "13", "22", "11", "11", "33", "33", "34")]
# Agresti, Categorical Data Analysis: the American League of 1987, wins of the row's team over the column's
TEAMS = ("Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore")
WINS = (
    (0, 7, 9, 7, 7, 9, 11), (6, 0, 7, 5, 11, 9, 9), (4, 6, 0, 7, 7, 8, 12), (6, 8, 6, 0, 6, 7, 10), (6, 2, 6, 7, 0, 7, 12),
    (4, 4, 5, 6, 6, 0, 6), (2, 4, 1, 3, 1, 7, 0),
)  # fmt: skip
STRENGTHS = (1.5814, 1.4364, 1.2945, 1.2476, 1.1077, 0.6839, 0.0)
COHEN_1968 = ((88, 14, 18), (10, 40, 10), (2, 6, 12))
COHEN_WEIGHTS = ((0, 1, 3), (1, 0, 6), (3, 6, 0))


def differs(one: float, other: float) -> float:
    """The weight of Cohen 1960, of values without an order."""
    return float(one != other)


def games() -> list[Comparison]:
    """Each won game is a comparison in a cluster of its own."""
    return [
        Comparison((one, other, number), TEAMS[one], TEAMS[other], 1.0)
        for one, row in enumerate(WINS)
        for other, wins in enumerate(row)
        for number in range(wins)
    ]


@pytest.mark.parametrize(("level", "published"), [(Level.NOMINAL, 0.743), (Level.ORDINAL, 0.815), (Level.INTERVAL, 0.849)])
def test_krippendorffs_own_example(level: Level, published: float) -> None:
    assert krippendorff_alpha(UNITS, level) == pytest.approx(published, abs=5e-4)
    found = alpha_with_interval(UNITS, level, num=200)
    assert found.value == krippendorff_alpha(UNITS, level)
    assert (found.num_units, found.num_values) == (11, 40)
    assert found.interval is not None
    assert found.interval.low < published < found.interval.high


def test_krippendorff_on_wikipedia() -> None:
    assert krippendorff_alpha(WIKIPEDIA) == pytest.approx(0.691, abs=5e-4)
    assert krippendorff_alpha(WIKIPEDIA, Level.INTERVAL) == pytest.approx(0.811, abs=5e-4)


def test_what_is_not_defined_is_none() -> None:
    """Everybody says the same, or nobody is compared with anybody: there is no agreement beyond chance to measure."""
    assert krippendorff_alpha([[1, 1], [1, 1, 1]]) is None
    assert krippendorff_alpha([]) is None
    assert krippendorff_alpha([[1], [2]]) is None
    assert alpha_with_interval([[1, 1]]).interval is None
    assert weighted_kappa([(1, 1)] * 5, differs) is None
    assert weighted_kappa([], differs) is None
    for nothing in ([], [Choices(["x"], 2)], [Choices(["x", "x"], 1)]):
        assert bennett_s(nothing).value is None


def test_cohens_kappa() -> None:
    """The table 20, 5, 10, 15 of textbooks; Cohen 1968 with his weights; weights of textbooks on their own."""
    binary = [(1.0, 1.0)] * 20 + [(1.0, 0.0)] * 5 + [(0.0, 1.0)] * 10 + [(0.0, 0.0)] * 15
    table = [(float(i), float(j)) for i in range(3) for j in range(3) for _ in range(COHEN_1968[i][j])]
    assert weighted_kappa(table, differs) == pytest.approx(0.492, abs=5e-4)
    assert weighted_kappa(table, lambda a, b: COHEN_WEIGHTS[int(a)][int(b)]) == pytest.approx(0.348, abs=5e-4)
    assert weighted_kappa(binary, differs) == weighted_kappa(binary, linear) == weighted_kappa(binary, quadratic) == pytest.approx(0.4)


@pytest.mark.parametrize("num_options", [2, 3, 5])
def test_random_choices_do_not_agree(num_options: int) -> None:
    """No reply stands in a second item: a chance from all items took random choices for agreement of 1 / K."""
    draw = random.Random(num_options)
    items = [Choices([f"{item}-{draw.randrange(num_options)}" for _ in range(2)], num_options) for item in range(2000)]
    found = bennett_s(items)
    assert found.interval is not None
    assert found.interval.low < 0.0 < found.interval.high
    assert found.value == pytest.approx(0.0, abs=0.05)
    share = 0.6 + 0.4 / num_options  # three fifths know, the others guess
    knowing = [Choices(["x", "x" if item < 2000 * share else "y"], num_options) for item in range(2000)]
    assert bennett_s(knowing, num=0).value == pytest.approx(0.6, abs=1e-3)


def test_items_of_several_sizes_by_hand() -> None:
    """Of 4 pairs 2 are equal. By chance 3 of 3 options and 1 of 2 give 3/3 + 1/2 = 1.5 equal ones: (2 - 1.5) / (4 - 1.5)."""
    items = [Choices(["a", "a", "b"], 3), Choices(["c", "c"], 2), Choices(["d"], 2)]
    found = bennett_s(items)
    assert found.value == pytest.approx(0.2)
    assert (found.num_units, found.num_values, found.interval) == (2, 5, None)


def test_sums_of_resamples_drawn_in_blocks() -> None:
    """As if all were drawn at once, which takes 8 kB a unit."""
    values = np.random.default_rng(1).random((40, 3))
    counts = np.random.default_rng(7).multinomial(40, np.full(40, 1 / 40), size=120)
    assert resampled_sums(values, 120, 7) == pytest.approx(counts @ values)


def test_agreeing_pairs() -> None:
    assert agreeing_pairs([["a", "a", "b"], ["c", "c"], ["d"]]) == (2, 4)


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_as_newcombe_prints_it(count: int, total: int, low: float, high: float) -> None:
    found = wilson(count, total)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_shares_and_their_correction() -> None:
    assert wilson(0, 0) is None
    assert share_p_value(60, 100, 0.5) == pytest.approx(0.0455, abs=1e-4)  # z = 2
    assert share_p_value(25, 100, 0.25) == 1.0
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm's own procedure, by hand


def test_agrestis_baseball_teams() -> None:
    found = bradley_terry(games(), reference="Baltimore", num=0)
    values = {each.name: each.value for each in found.fitted}
    assert values == {team: pytest.approx(value, abs=5e-5) for team, value in zip(TEAMS, STRENGTHS, strict=True)}
    assert (found.left_out, found.reference) == ([], "Baltimore")
    assert found.fitted[0].name == "Milwaukee"
    names, matrix = win_matrix(games())
    assert matrix[names.index("Milwaukee")][names.index("Detroit")] == 7


def test_intervals_of_strengths_hold_them() -> None:
    """The inverse of the information matrix gives Milwaukee against Baltimore a standard error of 0.343: about four make the interval."""
    found = bradley_terry(games(), reference="Baltimore", num=300)
    first = found.fitted[0]
    assert first.interval is not None
    assert first.interval.low < first.value < first.interval.high
    assert first.interval.high - first.interval.low == pytest.approx(4 * 0.343, rel=0.25)
    assert found.fitted[-1].interval is None  # the reference is 0 by choice


def test_ties_count_half_and_an_unbeaten_contestant_is_left_out() -> None:
    tied = [Comparison(number, "a", "b", 0.5) for number in range(6)]
    found = bradley_terry([*tied, Comparison("x", "c", "a", 1.0)], num=10)
    assert found.left_out == ["c"]  # nothing beats it: its strength has no end
    assert [each.value for each in found.fitted] == [pytest.approx(0.0), pytest.approx(0.0)]
    assert bradley_terry([Comparison(1, "a", "b", 1.0)]).fitted == []
    assert bradley_terry([]).fitted == []


def test_few_units_have_no_interval() -> None:
    """Resamples of one dialogue are all the same: its interval had no width, as if it were certain."""
    one = [Comparison("only", "a", "b", 1.0), Comparison("only", "a", "b", 0.0)]
    assert [each.interval for each in bradley_terry(one).fitted] == [None, None]
    assert alpha_with_interval(UNITS[:5]).interval is None


def test_the_same_comparisons_give_the_same_intervals() -> None:
    assert bradley_terry(games(), num=50) == bradley_terry(games(), num=50)
