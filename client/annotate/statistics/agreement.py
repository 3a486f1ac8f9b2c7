"""How far people agree beyond chance. A coefficient that is not defined, as where there was nothing to disagree about, is None, never 1.

Choices of a reply: S of Bennett, Alpert and Goldstein 1954 ("Communications through limited-response questioning"), which Brennan and
Prediger 1981 ("Coefficient kappa: some uses, misuses, and alternatives") give as a kappa whose chance is uniform. A reply stands in one
item alone, so that chance can only be that within the item; a chance from how often each reply was chosen over all items is near 0.

Values that all items share (places in an order, ratings, verdicts): Krippendorff's alpha and Cohen's weighted kappa, whose chance is how
often each value was given over all items.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from polyhead.client.annotate.statistics.intervals import NUM_BOOTSTRAPS, Interval, percentile_interval, resampled_sums

Value = float  # of a scale of few points: what alpha costs grows with the square of their number
Weight = Callable[[float, float], float]


class Level(enum.StrEnum):
    """What the values are: names that are numbers, places in an order, or numbers whose differences count."""

    NOMINAL = "nominal"
    ORDINAL = "ordinal"
    INTERVAL = "interval"


@dataclass(frozen=True)
class Choices:
    """What people chose in one item, each of them among `num_options` answers."""

    values: Sequence[Hashable]
    num_options: int


@dataclass(frozen=True)
class Coefficient:
    """Alpha or S. `value` None: not defined."""

    value: float | None
    interval: Interval | None
    num_units: int  # with two values or more
    num_values: int


def bennett_s(items: Sequence[Choices], *, num: int = NUM_BOOTSTRAPS, seed: int = 0) -> Coefficient:
    """(observed - chance) / (1 - chance), with a 95 % interval by resampling items (`num` 0: none). Bennett, Alpert and Goldstein 1954;
    Brennan and Prediger 1981.

    Observed is the share of pairs of choices of one item that are equal. Chance is that share where everybody chooses uniformly, 1 /
    num_options. Items may differ in both numbers: the numerator and the denominator are summed over all pairs. Items with one option, or
    one choice, say nothing.
    """
    usable = [item for item in items if len(item.values) >= 2 and item.num_options >= 2]
    sums = np.array([_beyond_chance(item) for item in usable])  # (items, 2)
    if not usable:
        return Coefficient(None, None, 0, 0)
    beyond, possible = sums.sum(axis=0)
    drawn = resampled_sums(sums, num, seed)
    interval = percentile_interval(drawn[:, 0] / drawn[:, 1])
    return Coefficient(float(beyond / possible), interval, len(usable), sum(len(item.values) for item in usable))


def _beyond_chance(item: Choices) -> tuple[float, float]:
    """(equal pairs above those expected by chance, the same if all were equal)"""
    equal, total = agreeing_pairs([item.values])
    return equal - total / item.num_options, total - total / item.num_options


def weighted_kappa(pairs: Sequence[tuple[float, float]], weight: Weight) -> float | None:
    """Of two people's values of the same units, with a disagreement of its own for each pair of values, 0 for equal ones. Cohen 1968. See
    `linear` and `quadratic`."""
    if not pairs:
        return None
    first, second = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    observed = sum(weight(one, other) for one, other in pairs) / len(pairs)
    expected = sum(first[a] * second[b] * weight(a, b) for a in first for b in second) / len(pairs) ** 2
    return None if expected == 0 else 1 - observed / expected


def linear(one: float, other: float) -> float:
    return abs(one - other)


def quadratic(one: float, other: float) -> float:
    return (one - other) ** 2


def krippendorff_alpha(units: Sequence[Sequence[Value]], level: Level = Level.NOMINAL) -> float | None:
    """Of units, each with the values that it was given by any number of people. Krippendorff 2011, "Computing Krippendorff's
    Alpha-Reliability"."""
    coincidences, scale = _coincidences(units)
    return _finite(_alphas(coincidences.sum(axis=0)[None], scale, level)[0]) if len(scale) else None


def alpha_with_interval(
    units: Sequence[Sequence[Value]], level: Level = Level.NOMINAL, *, num: int = NUM_BOOTSTRAPS, seed: int = 0
) -> Coefficient:
    """The same with a 95 % interval by resampling units."""
    coincidences, scale = _coincidences(units)
    if not len(scale):
        return Coefficient(None, None, 0, 0)
    value = _finite(_alphas(coincidences.sum(axis=0)[None], scale, level)[0])
    drawn = resampled_sums(coincidences, num, seed)  # (resamples, values, values)
    interval = percentile_interval(_alphas(drawn, scale, level)) if value is not None else None
    return Coefficient(value, interval, len(coincidences), round(float(coincidences.sum())))


def agreeing_pairs(units: Sequence[Sequence[Hashable]]) -> tuple[int, int]:
    """(pairs of values of one unit that are equal, all such pairs)"""
    equal = total = 0
    for unit in units:
        counts = Counter(unit)
        equal += sum(count * (count - 1) // 2 for count in counts.values())
        total += len(unit) * (len(unit) - 1) // 2
    return equal, total


def _coincidences(units: Sequence[Sequence[Value]]) -> tuple[np.ndarray, np.ndarray]:
    """(matrix of each unit with two values or more, shape (units, values, values); the values in order, (values,))"""
    usable = [unit for unit in units if len(unit) >= 2]
    scale = sorted({value for unit in usable for value in unit})
    place = {value: index for index, value in enumerate(scale)}
    matrices = np.zeros((len(usable), len(scale), len(scale)))
    for matrix, unit in zip(matrices, usable, strict=True):
        counts = np.bincount([place[value] for value in unit], minlength=len(scale))
        matrix[:] = (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    return matrices, np.array(scale)


def _alphas(coincidences: np.ndarray, scale: np.ndarray, level: Level) -> np.ndarray:
    """Of summed coincidences, shape (n, values, values): shape (n,), NaN where alpha is not defined."""
    marginals = coincidences.sum(axis=2)  # (n, values)
    total = marginals.sum(axis=1)
    deltas = _squared_differences(marginals, scale, level)
    observed = (coincidences * deltas).sum(axis=(1, 2)) / total
    expected = np.einsum("na,nab,nb->n", marginals, deltas, marginals) / (total * np.maximum(total - 1, 1))
    return np.where(expected > 0, 1 - observed / np.where(expected > 0, expected, 1), np.nan)


def _squared_differences(marginals: np.ndarray, scale: np.ndarray, level: Level) -> np.ndarray:
    """Krippendorff's delta squared, shape (n, values, values)."""
    if level is Level.NOMINAL:
        return np.broadcast_to(1.0 - np.eye(len(scale)), (len(marginals), len(scale), len(scale)))
    if level is Level.INTERVAL:
        return np.broadcast_to((scale[:, None] - scale[None]) ** 2, (len(marginals), len(scale), len(scale)))
    before = np.cumsum(marginals, axis=1) - marginals / 2  # values below, and half of those that are equal
    return (before[:, :, None] - before[:, None, :]) ** 2


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
