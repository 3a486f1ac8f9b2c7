"""The only place where the client's protobuf messages become its dataclasses. Knows nothing of calls.

Message and dataclass name their fields alike (fields.py), so that only the fields that differ are written here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.client.results import records, results
from polyhead.client.weights import tensors
from polyhead.client.weights.delta import Base
from polyhead.client.wire.fields import from_message, values_of
from polyhead.heads.format.precision import FILE_DTYPES
from polyhead.v1 import fleet_pb2, generation_pb2, heads_pb2, scoring_pb2, trunk_pb2, types_pb2

__all__ = [
    "activated",
    "base",
    "configuration",
    "generation",
    "head_version",
    "ood_fit",
    "piece",
    "ranking",
    "replica",
    "rolled_back",
    "rule_questions",
    "sample",
    "scored_item",
    "served",
    "status",
    "tensor",
    "trunk_info",
]


# samples and scores


def sample(message: generation_pb2.Sample, request_id: str, served: results.Served) -> results.Sample:
    return from_message(results.Sample, message, request_id=request_id, served=served, **_scored(message))


def scored_item(message: scoring_pb2.ScoredItem, request_id: str, served: results.Served) -> results.ScoredItem:
    return from_message(results.ScoredItem, message, request_id=request_id, served=served, **_scored(message))


def piece(message: generation_pb2.Piece) -> results.Piece:
    return from_message(results.Piece, message)


def ranking(messages: Iterable[generation_pb2.RankedSample]) -> tuple[results.RankedSample, ...]:
    return tuple(from_message(results.RankedSample, each, reward=each.reward if each.HasField("reward") else math.nan) for each in messages)


def served(message: types_pb2.Served) -> results.Served:
    return from_message(results.Served, message)


def tensor(message: types_pb2.Tensor) -> NDArray[np.float32]:
    """Any of the contract's dtypes as float32. Raises DataLoss if the bytes do not fit the shape."""
    return tensors.to_float32(message.dtype, tuple(message.shape), message.data)


def _scored(message: generation_pb2.Sample | scoring_pb2.ScoredItem) -> dict[str, Any]:
    """What heads and recipe made of a sample or item."""
    reward = _reward(message.reward) if message.HasField("reward") else None
    return {"scores": {score.head: _score(score) for score in message.scores}, "reward": reward}


def _score(message: types_pb2.HeadScore) -> results.HeadScore:
    about = values_of(results.HeadScore, message)
    match message.WhichOneof("result"):
        case "policy":
            return from_message(results.PolicyScore, message.policy, **about, **_top_tokens(message.policy))
        case "preference":
            scale = message.preference.scale or 1.0  # 0 from a server that has no scale
            return from_message(results.PreferenceScore, message.preference, **about, scale=scale)
        case "rule":
            return from_message(results.RuleScores, message.rule, **about, **_by_rule(message.rule))
        case "value":
            return from_message(results.ValueScore, message.value, **about)
        case _:  # the head failed, or is of a kind that this client does not have
            return results.HeadScore(**about)


def _top_tokens(message: types_pb2.PolicyScore) -> dict[str, Any]:
    """The likeliest tokens and their log-probs, (completion tokens, top_logprobs) each."""
    rows = len(message.logprobs) if message.top_token_ids else 0
    columns = len(message.top_token_ids) // rows if rows else 0
    return {
        "top_token_ids": np.fromiter(message.top_token_ids, np.int64).reshape(rows, columns),
        "top_logprobs": np.fromiter(message.top_logprobs, np.float32).reshape(rows, columns),
    }


def _by_rule(message: types_pb2.RuleScores) -> dict[str, dict[str, float]]:
    return {name: {rule.rule_id: getattr(rule, name) for rule in message.rules} for name in ("p_violate", "p_follow", "answer_mass")}


def _reward(message: types_pb2.Reward) -> results.Reward:
    return from_message(
        results.Reward,
        message,
        reward=math.nan if message.error else message.reward,
        with_kl=math.nan if message.error else message.reward_with_kl,
        parts=dict(sorted(message.parts.items())),
        constants=dict(sorted(message.constants.items())),
    )


# heads and generations


def head_version(message: heads_pb2.HeadVersion) -> records.HeadVersion:
    manifest, file_sha256 = _manifest(message.manifest), message.file_sha256 or message.digest
    return from_message(records.HeadVersion, message, manifest=manifest, file_sha256=file_sha256)


def base(message: heads_pb2.ListHeadTensorsResponse) -> Base:
    """A stored version, to compare a push with."""
    return Base(head_version(message.head), {t.name: from_message(records.StoredTensor, t) for t in message.tensors})


def generation(message: heads_pb2.Generation) -> records.Generation:
    return from_message(records.Generation, message)


def activated(message: heads_pb2.ActivateHeadsResponse) -> records.Generation:
    """The new generation, with what the change did to running requests."""
    return dataclasses.replace(generation(message.generation), **values_of(records.Generation, message))


def rolled_back(message: heads_pb2.RollbackHeadsResponse) -> records.Generation:
    """The new generation, and who does not serve it yet."""
    return dataclasses.replace(generation(message.generation), **values_of(records.Generation, message))


def replica(message: fleet_pb2.Replica) -> records.Replica:
    return from_message(records.Replica, message)


def _manifest(message: heads_pb2.HeadManifest) -> records.HeadManifest:
    """Token ids that mean nothing for this head become -1, as in head.json."""
    plain = from_message(records.HeadManifest, message, scale=message.scale if message.HasField("scale") else 1.0)
    has_answers = plain.kind is results.HeadKind.RULE and message.violated_token_id != message.followed_token_id  # equal: none yet
    return dataclasses.replace(
        plain,
        append_token_id=message.append_token_id if plain.read == "append" else -1,
        violated_token_id=message.violated_token_id if has_answers else -1,
        followed_token_id=message.followed_token_id if has_answers else -1,
        pad_token_id=message.pad_token_id if message.HasField("pad_token_id") and plain.read == "last" else -1,
    )


# trunk, status, configurations


def trunk_info(message: trunk_pb2.GetTrunkResponse) -> records.TrunkInfo:
    return from_message(
        records.TrunkInfo,
        message,
        tensors={t.name: from_message(records.SourceTensor, t, dtype=_dtype(t.dtype)) for t in message.tensors},
        head_tensors={t.name: tuple(t.shape) for t in message.head_tensors},
    )


def status(message: trunk_pb2.GetStatusResponse) -> records.Status:
    changes = tuple(f"{change.what}: {change.step} ({change.seconds:.1f} s)" for change in message.changes)
    return from_message(records.Status, message, changes=changes)


def ood_fit(message: trunk_pb2.OodFit) -> records.OodFit:
    return from_message(records.OodFit, message)


def configuration(message: scoring_pb2.Configuration) -> records.Configuration:
    return from_message(records.Configuration, message)


def rule_questions(message: scoring_pb2.TokenizeRulesResponse) -> records.RuleQuestions:
    token_ids = {question.rule_id: list(question.token_ids) for question in message.questions}
    return from_message(records.RuleQuestions, message, token_ids=token_ids)


def _dtype(text: str) -> str:
    """The names of torch, of safetensors and of the contract are one."""
    return FILE_DTYPES.get(text, text.removeprefix("torch."))
