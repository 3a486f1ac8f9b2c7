"""Decoding rows of unlike length: each group is padded to its own longest text, and every row still gets its own answer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polyhead.server.engine.blocks.cache import CacheShape, KvCache
from polyhead.server.engine.layers.attention import block_attention
from polyhead.server.engine.layers.plan import Segment, StepPlan
from polyhead.server.engine.layers.torch.attention import TorchAttention
from polyhead.server.engine.work.sampling import SamplingParams
from tests.server.engine.harness import Bench

BLOCK = 16
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=8)


class GatheredKeys:
    """Counts the keys that a cache hands out, layer by layer."""

    def __init__(self, cache: KvCache, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by_layer = [0] * len(cache.layers)
        gather = cache.gather

        def counting(layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
            keys, values = gather(layer, slots)
            self.by_layer[layer] += keys.shape[0] * keys.shape[2]
            return keys, values

        monkeypatch.setattr(cache, "gather", counting)


def filled_cache(num_slots: int) -> KvCache:
    """One layer of random keys and values; slot 0 is zero, as it always is."""
    cache = KvCache(CacheShape(2, 8, BLOCK, torch.float32, torch.device("cpu")), 1, num_slots)
    generator = torch.Generator().manual_seed(1)
    cache.layers[0][1:] = torch.randn(cache.layers[0][1:].shape, generator=generator)
    return cache


def test_one_long_text_does_not_pad_the_short_ones(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain modules gathered rows x longest: with a text of 15 blocks among 12 of one block, 195 blocks instead of 27."""
    bench = Bench.open(llama_folder, split_layer=2, is_fast=False)
    long, short = bench.sampled(bench.prompt(230), params=GREEDY), [bench.sampled(bench.prompt(4, i), params=GREEDY) for i in range(12)]
    for request in (long, *short):
        bench.engine.submit(request)
    bench.engine._empty_inbox()
    while not all(request.samples[0].completion for request in (long, *short)):
        bench.engine.step()
    counted = [GatheredKeys(cache, monkeypatch) for cache in (bench.engine.trunk.cache.kv, bench.engine.heads.cache)]
    before = bench.engine.counters.generated_tokens
    bench.engine.step()
    assert bench.engine.counters.generated_tokens - before == 13, "everybody decodes in this step"
    for keys in counted:
        assert keys.by_layer == [(15 + 12 * 1) * BLOCK] * 2


def test_a_mixed_batch_draws_what_each_draws_alone(bench: Bench) -> None:
    lengths = (70, 33, 16, 230, 3, 130, 17, 1, 40)
    alone = [bench.sampled(bench.prompt(length, length), params=GREEDY) for length in lengths]
    for request in alone:
        bench.run(request)
    together = [bench.sampled(bench.prompt(length, length), params=GREEDY) for length in lengths]
    bench.run(*together)
    for one, many in zip(alone, together, strict=True):
        assert many.samples[0].completion == one.samples[0].completion
        assert many.samples[0].logprobs == pytest.approx(one.samples[0].logprobs, abs=1e-5)


@given(st.lists(st.integers(1, 20 * BLOCK), min_size=1, max_size=12), st.sampled_from([None, 8]), st.sampled_from([None, 0.7]))
def test_any_mix_of_lengths_is_padded_to_twice_at_most_and_answered_row_by_row(
    ends: list[int], window: int | None, softcap: float | None
) -> None:
    """Each row against the same row as a batch of one, whose keys are neither padded nor reordered."""
    num_blocks = [-(-end // BLOCK) for end in ends]
    first_slots = [1 + sum(num_blocks[:index]) for index in range(len(ends))]
    cache = filled_cache(1 + sum(num_blocks))
    segments = [
        Segment(list(range(first, first + count)), end - 1, end) for first, count, end in zip(first_slots, num_blocks, ends, strict=True)
    ]
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(1, 4, len(ends), 8, generator=generator)
    key, value = torch.randn(2, 1, 2, len(ends), 8, generator=generator).unbind()

    def attend(rows: list[int]) -> tuple[Tensor, StepPlan]:
        plan = StepPlan.build(cache, TorchAttention(), [segments[row] for row in rows], [segments[row].start for row in rows])
        layer = SimpleNamespace(layer_idx=0)
        inputs = (each[:, :, rows] for each in (query, key, value))
        return block_attention(layer, *inputs, None, plan=plan, sliding_window=window, softcap=softcap)[0][0], plan  # type: ignore[arg-type]

    together, plan = attend(list(range(len(ends))))
    assert sorted(row for group in plan.prepared.decodes for row in group.rows.tolist()) == list(range(len(ends)))
    assert sum(group.slots.numel() for group in plan.prepared.decodes) <= 2 * sum(num_blocks)
    for row in range(len(ends)):
        torch.testing.assert_close(together[row], attend([row])[0][0], atol=1e-5, rtol=1e-5)
