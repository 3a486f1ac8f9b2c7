"""What a caller's role may ask for in one request, and what of an answer it does not get. Checked before any model work.

The role annotator is for frontends: people see replies there, so replies come, with what replays them, but neither log-probs nor states.
"""

from __future__ import annotations

from collections.abc import Iterable

from polyhead.server.rpc.auth import Caller, Role
from polyhead.server.rpc.errors import PermissionDenied
from polyhead.v1 import generation_pb2, scoring_pb2, types_pb2


def check_generate(caller: Caller, message: generation_pb2.GenerateRequest) -> None:
    """PermissionDenied names what is beyond the role."""
    num_samples = len(message.prompts) * (sum(max(1, arm.n) for arm in message.arms) or 1)
    _check_samples(caller, num_samples, "samples")
    most = caller.caps.new_tokens
    for arm in message.arms:
        if most is not None and arm.sampling.max_new_tokens > most:
            raise _beyond(caller, f"samples of {most} tokens: max_new_tokens is {arm.sampling.max_new_tokens}")
    if caller.role is Role.ANNOTATOR:
        if message.return_states:
            raise _beyond(caller, "no boundary states: return_states")
        _check_priority(caller, message.priority)


def check_score(caller: Caller, message: scoring_pb2.ScoreRequest) -> None:
    """As for generation: an item counts as a sample."""
    _check_samples(caller, len(message.items), "items")
    if caller.role is Role.ANNOTATOR:
        _check_priority(caller, message.priority)


def without_logprobs(caller: Caller, message: generation_pb2.GenerateResponse) -> generation_pb2.GenerateResponse:
    """The message as this caller gets it; of the role annotator's, log-probs are left empty."""
    if caller.role is Role.ANNOTATOR:
        match message.WhichOneof("event"):
            case "piece":
                message.piece.ClearField("logprobs")
                message.piece.ClearField("sampling_logprobs")
            case "sample":
                _hide_of_samples([message.sample])
            case "group":
                _hide_of_samples(message.group.samples)
    return message


def hide_of_items(caller: Caller, items: Iterable[scoring_pb2.ScoredItem]) -> None:
    """Of scored items, in place."""
    if caller.role is Role.ANNOTATOR:
        for item in items:
            _hide_of_scores(item.scores)
            if item.HasField("reward"):
                _hide_of_reward(item.reward)


def _hide_of_samples(samples: Iterable[generation_pb2.Sample]) -> None:
    for sample in samples:
        sample.ClearField("logprobs")
        sample.ClearField("sampling_logprobs")
        _hide_of_scores(sample.scores)
        if sample.HasField("reward"):
            _hide_of_reward(sample.reward)


def _hide_of_scores(scores: Iterable[types_pb2.HeadScore]) -> None:
    for score in scores:
        if score.WhichOneof("result") == "policy":
            score.policy.Clear()


def _hide_of_reward(reward: types_pb2.Reward) -> None:
    """Per-token terms are differences of log-probs."""
    reward.ClearField("kl")
    reward.ClearField("token_rewards")


def _check_samples(caller: Caller, count: int, what: str) -> None:
    most = caller.caps.samples
    if most is not None and count > most:
        raise _beyond(caller, f"{most} {what} in one request: {count}")


def _check_priority(caller: Caller, priority: types_pb2.Priority) -> None:
    """Somebody waits in front of a page: work for it is never batch work, and a frontend cannot fill the queue of one."""
    if priority == types_pb2.PRIORITY_BATCH:
        raise _beyond(caller, "the priority interactive alone: batch")


def _beyond(caller: Caller, what: str) -> PermissionDenied:
    assert caller.role is not None
    hint = f"what a role may ask for is set in the tokens file, [caps.{caller.role.value}]"
    return PermissionDenied(f"the role {caller.role.value} may ask for {what}\nhint: {hint}")
