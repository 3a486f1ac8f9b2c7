"""to_batch: where the padding goes, and what becomes of scores that are not there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from polyhead.client import Sample, errors, to_batch
from polyhead.client.results.results import Served
from polyhead.client.wire import convert
from tests.client.fake_messages import make_sample


def sample(*heads: str) -> Sample:
    return convert.sample(make_sample(0, 0, 0, heads), "r", Served())


def test_prompts_pad_left_and_completions_right() -> None:
    short = dataclasses.replace(
        sample(), prompt_token_ids=[9], token_ids=[4], logprobs=np.float32([-2]), sampling_logprobs=np.float32([-3])
    )
    batch = to_batch([sample(), short], pad_id=99)
    assert batch["input_ids"].tolist() == [[10, 11, 1, 2, 3], [99, 9, 4, 99, 99]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [0, 1, 1, 0, 0]]
    assert batch["completion_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["logprobs"].tolist() == [[-0.5, -1.0, -1.5], [-2, 0, 0]]
    assert batch["sampling_logprobs"][1].tolist() == [-3, 0, 0]
    assert (batch["input_ids"].dtype, batch["logprobs"].dtype) == (np.int64, np.float32)


def test_scores_by_head() -> None:
    batch = to_batch([sample("reference", "value", "preference", "rule")])
    assert batch["reference_logprobs"].tolist() == [[-1, -2, -3]]
    assert batch["value_values"].shape == (1, 3)
    assert batch["value_bootstrap_value"].tolist() == [0.5]
    assert batch["preference_score"].tolist() == [1.0]
    assert batch["rule_p_violate.no-insults"].tolist() == [0.25]
    assert "reward" not in batch, "without a recipe there is no reward: NaN in its place went into losses"


def test_absent_scores_are_nan_never_zero() -> None:
    absent = dataclasses.replace(sample("preference").scores["preference"], present=False)  # type: ignore[call-arg]
    failed = dataclasses.replace(sample("broken").scores["broken"], head="value")
    batch = to_batch([sample("value"), dataclasses.replace(sample(), scores={"value": failed, "preference": absent})])
    assert np.isnan(batch["value_values"][1]).all()
    assert np.isnan(batch["value_bootstrap_value"][1])
    assert np.isnan(batch["preference_score"]).all()


def test_rewards_and_kl_of_a_recipe() -> None:
    aborted, first = (convert.sample(make_sample(0, 0, index, recipe="kl"), "r", Served()) for index in (0, 1))
    batch = to_batch([first, aborted])
    assert batch["kl"][0].tolist() == [0.5, 1.0, 0.0]
    assert batch["token_rewards"][0].tolist() == [-0.25, -0.5, 1.0]
    assert np.isnan(batch["kl"][1]).all()
    assert np.isnan(batch["token_rewards"][1]).all()
    assert batch["reward"][0] == 1.0
    assert np.isnan(batch["reward"][1])
    assert not {"kl", "token_rewards"} & to_batch([sample()]).keys()


def test_rewards_are_padded_as_the_log_probs_are() -> None:
    long = convert.sample(make_sample(0, 0, 1, recipe="kl"), "r", Served())
    assert long.reward is not None
    reward = dataclasses.replace(long.reward, kl=np.float32([7]), token_rewards=np.float32([8]))
    short = dataclasses.replace(
        long, token_ids=[4], logprobs=np.float32([-2]), sampling_logprobs=np.float32([-3]), reward=reward
    )
    batch = to_batch([long, short])
    assert batch["kl"][1].tolist() == [7, 0, 0]
    assert batch["token_rewards"][1].tolist() == [8, 0, 0]


def test_no_samples() -> None:
    with pytest.raises(errors.InvalidArgument, match="samples are empty"):
        to_batch([])
