"""Through the engine, log-probs equal the unsplit model's: every attention variant, batched or alone, cached or cold, in chunks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polyhead.heads.model.family import TrunkModule
from polyhead.server.engine.layers.fast import FastHead, FastTrunk
from polyhead.server.engine.schedule.scheduler import SchedulerLimits
from polyhead.server.engine.work.sampling import SamplingParams
from tests.heads.models import FAMILIES, save_tiny
from tests.server.engine.harness import Bench, assert_agrees, scores

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=24)


FAST = ("llama", "mistral", "qwen2", "qwen3")


@pytest.mark.parametrize(("family", "is_fast"), [*((family, False) for family in sorted(FAMILIES)), *((family, True) for family in FAST)])
def test_engine_agrees_with_the_unsplit_model(family: str, is_fast: bool, tmp_path: Path) -> None:
    """Prompts of mixed lengths in one batch, contexts past the window of 8, prefill in chunks of 7 and decoding."""
    save_tiny(family, tmp_path)
    chunks = SchedulerLimits(chunk_tokens=7, min_chunk_tokens=1)
    bench = Bench.open(tmp_path, split_layer=2, max_context=128, scheduler=chunks, is_fast=is_fast)
    assert isinstance(bench.engine.trunk.module, FastTrunk) == is_fast
    assert isinstance(bench.engine.active.heads["policy"].live.module, FastHead) == is_fast
    requests = [bench.sampled(bench.prompt(length, length), params=GREEDY, score=("reference",)) for length in (1, 5, 16, 40)]
    bench.run(*requests)
    for request in requests:
        sample = request.samples[0]
        reference = bench.unsplit_logprobs([*sample.prompt, *sample.completion])
        assert_agrees(sample, reference)
        scored = scores(sample)["reference"].result.logprobs
        assert max(abs(a - b) for a, b in zip(scored, sample.logprobs, strict=True)) < 5e-5
    bench.assert_blocks_returned()


def test_other_families_keep_their_modules(tmp_path: Path) -> None:
    """Gemma2's soft-cap and norms are not what the fast layer computes."""
    save_tiny("gemma2", tmp_path)
    bench = Bench.open(tmp_path, split_layer=2, max_context=128)
    assert isinstance(bench.engine.trunk.module, TrunkModule)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_grouped_and_multi_query_attention(num_kv_heads: int, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, num_key_value_heads=num_kv_heads)
    bench = Bench.open(tmp_path, split_layer=3, max_context=128)
    request = bench.sampled(bench.prompt(30), params=GREEDY)
    bench.run(request)
    sample = request.samples[0]
    assert_agrees(sample, bench.unsplit_logprobs([*sample.prompt, *sample.completion]))


def test_greedy_tokens_equal_generate(bench: Bench) -> None:
    requests = [bench.sampled(bench.prompt(length, length), params=GREEDY) for length in (3, 17, 33, 64)]
    bench.run(*requests)
    for request in requests:
        sample = request.samples[0]
        ids = torch.tensor([sample.prompt])
        wanted = bench.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert sample.completion == wanted[0, len(sample.prompt) :].tolist()


def test_cached_prompt_gives_the_same_tokens(bench: Bench) -> None:
    """Cold, after a full hit, and after a hit that ends inside a block."""
    prompt = bench.prompt(45)
    cold, warm, longer = (bench.sampled(prompt + extra, params=GREEDY) for extra in ([], [], [9, 8, 7]))
    bench.run(cold)
    bench.run(warm)
    bench.run(longer)
    assert warm.samples[0].completion == cold.samples[0].completion
    assert warm.samples[0].num_cached_tokens == 45
    assert longer.samples[0].num_cached_tokens == 45
    assert_agrees(longer.samples[0], bench.unsplit_logprobs([*prompt, 9, 8, 7, *longer.samples[0].completion]))


def test_neighbours_do_not_change_a_seeded_sample(bench: Bench) -> None:
    """The bug of other servers: one random stream for the whole batch, so that a neighbour's end shifts everybody's draws."""
    params = SamplingParams(max_new_tokens=16, top_p=0.9)
    alone = bench.sampled(bench.prompt(20), params=params)
    bench.run(alone)
    among = bench.sampled(bench.prompt(20), params=params)
    noise = [bench.sampled(bench.prompt(10 + i, i), n=2, params=SamplingParams(max_new_tokens=3 + i)) for i in range(5)]
    bench.run(*noise[:3], among, *noise[3:])
    assert among.samples[0].completion == alone.samples[0].completion


def test_sampling_logprobs_equal_scores_on_the_same_tokens(bench: Bench) -> None:
    request = bench.sampled(bench.prompt(30), n=8, params=SamplingParams(max_new_tokens=32))
    bench.run(request)
    for sample in request.samples:
        scored = bench.given(sample.prompt, sample.completion, score=("policy",))
        bench.run(scored)
        differences = [abs(a - b) for a, b in zip(scores(scored.samples[0])["policy"].result.logprobs, sample.logprobs, strict=True)]
        assert max(differences) < 5e-5
        assert sum(differences) / len(differences) < 1e-5


def test_score_returns_logprobs_under_sampling_parameters(bench: Bench) -> None:
    """Temperature, truncation and penalty: Score's second kind of log-prob is the one that the sampler drew from."""
    params = SamplingParams(temperature=0.7, top_p=0.8, top_k=40, repetition_penalty=1.2, max_new_tokens=20)
    request = bench.sampled(bench.prompt(30), params=params)
    bench.run(request)
    sample = request.samples[0]
    scored = bench.given(sample.prompt, sample.completion, score=("policy",), score_sampling=params)
    bench.run(scored)
    result = scores(scored.samples[0])["policy"].result
    assert result.sampling_logprobs == pytest.approx(sample.sampling_logprobs, abs=5e-5)
    assert result.logprobs == pytest.approx(sample.logprobs, abs=5e-5)


def test_rules_equal_a_full_forward(bench: Bench) -> None:
    rules = {"x": (10, 11, 12, 13, 14), "y": (10, 11, 20, 21)}
    request = bench.sampled(bench.prompt(30), score=("rule",), rules=rules)
    bench.run(request)
    sample = request.samples[0]
    for answer in scores(sample)["rule"].result:
        last = bench.unsplit_logprobs([*sample.prompt, *sample.completion, *rules[answer.rule_id]])[-1].exp()
        violated, followed = last[3].item(), last[4].item()
        assert answer.p_violate == pytest.approx(violated / (violated + followed), abs=1e-5)
        assert answer.answer_mass == pytest.approx(violated + followed, abs=1e-5)
