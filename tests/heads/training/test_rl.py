"""RL without a server: rollouts to disk and back, prompts by round, rewards, guards, and the update against plain torch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from polyhead.heads.training import returns
from polyhead.heads.training.data import DataError
from polyhead.heads.training.rl.config import Algorithm, RLConfig
from polyhead.heads.training.rl.guards import Measured, why_back
from polyhead.heads.training.rl.learner import _minibatches
from polyhead.heads.training.rl.prompts import PromptPool, continue_dialogues, keep_prompts, kept_prompts, read_dialogues, read_questions
from polyhead.heads.training.rl.rewards import HeadsReward, JudgeReward, RewardError, load_judge, spread_of
from polyhead.heads.training.rl.rollout import Group, Reply, Rollout, versions_of
from polyhead.heads.training.rl.rollout_files import RolloutFolder

ASKED = [{"role": "user", "content": "Why?"}]


def reply(length: int, start: int = 0, **changes: Any) -> Reply:
    row = np.linspace(-1, 0, length, dtype=np.float32) + start
    fields: dict[str, Any] = {
        "token_ids": list(range(start, start + length)),
        "text": f"text {start}",
        **{name: row + index for index, name in enumerate(("drawn_T", "logprobs_T", "reference_T", "values_T"))},
        "versions_T": np.full(length, 3, np.int64),
        "states_TD": np.arange(length * 2, dtype=np.float32).reshape(length, 2) + start,
        "parts": {"judge": 0.1 + start},
        "is_terminated": bool(start % 2),
        "is_valid": True,
    }
    return Reply(**{**fields, **changes})


def group(*replies: Reply) -> Group:
    return Group(ASKED, "questions", [7, 8, 9], np.ones((3, 2), np.float32), list(replies))


def test_rollouts_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    folder = RolloutFolder(tmp_path, keep=2)
    rollout = Rollout([group(reply(2), reply(1, 5)), group(reply(4, 9))], num_failed=1, first_failure="it has no tokens")
    for number in (1, 2, 3):
        folder.save(rollout, number, attempt=0)
    assert folder.load(1, 0) is None  # the newest two stay
    found = folder.load(3, 0)
    assert found is not None
    assert (found.num_failed, found.first_failure) == (1, "it has no tokens")
    for ours, theirs in zip(rollout.groups, found.groups, strict=True):
        assert (ours.prompt, ours.source, ours.prompt_ids) == (theirs.prompt, theirs.source, theirs.prompt_ids)
        np.testing.assert_array_equal(ours.states_PD, theirs.states_PD)
    for a, b in zip(rollout.replies, found.replies, strict=True):
        for name in Reply.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    folder.path(3, 0).write_bytes(b"damaged")
    assert folder.load(3, 0) is None


def test_every_prompt_is_asked_before_one_is_asked_again() -> None:
    pool = PromptPool([(f"p{index}", "questions") for index in range(5)], seed=1)
    asked = [prompt for number in (1, 2, 3, 4, 5) for prompt, _ in pool.of_round(number, 2)]
    assert sorted(asked[:5]) == sorted(asked[5:]) == [f"p{index}" for index in range(5)]
    assert asked[:5] != asked[5:]
    assert [prompt for prompt, _ in pool.of_round(3, 2)] == asked[4:6]  # no round needs the one before


def test_prompts_from_files(tmp_path: Path) -> None:
    questions, lines, talks = tmp_path / "q.jsonl", tmp_path / "q.txt", tmp_path / "talks.jsonl"
    questions.write_text('{"prompt": "Why?", "chosen": "passed over"}\n{"messages": [{"role": "user", "content": "Hi"}]}\n')
    assert [prompt for prompt, _ in read_questions(questions)] == ["Why?", [{"role": "user", "content": "Hi"}]]
    questions.write_text("\ufeff" + questions.read_text())  # as some editors begin a file
    assert [prompt for prompt, _ in read_questions(questions)] == ["Why?", [{"role": "user", "content": "Hi"}]]
    lines.write_text("\ufeffWhy?\n\nWhen?\n")
    assert [prompt for prompt, _ in read_questions(lines)] == [ASKED, [{"role": "user", "content": "When?"}]]
    turns = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user", "assistant")]
    talks.write_text(f'{{"messages": {str(turns).replace(chr(39), chr(34))}}}\n')
    assert read_dialogues(talks) == [(turns[:2], "dialogues"), (turns[:4], "dialogues")]
    keep_prompts(tmp_path / "kept.jsonl", read_dialogues(talks))
    assert kept_prompts(tmp_path / "kept.jsonl") == read_dialogues(talks)
    assert kept_prompts(tmp_path / "none.jsonl") is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("q.jsonl", '{"prompt": 3}', 'line 1: "prompt" must be a text'),
        ("q.txt", "\n\n", "no questions"),
        ("talks.jsonl", '{"messages": [{"role": "assistant", "content": "a"}]}', "line 1: a dialogue must be a list of messages with at"),
    ],
)
def test_bad_prompts_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        (read_dialogues if name.startswith("talks") else read_questions)(tmp_path / name)


def test_self_play_lets_the_policy_write_the_users_turn() -> None:
    asked: list[Any] = []

    def generate(prompts: Any, **options: Any) -> list[Any]:
        asked.extend(prompts)
        return [SimpleNamespace(text=' "And now?"\nmore', error="") for _ in prompts]

    def tokenize(prompt: Any) -> list[int]:
        return [0] * sum(len(turn["content"]) for turn in prompt)

    client: Any = SimpleNamespace(generate=generate, tokenize=tokenize, trunk=lambda: SimpleNamespace(context_length=200))
    rollout = Rollout([group(reply(1, text="So.", is_valid=False), reply(1, text=" Because.")), group(reply(1, is_valid=False))])
    found = continue_dialogues(client, rollout, 5, "policy@3", seed=0, most=20)
    said = [*ASKED, {"role": "assistant", "content": "Because."}]
    assert found == [([*said, {"role": "user", "content": "And now?"}], "self-play")]
    assert [turn["role"] for turn in asked[0]] == ["user", "assistant", "user"]
    assert [turn["content"] for turn in asked[0][1:]] == ["Why?", "Because."]
    assert continue_dialogues(client, rollout, 5, "policy@3", seed=0, most=19) == []  # its last turn makes it too long
    assert len(asked) == 2
    long = Rollout([group(reply(1, text="a" * 99)), group(reply(1, text="b"))])
    assert [prompt[1]["content"] for prompt, _ in continue_dialogues(client, long, 1, "policy@3", seed=0, most=20)] == ["b"]


def test_what_the_value_head_expects_is_over_all_tokens() -> None:
    replies = [SimpleNamespace(values_T=np.array(values)) for values in ([1.0, 2.0, 3.0], [6.0])]
    assert Rollout([SimpleNamespace(replies=replies)]).mean_value == 3.0  # type: ignore[list-item]


def test_rewards() -> None:
    heads = HeadsReward(rules=("a", "b"), preference_weight=2.0, rule_weight=3.0)
    scores = {"preference": SimpleNamespace(value=4.0, present=True), "rule": SimpleNamespace(p_follow={"a": 1.0, "b": 0.5})}
    parts = heads.parts("", SimpleNamespace(scores=scores))  # type: ignore[arg-type]
    assert heads.reward(parts, spread=2.0) == 2.0 * 4.0 / 2.0 + 3.0 * 0.75
    assert spread_of([{"preference": 1.0}, {"preference": 5.0}]) == 2.0
    assert spread_of([{"preference": 1.0}]) == spread_of([{"judge": 1.0}]) == 1.0
    unfinished = {**scores, "preference": SimpleNamespace(value=0.0, present=False)}
    with pytest.raises(RewardError, match="preference leaves unfinished replies out"):
        heads.parts("", SimpleNamespace(scores=unfinished, finish_reason=SimpleNamespace(value="length")))  # type: ignore[arg-type]
    with pytest.raises(RewardError, match="must answer a finite number: nan"):
        JudgeReward(lambda prompt, text: float("nan"), "m:f").parts("", SimpleNamespace(text="t"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rule_weight must be a finite number: nan"):
        HeadsReward(rules=("a",), rule_weight=float("nan"))
    with pytest.raises(ValueError, match="has no rule to judge by"):
        HeadsReward()
    assert load_judge("math:hypot").judge is __import__("math").hypot
    wrongs = {"math": "module:function", "no_such:f": "cannot import", "math:nope": "no judge", "math:pi": "no function"}
    for wrong, message in wrongs.items():
        with pytest.raises(ValueError, match=message):
            load_judge(wrong)


def test_guards() -> None:
    config = RLConfig(kl_limit=0.3, collapse=2.0)
    first, second = Measured(1.0, 0.5, 0.0), Measured(2.0, 0.1, 0.2)
    assert why_back(Measured(-9.0, 1.0, 9.0), [], config) == ""  # nothing was trained yet
    assert why_back(Measured(1.1, 0.1, 0.3), [first, second], config) == ""
    assert "above 0.3" in why_back(Measured(2.0, 0.1, 0.31), [first], config)
    assert "the reward fell from 2.000 to 0.900" in why_back(Measured(0.9, 0.1, 0.0), [first, second], config)


def test_rewards_that_are_all_equal_have_no_deviation() -> None:
    """numpy says 1.4e-17 of 48 times 0.1: a later round would be taken back for any fall, and a preference divided by that."""
    assert returns.deviation([0.1] * 48) == 0.0
    assert returns.deviation([1.0, 5.0]) == 2.0
    assert spread_of([{"preference": 0.1}] * 48) == 1.0
    assert np.isnan(returns.explained_variance([0.0] * 48, [0.1] * 48))


def test_minibatches_hold_about_as_many_tokens_each() -> None:
    groups = [group(reply(length)) for length in (30, 1, 1, 30, 1, 27)]
    parts = list(_minibatches([5, 3, 0, 1, 2, 4], groups, 3))
    assert [each for part in parts for each in part] == [5, 3, 0, 1, 2, 4]
    sizes = [sum(groups[index].num_tokens for index in part) for part in parts]
    assert max(sizes) <= sum(sizes) / 3 + 33
    assert list(_minibatches([0], groups, 3)) == [[0]]


def test_a_sample_says_which_version_drew_each_token() -> None:
    spans = [SimpleNamespace(start=0, end=2, version=4), SimpleNamespace(start=2, end=3, version=5)]
    assert versions_of(SimpleNamespace(token_ids=[1, 2, 3], head_version=5, spans=spans)).tolist() == [4, 4, 5]  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"rounds": 0}, {"learning_rate": 0}, {"lam": 1.5}, {"kl_weight": -1.0}, {"average_decay": 1.0}])
def test_settings_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        RLConfig(**change)


def test_a2c_takes_plain_returns() -> None:
    assert (RLConfig(algorithm=Algorithm.A2C).advantage_lam, RLConfig().advantage_lam) == (1.0, 0.95)
