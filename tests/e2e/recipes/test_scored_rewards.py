"""Rewards of given completions, and entropies and likeliest tokens beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyhead.client import Client
from tests.e2e.recipes.rewards import DRAW, RULES, assert_ranked, reward_of


def test_score_ranks_items_with_the_same_prompt_and_agrees_with_generate(client: Client) -> None:
    samples = client.generate(["one", "two"], n=3, recipe="rerank", rules=RULES, **DRAW)
    shuffled = [samples[index] for index in (4, 0, 3, 2, 5, 1)]
    items = client.score(shuffled, recipe="rerank", rules=RULES)
    for sample, item in zip(shuffled, items, strict=True):
        assert reward_of(item).reward == pytest.approx(reward_of(sample).reward, abs=1e-4)
        assert reward_of(item).rank == reward_of(sample).rank
        assert (item.valid, item.invalid_reasons, item.num_newlines) == (sample.valid, sample.invalid_reasons, sample.num_newlines)
    assert_ranked([item for item, sample in zip(items, shuffled, strict=True) if sample.prompt_index == 0])


def test_items_of_one_prompt_are_ranked_among_themselves(client: Client) -> None:
    """Equal texts are equal up to float32's rounding, which depends on what is computed beside them: see --deterministic."""
    items = client.score([("p", "same"), ("q", "same"), ("p", "same"), ("p", "other")], recipe="preference")
    assert reward_of(items[1]).rank == 0
    assert_ranked([items[0], items[2], items[3]])
    assert reward_of(items[0]).reward == pytest.approx(reward_of(items[2]).reward, abs=1e-5)


def test_score_reads_the_policys_logprobs_for_the_kl(client: Client) -> None:
    """The recipe names the head; a pinned one that the caller gives stands in for it."""
    sample = client.generate(["Why?"], recipe="kl", **DRAW)[0]
    [item] = client.score([sample], recipe="kl")
    assert list(item.scores) == ["preference", "reference", "policy"]
    assert reward_of(item).kl == pytest.approx(reward_of(sample).kl, abs=1e-4)
    [item] = client.score([sample], heads=["policy@1", "value"], recipe="kl")
    assert list(item.scores) == ["policy@1", "value", "preference", "reference"]
    assert np.abs(reward_of(item).kl).max() < 1e-4  # policy@1 is the reference


def test_a_given_completion_is_cut_at_the_stop_strings_it_was_drawn_with(client: Client) -> None:
    completion = "a\nb\n\nUser:"
    kept, cut = (client.score([("p", completion)], heads=["value"], stop=stop)[0] for stop in (None, ["\n\nUser:"]))
    assert (kept.num_newlines, cut.num_newlines, kept.reward) == (3, 1, None)


def test_entropies_and_likeliest_tokens(client: Client) -> None:
    options: dict[str, Any] = {"entropy": True, "top_logprobs": 20}
    sample = client.generate(["Why?"], score=["policy", "value"], temperature=0.0, max_new_tokens=6, ignore_eos=True, **options)[0]
    [item] = client.score([sample], heads=["policy"], **options)
    for score in (sample.scores["policy"], item.scores["policy"]):
        assert (score.entropies.shape, score.top_token_ids.shape, score.top_logprobs.shape) == ((6,), (6, 20), (6, 20))
        assert score.top_token_ids[:, 0].tolist() == sample.token_ids  # greedy
        assert score.top_logprobs[:, 0] == pytest.approx(sample.logprobs, abs=1e-4)
        assert (np.diff(score.top_logprobs) <= 0).all()
        seen = np.exp(score.top_logprobs)
        assert (score.entropies > -(seen * score.top_logprobs).sum(axis=1)).all()  # the unseen ones add to it
