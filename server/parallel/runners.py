"""Passes carried out on a share of trunk and heads: the same on every rank. And how large a rank's caches are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polyhead.heads.model.family import TrunkModule, set_attention
from polyhead.server.engine.blocks.cache import CacheShape, KvCache, TrunkCache
from polyhead.server.engine.build import (
    HEAD_BLOCKS_PER_BLOCK,
    EngineConfig,
    KvSetup,
    attention_for,
    cache_shape,
    chosen_tap_layer,
    num_blocks_for,
)
from polyhead.server.engine.layers import attention
from polyhead.server.engine.layers.cuda.upload import upload
from polyhead.server.engine.layers.cuda.varlen_probe import QueryHeads
from polyhead.server.engine.layers.fast import FastTrunk, fast_trunk
from polyhead.server.engine.layers.heads import HeadRunner
from polyhead.server.engine.layers.layer_calls import layer_calls
from polyhead.server.engine.layers.plan import StepPlan
from polyhead.server.engine.layers.trunk import TrunkRunner
from polyhead.server.parallel.layers import Sums, share_kit
from polyhead.server.parallel.passes import HeadPass, Places, TrunkPass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a rank's caches, the same on every rank, and how its layers attend."""

    trunk: KvSetup
    heads: KvSetup
    num_slots: int  # of the trunk's cache
    num_head_slots: int
    tap_layer: int


class ShareTrunk(TrunkRunner):
    """A share of the trunk."""

    @torch.inference_mode()
    def carry_out(self, work: TrunkPass) -> None:
        """As `TrunkRunner.forward`."""
        tokens, positions = upload((work.tokens, work.places.positions), self.device)
        plan = _plan(self.cache.kv, self, work.places)
        plan.taps = self.cache.taps
        self._compute(tokens, positions, plan)


@dataclass(frozen=True, slots=True)
class HeadInputs:
    """What a head's layers are called with."""

    states_1TD: Tensor
    positions_1T: Tensor
    wanted: Tensor  # rows of T
    plan: StepPlan


class ShareHeads(HeadRunner):
    """A share of any head."""

    def inputs(self, work: HeadPass) -> HeadInputs:
        """As `HeadRunner.forward` has them."""
        state_rows, positions, wanted = upload((work.state_rows, work.places.positions, work.wanted), self.device)
        plan = _plan(self.cache, self, work.places)
        if work.asked is not None:
            plan.asked = _plan(self.cache, self, work.asked)
        return HeadInputs(self._states(state_rows), positions[None], wanted, plan)


def _plan(cache: KvCache, runner: ShareTrunk | ShareHeads, places: Places) -> StepPlan:
    return StepPlan.build(cache, runner.attention, places.segments, places.new_from)


def open_trunk(trunk: TrunkModule, config: EngineConfig, head_dtype: torch.dtype, sums: Sums) -> tuple[FastTrunk, Sizes]:
    """The share's layers, and the sizes of its caches. The plain module's layers are emptied. InvalidArgument as `num_blocks_for`."""
    calls = layer_calls(trunk, trunk.spec.d_model)
    shape, queries = cache_shape(calls, trunk.embedding, config.block_size), QueryHeads.of(calls)
    setup = KvSetup(shape, attention_for(shape, queries), queries)
    heads = _head_setup(setup, replace(shape, dtype=head_dtype))
    num_blocks = num_blocks_for(trunk.spec, config, setup, heads)
    set_attention(trunk, attention.NAME)
    kit = share_kit(config, shape.device, shape.dtype, sums)
    fast = fast_trunk(trunk, calls, min(config.max_context, trunk.spec.context_length), kit)
    assert fast is not None, "check_shares has let the model pass"
    tap_layer = chosen_tap_layer(trunk.spec, config.tap_layer)
    return fast, Sizes(setup, heads, num_blocks + 1, HEAD_BLOCKS_PER_BLOCK * num_blocks + 1, tap_layer)


def open_other(trunk: TrunkModule, config: EngineConfig, head_dtype: torch.dtype, sums: Sums) -> tuple[ShareTrunk, ShareHeads]:
    """Trunk and heads of a rank that only carries out passes."""
    module, sizes = open_trunk(trunk, replace(config, output=None), head_dtype, sums)
    shape = sizes.trunk.shape
    spec = trunk.spec
    cache = TrunkCache(shape, spec.split_layer, spec.d_model, sizes.num_slots, is_cleared=sizes.trunk.attention.reads_past_ends)
    runner = ShareTrunk(module, cache, sizes.trunk.attention)
    head_cache = KvCache(sizes.heads.shape, spec.num_head_layers, sizes.num_head_slots, is_cleared=sizes.heads.attention.reads_past_ends)
    kit = share_kit(replace(config, output=None), shape.device, head_dtype, sums)
    return runner, ShareHeads(runner, head_cache, sizes.heads.attention, kit)


def _head_setup(setup: KvSetup, shape: CacheShape) -> KvSetup:
    """A kernel is tried again for another dtype."""
    if shape == setup.shape:
        return setup
    return KvSetup(shape, attention_for(shape, setup.queries), setup.queries)
