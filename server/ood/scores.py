"""Out-of-distribution scores: moments of pooled activations, and how far a row lies from them. Numbers only; knows no model.

    score(v) = (v - mu)^T S^-1 (v - mu) - (v - mu)^T S_diag^-1 (v - mu)

"Simplified Relative Mahalanobis" of Anthropic's HH paper (arXiv 2204.05862, section 5). S is the covariance of the rows (divided by
n - 1) with `shrinkage` times the mean of its diagonal added to its diagonal, S_diag is S without all that is not on the diagonal. Both
come from one S, so uncorrelated features score 0 everywhere. The shrinkage is ours: the paper gives none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyhead.heads.format.errors import InvalidArgument

Floats = NDArray[np.float64]

MIN_ROWS = 16  # ours: fewer say nothing of how rows spread
DEFAULT_SHRINKAGE = 0.01
LEAST_SPREAD = 1e-6  # of rows beside the length of their mean: below it lies the rounding of float32 states
MAX_SPREAD_ROWS = 4096  # rows that the spread of scores is measured on


class Moments:
    """Mean and covariance of rows that come in parts, and a fair sample of the rows. Keeps no other row."""

    def __init__(self, size: int) -> None:
        self.num_rows = 0
        self.mean: Floats = np.zeros(size)
        self.scatter: Floats = np.zeros((size, size))  # sum of (v - mean)(v - mean)^T
        self._kept: list[Floats] = []
        self._generator = np.random.default_rng(0)  # the same rows in the same order make the same fit

    def add(self, rows: Floats) -> None:
        """Take (n, size) finite rows. The parts' moments are merged as Chan, Golub and LeVeque do: no large sums cancel."""
        count = len(rows)
        if not count:
            return
        mean = rows.mean(axis=0)
        centred, shift = rows - mean, mean - self.mean
        total = self.num_rows + count
        self.scatter += centred.T @ centred + np.outer(shift, shift) * (self.num_rows * count / total)
        self.mean = self.mean + shift * (count / total)
        for index, row in enumerate(rows, start=self.num_rows):
            self._sample(index, row)
        self.num_rows = total

    @property
    def covariance(self) -> Floats:
        """(size, size), divided by n - 1."""
        return self.scatter / (self.num_rows - 1)

    @property
    def sampled_rows(self) -> Floats:
        """(at most MAX_SPREAD_ROWS, size): all rows, or so many of them drawn fairly."""
        return np.stack(self._kept)

    def _sample(self, index: int, row: Floats) -> None:
        """Reservoir sampling: after n rows each has been kept with the same probability."""
        if index < MAX_SPREAD_ROWS:
            self._kept.append(row.copy())
        elif (place := int(self._generator.integers(index + 1))) < MAX_SPREAD_ROWS:
            self._kept[place] = row.copy()


@dataclass(frozen=True, slots=True, eq=False)
class OodModel:
    """A fit, ready to score."""

    mean: Floats  # (d,)
    whitening: Floats  # (d, d) lower triangular W with W^T W = S^-1
    inverse_variances: Floats  # (d,): 1 / diagonal of S

    def score(self, row: Floats) -> float:
        """One row, (d,). One at a time: its score then never depends on which others are scored with it."""
        offset = row - self.mean
        whitened = self.whitening @ offset
        return float(whitened @ whitened - (offset * offset) @ self.inverse_variances)


@dataclass(frozen=True, slots=True)
class Spread:
    """Scores of the rows that a fit was made from."""

    mean: float  # over all of them
    std: float  # over `Moments.sampled_rows`


def check_shrinkage(shrinkage: float, field: str) -> float:
    """InvalidArgument unless it lies in [0, 1]."""
    if not math.isfinite(shrinkage) or not 0.0 <= shrinkage <= 1.0:
        raise InvalidArgument(f"shrinkage must lie between 0 and 1: {shrinkage}", field=field)
    return shrinkage


def check_count(count: int, size: int, shrinkage: float, field: str) -> None:
    """InvalidArgument if so few rows of `size` numbers cannot make a fit."""
    least = MIN_ROWS if shrinkage else max(MIN_ROWS, size + 1)
    if count < least:
        hint = "" if shrinkage or count < MIN_ROWS else "\nhint: with shrinkage above 0 fewer will do"
        raise InvalidArgument(f"a fit needs at least {least} prompts: {count}{hint}", field=field)


def fit(moments: Moments, shrinkage: float, field: str) -> tuple[OodModel, Spread]:
    """The model of these rows. InvalidArgument, naming `field`, if they are too few or do not span the space."""
    size = len(moments.mean)
    check_count(moments.num_rows, size, shrinkage, field)
    covariance = moments.covariance
    if covariance.trace() <= LEAST_SPREAD**2 * (moments.mean @ moments.mean):
        raise InvalidArgument("the prompts are all alike: nothing varies between their states", field=field)
    covariance[np.diag_indices(size)] += shrinkage * covariance.trace() / size
    try:
        whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    except np.linalg.LinAlgError:
        whitening = np.full_like(covariance, np.nan)
    if not np.isfinite(whitening).all():
        raise InvalidArgument("the prompts' states do not vary in all directions\nhint: raise shrinkage", field=field)
    model = OodModel(moments.mean.copy(), np.tril(whitening), 1.0 / covariance.diagonal())
    return model, _spread(model, moments)


def _spread(model: OodModel, moments: Moments) -> Spread:
    """The mean needs no rows: it is a trace of S^-1 times the covariance of the rows themselves."""
    own = moments.scatter / moments.num_rows
    mean = float(((model.whitening @ own) * model.whitening).sum() - own.diagonal() @ model.inverse_variances)
    scores = [model.score(row) for row in moments.sampled_rows]
    return Spread(mean, float(np.std(scores)))
