"""Samples as one padded batch of numpy arrays, the shape that trainers take. Knows nothing of the server.

Prompts are padded on the left and completions on the right, so that every completion starts in the same column P:

    input_ids        pad pad p0 p1 | c0 c1 c2 pad          (B, P + C), int64
    attention_mask     0   0  1  1 |  1  1  1   0          (B, P + C), int64
    completion_mask                   1  1  1   0          (B, C), int64
    logprobs, sampling_logprobs, reference_logprobs, ...   (B, C), float32, 0 where completion_mask is 0
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.client.errors import InvalidArgument
from polyhead.client.results.results import HeadScore, PolicyScore, PreferenceScore, RuleScores, Sample, ValueScore

__all__ = ["to_batch"]

Array = NDArray[Any]


def to_batch(samples: Sequence[Sample], pad_id: int = 0) -> dict[str, Array]:
    """Pad `samples` (B of them; P and C are the longest prompt and completion).

    Beside the arrays above, for each head that scored every sample, under the name it was asked by:
    policy kind `<head>_logprobs` (B, C); value kind `<head>_values` (B, C) and `<head>_bootstrap_value` (B,);
    preference kind `<head>_score` (B,), NaN where the head left the sample out; rule kind `<head>_p_violate.<rule>` (B,).
    With a recipe: `reward` (B,); if it has a KL term, also `kl` and `token_rewards` (B, C). Without one these keys are left out.
    A score or a reward that failed, or that a sample lacks, is NaN. Whether a sample ended by itself: `terminated` (B,) bool.
    Raises InvalidArgument for no samples.
    """
    if not samples:
        raise InvalidArgument("samples are empty", field="samples")
    prompts, completions = [s.prompt_token_ids for s in samples], [s.token_ids for s in samples]
    lengths = np.array([len(ids) for ids in completions])
    width = int(lengths.max())
    prompt_ids, prompt_mask = _pad_left(prompts, pad_id)
    completion_mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
    batch: dict[str, Array] = {
        "input_ids": np.concatenate([prompt_ids, _pad_right(completions, width, pad_id, np.int64)], axis=1),
        "attention_mask": np.concatenate([prompt_mask, completion_mask], axis=1),
        "completion_mask": completion_mask,
        "logprobs": _pad_right([s.logprobs for s in samples], width, 0.0),
        "sampling_logprobs": _pad_right([s.sampling_logprobs for s in samples], width, 0.0),
        "terminated": np.array([s.terminated for s in samples]),
    }
    batch |= _reward_arrays(samples, lengths, width)
    for head in dict.fromkeys(name for s in samples for name in s.scores):
        batch |= _head_arrays(head, [s.scores.get(head) for s in samples], lengths, width)
    return batch


def _reward_arrays(samples: Sequence[Sample], lengths: Array, width: int) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    if any(s.reward is not None for s in samples):
        arrays["reward"] = np.array([np.nan if s.reward is None else s.reward.reward for s in samples], np.float32)
    for name in ("kl", "token_rewards"):
        rows = [np.zeros(0) if s.reward is None else getattr(s.reward, name) for s in samples]
        if any(map(len, rows)):
            whole = [row if len(row) else np.full(length, np.nan) for row, length in zip(rows, lengths, strict=True)]
            arrays[name] = _pad_right(whole, width, 0.0)
    return arrays


def _head_arrays(head: str, scores: Sequence[HeadScore | None], lengths: Array, width: int) -> dict[str, Array]:
    kind = next((type(score) for score in scores if score is not None and not score.error), None)
    if kind is PolicyScore:
        return {f"{head}_logprobs": _token_rows(scores, "logprobs", lengths, width)}
    if kind is ValueScore:
        values = _token_rows(scores, "values", lengths, width)
        return {f"{head}_values": values, f"{head}_bootstrap_value": _scalars(scores, lambda score: score.bootstrap_value)}
    if kind is PreferenceScore:
        return {f"{head}_score": _scalars(scores, lambda score: score.value if score.present else np.nan)}
    if kind is RuleScores:
        rules = dict.fromkeys(rule for score in scores if isinstance(score, RuleScores) for rule in score.p_violate)
        return {
            f"{head}_p_violate.{rule}": _scalars(scores, lambda score, rule=rule: score.p_violate.get(rule, np.nan))
            for rule in rules
        }
    return {}


def _token_rows(scores: Sequence[HeadScore | None], attribute: str, lengths: Array, width: int) -> Array:
    rows = [
        np.full(length, np.nan) if score is None or score.error else getattr(score, attribute)
        for score, length in zip(scores, lengths, strict=True)
    ]
    return _pad_right(rows, width, 0.0)


def _scalars(scores: Sequence[HeadScore | None], read: Any) -> Array:
    return np.array([np.nan if score is None or score.error else read(score) for score in scores], np.float32)


def _pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Array, Array]:
    width = max(len(row) for row in rows)
    ids, mask = np.full((len(rows), width), pad, np.int64), np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = row
        mask[i, width - len(row) :] = 1
    return ids, mask


def _pad_right(rows: Sequence[Any], width: int, pad: float, dtype: Any = np.float32) -> Array:
    padded = np.full((len(rows), width), pad, dtype)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded
