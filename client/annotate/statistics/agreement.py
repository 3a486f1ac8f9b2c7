"""How far people agree. A coefficient that is not defined, as where everybody gave one and the same value, is None and never 1."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from polyhead.client.annotate.statistics.intervals import NUM_BOOTSTRAPS, Interval, percentile_interval, resamples

Value = Hashable
Weight = Callable[[float, float], float]


class Level(enum.StrEnum):
    """What the values are: names, places in an order, or numbers whose differences count."""

    NOMINAL = "nominal"
    ORDINAL = "ordinal"
    INTERVAL = "interval"


@dataclass(frozen=True)
class Alpha:
    """Krippendorff's alpha. `value` None: not defined."""

    value: float | None
    interval: Interval | None
    num_units: int  # with two values or more
    num_values: int


def cohen_kappa(pairs: Sequence[tuple[Value, Value]]) -> float | None:
    """Of two people's values of the same units. Cohen 1960."""
    return _kappa(pairs, lambda one, other: float(one != other))


def weighted_kappa(pairs: Sequence[tuple[float, float]], weight: Weight) -> float | None:
    """With a disagreement of its own for each pair of values, 0 for equal ones. Cohen 1968. See `linear` and `quadratic`."""
    return _kappa(pairs, weight)


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
) -> Alpha:
    """The same with a 95 % interval by resampling units."""
    coincidences, scale = _coincidences(units)
    if not len(scale):
        return Alpha(None, None, 0, 0)
    value = _finite(_alphas(coincidences.sum(axis=0)[None], scale, level)[0])
    drawn = np.tensordot(resamples(len(coincidences), num, seed), coincidences, axes=1)  # (resamples, values, values)
    interval = percentile_interval(_alphas(drawn, scale, level)) if value is not None else None
    return Alpha(value, interval, len(coincidences), round(float(coincidences.sum())))


def agreeing_pairs(units: Sequence[Sequence[Value]]) -> tuple[int, int]:
    """(pairs of values of one unit that are equal, all such pairs)"""
    equal = total = 0
    for unit in units:
        counts = Counter(unit)
        equal += sum(count * (count - 1) // 2 for count in counts.values())
        total += len(unit) * (len(unit) - 1) // 2
    return equal, total


def _kappa(pairs: Sequence[tuple[Value, Value]], weight: Callable[..., float]) -> float | None:
    if not pairs:
        return None
    first, second = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    observed = sum(weight(one, other) for one, other in pairs) / len(pairs)
    expected = sum(first[a] * second[b] * weight(a, b) for a in first for b in second) / len(pairs) ** 2
    return None if expected == 0 else 1 - observed / expected


def _coincidences(units: Sequence[Sequence[Value]]) -> tuple[np.ndarray, np.ndarray]:
    """(matrix of each unit with two values or more, shape (units, values, values); the values in order as numbers, (values,))"""
    usable = [unit for unit in units if len(unit) >= 2]
    numbers = _as_numbers({value for unit in usable for value in unit})
    scale = sorted(numbers.values())
    place = {value: scale.index(number) for value, number in numbers.items()}
    matrices = np.zeros((len(usable), len(scale), len(scale)))
    for matrix, unit in zip(matrices, usable, strict=True):
        counts = np.bincount([place[value] for value in unit], minlength=len(scale))
        matrix[:] = (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    return matrices, np.array(scale)


def _as_numbers(values: set[Value]) -> dict[Value, float]:
    """Numbers are their own; names have no order, and get 0, 1, ... by the alphabet."""
    numbers: dict[Value, float] = {value: float(value) for value in values if isinstance(value, (int, float))}
    if len(numbers) == len(values):
        return numbers
    return {value: float(place) for place, value in enumerate(sorted(values, key=str))}


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
