"""Rank 0's engine: the engine of a single process, whose runners say each pass to the other ranks before they begin their own part.

Its scheduler, sampler and scorer are those of any engine. What differs: a canary pass is one of all ranks, and so runs between two steps;
and a pass that fails ends the process, since the ranks would be at different sums from then on.
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from polyhead.heads.model.family import TrunkModule
from polyhead.server.engine.blocks.cache import KvCache, TrunkCache
from polyhead.server.engine.blocks.head_pool import HeadPool
from polyhead.server.engine.blocks.tree import BlockTree
from polyhead.server.engine.build import EngineConfig, draw_for, scoring_floor
from polyhead.server.engine.compiled.region import region
from polyhead.server.engine.engine import Engine
from polyhead.server.engine.layers.fast import FastHead
from polyhead.server.engine.layers.heads import canary, wanted_rows
from polyhead.server.engine.schedule.scheduler import Scheduler
from polyhead.server.engine.work.batch import HeadRun, TrunkRun
from polyhead.server.engine.work.live import LiveHead, ServedHead
from polyhead.server.engine.work.reports import EngineSnapshot, RankMemory
from polyhead.server.parallel.layers import Sums, share_kit
from polyhead.server.parallel.passes import HeadPass, Order, SlotChanges, TrunkPass
from polyhead.server.parallel.runners import ShareHeads, ShareTrunk, open_trunk

CANARY_S = 600.0  # most that a canary pass waits for the end of a step: the watchdog ends a process whose step hangs


class Others(Protocol):
    """The other ranks, as passes see them: ranks.py."""

    def say(self, numbers: list[int], /) -> None:
        """Send them a message that begins with its Order."""
        ...

    def passing(self) -> AbstractContextManager[None]:
        """Around what all ranks do together: an error within ends the process, unless it is a PolyheadError."""
        ...

    def forget(self, number: int, /) -> None:
        """A head's weights are no longer in memory. From any thread, even while memory is collected."""
        ...

    def say_forgotten(self) -> None:
        """Tell them now."""
        ...

    def memory(self) -> tuple[RankMemory, ...]: ...

    def close(self) -> None:
        """Let them end, and wait until they have."""
        ...


class SharedSums(Sums, Protocol):
    """As Sums, and what a canary pass needs."""

    def from_first(self, x: Tensor, /) -> Tensor: ...


class LeadingTrunkCache(TrunkCache):
    """Its slots change on all ranks."""

    def __init__(self, changes: SlotChanges, *sizes: Any, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self._changes = changes

    def clear(self, slot: int) -> None:
        self._changes.clear(Order.TRUNK, slot)
        super().clear(slot)

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        self._changes.copy(Order.TRUNK, source, target, num_tokens)
        super().copy(source, target, num_tokens)


class LeadingKvCache(KvCache):
    """The same of the heads' keys and values."""

    def __init__(self, changes: SlotChanges, *sizes: Any, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self._changes = changes

    def clear(self, slot: int) -> None:
        self._changes.clear(Order.HEAD, slot)
        super().clear(slot)

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        self._changes.copy(Order.HEAD, source, target, num_tokens)
        super().copy(source, target, num_tokens)


class LeadingTrunk(ShareTrunk):
    """Rank 0's share of the trunk."""

    def __init__(self, others: Others, changes: SlotChanges, *parts: Any) -> None:
        super().__init__(*parts)
        self._others, self._changes = others, changes

    def forward(self, runs: list[TrunkRun]) -> None:
        work = TrunkPass.of(runs)
        numbers = [int(Order.TRUNK)]
        self._changes.take(numbers)
        work.write(numbers, self.cache.kv.shape.block_size)
        with self._others.passing():
            self._others.say(numbers)
            self.carry_out(work)


class LeadingHeads(ShareHeads):
    """Rank 0's share of any head, with its output."""

    def __init__(self, others: Others, changes: SlotChanges, sums: SharedSums, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.others, self._changes, self._sums = others, changes, sums
        self._numbers: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()  # of heads' modules

    def number(self, module: object, number: int) -> None:
        """The other ranks know this head by `number`, and forget it when it is no longer in memory here."""
        self._numbers[module] = number
        weakref.finalize(module, self.others.forget, number).atexit = False

    def number_of(self, head: LiveHead) -> int:
        """By which the other ranks know it."""
        return self._numbers[head.module]

    @torch.inference_mode()
    def forward(self, head: LiveHead, runs: list[HeadRun]) -> Tensor:
        work = HeadPass.of(self.number_of(head), runs, self._state_rows(runs), wanted_rows(runs))
        numbers = [int(Order.HEAD)]
        self._changes.take(numbers)
        work.write(numbers, self.cache.shape.block_size)
        with self.others.passing():
            self.others.say(numbers)
            inputs = self.inputs(work)
            rows: Tensor = head.module(inputs.states_1TD, inputs.positions_1T, inputs.wanted, plan=inputs.plan)
            return rows.float()

    def try_out(self, head: LiveHead, states: Tensor) -> None:
        """As HeadRunner's, on all ranks. Between two steps."""
        assert isinstance(head.module, FastHead), "adapters are refused at the push"
        with self.others.passing():
            self.others.say([Order.CANARY, self.number_of(head), len(states)])
            states = self._sums.from_first(states.to(self.cache.shape.dtype).to(self.device))
            canary(head.module, states, self.cache, self.attention)

    def forget(self, digest: str) -> None:
        self.others.say_forgotten()


class LeadingEngine(Engine):
    """The engine, and the ranks' end with its own."""

    heads: LeadingHeads

    def __init__(self, others: Others, *parts: Any) -> None:
        super().__init__(*parts)
        self._others = others

    def warm_up(self, head: ServedHead) -> None:
        """As Engine's; a pass of all ranks has its place between two steps."""
        run = partial(super().warm_up, head)
        if self._thread.is_alive():
            self._between_steps(run).result(CANARY_S)
        else:
            run()

    def snapshot(self) -> EngineSnapshot:
        return replace(super().snapshot(), ranks=self._others.memory())

    def stop(self, timeout_s: float = 10.0) -> None:
        super().stop(timeout_s)
        self._others.close()


def lead(
    trunk: TrunkModule, config: EngineConfig, eos_ids: frozenset[int], head_dtype: torch.dtype, others: Others, sums: SharedSums
) -> LeadingEngine:
    """An engine around rank 0's share of the trunk, with empty caches and no heads, not started."""
    module, sizes = open_trunk(trunk, config, head_dtype, sums)
    spec, changes = trunk.spec, SlotChanges()
    cache = LeadingTrunkCache(
        changes,
        sizes.trunk.shape,
        spec.split_layer,
        spec.d_model,
        sizes.num_slots,
        has_taps=sizes.tap_layer > 0,
        is_cleared=sizes.trunk.attention.reads_past_ends,
    )
    is_cleared = sizes.heads.attention.reads_past_ends
    head_cache = LeadingKvCache(changes, sizes.heads.shape, spec.num_head_layers, sizes.num_head_slots, is_cleared=is_cleared)
    runner = LeadingTrunk(others, changes, module, cache, sizes.trunk.attention, sizes.tap_layer)
    kit = share_kit(config, sizes.heads.shape.device, head_dtype, sums)
    tied = trunk.embedding if spec.tied else None
    heads = LeadingHeads(others, changes, sums, runner, head_cache, sizes.heads.attention, kit, tied_embedding=tied)
    if sizes.heads.can_compile:
        region()  # the sampler's: compiled now, and not in the first request
    tree = BlockTree(cache, HeadPool(head_cache))
    limits = replace(config.scheduler, scoring_floor=scoring_floor(spec, config))
    scheduler = Scheduler(tree, limits, eos_ids, spec.vocab_size)
    return LeadingEngine(others, runner, heads, tree, scheduler, draw_for(config, sizes.heads), config.queue, config.num_threads)
