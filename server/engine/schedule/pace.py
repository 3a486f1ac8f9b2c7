"""How long steps take and how long replies become, estimated from recent ones: admission plans deadlines with it.

Written by the engine's thread once a step and once a sample, read from any. Knows no queue and no deadline.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from polyhead.server.engine.work.batch import Batch
from polyhead.server.engine.work.request import Sample
from polyhead.server.engine.work.sampling import SamplingParams

FIRST_STEPS = 8  # fewer are not enough: the first ones run on cold caches
STALE_S = 10.0  # after so long without a step the estimates are not used: whatever slowed the steps may be over
MEMORY = 0.97  # what a step counts beside the one after it
KEPT = 0.01  # weight of the earlier estimates where recent steps are too alike to tell rows from prefill tokens
DRAG_RATE, REPLY_RATE = 0.05, 0.1  # how far one step moves the drag, one reply the lengths
LARGEST_SURPRISE = 4.0  # a step that took longer than so many times the expected counts as that: one stall must not set the pace
SCALE = np.array([1.0, 16.0, 64.0])  # as many rows, as many prefill tokens count as much as the step itself
Numbers = npt.NDArray[np.float64]


class Pace:
    """The time of a step with so many decoding rows and so many other tokens; the share of max_new_tokens that replies take."""

    def __init__(self) -> None:
        self._num_steps = 0
        self._noted_at = -math.inf
        self._parts: tuple[float, float, float] = (0.0, 0.0, 0.0)  # seconds of any step, of each row, of each prefill token
        self._squares, self._products = np.zeros((3, 3)), np.zeros(3)  # of what steps were made of: sums that forget
        self._drag = 1.0  # decode steps took so many times what their rows alone need: prefill and scoring ran in between
        self._mean_share, self._long_share = 0.0, 1.0  # of max_new_tokens: replies' mean length, and their ninth decile; none has ended
        self._stay_s = 0.0  # from a sample's first token to its end

    def is_known(self, now: float) -> bool:
        """Whether there were steps enough, the last of them not long ago. Before that no request is refused."""
        return self._num_steps >= FIRST_STEPS and now - self._noted_at <= STALE_S

    @property
    def stay_s(self) -> float:
        """How long a sample lately stayed among those that run; 0 if none has ended yet."""
        return self._stay_s

    def step_s(self, num_rows: int) -> float:
        """Seconds between two tokens of a sample while so many decode and nothing else is done."""
        base, row, _ = self._parts
        return base + row * num_rows

    @property
    def drag(self) -> float:
        """How many times as long steps take lately, with the prefill and the scoring that come in between."""
        return self._drag

    def prefill_s(self, num_tokens: int) -> float:
        """Seconds that so many prompt tokens add, in trunk and head."""
        return self._parts[2] * 2 * num_tokens

    def reply_tokens(self, sample: Sample, is_long: bool = False) -> float:
        """Tokens that a sample still draws; with `is_long`, at most as many, nine times of ten.

        `max_new_tokens` is a bound, and most replies end before it. Until one has ended, the mean is taken as 0 and the ninth decile as the
        bound.
        """
        return 0.0 if sample.is_given else self.drawn_tokens(sample.params, len(sample.completion), is_long)

    def drawn_tokens(self, params: SamplingParams, num_drawn: int = 0, is_long: bool = False) -> float:
        """The same for a sample of which so many tokens are drawn."""
        num_left = params.max_new_tokens - num_drawn
        if params.draws_all:
            return float(num_left)
        return num_left * (self._long_share if is_long else self._mean_share)

    def note_step(self, batch: Batch, seconds: float, now: float) -> None:
        """A step has ended: it took so long, and was made of the batch."""
        num_rows, num_tokens = _work(batch)
        expected = self.step_s(num_rows) + self._parts[2] * num_tokens
        if self._num_steps >= FIRST_STEPS:
            seconds = min(seconds, LARGEST_SURPRISE * expected)
        if seconds > 0.0:
            self._fit(np.array([1.0, num_rows, num_tokens]) / SCALE, seconds)
        if num_rows and (alone := self.step_s(num_rows)) > 0.0:
            self._drag += DRAG_RATE * (max(1.0, min(seconds / alone, LARGEST_SURPRISE)) - self._drag)
        self._num_steps += 1
        self._noted_at = now

    def _fit(self, made_of: Numbers, seconds: float) -> None:
        """Least squares of the relative error over the last steps, tied a little to the estimates before."""
        scaled = made_of / seconds
        self._squares = MEMORY * self._squares + np.outer(scaled, scaled)
        self._products = MEMORY * self._products + scaled
        tie = KEPT * np.diag([0.0, 1.0, 1.0]) * self._squares[0, 0]
        _, row, token = np.maximum(0.0, np.linalg.solve(self._squares + tie, self._products + tie @ (np.array(self._parts) * SCALE)))
        base = (self._products[0] - self._squares[0, 1] * row - self._squares[0, 2] * token) / self._squares[0, 0]
        self._parts = (max(0.0, float(base)), float(row / SCALE[1]), float(token / SCALE[2]))

    def note_reply(self, sample: Sample, now: float) -> None:
        """A sample has drawn its last token: by itself, at its limit, or because it was broken off, which says how long it is at least."""
        if sample.is_given or not sample.completion:
            return
        share = len(sample.completion) / sample.params.max_new_tokens
        if not sample.params.draws_all and (sample.is_whole or share > self._mean_share):
            self._note_share(share)
        if sample.is_whole:
            self._stay_s += (REPLY_RATE if self._stay_s else 1.0) * (now - sample.first_token_at - self._stay_s)

    def _note_share(self, share: float) -> None:
        """The mean follows slowly; the ninth decile goes up nine times as far for a longer reply as it goes down for a shorter one."""
        if not self._mean_share:
            self._mean_share = self._long_share = share
            return
        self._mean_share += REPLY_RATE * (share - self._mean_share)
        step = REPLY_RATE * self._mean_share
        self._long_share = min(1.0, max(self._mean_share, self._long_share + (0.9 if share > self._long_share else -0.1) * step))


def _work(batch: Batch) -> tuple[int, int]:
    """(rows that decode, tokens of longer runs in trunk and heads)"""
    lengths = [run.end - run.start for run in batch.trunk_runs]
    num_rows = lengths.count(1)
    head_lengths = [run.end - run.start for run in batch.head_runs]
    num_others = sum(lengths) - num_rows + sum(length for length in head_lengths if length > 1)
    return num_rows, num_others
