"""What a role may ask for in one request, and what it does not get: without a server, message by message."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyhead.server.engine.work.request import Priority
from polyhead.server.rewards.recipes import RecipeBook
from polyhead.server.rpc import caps
from polyhead.server.rpc.auth import CAPS, Caller, Caps, Role
from polyhead.server.rpc.errors import PermissionDenied
from polyhead.server.rpc.messages.generation_requests import MAX_ARMS
from polyhead.v1 import generation_pb2, scoring_pb2, types_pb2

ANNOTATOR = Caller(Role.ANNOTATOR, "pages", "", CAPS[Role.ANNOTATOR])
PROMPT = types_pb2.Prompt(text="x")
ARM = generation_pb2.Arm
RECIPES = RecipeBook()
BEYOND = [
    {"arms": [ARM(n=9), ARM(n=8)]},
    {"prompts": [PROMPT] * 17},
    {"arms": [ARM(sampling=types_pb2.Sampling(max_new_tokens=2049))]},
    {"return_states": True},
    {"priority": types_pb2.PRIORITY_BATCH},
]


@pytest.mark.parametrize("fields", BEYOND)
def test_more_than_the_role_may_ask_for_is_refused(fields: dict[str, object]) -> None:
    message = generation_pb2.GenerateRequest(**{"prompts": [PROMPT], **fields})  # type: ignore[arg-type]
    with pytest.raises(PermissionDenied, match="the role annotator"):
        caps.check_generate(ANNOTATOR, message, RECIPES)
    caps.check_generate(Caller(Role.WORKER), message, RECIPES)


def test_as_much_as_the_role_may_ask_for_passes() -> None:
    arms = [ARM(n=16, sampling=types_pb2.Sampling(max_new_tokens=2048))]
    message = generation_pb2.GenerateRequest(prompts=[PROMPT], arms=arms, priority=types_pb2.PRIORITY_INTERACTIVE)
    caps.check_generate(ANNOTATOR, message, RECIPES)
    caps.check_score(ANNOTATOR, scoring_pb2.ScoreRequest(items=[scoring_pb2.ScoreItem()] * 16), RECIPES)
    with pytest.raises(PermissionDenied, match="16 items"):
        caps.check_score(ANNOTATOR, scoring_pb2.ScoreRequest(items=[scoring_pb2.ScoreItem()] * 17), RECIPES)


def test_the_default_of_max_new_tokens_counts_against_the_cap() -> None:
    """It passed a cap below it, in an arm that does not say and in a request without arms."""
    caller = Caller(Role.ANNOTATOR, "pages", "", Caps(samples=16, new_tokens=100))
    for arms in ([], [ARM()], [ARM(sampling=types_pb2.Sampling(max_new_tokens=100)), ARM(n=2)]):
        with pytest.raises(PermissionDenied, match="samples of 100 tokens: max_new_tokens is 128"):
            caps.check_generate(caller, generation_pb2.GenerateRequest(prompts=[PROMPT], arms=arms), RECIPES)


def test_a_message_of_many_arms_is_not_gone_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two million empty arms in four megabytes kept the event loop for a second, whoever sent them."""
    seen: list[generation_pb2.Arm] = []
    monkeypatch.setattr(caps, "_new_tokens", lambda arm: seen.append(arm) or 1)
    caps.check_generate(Caller(Role.WORKER), generation_pb2.GenerateRequest(prompts=[PROMPT], arms=[ARM()] * 1000), RECIPES)
    assert len(seen) == MAX_ARMS


def test_work_for_a_page_is_interactive_unless_it_says_otherwise() -> None:
    """It went into the queue of batch work, which the role may not ask for."""
    assert [caps.default_priority(Caller(role)) for role in Role] == [Priority.INTERACTIVE] + 4 * [Priority.BATCH]


def test_a_recipe_that_adds_log_probs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fluent.yaml"
    part = "{read: mean_logprob, head: reference, coefficient: 1.0}"
    path.write_text(f"id: fluent\nversion: 1\nform: sum\nparts:\n  fluency: {part}\n")
    recipes, score = RecipeBook([path]), types_pb2.ScoringSpec(recipe="fluent")
    generate = generation_pb2.GenerateRequest(prompts=[PROMPT], score=score)
    with pytest.raises(PermissionDenied, match="no recipe that reads log-probs: fluent@1"):
        caps.check_generate(ANNOTATOR, generate, recipes)
    with pytest.raises(PermissionDenied, match="no recipe that reads log-probs: fluent@1"):
        caps.check_score(ANNOTATOR, scoring_pb2.ScoreRequest(score=score), recipes)
    caps.check_generate(Caller(Role.WORKER), generate, recipes)


def test_a_reward_comes_as_if_its_recipe_had_no_kl_term() -> None:
    """The sum of the terms, and the reward with it, told the log-prob of a reply of one token."""
    reward = types_pb2.Reward(reward=2.0, reward_with_kl=1.5, parts={"preference": 2.0, "kl": 10.0}, kl=[10.0], kl_estimator="k1")
    item = scoring_pb2.ScoredItem(reward=reward)
    caps.hide_item_logprobs(ANNOTATOR, [item])
    assert item.reward == types_pb2.Reward(reward=2.0, reward_with_kl=2.0, parts={"preference": 2.0})


def test_log_probs_are_left_empty_and_the_rest_stays() -> None:
    """In pieces, samples and groups, of policy scores and of a reward's terms; a reward that is not there does not appear."""
    score = types_pb2.HeadScore(head="reference", policy=types_pb2.PolicyScore(logprobs=[1.0]))
    sample = generation_pb2.Sample(token_ids=[3], logprobs=[1.0], sampling_logprobs=[1.0], scores=[score], sample_seed=7)
    sample.reward.kl.append(1.0)
    plain = generation_pb2.Sample(token_ids=[3], logprobs=[1.0])
    for event in (
        generation_pb2.GenerateResponse(piece=generation_pb2.Piece(token_ids=[3], logprobs=[1.0], sampling_logprobs=[1.0])),
        generation_pb2.GenerateResponse(sample=sample),
        generation_pb2.GenerateResponse(group=generation_pb2.SampleGroup(samples=[sample, plain])),
    ):
        worker = generation_pb2.GenerateResponse.FromString(event.SerializeToString())
        assert "logprobs" in str(caps.without_logprobs(Caller(Role.WORKER), worker))
        shown = caps.without_logprobs(ANNOTATOR, event)
        assert "logprobs" not in str(shown)
        assert "kl" not in str(shown)
        assert "token_ids: 3" in str(shown)
    assert not caps.without_logprobs(ANNOTATOR, generation_pb2.GenerateResponse(sample=plain)).sample.HasField("reward")
