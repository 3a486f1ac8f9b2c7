"""Best of n: groups ranked by a recipe's reward, and those of their samples that are returned."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from polyhead.client import Arm, Client
from polyhead.client.errors import InvalidArgument
from polyhead.client.local import LocalServer
from polyhead.client.wire import generation_requests
from polyhead.v1 import generation_pb2_grpc
from tests.e2e.recipes.rewards import DRAW, assert_ranked, reward_of
from tests.e2e.support import assert_blocks_returned, eventually, wait_until_running


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
        request = generation_requests.generate(["x"], **options)
        events = list(generation_pb2_grpc.GenerationServiceStub(channel).Generate(request, timeout=60))
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


@pytest.mark.long
def test_a_reader_that_sleeps_holds_nobody_up_and_gets_all(server: LocalServer, client: Client) -> None:
    """Megabytes of groups and states wait beside the engine, which works for others; one that leaves takes nothing along."""
    options: dict[str, Any] = {"n": 32, "best": 16, "recipe": "kl", "entropy": True, "top_logprobs": 20, "return_states": True}
    request = generation_requests.generate([f"prompt {index}" for index in range(8)], max_new_tokens=40, ignore_eos=True, **options)
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
