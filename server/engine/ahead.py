"""The decode step after the present one is launched before the host has read the present one's tokens.

Between two steps the host appends tokens, makes text, looks for ends and sends events, while a GPU would wait. A step that needs nothing of
that is launched first: each text's next token goes from the sampler to the trunk on the device, and the host reads one step behind.

That is done only if the next step is known to be one more token of every text that runs, each drawn by the same head as before, whatever
the tokens are: recorded steps of trunk and head, no repetition penalty, none that scores, follows a swap or could start. A text whose
last token is under way, by its limit of tokens, is left out of the next step. A text that ends otherwise (by an end-of-sequence token, a
stop id, a stop string, a failure, its caller) has one row too many in the step that is under way: what that row gives is dropped, and
what it wrote lies behind the text's end, where nothing is read.

Nothing is under way when the engine acts between two steps: an activation, a new request and a recording wait for the step to be read.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from polyhead.server.engine.blocks.head_pool import HeadPool
from polyhead.server.engine.blocks.tree import BlockTree
from polyhead.server.engine.layers.cuda.graphs import TokensAhead
from polyhead.server.engine.layers.cuda.tables import DecodeRow
from polyhead.server.engine.layers.heads import HeadRunner
from polyhead.server.engine.layers.sampler import DrawRow, Draws
from polyhead.server.engine.layers.trunk import TrunkRunner
from polyhead.server.engine.schedule.scheduler import Scheduler
from polyhead.server.engine.work.batch import Batch, HeadRun
from polyhead.server.engine.work.request import Output, Sample

Timing = Callable[[str], AbstractContextManager[None]]  # around what is launched for "trunk" or "head"
MOST_IN_A_ROW = 16  # steps that go on without a look at the queue: deadlines of those who wait are checked in between


class DrawsUnderWay(Protocol):
    """Draws that are launched: cuda/sampler.py."""

    @property
    def token_ids(self) -> Tensor:
        """(rows,), int64, on the device."""
        ...

    def read(self) -> Draws: ...


class LaunchDraws(Protocol):
    """As sampler.Draw, and not waited for."""

    def __call__(self, logits: Tensor, rows: list[DrawRow], /) -> DrawsUnderWay: ...


@dataclass(frozen=True, slots=True)
class Flight:
    """A decode step that is launched and not read."""

    before: Batch  # the step that it goes on from, without texts that ended there by their limit
    draws: DrawsUnderWay  # a row for each head run of `before`


class Ahead:
    """Launches steps ahead. Belongs to the engine's thread."""

    def __init__(self, trunk: TrunkRunner, heads: HeadRunner, scheduler: Scheduler, launch: LaunchDraws, timing: Timing) -> None:
        self.launch_draws = launch
        self.num_launched = 0  # steps
        self.num_dropped = 0  # rows of them whose text had ended
        self._trunk, self._heads, self._scheduler, self._timing = trunk, heads, scheduler, timing
        self._tree: BlockTree = scheduler.tree
        self._pool: HeadPool = scheduler.pool
        self._num_in_a_row = 0

    def follow(self, batch: Batch, draws: DrawsUnderWay) -> Flight | None:
        """Launch the step after `batch`, whose draws are under way; None if that step is not known yet."""
        drawn = {id(run.reading.sequence): index for index, run in enumerate(batch.head_runs)}
        if not self._is_known(batch) or (batch := _that_go_on(batch)).is_empty:
            self._num_in_a_row = 0
            return None
        self._num_in_a_row += 1
        self.num_launched += 1
        order = [drawn[id(run.sequence)] for run in batch.trunk_runs]
        trunk_rows = [
            DecodeRow(0, run.end, run.sequence.blocks, self._tree.slot_ahead(run.sequence, run.end)) for run in batch.trunk_runs
        ]
        with self._timing("trunk"):
            self._trunk.decode(trunk_rows, TokensAhead(draws.token_ids, order))
        by_sequence = {id(run.sequence): row for run, row in zip(batch.trunk_runs, trunk_rows, strict=True)}
        head_rows = [self._head_row(run, by_sequence[id(run.reading.sequence)]) for run in batch.head_runs]
        head = batch.head_runs[0].reading.head.live.weights
        with self._timing("head"):
            logits = self._heads.decode(head, head_rows)
        samples = [run.reading.sample for run in batch.head_runs]
        rows = [DrawRow(sample.params, sample.seed, len(sample.completion) + 1) for sample in samples]
        return Flight(batch, self.launch_draws(logits, rows))

    def _head_row(self, run: HeadRun, trunk_row: DecodeRow) -> DecodeRow:
        state_row = trunk_row.write_row(self._tree.block_size)
        return DecodeRow(state_row, run.end, run.reading.head_blocks, self._pool.slot_ahead(run.reading, run.end))

    def _is_known(self, batch: Batch) -> bool:
        """Whether the step after this one is one more token of each of its texts that are not at their limit, whatever the tokens are."""
        scheduler, runs = self._scheduler, batch.head_runs
        if self._num_in_a_row >= MOST_IN_A_ROW or not len(runs) == len(batch.trunk_runs) == len(scheduler.running) or not runs:
            return False
        weights = runs[0].reading.head.live.weights
        if scheduler.has_choices or any(run.reading.head.live.weights is not weights for run in runs):
            return False
        if not self._trunk.can_decode(batch.trunk_runs, 1) or not self._heads.can_decode(weights, runs, 1):
            return False
        if scheduler.waiting and not all(_goes_on(run.reading.sample) for run in runs):  # one of those may start in its place
            return False
        return all(run.reading.output is Output.NEXT_TOKEN and run.reading.sample.params.repetition_penalty == 1.0 for run in runs)


def _goes_on(sample: Sample) -> bool:
    """Whether the token that is under way is not its last by the limit."""
    return len(sample.completion) + 2 <= sample.params.max_new_tokens


def _that_go_on(batch: Batch) -> Batch:
    """The batch without texts that end by their limit with the token that is under way."""
    head_runs = [run for run in batch.head_runs if _goes_on(run.reading.sample)]
    kept = {id(run.reading.sequence) for run in head_runs}
    return Batch([run for run in batch.trunk_runs if id(run.sequence) in kept], head_runs)


def only(draws: Draws, rows: list[int]) -> Draws:
    """Those rows of the draws."""
    at = np.array(rows, dtype=np.int64)
    return Draws(draws.token_ids[at], draws.logprobs[at], draws.sampling_logprobs[at], draws.largest[at], draws.log_sums[at])
