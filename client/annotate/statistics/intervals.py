"""Intervals of shares and of anything that is resampled, and corrected p-values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054  # 0.975 quantile of the normal distribution
NUM_BOOTSTRAPS = 1000
LEAST_DEFINED = 0.95  # share of resamples that must have a value before an interval is given
LEAST_UNITS = 10  # resampled; fewer would give intervals that are too narrow, and none at all of a single one
_BLOCK = 50  # resamples drawn at once: all of them would take 8 kB a unit
TOO_FEW = 20  # below so many a number is shown with a warning, or not at all


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


def wilson(count: int, total: int, z: float = Z95) -> Interval | None:
    """Of a share count / total. None of nothing. Wilson 1927; Newcombe 1998, method 3."""
    if total == 0:
        return None
    middle = (count + z * z / 2) / (total + z * z)
    half = z / (total + z * z) * math.sqrt(count * (total - count) / total + z * z / 4)
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def percentile_interval(values: np.ndarray) -> Interval | None:
    """The middle 95 % of resampled values, shape (resamples,), NaN where one is not defined. None where too many are not."""
    defined = values[np.isfinite(values)]
    if len(values) == 0 or len(defined) < LEAST_DEFINED * len(values):
        return None
    low, high = np.quantile(defined, [0.025, 0.975])
    return Interval(float(low), float(high))


def resampled_sums(values: np.ndarray, num: int = NUM_BOOTSTRAPS, seed: int = 0) -> np.ndarray:
    """Sums over as many units as there are, drawn with replacement: shape (units, ...) -> (num, ...). The same seed, the same draws.
    Shape (0, ...) where there are fewer than LEAST_UNITS: no interval can be read off so few."""
    num_units, rest = len(values), values.shape[1:]
    if num_units < LEAST_UNITS:
        return np.zeros((0, *rest))
    generator, shares, sums = np.random.default_rng(seed), np.full(num_units, 1.0 / num_units), np.zeros((num, *rest))
    for start in range(0, num, _BLOCK):
        drawn = generator.multinomial(num_units, shares, size=min(_BLOCK, num - start))  # (block, units)
        sums[start : start + _BLOCK] = np.einsum("bu,u...->b...", drawn, values)  # tensordot's threads would wait for each other here
    return sums


def share_p_value(count: int, total: int, expected: float) -> float:
    """Two-sided, of a share that should be `expected`: the score test, with the normal distribution. 1 of nothing."""
    if total == 0:
        return 1.0
    z = (count - total * expected) / math.sqrt(total * expected * (1 - expected))
    return math.erfc(abs(z) / math.sqrt(2))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the order given. Holm 1979."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected
