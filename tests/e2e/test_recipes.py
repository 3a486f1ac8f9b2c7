"""Recipes and best of n as a worker asks for them: one call, every number worked out again from the parts that came with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from polyhead.client import Arm, AsyncClient, Client, Reward, Sample, ScoredItem, to_batch
from polyhead.client.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from polyhead.client.local import LocalServer
from polyhead.client.wire import requests
from polyhead.v1 import generation_pb2_grpc
from tests.e2e.support import MODEL_WORK, WIDTH, assert_blocks_returned, constant_policy, eventually, serving, wait_until_running
from tests.e2e.tiny import EOS, VOCABULARY

RULES = ["no-insults", "stay-on-topic", "no-threats"]
DRAW: dict[str, Any] = {"seed": 5, "max_new_tokens": 12}
RECIPES = {
    "weighed": "form: sum\nparts:\n  rules: {read: rules, head: rule, aggregate: weights, coefficient: 2.0,"
    " weights: {no-insults: 3.0, no-threats: -1.0}}\n",
    "summed": "form: sum\nparts:\n  rules: {read: rules, head: rule, aggregate: sum, coefficient: 1.0}\n",
    "mixed": "form: sum\nparts:\n  first: {read: preference, head: preference, coefficient: 1.0}\n"
    "  second: {read: preference, head: harmless, coefficient: -0.5}\n  likely: {read: mean_logprob, head: reference, coefficient: 2.0}\n",
    "fixed": "form: rerank\nparts:\n  preference: {read: preference, head: preference}\n  rules: {read: rules, head: rule}\n"
    "alpha: 0.5\naverage: 0.25\n",
    "finished": "form: sum\nparts:\n  preference: {read: preference, head: strict, coefficient: 1.0}\n",
    "ghostly": "form: sum\nparts:\n  preference: {read: preference, head: ghost, coefficient: 1.0}\n",
    "k3": "form: sum\nparts:\n  tokens: {read: tokens, coefficient: 0.5}\n"
    "kl: {reference: reference, policy: policy, coefficient: 0.25, estimator: k3}\n",
}


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("recipes")
    flags = []
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(f"id: {name}\nversion: 1\n{text}")
        flags += ["--recipes", str(folder / f"{name}.yaml")]
    with serving(tiny_model, folder / "store", *flags) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[Client]:
    """A policy beside its reference; three preference models, `strict` leaves unfinished samples out; policies of one token each."""
    with Client(server.address, timeout=60) as opened:
        preference = opened.push_head("preference", scalar(opened, 1), kind="preference", bias=0.25)
        opened.activate(
            {
                "policy": opened.push_head("policy", moved_policy(opened), kind="policy"),
                "preference": preference,
                "harmless": opened.push_head("harmless", scalar(opened, 2), kind="preference"),
                "strict": opened.copy_head(f"preference@{preference}", "strict", unfinished="omit"),
                "lines": opened.push_head("lines", constant_policy(opened, VOCABULARY["Ċ"]), kind="policy"),
                "eos": opened.push_head("eos", constant_policy(opened, EOS), kind="policy"),
            }
        )
        yield opened
        assert_blocks_returned(opened)


def scalar(client: Client, seed: int) -> dict[str, np.ndarray]:
    tensors = {name: np.array(value) for name, value in client.pull_head("preference@1").items()}
    return {**tensors, "score.weight": np.random.default_rng(seed).normal(size=(1, WIDTH)).astype(np.float32)}


def moved_policy(client: Client) -> dict[str, np.ndarray]:
    """Near enough to the reference that both know what the other says, far enough that a KL can be seen."""
    tensors = {name: np.array(value) for name, value in client.pull_head("reference@1").items()}
    noise = np.random.default_rng(0).normal(size=tensors["lm_head.weight"].shape) * 0.05
    return {**tensors, "lm_head.weight": (tensors["lm_head.weight"] + noise).astype(np.float32)}


def follow(sample: Sample | ScoredItem) -> list[float]:
    return list(sample.scores["rule"].p_follow.values())


def reward_of(sample: Sample | ScoredItem) -> Reward:
    assert sample.reward is not None
    assert not sample.reward.error
    return sample.reward


def assert_ranked(samples: Sequence[Sample | ScoredItem]) -> None:
    """Rank 0 has the highest reward; equal rewards stand in their order."""
    order = sorted(range(len(samples)), key=lambda index: -reward_of(samples[index]).reward)
    assert [reward_of(samples[index]).rank for index in order] == list(range(len(samples)))


# the shipped recipes


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


# files of one's own


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


# best of n


def test_groups_are_ranked_and_the_best_and_median_are_chosen(client: Client) -> None:
    """Rejection sampling: 5 drawn, the best and the median returned, the ranking of all five with them."""
    options: dict[str, Any] = {"n": 5, "recipe": "preference", **DRAW}
    groups = client.generate(["one", "two"], delivery="groups", **options)
    chosen = client.generate(["one", "two"], best=2, median=True, **options)
    assert [sample.prompt_index for sample in chosen] == [0, 0, 0, 1, 1, 1]
    for prompt_index in (0, 1):
        group = [sample for sample in groups if sample.prompt_index == prompt_index]
        assert [sample.sample_index for sample in group] == [0, 1, 2, 3, 4]
        assert_ranked(group)
        ranked = sorted(group, key=lambda sample: reward_of(sample).rank or 0)
        assert [place.sample_index for place in group[0].ranking] == [sample.sample_index for sample in ranked]
        assert [place.reward for place in group[0].ranking] == [reward_of(sample).reward for sample in ranked]
        best = [sample for sample in chosen if sample.prompt_index == prompt_index]
        assert [sample.token_ids for sample in best] == [ranked[place].token_ids for place in (0, 1, 2)]
        assert [reward_of(sample).rank for sample in best] == [0, 1, 2]
        assert [place.sample_index for place in best[0].ranking] == [sample.sample_index for sample in ranked]


def test_the_median_lies_in_the_middle_and_comes_once(client: Client) -> None:
    options: dict[str, Any] = {"n": 7, "recipe": "preference", **DRAW}
    chosen = client.generate(["one"], best=1, median=True, **options)
    assert [reward_of(sample).rank for sample in chosen] == [0, 3]
    assert len(client.generate(["one"], best=4, median=True, **options)) == 4
    assert len(client.generate(["one"], best=7, **options)) == 7


def test_ties_stand_by_arm_then_sample_and_samples_without_a_reward_last(client: Client) -> None:
    """`strict` leaves unfinished samples out; `eos` ends at once, so that its two samples are equal."""
    arms = [Arm("policy", 2), Arm("eos", 2)]
    group = client.generate(["x"], arms=arms, delivery="groups", recipe="finished", **DRAW, stop_token_ids=[])
    without = [sample for sample in group if sample.reward and sample.reward.error]
    assert [(place.arm_index, place.sample_index) for place in group[0].ranking] == [(1, 0), (1, 1), (0, 0), (0, 1)]
    assert [sample.arm_index for sample in without] == [0, 0]
    for sample in without:
        assert sample.reward is not None
        assert "strict leaves out samples that did not end by themselves" in sample.reward.error
        assert math.isnan(sample.reward.reward)
    assert [math.isnan(place.reward) for place in group[0].ranking] == [False, False, True, True]
    best, = client.generate(["x"], arms=arms, best=1, median=True, recipe="finished", **DRAW)  # fmt: skip
    assert (best.arm_index, best.sample_index) == (1, 0)


def test_the_best_bring_their_states_and_the_others_none(server: LocalServer, client: Client) -> None:
    options: dict[str, Any] = {"n": 4, "best": 2, "recipe": "preference", "return_states": True, **DRAW}
    chosen = client.generate(["x"], **options)
    assert len(chosen) == 2
    with grpc.insecure_channel(server.address) as channel:
        events = list(generation_pb2_grpc.GenerationServiceStub(channel).Generate(requests.generate(["x"], **options), timeout=60))
    assert [event.states.sample_index for event in events if event.HasField("states")] == [sample.sample_index for sample in chosen]
    for sample in chosen:
        assert sample.states is not None
        assert len(sample.states) == len(sample.prompt_token_ids) + len(sample.token_ids)


def test_a_group_counts_only_what_is_returned(client: Client) -> None:
    """64 samples with 20 log-probs a token fit no message; the best of them does."""
    options: dict[str, Any] = {"head": "eos", "n": 64, "max_new_tokens": 900, "recipe": "kl", "top_logprobs": 20}
    with pytest.raises(InvalidArgument) as caught:
        client.generate(["x"], delivery="groups", **options)
    assert caught.value.field == "delivery"
    with pytest.raises(InvalidArgument) as caught:
        client.generate(["x"], best=63, **options)
    assert caught.value.field == "select"
    [best] = client.generate(["x"], best=1, **options)
    assert len(best.ranking) == 64


def test_samples_ended_by_a_swap_have_no_reward(client: Client) -> None:
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(
            client.generate, ["x"], n=3, best=2, on_swap="abort", recipe="preference", max_new_tokens=900, ignore_eos=True
        )
        wait_until_running(client)
        client.activate({"value": 1})
        partial = running.result()
    assert [sample.finish_reason.value for sample in partial] == ["aborted", "aborted"]
    for sample in partial:
        assert sample.reward is not None
        assert "was activated" in sample.reward.error
        assert math.isnan(sample.reward.reward)
    assert len(partial[0].ranking) == 3


def test_the_best_of_samples_that_follow_swaps_have_rewards_of_what_drew_them(client: Client) -> None:
    """The KL of a token is that of the version that drew it; preference and reference stay those that the request began with."""
    first = client.status().active["policy"]
    options: dict[str, Any] = {"n": 8, "max_new_tokens": 700, "ignore_eos": True, "recipe": "kl", "score": ["policy"], "seed": 3}
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(client.generate, ["x", "y"], best=2, median=True, on_swap="follow", **options)
        wait_until_running(client)
        for change in ({"policy": 1}, {"policy": first, "preference": 1, "reference": 1}, {"policy": 1, "preference": 2}):
            drawn = client.status().counters["generated_tokens"]
            eventually(lambda drawn=drawn: client.status().counters["generated_tokens"] >= drawn + 400)  # type: ignore[misc]
            client.activate(change)
        chosen = running.result(60)
    client.activate({"policy": first, "preference": 2})
    assert [sample.prompt_index for sample in chosen] == [0, 0, 0, 1, 1, 1]
    assert {span.version for sample in chosen for span in sample.spans} == {1, first}
    for sample in chosen:
        reward, reference = reward_of(sample), sample.scores["reference"]
        assert sample.finish_reason == "length"
        assert len(sample.spans) > 1
        assert np.allclose(reward.kl, sample.logprobs - reference.logprobs, atol=1e-5)
        assert reward.reward == pytest.approx(sample.scores["preference"].value, abs=1e-5)
        assert sample.scores["preference"].version == 2
        assert sample.scores["policy"].version == first
        assert len(sample.ranking) == 8
        cold = client.score([sample], heads=["policy@1", f"policy@{first}"], cache_salt="cold")[0]
        for span in sample.spans:
            said = cold.scores[f"policy@{span.version}"].logprobs
            assert np.abs(sample.logprobs - said)[span.start : span.end].max() < 1e-4
    assert [reward_of(sample).rank for sample in chosen] == [0, 1, 3] * 2


def test_a_reader_that_sleeps_holds_nobody_up_and_gets_all(server: LocalServer, client: Client) -> None:
    """Megabytes of groups and states wait beside the engine, which works for others; one that leaves takes nothing along."""
    options: dict[str, Any] = {"n": 32, "best": 16, "recipe": "kl", "entropy": True, "top_logprobs": 20, "return_states": True}
    request = requests.generate([f"prompt {index}" for index in range(8)], max_new_tokens=40, ignore_eos=True, **options)
    with grpc.insecure_channel(server.address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        slow, leaving = stub.Generate(request, timeout=120), stub.Generate(request, timeout=120)
        assert next(slow).HasField("accepted")
        assert next(leaving).HasField("accepted")
        assert len(client.generate(["others"], max_new_tokens=5, ignore_eos=True)[0].token_ids) == 5
        eventually(lambda: client.status().num_running == 0, within_s=60, what="an engine that has done what nobody reads yet")
        assert_blocks_returned(client)
        leaving.cancel()
        groups, states, num_bytes = 0, 0, 0
        for event in slow:
            groups += event.HasField("group")
            states += event.HasField("states")
            num_bytes += event.ByteSize()
        assert (groups, states) == (8, 128)
        assert num_bytes > 1 << 19
    assert len(client.generate(["others"], max_new_tokens=5, ignore_eos=True)[0].token_ids) == 5


# Score


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


# which head a recipe reads


def test_a_pinned_version_stands_in_for_the_recipes_head(client: Client) -> None:
    [sample] = client.generate(["x"], score=["preference@1"], recipe="preference", **DRAW)
    assert list(sample.scores) == ["preference@1"]
    assert reward_of(sample).reward == sample.scores["preference@1"].value == 0.0  # untrained: zeros
    [sample] = client.generate(["x"], score=["preference@1", "preference"], recipe="preference", **DRAW)
    assert reward_of(sample).reward == sample.scores["preference"].value != 0.0


def test_a_head_that_does_not_fit_is_refused(client: Client) -> None:
    odd = client.copy_head("policy@1", "preference", kind="policy")
    with pytest.raises(InvalidArgument, match="reads preference@3 as a preference head; it is a policy head") as caught:
        client.generate(["x"], score=["value", f"preference@{odd}"], recipe="preference")
    assert caught.value.field == "score.heads[1]"
    with pytest.raises(InvalidArgument, match="several versions are named: preference@1, preference@2") as caught:
        client.generate(["x"], score=["preference@1", "preference@2"], recipe="preference")
    assert caught.value.field == "score.heads"
    with pytest.raises(NotFound):
        client.generate(["x"], score=["preference@99"], recipe="preference")


def test_a_recipe_whose_head_is_gone_or_of_another_kind_says_so(client: Client) -> None:
    active = client.status().active
    client.activate({"harmless": client.copy_head("policy@1", "harmless", kind="policy")})
    with pytest.raises(FailedPrecondition, match="mixed@1 reads harmless as a preference head; it is a policy head") as caught:
        client.generate(["x"], recipe="mixed")
    assert caught.value.field == "score.recipe"
    client.activate({"harmless": active["harmless"]})


def test_a_recipe_whose_head_was_never_there_is_refused_before_work(client: Client) -> None:
    """In every shape of call; a stored version serves it when it is named, and an active one until it is rolled back."""
    calls: list[Callable[[], Any]] = [
        lambda: client.generate(["x"], recipe="ghostly"),
        lambda: client.generate(["x"], n=4, best=1, recipe="ghostly"),
        lambda: list(client.stream("x", recipe="ghostly")),
        lambda: client.score([("x", "y")], recipe="ghostly"),
    ]

    def assert_refused() -> None:
        before = [client.status().counters[counter] for counter in MODEL_WORK]
        for run in calls:
            wanted = r"ghostly@1 reads a head that is not there: .*'ghost'\nhint: active are .*\nhint: activate"
            with pytest.raises(FailedPrecondition, match=wanted) as caught:
                run()
            assert caught.value.field == "score.recipe"
        assert [client.status().counters[counter] for counter in MODEL_WORK] == before

    assert_refused()
    version = client.copy_head("preference", "ghost")
    assert_refused()
    reward = reward_of(client.generate(["x"], score=[f"ghost@{version}"], recipe="ghostly", **DRAW)[0]).reward
    client.activate({"ghost": version})
    assert reward_of(client.generate(["x"], recipe="ghostly", **DRAW)[0]).reward == reward
    client.rollback()
    assert_refused()


def test_the_heads_that_a_recipe_adds_count(client: Client) -> None:
    names = [f"copy-{index}" for index in range(15)]
    for name in names:
        client.copy_head("value@1", name)
    pinned = [f"{name}@1" for name in names]
    assert len(client.generate(["x"], score=pinned, recipe="preference", max_new_tokens=1)[0].scores) == 16
    with pytest.raises(InvalidArgument, match="too many heads: 17, with those that the recipe reads") as caught:
        client.generate(["x"], score=pinned, recipe="kl")
    assert caught.value.field == "score.heads"


# distributions


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


# the asynchronous client


def test_async(server: LocalServer, client: Client) -> None:
    import asyncio

    async def run() -> tuple[list[Sample], list[ScoredItem]]:
        async with AsyncClient(server.address, timeout=60) as asynchronous:
            best = await asynchronous.generate(["one"], n=3, best=2, recipe="preference", **DRAW)
            return best, await asynchronous.score(best, recipe="preference", recipe_constants={"preference": 2.0})

    best, items = asyncio.run(run())
    assert [reward_of(sample).rank for sample in best] == [0, 1]
    assert [reward_of(item).reward for item in items] == pytest.approx([2 * reward_of(sample).reward for sample in best], abs=1e-4)
