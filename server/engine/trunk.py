"""Runs the trunk over a step's new tokens and keeps what comes out: keys, values, boundary states."""

from __future__ import annotations

import torch
from torch import Tensor

from polyhead.heads.family import TrunkModule
from polyhead.server.engine.attention import AttentionPlan, Segment
from polyhead.server.engine.batch import TrunkRun
from polyhead.server.engine.cache import TrunkCache
from polyhead.server.engine.fast import FastTrunk


class TrunkRunner:
    """The frozen layers [0, k) with their cache."""

    def __init__(self, module: TrunkModule | FastTrunk, cache: TrunkCache) -> None:
        self.module = module
        self.cache = cache
        self.device = cache.kv.shape.device

    @torch.inference_mode()
    def forward(self, runs: list[TrunkRun]) -> None:
        """Compute the runs' tokens, once each, as one flat row of tokens."""
        tokens = [token for run in runs for token in run.sequence.tokens[run.start : run.end]]
        positions = [position for run in runs for position in range(run.start, run.end)]
        segments = [Segment([block.slot for block in run.sequence.blocks], run.start, run.end) for run in runs]
        plan = AttentionPlan.build(self.cache.kv, segments, (run.start for run in runs))
        states_TD = self.module(
            torch.tensor([tokens], device=self.device), torch.tensor([positions], device=self.device), step=plan
        )[0]
        self.cache.states.index_copy_(0, plan.write_rows, states_TD)

    def states(self, slots: list[int], start: int, end: int) -> Tensor:
        """Boundary states of positions [start, end) of the text in `slots`, (end - start, d_model)."""
        return self.cache.states.index_select(0, self.state_rows(slots, start, end))

    def state_rows(self, slots: list[int], start: int, end: int) -> Tensor:
        """Rows of the state cache that hold those positions."""
        size = self.cache.kv.shape.block_size
        return torch.tensor([slots[p // size] * size + p % size for p in range(start, end)], dtype=torch.long, device=self.device)
