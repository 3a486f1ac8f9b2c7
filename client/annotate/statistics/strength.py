"""Bradley-Terry strengths from comparisons: P(a before b) = 1 / (1 + exp(s_b - s_a)).

Only contestants that are connected both ways have finite strengths: the largest strongly connected set is fitted, the others are named.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from polyhead.client.annotate.statistics.intervals import NUM_BOOTSTRAPS, Interval, percentile_interval, resampled_sums

ELO = 400 / math.log(10)  # points a unit of strength
_TOLERANCE, _MOST_STEPS = 1e-10, 20_000
_RESAMPLE_TOLERANCE, _RESAMPLE_STEPS = 1e-5, 2_000


@dataclass(frozen=True)
class Comparison:
    """Of two contestants, in one cluster (a dialogue: its comparisons depend on each other). `score`: 1 the first won, 0.5 tie, 0 else."""

    cluster: Hashable
    first: str
    second: str
    score: float


@dataclass(frozen=True)
class Strength:
    """One contestant. `value` in log-odds; the reference has 0."""

    name: str
    value: float
    interval: Interval | None
    num_comparisons: int

    @property
    def elo(self) -> float:
        return ELO * self.value


@dataclass(frozen=True)
class Strengths:
    """The strongest first. `left_out`: contestants that nothing connects with these both ways."""

    fitted: list[Strength]
    left_out: list[str]
    reference: str


def bradley_terry(comparisons: Sequence[Comparison], *, reference: str = "", num: int = NUM_BOOTSTRAPS, seed: int = 0) -> Strengths:
    """Maximum-likelihood strengths; ties count half for both. Intervals by resampling clusters (`num` 0: none).
    The reference, at 0, is the contestant of this name, or the one with most comparisons. Hunter 2004, MM iteration."""
    names = sorted({name for each in comparisons for name in (each.first, each.second)})
    wins = _wins_by_cluster(comparisons, names)
    total = wins.sum(axis=0)
    kept = _largest_component(total > 0)
    left_out = [name for place, name in enumerate(names) if place not in kept]
    if len(kept) < 2:
        return Strengths([], names, "")
    wins, total = wins[:, kept][:, :, kept], total[np.ix_(kept, kept)]
    played = (total + total.T).sum(axis=1)
    fitted_names = [names[place] for place in kept]
    zero = fitted_names.index(reference) if reference in fitted_names else int(played.argmax())
    values = _fit(total[None], _TOLERANCE, _MOST_STEPS)[0]
    drawn = _resampled(wins, num, seed)
    found = [
        Strength(
            name, float(values[place] - values[zero]),
            None if place == zero else percentile_interval(drawn[:, place] - drawn[:, zero]), round(float(played[place])),
        )
        for place, name in enumerate(fitted_names)
    ]  # fmt: skip
    return Strengths(sorted(found, key=lambda each: (-each.value, each.name)), left_out, fitted_names[zero])


def win_matrix(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[float]]]:
    """(names, wins[i][j]: how often i was before j, ties half)."""
    names = sorted({name for each in comparisons for name in (each.first, each.second)})
    wins = _wins_by_cluster(comparisons, names)
    return names, [[float(number) for number in row] for row in wins.sum(axis=0)] if comparisons else []


def _wins_by_cluster(comparisons: Sequence[Comparison], names: Sequence[str]) -> np.ndarray:
    """Shape (clusters, names, names)."""
    place = {name: number for number, name in enumerate(names)}
    cluster_of = {cluster: number for number, cluster in enumerate(dict.fromkeys(each.cluster for each in comparisons))}
    wins = np.zeros((len(cluster_of), len(names), len(names)))
    for each in comparisons:
        one, other, cluster = place[each.first], place[each.second], cluster_of[each.cluster]
        if one != other:
            wins[cluster, one, other] += each.score
            wins[cluster, other, one] += 1 - each.score
    return wins


def _fit(wins: np.ndarray, tolerance: float, most_steps: int) -> np.ndarray:
    """Log-strengths with mean 0 of each matrix, shape (n, names, names) -> (n, names). Every matrix must be strongly connected."""
    games = wins + wins.transpose(0, 2, 1)
    num_won = wins.sum(axis=2)
    power = np.ones(num_won.shape)
    for _ in range(most_steps):
        new = num_won / (games / (power[:, :, None] + power[:, None, :])).sum(axis=2)
        new /= np.exp(np.log(new).mean(axis=1, keepdims=True))
        change = np.abs(np.log(new / power)).max()
        power = new
        if change < tolerance:
            break
    return np.log(power)


def _resampled(wins: np.ndarray, num: int, seed: int) -> np.ndarray:
    """Strengths of resamples, shape (num, names); NaN in one that is not connected both ways."""
    drawn = resampled_sums(wins, num, seed)
    found = np.full(drawn.shape[:2], np.nan)
    usable = np.array([_is_connected(matrix > 0) for matrix in drawn], bool)
    if usable.any():
        found[usable] = _fit(drawn[usable], _RESAMPLE_TOLERANCE, _RESAMPLE_STEPS)
    return found


def _reachable(beats: np.ndarray) -> np.ndarray:
    """Whether a chain of wins leads from i to j, shape (names, names). Warshall."""
    reach = beats | np.eye(len(beats), dtype=bool)
    for middle in range(len(beats)):
        reach |= np.outer(reach[:, middle], reach[middle])
    return reach


def _is_connected(beats: np.ndarray) -> bool:
    return bool(_reachable(beats).all())


def _largest_component(beats: np.ndarray) -> list[int]:
    reach = _reachable(beats)
    both = reach & reach.T
    return [int(place) for place in np.flatnonzero(both[int(both.sum(axis=1).argmax())])] if len(both) else []
