"""Trunk work is never repeated: exact counts, by counter."""

from __future__ import annotations

from polyhead.server.engine.work.sampling import SamplingParams
from tests.server.engine.harness import Bench

EIGHT = SamplingParams(max_new_tokens=8)
ALL_HEADS = ("reference", "value", "preference", "rule")


def test_generation_alone_leaves_the_last_token_out(bench: Bench) -> None:
    assert bench.counted(bench.sampled(bench.prompt(50), params=EIGHT)) == 50 + 7


def test_reference_logprobs_add_nothing(bench: Bench) -> None:
    assert bench.counted(bench.sampled(bench.prompt(50), params=EIGHT, score=("reference",))) == 50 + 7


def test_bootstrap_and_preference_share_the_last_token(bench: Bench) -> None:
    assert bench.counted(bench.sampled(bench.prompt(50), params=EIGHT, score=("value", "preference"))) == 50 + 8


def test_values_of_a_terminated_sample_add_nothing(bench: Bench) -> None:
    prompt = bench.prompt(50)
    first = bench.sampled(prompt, params=EIGHT)
    bench.run(first)
    stop = first.samples[0].completion[3]
    params = SamplingParams(max_new_tokens=8, stop_token_ids=frozenset({stop}))
    again = bench.sampled(prompt, params=params, score=("value",))
    again.samples[0].seed = first.samples[0].seed
    assert bench.counted(again) == 3  # the prompt is cached; of four sampled tokens the last is never computed
    assert again.samples[0].is_terminated


def test_eight_candidates_of_one_prompt(bench: Bench) -> None:
    """200 prompt tokens once, however many candidates; then each candidate's own tokens."""
    assert bench.counted(bench.sampled(bench.prompt(200), n=8, params=EIGHT)) == 200 + 8 * 7


def test_ten_rules_after_one_dialogue(bench: Bench) -> None:
    """The template's common part goes through the trunk once; each rule adds its own tokens."""
    common = tuple(range(10, 40))
    rules = {f"r{i}": (*common, 50 + i, 60, 61) for i in range(10)}
    request = bench.given(bench.prompt(90), bench.prompt(15, 5), score=("rule",), rules=rules)
    assert bench.counted(request) == 90 + 15 + 30 + 10 * 3


def test_a_whole_rollout(bench: Bench) -> None:
    rules = {"x": (10, 11, 12, 13), "y": (10, 11, 20)}
    request = bench.sampled(bench.prompt(37), n=4, params=EIGHT, score=ALL_HEADS, rules=rules)
    assert bench.counted(request) == 37 + 4 * 8 + 4 * (4 + 1)


def test_work_is_counted_for_each_sample_and_adds_up(bench: Bench) -> None:
    """Two requests at once: every trunk and head token of the engine belongs to exactly one of their samples."""
    rules = {"x": (10, 11, 12, 13), "y": (10, 11, 20)}
    before = bench.engine.counters.trunk_tokens, bench.engine.counters.head_tokens
    requests = [
        bench.sampled(bench.prompt(37, 8), n=3, params=EIGHT, score=ALL_HEADS, rules=rules),
        bench.given(bench.prompt(37, 8), bench.prompt(9, 3), score=("reference",)),
    ]
    bench.run(*requests)
    samples = [sample for request in requests for sample in request.samples]
    assert sum(sample.num_trunk_tokens for sample in samples) == bench.engine.counters.trunk_tokens - before[0]
    assert sum(sample.num_head_tokens for sample in samples) == bench.engine.counters.head_tokens - before[1]
    assert min(sample.num_head_tokens for sample in samples) >= 9
    assert all(request.queue_s > 0 for request in requests)
    again = bench.sampled(bench.prompt(37, 8), params=EIGHT)
    bench.run(again)
    assert again.samples[0].num_trunk_tokens == 7, "the prompt was found in the cache"


def test_scoring_after_generation_is_head_only(bench: Bench) -> None:
    """A second call that scores the sampled tokens finds them all, but the last one."""
    request = bench.sampled(bench.prompt(40), params=EIGHT)
    bench.run(request)
    sample = request.samples[0]
    assert bench.counted(bench.given(sample.prompt, sample.completion, score=("reference", "value"))) == 1


def test_two_requests_with_one_prompt_at_once(bench: Bench) -> None:
    prompt = bench.prompt(60)
    assert bench.counted(bench.sampled(prompt, params=EIGHT), bench.sampled(prompt, params=SamplingParams(max_new_tokens=1))) == 60 + 7


def test_a_cached_prompt_after_a_swap(bench: Bench) -> None:
    """A new version pays the head's share alone: no trunk token, and one head token per prompt token."""
    prompt = bench.prompt(64)
    bench.run(bench.sampled(prompt, params=EIGHT))
    bench.activate(2, policy=bench.policy("new", lambda tensors: tensors["model.norm.weight"].mul_(1.5)), value=bench.scalar("b"))
    before = bench.engine.counters.head_tokens
    request = bench.sampled(prompt, params=SamplingParams(max_new_tokens=1))
    assert bench.counted(request) == 0
    assert bench.engine.counters.head_tokens - before == 64
    assert request.samples[0].head is not None
    assert request.samples[0].head.version == 2


def test_salted_requests_share_nothing(bench: Bench) -> None:
    prompt = bench.prompt(40)
    bench.run(bench.sampled(prompt, params=EIGHT))
    salted = bench.sampled(prompt, params=EIGHT)
    salted.samples[0].sequence.salt = "other"
    assert bench.counted(salted) == 40 + 7


def test_diverging_inside_a_block_computes_only_what_differs(bench: Bench) -> None:
    prompt = bench.prompt(40)
    bench.run(bench.sampled(prompt, params=SamplingParams(max_new_tokens=1)))
    other = [*prompt[:21], 7, *prompt[22:]]
    assert bench.counted(bench.sampled(other, params=SamplingParams(max_new_tokens=1))) == 40 - 21
