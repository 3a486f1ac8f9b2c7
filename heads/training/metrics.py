"""How good a preference or rule head is on rows that it was not trained on. Plain numbers: no model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers, and of how many."""

    share: float  # NaN if there were none
    count: int

    @property
    def standard_error(self) -> float:
        """Of the share, as of independent answers."""
        return math.sqrt(self.share * (1 - self.share) / self.count) if self.count else math.nan

    def __str__(self) -> str:
        return f"{self.share:.3f} ± {self.standard_error:.3f} ({self.count})" if self.count else "none"


@dataclass(frozen=True)
class RuleMetrics:
    """Of one rule, or of all."""

    accuracy: Accuracy  # at p_violate 0.5
    auc: float  # NaN unless there are broken and followed rows
    ece: float
    broken_share: float


def pair_accuracy(margins: Sequence[float]) -> Accuracy:
    """Share of pairs whose preferred reply scores higher; an equal score counts half."""
    if not margins:
        return Accuracy(math.nan, 0)
    return Accuracy(sum(0.5 if margin == 0 else float(margin > 0) for margin in margins) / len(margins), len(margins))


def rule_metrics(p_violate: Sequence[float], targets: Sequence[float]) -> RuleMetrics:
    """`targets` are 1 for broken, 0 for followed. Raises ValueError if there are none."""
    if not targets or len(p_violate) != len(targets):
        raise ValueError(f"as many probabilities as targets are needed, and at least one: {len(p_violate)} and {len(targets)}")
    right = sum((p > 0.5) == bool(target) for p, target in zip(p_violate, targets, strict=True))
    accuracy = Accuracy(right / len(targets), len(targets))
    return RuleMetrics(accuracy, auc(p_violate, targets), calibration_error(p_violate, targets), sum(targets) / len(targets))


def auc(scores: Sequence[float], targets: Sequence[float]) -> float:
    """Area under the ROC curve: how often a broken row scores above a followed one, ties counting half (Mann-Whitney U)."""
    rows, marks = np.asarray(scores, dtype=np.float64), np.asarray(targets) > 0.5
    positive, negative = np.sort(rows[marks]), np.sort(rows[~marks])
    if not len(positive) or not len(negative):
        return math.nan
    below = np.searchsorted(negative, positive, side="left")
    not_above = np.searchsorted(negative, positive, side="right")
    return float((below + not_above).sum() / (2 * len(positive) * len(negative)))


def calibration_error(probabilities: Sequence[float], targets: Sequence[float], num_bins: int = 10) -> float:
    """Expected calibration error over equal bins of the probability: the mean gap of stated and true share, weighted by rows
    (Guo et al. 2017, arXiv 1706.04599, equation 3)."""
    stated, true = np.asarray(probabilities, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    bins = np.minimum((stated * num_bins).astype(int), num_bins - 1)
    gaps = [abs(stated[bins == each].sum() - true[bins == each].sum()) for each in range(num_bins)]
    return float(sum(gaps) / len(stated))
