"""Recipes as a worker asks for them: one call, every number worked out again from the parts that came with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.client import Arm, AsyncClient, Client, Reward, Sample, ScoredItem, to_batch
from polyhead.client.errors import InvalidArgument, NotFound, Unavailable
from polyhead.client.local import LocalServer
from tests.e2e.recipes.rewards import DRAW, RULES, assert_ranked, follow, reward_of
from tests.e2e.support import serving


def test_sparrow_is_the_sum_of_its_parts(client: Client) -> None:
    arms = [Arm("policy", 8), Arm("lines", 1)]
    samples = client.generate(["Tell me."], arms=arms, recipe="sparrow", rules=RULES, stop_token_ids=range(20, 40), **DRAW)
    assert {sample.valid for sample in samples} == {True, False}
    assert samples[8].num_newlines == 12
    for sample in samples:
        reward, constants = reward_of(sample), reward_of(sample).constants
        assert list(sample.scores) == ["preference", "rule"]  # the recipe's own heads, which nobody named
        assert reward.parts == pytest.approx(
            {
                "preference": sample.scores["preference"].value,
                "rules": sum(follow(sample)) / 3,
                "tokens": len(sample.token_ids),
                "newlines": sample.text.count("\n"),
                "invalid": float(not sample.valid),
            }
        )
        assert sample.num_newlines == sample.text.count("\n")
        assert sample.invalid_reasons == (() if sample.valid else ("not_terminated",))
        assert reward.reward == pytest.approx(sum(constants[name] * value for name, value in reward.parts.items()), abs=1e-5)
        assert (reward.recipe, reward.with_kl, reward.kl_estimator, len(reward.kl)) == ("sparrow@1", reward.reward, "", 0)
        assert reward.rank is None  # delivered before the others were known


def test_constants_are_replaced_for_one_request_and_come_back(client: Client) -> None:
    constants = {"tokens": -1.0, "preference": 0.0, "rules": 0.0, "invalid": 0.0}
    [sample] = client.generate(["x"], recipe="sparrow@1", recipe_constants=constants, rules=RULES, **DRAW)
    reward = reward_of(sample)
    assert {name: reward.constants[name] for name in constants} == constants
    assert reward.reward == pytest.approx(-len(sample.token_ids) + reward.constants["newlines"] * sample.num_newlines)
    [again] = client.generate(["x"], recipe="sparrow", rules=RULES, **DRAW)
    assert reward_of(again).constants["tokens"] == -0.001


def test_a_part_of_weight_0_runs_no_head_that_nobody_asked_for(client: Client) -> None:
    """Its head ran for nothing; the rules of a part that is left out are still checked, so that one call serves all arms."""
    idle: dict[str, Any] = {"recipe": "sparrow", "recipe_constants": {"rules": 0.0}, "rules": RULES, **DRAW}
    [whole] = client.generate(["x"], recipe="sparrow", rules=RULES, **DRAW)
    [spared] = client.generate(["x"], **idle)
    assert list(spared.scores) == ["preference"]
    assert spared.work.head_tokens < whole.work.head_tokens
    assert set(reward_of(whole).parts) - set(reward_of(spared).parts) == {"rules"}
    assert reward_of(spared).reward == pytest.approx(reward_of(whole).reward - reward_of(whole).parts["rules"], abs=1e-5)
    [asked] = client.generate(["x"], score=["rule"], **idle)
    assert reward_of(asked).parts == reward_of(whole).parts
    assert reward_of(asked).reward == pytest.approx(reward_of(spared).reward, abs=1e-5)
    with pytest.raises(NotFound, match="no rule 'no-such-rule'"):
        client.generate(["x"], **{**idle, "rules": ["no-such-rule"]})
    with pytest.raises(InvalidArgument, match="a head of kind rule needs rules"):
        client.generate(["x"], recipe="sparrow", **DRAW)


def test_rerank_multiplies_and_averages_over_the_prompts_samples(client: Client) -> None:
    samples = client.generate(["one", "two"], n=4, recipe="rerank", rules=RULES, **DRAW)
    for group in (samples[:4], samples[4:]):
        average = sum(sample.scores["preference"].value for sample in group) / 4
        for sample in group:
            reward = reward_of(sample)
            sigmoid = 1 / (1 + math.exp(average - sample.scores["preference"].value))
            assert reward.parts["average"] == pytest.approx(average, abs=1e-5)
            assert reward.parts["rules"] == pytest.approx(math.prod(follow(sample)), rel=1e-4)
            assert reward.reward == pytest.approx(sigmoid * math.prod(follow(sample)), rel=1e-4)
        assert_ranked(group)


def test_a_group_recipe_holds_samples_whatever_the_delivery(client: Client) -> None:
    """The average needs the last of them, while tokens may stream."""
    for delivery in ("tokens", "samples", "groups"):
        assert_ranked(list(client.generate(["x"], n=3, delivery=delivery, recipe="rerank", rules=RULES, **DRAW)))
    [alone] = client.generate(["x"], recipe="rerank", rules=RULES, **DRAW)
    assert reward_of(alone).reward == pytest.approx(0.5 * math.prod(follow(alone)), rel=1e-4)
    assert reward_of(alone).rank == 0


def test_kl_is_returned_for_each_token_and_apart_from_the_reward(client: Client) -> None:
    samples = client.generate(["Why?"], n=3, temperature=0.7, recipe="kl", **DRAW)
    for sample in samples:
        reward = reward_of(sample)
        kl = sample.logprobs - sample.scores["reference"].logprobs
        assert reward.kl == pytest.approx(kl, abs=1e-6)
        assert np.abs(kl).max() > 0.01
        assert reward.reward == reward.parts["preference"] == sample.scores["preference"].value
        assert reward.with_kl == pytest.approx(reward.reward - 0.02 * kl.sum(), abs=1e-5)
        assert reward.token_rewards[:-1] == pytest.approx(-0.02 * kl[:-1], abs=1e-6)
        assert reward.token_rewards.sum() == pytest.approx(reward.with_kl, abs=1e-5)
        assert (reward.kl_estimator, reward.constants["kl_coefficient"]) == ("k1", 0.02)
    batch = to_batch(samples)
    assert batch["kl"].shape == batch["token_rewards"].shape == batch["logprobs"].shape
    assert batch["token_rewards"].sum(axis=1) == pytest.approx([reward_of(sample).with_kl for sample in samples], abs=1e-5)
    assert batch["reward"].tolist() == [reward_of(sample).reward for sample in samples]


def test_preference_rules_and_kl_in_one_call(client: Client) -> None:
    """The reference's log-probs are scored in the same call, whose answer has every part."""
    [sample] = client.generate(["Why?"], temperature=0.7, recipe="rlhf", recipe_constants={"rules": 2.0}, rules=RULES, **DRAW)
    reward, kl = reward_of(sample), float((sample.logprobs - sample.scores["reference"].logprobs).sum())
    assert set(reward.parts) == {"preference", "rules", "kl"}
    assert reward.parts["rules"] == pytest.approx(sum(follow(sample)) / len(RULES), abs=1e-5)
    assert reward.reward == pytest.approx(sample.scores["preference"].value + 2.0 * reward.parts["rules"], abs=1e-5)
    assert reward.with_kl == pytest.approx(reward.reward - 0.05 * kl, abs=1e-4)


def test_each_arm_brings_its_own_logprobs_to_the_kl(client: Client) -> None:
    """Nothing is run for the policy itself, and a sample of the reference has no KL."""
    far, near = client.generate(["Why?"], arms=[Arm("policy"), Arm("reference@1")], recipe="kl", **DRAW)
    assert list(far.scores) == ["preference", "reference"]
    assert np.abs(reward_of(near).kl).max() < 1e-4 < np.abs(reward_of(far).kl).max()


def test_own_recipes(client: Client) -> None:
    def drawn(recipe: str, rules: list[str] | None = None) -> tuple[Sample, Reward]:
        [sample] = client.generate(["x"], recipe=recipe, rules=rules, **DRAW)
        return sample, reward_of(sample)

    sample, reward = drawn("weighed", ["no-insults", "no-threats"])
    p_follow = sample.scores["rule"].p_follow
    assert reward.reward == pytest.approx(2 * (3 * p_follow["no-insults"] - p_follow["no-threats"]), abs=1e-5)
    assert reward.constants == {"rules": 2.0, "rules.no-insults": 3.0, "rules.no-threats": -1.0}
    sample, reward = drawn("summed", RULES)
    assert reward.reward == pytest.approx(sum(follow(sample)))
    sample, reward = drawn("mixed")
    preference, harmless = (sample.scores[name].value for name in ("preference", "harmless"))
    assert reward.reward == pytest.approx(preference - 0.5 * harmless + 2 * sample.scores["reference"].logprobs.mean(), abs=1e-4)
    assert abs(preference - harmless) > 0.01
    sample, reward = drawn("fixed", RULES)
    value = sample.scores["preference"].value
    assert reward.reward == pytest.approx(math.sqrt(math.prod(follow(sample))) / (1 + math.exp(0.25 - value)), rel=1e-4)
    assert reward.constants == {"alpha": 0.5, "average": 0.25}
    sample, reward = drawn("k3")
    log_ratio = sample.scores["reference"].logprobs - sample.logprobs
    assert reward.kl == pytest.approx(np.exp(log_ratio) - 1 - log_ratio, abs=1e-5)
    assert (reward.kl >= 0).all()
    assert reward.with_kl == pytest.approx(6.0 - 0.25 * reward.kl.sum(), abs=1e-5)


@pytest.mark.parametrize(
    ("rules", "message"),
    [(["no-insults"], "weighs a rule that is not asked: 'no-threats'"), (RULES, "has no weight for the rule 'stay-on-topic'")],
)
def test_weights_and_rules_asked_must_be_the_same(client: Client, rules: list[str], message: str) -> None:
    with pytest.raises(InvalidArgument, match=f"weighed@1 {message}") as caught:
        client.generate(["x"], recipe="weighed", rules=rules)
    assert caught.value.field == "score.rules"


def test_a_wrong_file_stops_the_server_by_name(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("id: mine\nversion: 1\nform: sum\nparts:\n  p: {read: tokens, coeficient: 1.0}\n")
    with pytest.raises(Unavailable, match="exit status 2") as caught, serving(tiny_model, tmp_path / "store", recipes=file):
        pass
    assert "mine.yaml: parts.p.coeficient is unknown\nhint: known are read, head, coefficient" in caught.value.message


def test_async(server: LocalServer, client: Client) -> None:
    import asyncio

    async def run() -> tuple[list[Sample], list[ScoredItem]]:
        async with AsyncClient(server.address, timeout=60) as asynchronous:
            best = await asynchronous.generate(["one"], n=3, best=2, recipe="preference", **DRAW)
            return best, await asynchronous.score(best, recipe="preference", recipe_constants={"preference": 2.0})

    best, items = asyncio.run(run())
    assert [reward_of(sample).rank for sample in best] == [0, 1]
    assert [reward_of(item).reward for item in items] == pytest.approx([2 * reward_of(sample).reward for sample in best], abs=1e-4)
