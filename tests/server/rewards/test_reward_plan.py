"""Rewards from hand-made scores: each part against numbers worked out by hand, and what becomes of samples that lack one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from polyhead.server.engine.schedule.scorer import HeadResult, PolicyResult, PreferenceResult, RuleResult
from polyhead.server.engine.work.live import ServedHead
from polyhead.server.engine.work.request import Request, Sample
from polyhead.server.engine.work.sampling import FinishReason, SamplingParams
from polyhead.server.engine.work.sequence import TokenSequence
from polyhead.server.rewards import compose as compose_module
from polyhead.server.rewards.compose import Reward, RewardPlan, Selection, choose, compose, ranking
from polyhead.server.rewards.recipes import Recipe, RecipeBook, read_recipe
from polyhead.server.text.replies import ReplyCheck

VALID = ReplyCheck(True, (), 0)
HEAD = cast(ServedHead, None)  # no formula looks at it


def policy(*logprobs: float) -> PolicyResult:
    empty = np.zeros(0, np.float32)
    return PolicyResult(np.float32(logprobs), empty, empty, empty, empty)


def preference(raw: float, bias: float = 0.0, is_present: bool = True) -> PreferenceResult:
    return PreferenceResult(raw, bias, is_present, 0)


def rules(**p_violate: float) -> tuple[RuleResult, ...]:
    return tuple(RuleResult(rule_id, p, 1.0) for rule_id, p in p_violate.items())


class Samples:
    """Finished samples whose scores are given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.results: dict[Sample, list[HeadResult]] = {}
        monkeypatch.setattr(compose_module, "results", lambda sample: self.results[sample])

    def add(self, num_tokens: int = 3, reason: FinishReason = FinishReason.EOS, **scores: Any) -> Sample:
        """A score that is a text is the error of a head that failed."""
        request = cast(Request, None)
        is_given = reason is FinishReason.GIVEN
        sample = Sample(request, 0, 0, 0, [1], TokenSequence([1]), SamplingParams(), head_name="" if is_given else "policy")
        sample.completion, sample.finish_reason = [5] * num_tokens, reason
        sample.logprobs = [-1.0] * num_tokens
        self.results[sample] = [
            HeadResult(name, HEAD, None, score) if isinstance(score, str) else HeadResult(name, HEAD, score)
            for name, score in scores.items()
        ]
        return sample


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> Samples:
    return Samples(monkeypatch)


def plan(recipe: Recipe | str, constants: Mapping[str, float] | None = None, heads: Mapping[str, str] | None = None) -> RewardPlan:
    found = RecipeBook().find(recipe, "recipe") if isinstance(recipe, str) else recipe
    names = {head: head for head in ("policy", "reference", "preference", "rule")}
    return RewardPlan(found, {**found.constants, **(constants or {})}, {**names, **(heads or {})})


def mine(folder: Path, text: str) -> Recipe:
    file = folder / "mine.yaml"
    file.write_text("id: mine\nversion: 1\n" + text)
    return read_recipe(file)


def assert_none(reward: Reward, *, because: str) -> None:
    assert because in reward.error
    assert math.isnan(reward.reward)
    assert math.isnan(reward.with_kl)
    assert not len(reward.token_rewards)


def test_sparrow_by_hand(samples: Samples) -> None:
    """1.5 - 0.5 + (0.75 + 0.25) / 2 - 0.001 * 4 - 0.01 * 3 - 1 = 0.466."""
    sample = samples.add(4, preference=preference(1.5, 0.5), rule=rules(a=0.25, b=0.75))
    [reward] = compose(plan("sparrow"), [sample], [ReplyCheck(False, ("not_terminated",), 3)])
    assert reward.parts == {"preference": 1.0, "rules": 0.5, "tokens": 4.0, "newlines": 3.0, "invalid": 1.0}
    assert reward.reward == reward.with_kl == pytest.approx(0.466)
    assert (len(reward.kl), len(reward.token_rewards), reward.error) == (0, 0, "")


@pytest.mark.parametrize(
    ("aggregate", "by_hand"), [("sum", 1.0), ("mean", 0.5), ("weights, weights: {a: 2.0, b: -1.0}", 2 * 0.75 - 0.25)]
)
def test_rules_are_summed_averaged_or_weighed(samples: Samples, tmp_path: Path, aggregate: str, by_hand: float) -> None:
    recipe = mine(tmp_path, f"form: sum\nparts:\n  follows: {{read: rules, head: rule, coefficient: 10.0, aggregate: {aggregate}}}\n")
    [reward] = compose(plan(recipe), [samples.add(rule=rules(a=0.25, b=0.75))], [VALID])
    assert reward.parts == {"follows": pytest.approx(by_hand)}
    assert reward.reward == pytest.approx(10 * by_hand)


def test_a_mix_of_two_preferences_and_a_likelihood(samples: Samples, tmp_path: Path) -> None:
    text = "".join(f"  {head}: {{read: preference, head: {head}, coefficient: {weight}}}\n" for head, weight in (("a", 1.0), ("b", -0.5)))
    recipe = mine(tmp_path, f"form: sum\nparts:\n{text}  likely: {{read: mean_logprob, head: reference, coefficient: 2.0}}\n")
    sample = samples.add(a=preference(3.0, 1.0), b=preference(4.0), reference=policy(-1.0, -2.0, -6.0))
    [reward] = compose(plan(recipe, heads={"a": "a", "b": "b"}), [sample], [VALID])
    assert reward.parts == {"a": 2.0, "b": 4.0, "likely": -3.0}
    assert reward.reward == pytest.approx(2.0 - 2.0 - 6.0)


def test_rerank_averages_over_the_samples_of_the_prompt(samples: Samples) -> None:
    """AVG = (ln 3 + 0 - ln 3) / 3 = 0: sigmoid gives 3/4, 1/2, 1/4."""
    scores = ((math.log(3), 0.5), (0.0, 0.0), (-math.log(3), 0.0))
    group = [samples.add(preference=preference(raw), rule=rules(a=p, b=0.0)) for raw, p in scores]
    found = compose(plan("rerank"), group, [VALID] * 3)
    assert [reward.reward for reward in found] == pytest.approx([3 / 8, 1 / 2, 1 / 4])
    assert [reward.parts["average"] for reward in found] == pytest.approx([0.0] * 3, abs=1e-9)
    assert [reward.parts["rules"] for reward in found] == [0.5, 1.0, 1.0]
    assert ranking(found) == [1, 0, 2]


def test_rerank_with_a_stored_average_looks_at_nobody_else(samples: Samples, tmp_path: Path) -> None:
    parts = "parts:\n  r: {read: preference, head: preference}\n  f: {read: rules, head: rule}\n"
    recipe = mine(tmp_path, f"form: rerank\n{parts}alpha: 2.0\naverage: 1.0\n")
    sample = samples.add(preference=preference(1.0 + math.log(3)), rule=rules(a=0.5))
    other = samples.add(preference=preference(9.0), rule=rules(a=0.5))
    for group in ([sample], [sample, other]):
        assert compose(plan(recipe), group, [VALID] * len(group))[0].reward == pytest.approx(0.75 * 0.25)
    [moved] = compose(plan(recipe, {"average": 1.0 + 2 * math.log(3), "alpha": 1.0}), [sample], [VALID])
    assert (moved.reward, moved.parts["average"]) == (pytest.approx(0.25 * 0.5), pytest.approx(1.0 + 2 * math.log(3)))


def test_ranks_follow_where_rewards_underflow(samples: Samples) -> None:
    certain = samples.add(preference=preference(5.0), rule=rules(a=1.0))
    nearly = [samples.add(preference=preference(raw), rule=rules(**{f"r{i}": 1 - 1e-13 for i in range(40)})) for raw in (0.0, 1.0)]
    found = compose(plan("rerank"), [certain, *nearly], [VALID] * 3)
    assert [reward.reward for reward in found] == [0.0, 0.0, 0.0]
    assert ranking(found) == [2, 1, 0]
    assert not any(reward.error for reward in found)


@pytest.mark.parametrize(("reason", "kl"), [(FinishReason.EOS, [-0.5, 1.0, 0.0]), (FinishReason.GIVEN, [-2.5, 1.0, -2.0])])
def test_kl_takes_a_drawn_samples_own_logprobs_and_a_given_ones_policy(samples: Samples, reason: FinishReason, kl: list[float]) -> None:
    """Own log-probs are -1 each; kl = log-prob - reference's; 2 - 0.1 * sum; -0.1 * kl_t, and 2 on the last token."""
    sample = samples.add(3, reason, preference=preference(2.0), policy=policy(-3.0, -1.0, -3.0), reference=policy(-0.5, -2.0, -1.0))
    [reward] = compose(plan("kl", {"kl_coefficient": 0.1}), [sample], [VALID])
    assert reward.kl.tolist() == kl
    assert reward.parts == {"preference": 2.0, "kl": sum(kl)}
    assert (reward.reward, reward.with_kl) == (2.0, pytest.approx(2.0 - 0.1 * sum(kl)))
    assert reward.token_rewards == pytest.approx([-0.1 * kl[0], -0.1 * kl[1], 2.0 - 0.1 * kl[2]])


@pytest.mark.parametrize("weights", [{}, {"preference": 0.0}, {"rules": 0.0}, {"rules": 4.0, "kl_coefficient": 0.1}])
def test_preference_rules_and_kl_in_one_reward(samples: Samples, weights: dict[str, float]) -> None:
    """r = 1.5 - 0.5; AGG = (0.75 + 0.25) / 2; kl = -1 - log-prob of the reference; the three arms of an RL round by constants alone."""
    by = {"preference": 1.0, "rules": 1.0, "kl_coefficient": 0.05} | weights
    sample = samples.add(2, preference=preference(1.5, 0.5), rule=rules(a=0.25, b=0.75), reference=policy(-2.0, -0.5))
    [reward] = compose(plan("rlhf", weights), [sample], [VALID])
    assert reward.parts == {"preference": 1.0, "rules": 0.5, "kl": 0.5}
    assert reward.reward == pytest.approx(by["preference"] * 1.0 + by["rules"] * 0.5)
    assert reward.with_kl == pytest.approx(reward.reward - by["kl_coefficient"] * 0.5)
    assert reward.token_rewards == pytest.approx([-by["kl_coefficient"], reward.reward + by["kl_coefficient"] * 0.5])


def test_sparrows_reward_with_kl_is_sparrows_reward(samples: Samples) -> None:
    sample = samples.add(2, preference=preference(1.5, 0.5), rule=rules(a=0.25, b=0.75), reference=policy(-2.0, -0.5))
    [plain], [with_kl] = (compose(plan(name), [sample], [ReplyCheck(False, ("empty",), 3)]) for name in ("sparrow", "sparrow-kl"))
    assert with_kl.reward == plain.reward
    assert with_kl.with_kl == pytest.approx(plain.reward - 0.05 * 0.5)


@pytest.mark.parametrize(("estimator", "first"), [("k1", -0.5), ("k2", 0.125), ("k3", math.exp(0.5) - 1 - 0.5)])
def test_any_recipe_takes_any_estimator(samples: Samples, tmp_path: Path, estimator: str, first: float) -> None:
    kl = f"kl: {{reference: reference, policy: policy, coefficient: 1.0, estimator: {estimator}}}\n"
    recipe = mine(tmp_path, "form: sum\nparts:\n  tokens: {read: tokens, coefficient: 1.0}\n" + kl)
    [reward] = compose(plan(recipe), [samples.add(2, reference=policy(-0.5, -1.0))], [VALID])
    assert reward.kl == pytest.approx([first, 0.0])
    assert (reward.reward, reward.with_kl) == (2.0, pytest.approx(2.0 - first))


def test_a_head_that_failed_or_left_a_sample_out_gives_no_reward_and_harms_no_other(samples: Samples) -> None:
    failed, left_out = "preference@3 gave a number that is not finite", preference(0.0, is_present=False)
    group = [samples.add(rule=rules(a=0.5), **{"preference@3": each}) for each in (preference(1.0), failed, left_out, preference(3.0))]
    found = compose(plan("rerank", heads={"preference": "preference@3"}), group, [VALID] * 4)
    assert_none(found[1], because="preference@3 gave a number that is not finite")
    assert_none(found[2], because="preference@3 leaves out samples that did not end by themselves")
    assert found[1].parts == found[2].parts == {"rules": 0.5}
    assert found[0].parts["average"] == 2.0  # of the two that have a preference
    assert ranking(found) == [3, 0, 1, 2]


@pytest.mark.parametrize("reason", [FinishReason.ABORTED, FinishReason.FAILED])
def test_a_sample_that_did_not_come_to_its_end_has_no_reward(samples: Samples, reason: FinishReason) -> None:
    sample = samples.add(reason=reason)
    sample.error = "generation 4 was activated"
    [reward] = compose(plan("preference"), [sample], [VALID])
    assert_none(reward, because="generation 4 was activated")
    assert reward.parts == {}


def test_numbers_that_no_float_holds_are_said(samples: Samples, tmp_path: Path) -> None:
    huge = samples.add(preference=preference(1e38))
    assert_none(compose(plan("preference", {"preference": 1e6}), [huge], [VALID])[0], because="too large")
    kl = "kl: {reference: reference, policy: policy, coefficient: 0.1, estimator: k3}\n"
    recipe = mine(tmp_path, "form: sum\nparts:\n  tokens: {read: tokens, coefficient: 1.0}\n" + kl)
    far = samples.add(1, FinishReason.GIVEN, policy=policy(-900.0), reference=policy(-1.0))
    [reward] = compose(plan(recipe), [far], [VALID])
    assert_none(reward, because="too large")
    assert (len(reward.kl), reward.parts) == (0, {"tokens": 1.0})


def test_the_best_and_the_median_of_those_with_a_reward() -> None:
    def group(*keys: float) -> list[Reward]:
        return [Reward(rank_key=key, error="none" if math.isnan(key) else "") for key in keys]

    seventeen = group(*range(17))
    assert choose(Selection(1, False), seventeen) == [16]
    assert choose(Selection(1, True), seventeen) == [16, 8]
    assert choose(Selection(9, True), seventeen) == [16, 15, 14, 13, 12, 11, 10, 9, 8]
    assert choose(Selection(1, True), group(1, math.nan, math.nan, 3, 2)) == [3, 4]
    assert choose(Selection(2, True), group(math.nan, math.nan)) == [0, 1]
    assert choose(Selection(1, True), group(5.0)) == [0]
