"""A head whose numbers break on one state alone: its own sample or score says so, over the wire, and nobody else is touched."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.client import Arm, Client
from polyhead.client.results.results import Reward, Sample
from tests.e2e.support import PROMPT, WIDTH, assert_blocks_returned, fresh_salt, serving

NUM_DRAWN = 8  # tokens of an undisturbed sample
FAILS_AT = 3  # the victim's tokens whose last one springs the trap
Weights = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def client(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with serving(tiny_model, tmp_path_factory.mktemp("failures") / "store") as server, Client(server.address, timeout=60) as opened:
        yield opened
        assert_blocks_returned(opened)


def plain_head(client: Client) -> Weights:
    """The policy with nothing left of its layers but one unit, which is silent: what it says depends on the boundary state alone."""
    tensors = {name: np.array(value) for name, value in client.pull_head("reference@1").items()}
    for name in tensors:
        if ".o_proj." in name or ".mlp." in name:
            tensors[name][:] = 0.0
    tensors["model.layers.3.post_attention_layernorm.weight"][:] = 1.0
    return tensors


def trapped_head(plain: Weights, trap: np.ndarray, others: np.ndarray) -> Weights:
    """The same, but at the boundary state `trap` the unit overflows, so that all logits are NaN; at any of `others` it stays silent."""
    direction = _normed(trap)
    nearest = float(np.max(_normed(others) @ direction)) / WIDTH  # cosine
    assert nearest < 1 - 1e-4, "no state that somebody else reads looks like the trap"
    steepness = 1e20 / (1 - nearest)
    tensors = {name: value.copy() for name, value in plain.items()}
    tensors["model.layers.3.mlp.gate_proj.weight"][0] = steepness * direction / WIDTH
    tensors["model.layers.3.mlp.gate_proj.bias"][0] = -steepness * (1 + nearest) / 2
    tensors["model.layers.3.mlp.up_proj.bias"][0] = 1e20
    tensors["model.layers.3.mlp.down_proj.weight"][0, 0] = 1.0
    return tensors


def scores_of(seed: int) -> Weights:
    """The output of a preference head that tells texts apart."""
    return {"score.weight": np.random.default_rng(seed).normal(size=(1, WIDTH)).astype(np.float32)}


def _normed(states: np.ndarray) -> np.ndarray:
    """RMS norm, as the head's: every state has the length of sqrt(WIDTH)."""
    return states / np.sqrt(np.mean(states.astype(np.float64) ** 2, axis=-1, keepdims=True) + 1e-3)


def rollout(client: Client, head: str, victim_tokens: int = NUM_DRAWN, **options: Any) -> list[Sample]:
    """Seven seeded samples and a victim, the last one, in one request on a cold cache: the same lengths make the very same arithmetic."""
    sampling = {"ignore_eos": True, "seed": 5}
    arms = [Arm(head, 7, {**sampling, "max_new_tokens": NUM_DRAWN}), Arm(head, 1, {**sampling, "max_new_tokens": victim_tokens})]
    return client.generate([PROMPT], arms=arms, cache_salt=fresh_salt(), **options)


@pytest.fixture(scope="module")
def undisturbed(client: Client) -> list[Sample]:
    """What `plain` draws. Beside it there is now `trapped`, whose numbers break behind the victim's first tokens."""
    plain = plain_head(client)
    preference = {name: np.array(value) for name, value in client.pull_head("preference@1").items()} | scores_of(1)
    client.activate({"preference": client.push_head("preference", preference, kind="preference")})
    client.activate({"plain": client.push_head("plain", plain, kind="policy")})
    samples = rollout(client, "plain")
    victim, others = client.encode([PROMPT + samples[-1].token_ids])[0], client.encode([PROMPT + each.token_ids for each in samples[:-1]])
    at = len(PROMPT) - 1 + FAILS_AT
    trapped = trapped_head(plain, trap=victim[at], others=np.concatenate([victim[:at], victim[at + 1 :], *others]))
    client.activate({"trapped": client.push_head("trapped", trapped, kind="policy")})
    return samples


def numbers(sample: Sample) -> tuple[list[int], bytes, bytes, str]:
    return sample.token_ids, sample.logprobs.tobytes(), sample.sampling_logprobs.tobytes(), sample.text


@pytest.mark.parametrize("delivery", ["samples", "groups"])
def test_a_sample_that_fails_takes_nobody_along(client: Client, undisturbed: list[Sample], delivery: str) -> None:
    """Its neighbours go on, bit for bit as if it had ended by itself after the same step."""
    failed_before = client.status().counters["failed_samples"]
    *neighbours, victim = rollout(client, "trapped", delivery=delivery)
    *calm, short = rollout(client, "plain", victim_tokens=FAILS_AT + 1, delivery=delivery)
    assert (victim.finish_reason, victim.terminated, victim.valid, victim.scores) == ("failed", False, False, {})
    assert victim.error == f"trapped@{victim.head_version} gave logits that are not finite"
    assert victim.token_ids == short.token_ids[:FAILS_AT] == undisturbed[-1].token_ids[:FAILS_AT]
    assert victim.logprobs.tobytes() == short.logprobs[:FAILS_AT].tobytes()
    for sample, alone in zip(neighbours, calm, strict=True):
        assert (sample.finish_reason, sample.error) == ("length", "")
        assert numbers(sample) == numbers(alone)
    assert [sample.token_ids for sample in neighbours] == [sample.token_ids for sample in undisturbed[:-1]]
    assert client.status().counters["failed_samples"] == failed_before + 1


def test_a_stream_that_fails_ends_with_its_sample(client: Client, undisturbed: list[Sample]) -> None:
    victim = undisturbed[-1]
    with client.stream(PROMPT, head="trapped", sample_seeds=[victim.sample_seed], ignore_eos=True, max_new_tokens=NUM_DRAWN) as pieces:
        drawn = [token for piece in pieces for token in piece.token_ids]
    assert drawn == pieces.sample.token_ids == victim.token_ids[:FAILS_AT]
    assert pieces.sample.finish_reason == "failed"
    assert "not finite" in pieces.sample.error


def test_a_head_that_fails_at_scoring_says_so_alone(client: Client, undisturbed: list[Sample]) -> None:
    """In Score: the other heads of this item, and this head of the other items, answer as ever."""
    items = [(PROMPT, sample.token_ids) for sample in undisturbed]
    with_it, without = (
        client.score(items, heads=heads, cache_salt=fresh_salt())
        for heads in (["reference", "trapped", "value"], ["reference", "plain", "value"])
    )
    for item, clean in zip(with_it, without, strict=True):
        assert item.error == ""
        assert item.scores["reference"].logprobs.tobytes() == clean.scores["reference"].logprobs.tobytes()
        assert item.scores["value"].values.tobytes() == clean.scores["value"].values.tobytes()
        assert item.scores["value"].bootstrap_value == clean.scores["value"].bootstrap_value
    *fine, broken = (item.scores["trapped"] for item in with_it)
    assert broken.error == f"trapped@{broken.version} gave a number that is not finite"
    assert not hasattr(broken, "logprobs"), "a failed score has no numbers to be taken for good ones"
    for score, clean in zip(fine, without, strict=False):
        assert score.error == ""
        assert score.logprobs.tobytes() == clean.scores["plain"].logprobs.tobytes()


def test_a_sample_scored_by_a_head_that_fails_is_whole_all_the_same(client: Client, undisturbed: list[Sample]) -> None:
    samples = rollout(client, "plain", score=["trapped", "value"])
    assert [sample.token_ids for sample in samples] == [sample.token_ids for sample in undisturbed]
    assert [sample.finish_reason for sample in samples] == ["length"] * 8
    assert [bool(sample.scores["trapped"].error) for sample in samples] == [False] * 7 + [True]
    assert all(len(sample.scores["value"].values) == NUM_DRAWN and not sample.scores["value"].error for sample in samples)


# best of n with failed samples among them


def rewards_of(samples: list[Sample]) -> list[Reward]:
    assert all(sample.reward is not None for sample in samples)
    return [sample.reward for sample in samples if sample.reward is not None]


@pytest.mark.parametrize(("recipe", "rules"), [("preference", []), ("kl", []), ("sparrow", ["no-insults"]), ("rerank", ["no-insults"])])
def test_a_failed_sample_ranks_last_and_is_no_median(client: Client, undisturbed: list[Sample], recipe: str, rules: list[str]) -> None:
    """Its neighbours' rewards are those of a group without it, the average of rerank, too."""
    options: dict[str, Any] = {"recipe": recipe, "rules": rules}
    *others, last = rollout(client, "trapped", best=8, **options)
    assert (last.finish_reason, last.text != "", rewards_of([last])[0].rank) == ("failed", True, 7)
    assert rewards_of([last])[0].error == last.error
    assert math.isnan(rewards_of([last])[0].reward)
    assert [math.isnan(place.reward) for place in others[0].ranking] == [False] * 7 + [True]
    assert [reward.error for reward in rewards_of(others)] == [""] * 7
    sampling = {"ignore_eos": True, "seed": 5, "max_new_tokens": NUM_DRAWN}
    alone = client.generate([PROMPT], arms=[Arm("trapped", 7, sampling)], best=7, cache_salt=fresh_salt(), **options)
    assert [sample.token_ids for sample in alone] == [sample.token_ids for sample in others]
    assert [reward.reward for reward in rewards_of(alone)] == pytest.approx([reward.reward for reward in rewards_of(others)], rel=1e-4)
    best, median = rollout(client, "trapped", best=1, median=True, **options)
    assert [best.token_ids, median.token_ids] == [others[0].token_ids, others[3].token_ids]


@pytest.mark.parametrize("recipe", ["preference", "rerank"])
def test_a_group_of_failed_samples_has_a_first_and_no_median(client: Client, undisturbed: list[Sample], recipe: str) -> None:
    seeds = [undisturbed[-1].sample_seed] * 3
    rules = ["no-insults"] if recipe == "rerank" else []
    options: dict[str, Any] = {"head": "trapped", "n": 3, "sample_seeds": seeds, "max_new_tokens": NUM_DRAWN, "ignore_eos": True}
    [first] = client.generate([PROMPT], recipe=recipe, rules=rules, best=1, median=True, **options)
    assert (first.finish_reason, first.sample_index) == ("failed", 0)
    assert "not finite" in rewards_of([first])[0].error
    assert [(place.sample_index, math.isnan(place.reward)) for place in first.ranking] == [(0, True), (1, True), (2, True)]


def test_a_preference_head_that_fails_on_one_sample_ranks_it_last(client: Client, undisturbed: list[Sample]) -> None:
    """Its sample is whole and ends where the trap lies; a rerank averages over the others."""
    trapped = {name: np.array(value) for name, value in client.pull_head("trapped").items() if name != "lm_head.weight"}
    reference = f"preference@{client.push_head('preference', trapped | scores_of(2), kind='preference')}"
    options: dict[str, Any] = {"victim_tokens": FAILS_AT, "score": [reference], "rules": ["no-insults"], "recipe": "rerank"}
    *others, last = rollout(client, "plain", best=8, **options)
    assert [sample.finish_reason for sample in [*others, last]] == ["length"] * 8
    assert (last.arm_index, rewards_of([last])[0].rank) == (1, 7)
    assert rewards_of([last])[0].error == last.scores[reference].error == f"{reference} gave a number that is not finite"
    values = [sample.scores[reference].value for sample in others]
    assert [reward.parts["average"] for reward in rewards_of(others)] == pytest.approx([np.mean(values)] * 7)
    assert len(rollout(client, "plain", best=1, median=True, **options)) == 2
