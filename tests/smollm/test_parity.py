"""The served model is the model: greedy tokens and log-probs against transformers, batched, chunked, cached and split."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from polyhead.client import Client, Sample
from polyhead.heads.model import embedded
from tests.e2e.forked import finished
from tests.smollm.whole_model import WholeModel

pytestmark = pytest.mark.smollm

NUM_NEW = 12
LENGTHS = (3, 4, 9, 15, 16, 17, 31, 33, 64, 65, 140, 211)  # around the edges of blocks, too
NEAR_TIE = 1e-4  # two logits so close may swap places by rounding


@pytest.fixture(scope="module")
def prompts(prose: list[int]) -> list[list[int]]:
    return [prose[17 * index :][:length] for index, length in enumerate(LENGTHS)]


def served_greedy(client: Client, prompts: list[list[int]]) -> list[Sample]:
    return client.generate(prompts, temperature=0.0, max_new_tokens=NUM_NEW, ignore_eos=True)


def assert_greedy(whole: WholeModel, sample: Sample, expected: list[int]) -> None:
    """Token for token; the message says how close the two candidates were where they part."""
    if sample.token_ids == expected:
        return
    pairs = enumerate(zip(sample.token_ids, expected, strict=True))
    at = next(index for index, (ours, theirs) in pairs if ours != theirs)
    gap = whole.top_gap([*sample.prompt_token_ids, *expected[:at]])
    kind = "a near tie" if gap < NEAR_TIE else "a real difference"
    pytest.fail(f"prompt of {len(sample.prompt_token_ids)} tokens, token {at}: {kind}, the two best logits are {gap:.2e} apart")


@pytest.fixture(scope="module")
def expected(whole: WholeModel, prompts: list[list[int]]) -> list[list[int]]:
    return [tokens for start in range(0, len(prompts), 4) for tokens in whole.greedy(prompts[start : start + 4], NUM_NEW)]


@pytest.fixture(scope="module")
def first_call(smollm: Client, prompts: list[list[int]]) -> list[Sample]:
    return served_greedy(smollm, prompts)


def test_greedy_tokens_equal_generate(whole: WholeModel, first_call: list[Sample], expected: list[list[int]]) -> None:
    """A dozen prompts of mixed lengths in one call decode as each of them alone in transformers."""
    for sample, tokens in zip(first_call, expected, strict=True):
        assert_greedy(whole, sample, tokens)


@pytest.mark.usefixtures("first_call")
def test_greedy_tokens_after_a_cache_hit(
    smollm: Client, whole: WholeModel, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    """The same call again finds every prompt token, and says the same."""
    samples = served_greedy(smollm, prompts)
    assert [sample.num_cached_tokens for sample in samples] == list(LENGTHS)
    for sample, tokens in zip(samples, expected, strict=True):
        assert_greedy(whole, sample, tokens)


def test_a_long_prompt_in_chunks(smollm: Client, whole: WholeModel, prose: list[int]) -> None:
    """530 tokens take two steps of prefill, and the reply does not show it."""
    prompt = prose[150:680]
    before = smollm.status().counters["steps"]
    [sample] = smollm.generate([prompt], temperature=0.0, max_new_tokens=4, ignore_eos=True, cache_salt="chunks")
    assert sample.num_cached_tokens == 0
    assert smollm.status().counters["steps"] - before >= 2 + 3
    assert_greedy(whole, sample, whole.greedy([prompt], 4)[0])


@pytest.fixture(scope="module")
def drawn(smollm: Client, prose: list[int]) -> list[Sample]:
    """Four prompts, three samples each, at temperature 1."""
    prompts = [prose[start : start + length] for start, length in ((40, 11), (300, 64), (500, 130), (700, 33))]
    return smollm.generate(prompts, n=3, temperature=1.0, seed=5, max_new_tokens=NUM_NEW, ignore_eos=True)


@pytest.mark.parametrize("salt", ["", "another"], ids=["cached", "computed-anew"])
def test_logprobs_of_sampling_equal_those_of_scoring(smollm: Client, drawn: list[Sample], salt: str) -> None:
    """Decoding one token at a time and scoring all of them at once agree, on cached states and on fresh ones."""
    items = [(sample.prompt_token_ids, sample.token_ids) for sample in drawn]
    scored = smollm.score(items, heads=["policy", "reference"], cache_salt=salt)
    for head in ("policy", "reference"):
        gaps = np.concatenate([abs(a.logprobs - b.scores[head].logprobs) for a, b in zip(drawn, scored, strict=True)])
        print(f"sampling against scoring by {head} {salt!r}: max {gaps.max():.1e}, mean {gaps.mean():.1e}")
        assert gaps.max() <= 5e-5
        assert gaps.mean() <= 1e-5


def test_logprobs_equal_a_plain_forward_pass(smollm: Client, whole: WholeModel, drawn: list[Sample]) -> None:
    """Both what sampling and what Score say is what transformers says in one pass over the whole text."""
    items = [(sample.prompt_token_ids, sample.token_ids) for sample in drawn]
    scored = smollm.score(items, heads=["policy"])
    plain = [whole.logprobs(*item) for item in items]
    sampling = np.concatenate([abs(a.logprobs - b) for a, b in zip(drawn, plain, strict=True)])
    scoring = np.concatenate([abs(a.scores["policy"].logprobs - b) for a, b in zip(scored, plain, strict=True)])
    print(f"against transformers: sampling max {sampling.max():.1e}, scoring max {scoring.max():.1e}")
    assert sampling.max() <= 1e-4
    assert scoring.max() <= 1e-4


def test_sampling_logprobs_at_temperature_one_are_the_raw_ones(drawn: list[Sample]) -> None:
    """Without truncation and penalty the distribution drawn from is the model's own."""
    assert max(abs(sample.logprobs - sample.sampling_logprobs).max() for sample in drawn) <= 1e-6


def test_split_and_merge_give_the_model_back(whole: WholeModel, prose: list[int], tmp_path: Path) -> None:
    """`polyhead split`, `polyhead merge`, from_pretrained: equal logits, bit for bit."""
    parts, merged = tmp_path / "parts", tmp_path / "merged"
    polyhead("split", str(embedded.prepare()), str(parts))
    polyhead("merge", str(parts / "trunk"), str(parts / "heads" / "policy"), str(merged))
    again = WholeModel(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval(), whole.tokenizer)
    ids = prose[:60]
    assert torch.equal(again.logits(ids), whole.logits(ids))


def polyhead(*arguments: str) -> None:
    command = [sys.executable, "-m", "polyhead.client.cli.main", *arguments]
    done = finished(command)
    assert done.returncode == 0, done.stderr
