"""Runs one head over a group of readings: boundary states in, output rows out. Knows no sampling and no scores."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from polyhead.heads.format.errors import DataLoss
from polyhead.heads.model.adapted import AdapterRows
from polyhead.heads.model.family import HeadModule, set_attention
from polyhead.server.engine.blocks.cache import KvCache
from polyhead.server.engine.layers import attention, layer_calls
from polyhead.server.engine.layers.cuda.graphs import StepGraphs
from polyhead.server.engine.layers.cuda.tables import DecodeRow
from polyhead.server.engine.layers.cuda.threads import SideStream, on_device
from polyhead.server.engine.layers.cuda.upload import upload
from polyhead.server.engine.layers.fast import FastHead, FastLoraHead, FastTrunk, fast_head
from polyhead.server.engine.layers.kits import Kit
from polyhead.server.engine.layers.layer_calls import LayerCall
from polyhead.server.engine.layers.plan import AttentionBackend, Segment, StepPlan
from polyhead.server.engine.layers.trunk import TrunkRunner
from polyhead.server.engine.work.batch import HeadRun
from polyhead.server.engine.work.live import LiveHead

CANARY_TOKENS = 8


class HeadRunner:
    """Layers [k, L) of any head, over the cache that all heads share."""

    def __init__(
        self,
        trunk: TrunkRunner,
        cache: KvCache,
        attention: AttentionBackend,
        kit: Kit,
        graphs: StepGraphs | None = None,
        *,
        tied_embedding: nn.Parameter | None = None,
    ) -> None:
        self.trunk = trunk
        self.cache = cache
        self.device = cache.shape.device
        self.tied_embedding = tied_embedding  # on this device: the trunk's own if that is the same
        self.attention = attention
        self.kit = kit  # of fast layers
        self.graphs = graphs  # of decode steps
        self.uploads = SideStream(cache.shape.device)  # of workers that load heads
        self._calls: list[LayerCall] = []  # of a head's layers, seen in the first one

    def on_its_device(self) -> contextlib.AbstractContextManager[None]:
        """Around what a thread of the trunk's device launches for heads, and for what reads them."""
        return contextlib.nullcontext() if self.device == self.trunk.device else on_device(self.device)

    def prepare(self, module: HeadModule) -> HeadModule | FastHead:
        """What a head of this trunk runs on: fast layers if the trunk does, else its own with our attention. Takes over the weights.

        There is a pause point after each layer that is packed.
        """
        set_attention(module, attention.NAME)
        trunk = self.trunk.module
        if not isinstance(trunk, FastTrunk):
            return module
        self._calls = self._calls or layer_calls.layer_calls(module, module.spec.d_model)
        return fast_head(module, trunk, self.kit, self._calls, self.device) or module

    def weight_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        """What a tensor of a head file, by its global name, takes as it is held here."""
        trunk = self.trunk.module
        if isinstance(trunk, FastTrunk):
            return self.kit.output_bytes(shape) if name == trunk.spec.output else self.kit.weight_bytes(shape)
        return math.prod(shape) * self.cache.shape.dtype.itemsize

    @torch.inference_mode()
    def forward(self, head: LiveHead, runs: list[HeadRun]) -> Tensor:
        """Compute the runs and return the wanted rows in order: (rows, vocab) logits or (rows,) scalars, float32.

        The runs are the head's own or those of adapters on it: its layers see all of them once.
        """
        if self.can_decode(head, runs):
            return self.decode(head, [self._decode_row(run) for run in runs])
        positions = [position for run in runs for position in range(run.start, run.end)]
        state_rows, positions_T, wanted = upload((self._state_rows(runs), positions, wanted_rows(runs)), self.device)
        segments = [Segment([block.slot for block in run.reading.head_blocks], run.start, run.end) for run in runs]
        plan = self._plan(segments, [run.first_new_key for run in runs])
        plan.asked = self._asked(runs)
        adapted = _adapter_rows(runs)
        inputs = self._states(state_rows), positions_T[None], wanted
        if not adapted:
            return cast(Tensor, head.module(*inputs, plan=plan)).float()
        assert head.group is not None, "a head got its group before the first adapter on it was served"
        return head.group(adapted, *inputs, plan=plan).float()

    def can_decode(self, head: LiveHead, runs: Sequence[HeadRun], num_more: int = 0) -> bool:
        """Whether these are one new token of each text, all asked for and without adapters, and so many steps behind can be recorded."""
        if self.graphs is None or not isinstance(head.module, FastHead):
            return False
        is_plain = all(
            run.end - run.start == run.num_rows == 1 and run.first_new_key <= run.start and run.reading.head.live.adapter is None
            for run in runs
        )
        return is_plain and self.graphs.can_run(len(runs), num_more + max((run.end for run in runs), default=0))

    @torch.inference_mode()
    def decode(self, head: LiveHead, rows: Sequence[DecodeRow]) -> Tensor:
        """`forward` for one token of each text, recorded. Valid until the next such step."""
        assert self.graphs is not None
        assert isinstance(head.module, FastHead)
        return self.graphs.run(head.digest, partial(self._every_row, head.module), rows)

    def _decode_row(self, run: HeadRun) -> DecodeRow:
        size, position, sequence = self.cache.shape.block_size, run.start, run.reading.sequence
        state_row = sequence.blocks[position // size].slot * size + position % size
        return DecodeRow(state_row, position, run.reading.head_blocks)

    def try_out(self, head: LiveHead, states: Tensor) -> None:
        """Run a head once on these boundary states, (tokens, d_model), beside the engine. Raises DataLoss unless every output is finite."""
        with self.uploads.beside():
            canary(head.module, states.to(self.device), self.cache, self.attention)

    def record(self, head: LiveHead, size: int) -> None:
        """Record the head's decode steps of `size` rows, where its steps are recorded, before the first one."""
        if self.graphs is not None and isinstance(head.module, FastHead):
            with torch.inference_mode():
                self.graphs.warm(head.digest, partial(self._every_row, head.module), size)

    def forget(self, digest: str) -> None:
        """The head's weights are no longer in memory."""
        if self.graphs is not None:
            self.graphs.forget(digest)

    def _every_row(self, head: FastHead, state_rows: Tensor, positions_T: Tensor, plan: StepPlan) -> Tensor:
        """(rows, vocab) or (rows,), float32."""
        every = torch.arange(len(positions_T), device=positions_T.device)
        return head(self._states(state_rows), positions_T[None], every, plan=plan).float()

    def _states(self, state_rows: Tensor) -> Tensor:
        """(1, T, d_model), in the heads' dtype."""
        return self.trunk.cache.states.index_select(0, state_rows)[None].to(self.cache.shape.dtype)

    def _asked(self, runs: list[HeadRun]) -> StepPlan | None:
        """The plan of the positions whose output is wanted; None if those are all. Nothing is written by it."""
        if all(run.num_rows == run.end - run.start for run in runs):
            return None
        wanted = [run for run in runs if run.num_rows]
        segments = [Segment([block.slot for block in run.reading.head_blocks], run.first_row, run.end) for run in wanted]
        return self._plan(segments, [run.end for run in wanted])

    def _plan(self, segments: list[Segment], new_from: list[int]) -> StepPlan:
        return StepPlan.build(self.cache, self.attention, segments, new_from)

    def _state_rows(self, runs: list[HeadRun]) -> list[int]:
        size = self.cache.shape.block_size
        return [
            run.reading.sequence.blocks[position // size].slot * size + position % size
            for run in runs
            for position in range(run.start, run.end)
        ]


def wanted_rows(runs: list[HeadRun]) -> list[int]:
    """Rows of the runs, laid end to end, whose output is asked for."""
    rows: list[int] = []
    offset = 0
    for run in runs:
        rows.extend(range(offset + run.first_row - run.start, offset + run.end - run.start))
        offset += run.end - run.start
    return rows


def _adapter_rows(runs: list[HeadRun]) -> list[AdapterRows]:
    """The tokens of each adapter; runs of one lie side by side. Empty if all are the base's own."""
    parts: list[AdapterRows] = []
    start = 0
    for run in runs:
        end, adapter = start + run.end - run.start, run.reading.head.live.adapter
        if parts and parts[-1].adapter is adapter and parts[-1].rows.stop == start:
            parts[-1] = AdapterRows(slice(parts[-1].rows.start, end), adapter)
        elif adapter is not None:
            parts.append(AdapterRows(slice(start, end), adapter))
        start = end
    return parts


@torch.inference_mode()
def canary(module: HeadModule | FastHead | FastLoraHead, states: Tensor, like: KvCache, attention: AttentionBackend) -> None:
    """`HeadRunner.try_out`, over a cache of its own that is made like the heads'."""
    num_tokens, shape = states.shape[0], like.shape
    num_slots = -(-num_tokens // shape.block_size)
    cache = KvCache(shape, len(like.layers), num_slots + 1, is_compiled=like.is_compiled)
    plan = StepPlan.build(cache, attention, [Segment(list(range(1, num_slots + 1)), 0, num_tokens)], [0])
    positions = torch.arange(num_tokens, device=states.device)
    output = module(states[None].to(shape.dtype), positions[None], positions, plan=plan)
    if not torch.isfinite(output).all():
        raise DataLoss("the head's output in the canary pass is not finite", field="weights")
