"""Runs the trunk over a step's new tokens and keeps what comes out: keys, values, boundary states, and the states at the tap layer.

The state at layer l is what l layers made: the input of layer l, as the boundary state is the input of layer k, the first of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from polyhead.heads.model.family import TrunkModule
from polyhead.server.engine.blocks.cache import TrunkCache
from polyhead.server.engine.layers.cuda.graphs import StepGraphs, TokensAhead
from polyhead.server.engine.layers.cuda.tables import DecodeRow
from polyhead.server.engine.layers.cuda.upload import upload
from polyhead.server.engine.layers.fast import FastTrunk
from polyhead.server.engine.layers.plan import AttentionBackend, Segment, StepPlan, new_keys
from polyhead.server.engine.work.batch import TrunkRun
from polyhead.server.engine.work.pooling import Pooling, PromptPooling

OWNER = "trunk"  # of recorded steps


class TrunkRunner:
    """The frozen layers [0, k) with their cache."""

    def __init__(
        self,
        module: TrunkModule | FastTrunk,
        cache: TrunkCache,
        attention: AttentionBackend,
        tap_layer: int = 0,
        *,
        graphs: StepGraphs | None = None,
    ) -> None:
        assert (cache.taps is not None) == (tap_layer > 0), "a tap layer and room for its states go together"
        self.module = module
        self.cache = cache
        self.attention = attention
        self.tap_layer = tap_layer  # 0: none
        self.graphs = graphs  # of decode steps
        self.device = cache.kv.shape.device
        self.heads_device = cache.states_device
        if isinstance(module, FastTrunk):
            module.tap_layer = tap_layer
        elif tap_layer:
            layers = cast(nn.ModuleList, getattr(module.decoder, module.spec.layers))
            layers[tap_layer].register_forward_pre_hook(_tap, with_kwargs=True)

    @property
    def num_bytes(self) -> int:
        """Of the trunk's weights as they are held."""
        if isinstance(self.module, FastTrunk):
            return self.module.num_bytes
        return sum(parameter.numel() * parameter.element_size() for parameter in self.module.parameters())

    @torch.inference_mode()
    def forward(self, runs: list[TrunkRun]) -> None:
        """Compute the runs' tokens, once each, as one flat row of tokens."""
        if self.can_decode(runs):
            self.decode([DecodeRow(run.sequence.tokens[run.start], run.start, run.sequence.blocks) for run in runs])
            return
        tokens, positions = upload(
            (
                [token for run in runs for token in run.sequence.tokens[run.start : run.end]],
                [position for run in runs for position in range(run.start, run.end)],
            ),
            self.device,
        )
        segments = [Segment([block.slot for block in run.sequence.blocks], run.start, run.end) for run in runs]
        plan = StepPlan.build(self.cache.kv, self.attention, segments, [run.start for run in runs])
        plan.taps = self.cache.taps
        if self.heads_device != self.device:
            written, _, _ = new_keys(segments, [run.start for run in runs], self.cache.kv.shape.block_size)
            (plan.state_rows,) = upload((written,), self.heads_device)
        self._compute(tokens, positions, plan)

    def can_decode(self, runs: Sequence[TrunkRun], num_more: int = 0) -> bool:
        """Whether these are one token of each text, and so many steps behind them can be recorded."""
        if self.graphs is None or any(run.end - run.start != 1 for run in runs):
            return False
        return self.graphs.can_run(len(runs), num_more + max((run.end for run in runs), default=0))

    @torch.inference_mode()
    def decode(self, rows: Sequence[DecodeRow], ahead: TokensAhead | None = None) -> None:
        """The same for one token of each text, recorded; the tokens may still be on the device."""
        assert self.graphs is not None
        self.graphs.run(OWNER, self._compute, rows, self.cache.taps, ahead)

    def record(self, size: int) -> None:
        """Record decode steps of `size` rows, where steps are recorded, before the first one."""
        if self.graphs is not None:
            with torch.inference_mode():
                self.graphs.warm(OWNER, self._compute, size, self.cache.taps)

    def _compute(self, tokens_T: Tensor, positions_T: Tensor, plan: StepPlan) -> Tensor:
        states_TD: Tensor = self.module(tokens_T[None], positions_T[None], plan=plan)[0]
        if plan.state_rows is None:
            self.cache.states.index_copy_(0, plan.write_rows, states_TD)
        else:
            self.cache.states.index_copy_(0, plan.state_rows, states_TD.to(self.heads_device))
        return states_TD

    def states(self, slots: list[int], start: int, end: int, layer: int = 0) -> Tensor:
        """States of positions [start, end) of the text in `slots`, (end - start, d_model): boundary states, or the tap layer's."""
        rows, device = self.cache.states, self.heads_device
        if layer and layer == self.tap_layer:
            assert self.cache.taps is not None
            rows, device = self.cache.taps, self.device
        else:
            assert layer in (0, self.module.spec.split_layer), f"the states at layer {layer} are not kept"
        return rows.index_select(0, self._state_rows(slots, start, end, device))

    def pooled(self, slots: list[int], num_tokens: int, pooling: PromptPooling) -> np.ndarray:
        """One row for the first `num_tokens` tokens of the text in `slots`: (d_model,) float64, summed as such."""
        start = num_tokens - 1 if pooling.method is Pooling.LAST else 0
        rows = self.states(slots, start, num_tokens, pooling.layer)
        return rows.mean(dim=0, dtype=torch.float64).numpy(force=True)

    def _state_rows(self, slots: list[int], start: int, end: int, device: torch.device) -> Tensor:
        """Rows of the state cache that hold those positions."""
        size = self.cache.kv.shape.block_size
        return torch.tensor([slots[p // size] * size + p % size for p in range(start, end)], dtype=torch.long, device=device)


def _tap(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Keep what enters the layer, where the step's plan says. A pass without a plan (the checks at load) keeps nothing."""
    plan = kwargs.get("plan")
    if isinstance(plan, StepPlan):
        plan.keep_tap((args[0] if args else kwargs["hidden_states"])[0])
