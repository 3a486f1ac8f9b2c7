"""Limits of a request by the caller's role, and what is left out of its answers. Checked before any model work.

The role annotator is for frontends, which show replies to people. It gets replies and what replays them, but neither log-probs nor states.
Its rewards have no KL term, and a recipe that adds a mean log-prob to the reward is refused: for a reply of one token, either number is a
token's log-prob.
"""

from __future__ import annotations

from collections.abc import Iterable

from polyhead.server.engine.work.request import Priority
from polyhead.server.engine.work.sampling import SamplingParams
from polyhead.server.rewards.recipes import KL, Read, RecipeBook
from polyhead.server.rpc.auth import Caller, Role
from polyhead.server.rpc.errors import PermissionDenied
from polyhead.server.rpc.messages.generation_requests import MAX_ARMS
from polyhead.v1 import generation_pb2, scoring_pb2, types_pb2


def check_generate(caller: Caller, message: generation_pb2.GenerateRequest, recipes: RecipeBook) -> None:
    """PermissionDenied names what is beyond the role."""
    arms = message.arms[:MAX_ARMS] or [generation_pb2.Arm()]  # more are refused, whoever asks
    _check_samples(caller, len(message.prompts) * sum(max(1, arm.n) for arm in arms), "samples")
    most = caller.caps.new_tokens
    for num_new in map(_new_tokens, arms):
        if most is not None and num_new > most:
            raise _cap_error(caller, f"samples of {most} tokens: max_new_tokens is {num_new}")
    if caller.role is Role.ANNOTATOR:
        if message.return_states:
            raise _cap_error(caller, "no boundary states: return_states")
        _check_annotator(caller, message.priority, message.score, recipes)


def check_score(caller: Caller, message: scoring_pb2.ScoreRequest, recipes: RecipeBook) -> None:
    """As for generation: an item counts as a sample."""
    _check_samples(caller, len(message.items), "items")
    if caller.role is Role.ANNOTATOR:
        _check_annotator(caller, message.priority, message.score, recipes)


def default_priority(caller: Caller) -> Priority:
    """Of a request that names none."""
    return Priority.INTERACTIVE if caller.role is Role.ANNOTATOR else Priority.BATCH


def without_logprobs(caller: Caller, message: generation_pb2.GenerateResponse) -> generation_pb2.GenerateResponse:
    """The message as this caller gets it; of the role annotator's, log-probs are left empty."""
    if caller.role is Role.ANNOTATOR:
        match message.WhichOneof("event"):
            case "piece":
                message.piece.ClearField("logprobs")
                message.piece.ClearField("sampling_logprobs")
            case "sample":
                _hide_sample_logprobs([message.sample])
            case "group":
                _hide_sample_logprobs(message.group.samples)
    return message


def hide_item_logprobs(caller: Caller, items: Iterable[scoring_pb2.ScoredItem]) -> None:
    """Remove log-probs from scored items, in place, for the role annotator."""
    if caller.role is Role.ANNOTATOR:
        for item in items:
            _hide_score_logprobs(item.scores)
            if item.HasField("reward"):
                _hide_kl(item.reward)


def _hide_sample_logprobs(samples: Iterable[generation_pb2.Sample]) -> None:
    for sample in samples:
        sample.ClearField("logprobs")
        sample.ClearField("sampling_logprobs")
        _hide_score_logprobs(sample.scores)
        if sample.HasField("reward"):
            _hide_kl(sample.reward)


def _hide_score_logprobs(scores: Iterable[types_pb2.HeadScore]) -> None:
    for score in scores:
        if score.WhichOneof("result") == "policy":
            score.policy.Clear()


def _hide_kl(reward: types_pb2.Reward) -> None:
    """KL terms are differences of log-probs."""
    for field in ("kl", "kl_estimator", "token_rewards"):
        reward.ClearField(field)
    reward.parts.pop(KL, None)
    reward.reward_with_kl = reward.reward


def _check_samples(caller: Caller, count: int, what: str) -> None:
    most = caller.caps.samples
    if most is not None and count > most:
        raise _cap_error(caller, f"{most} {what} in one request: {count}")


def _new_tokens(arm: generation_pb2.Arm) -> int:
    return arm.sampling.max_new_tokens if arm.sampling.HasField("max_new_tokens") else SamplingParams().max_new_tokens


def _check_annotator(caller: Caller, priority: types_pb2.Priority, score: types_pb2.ScoringSpec, recipes: RecipeBook) -> None:
    """A frontend's requests are interactive: it cannot fill the queue with batch work."""
    if priority == types_pb2.PRIORITY_BATCH:
        raise _cap_error(caller, "the priority interactive alone: batch")
    recipe = recipes.find(score.recipe, "score.recipe") if score.recipe else None
    if recipe is not None and any(part.read is Read.MEAN_LOGPROB for part in recipe.parts):
        raise _cap_error(caller, f"no recipe that reads log-probs: {recipe.reference}")


def _cap_error(caller: Caller, what: str) -> PermissionDenied:
    assert caller.role is not None
    hint = f"what a role may ask for is set in the tokens file, [caps.{caller.role.value}]"
    return PermissionDenied(f"the role {caller.role.value} may ask for {what}\nhint: {hint}")
