"""Bootstrap intervals of a mean over seeds and held-out questions. Plain numbers: no model, no file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean, and where it lies in 95 % of the draws."""

    mean: float
    low: float
    high: float


def table_of(replies_by_seed: Sequence[Iterable[Mapping[str, float]]], measure: str) -> NDArray[np.float64]:
    """(seeds, questions): the mean of a measure over a question's replies, NaN where a seed has none of them."""
    tables = []
    for replies in replies_by_seed:
        by_question: dict[float, list[float]] = defaultdict(list)
        for reply in replies:
            by_question[reply["question"]].append(reply[measure])
        tables.append(by_question)
    questions = sorted({question for by_question in tables for question in by_question})
    return np.array([[np.mean(own[question]) if question in own else np.nan for question in questions] for own in tables])


def bootstrap(cells_SQ: NDArray[np.float64], draws: int = DRAWS) -> Interval:
    """Of the mean of (seeds, questions) cells: seeds and questions are drawn anew, each with replacement and independently, since every
    seed answers the same questions (the pigeonhole bootstrap: Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1).

    With one seed the interval is over questions alone. Cells that are NaN are left out.
    """
    if cells_SQ.ndim != 2 or not cells_SQ.size:
        raise ValueError(f"cells must be (seeds, questions): shape {cells_SQ.shape}")
    generator = np.random.default_rng(0)
    num_seeds, num_questions = cells_SQ.shape
    seeds = generator.multinomial(num_seeds, [1 / num_seeds] * num_seeds, draws) / num_seeds  # (draws, seeds): how often each is drawn
    questions = generator.multinomial(num_questions, [1 / num_questions] * num_questions, draws) / num_questions
    known = ~np.isnan(cells_SQ)
    sums = ((seeds @ np.where(known, cells_SQ, 0.0)) * questions).sum(axis=1)
    weights = ((seeds @ known) * questions).sum(axis=1)  # 0 where a draw has no known cell
    low, high = np.quantile(sums[weights > 0] / weights[weights > 0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(cells_SQ[known].mean()), float(low), float(high))
