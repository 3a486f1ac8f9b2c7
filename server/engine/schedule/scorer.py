"""Scoring, which is head-only work on boundary states: the readings that a finished sample needs, and the results in what they read.

With p prompt tokens and c completion tokens, position p - 1 + t is where completion token t is predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polyhead.heads.format.kinds import HeadKind, ReadPosition, Unfinished
from polyhead.server.engine.work.live import ServedHead
from polyhead.server.engine.work.questions import RuleQuestion
from polyhead.server.engine.work.request import Output, Reading, Sample
from polyhead.server.engine.work.sampling import FinishReason
from polyhead.server.engine.work.sequence import TokenSequence


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """Log-probs of the completion's tokens, (c,), and what else was asked for of the raw distribution there."""

    logprobs: np.ndarray
    sampling_logprobs: np.ndarray  # (c,), empty unless parameters were given
    entropies: np.ndarray  # (c,) in nats, empty unless asked for
    top_token_ids: np.ndarray  # (c, k), likeliest first; k is 0 unless asked for
    top_logprobs: np.ndarray  # (c, k)


@dataclass(frozen=True, slots=True)
class PreferenceResult:
    """One scalar. `position` counts from the start of the prompt; p + c is an appended token."""

    raw: float
    bias: float
    is_present: bool
    position: int
    scale: float = 1.0

    @property
    def value(self) -> float:
        """Centred and scaled: comparable within one version."""
        return (self.raw - self.bias) / self.scale


@dataclass(frozen=True, slots=True)
class RuleResult:
    """One rule's answer: p_violate + p_follow = 1; `answer_mass` is the probability of the two answers among all tokens."""

    rule_id: str
    p_violate: float
    answer_mass: float


@dataclass(frozen=True, slots=True)
class ValueResult:
    """`values[t]` is V before completion token t; `bootstrap_value` is V after the last one, 0 if the sample is terminated.

    V is the head's raw number minus the version's bias, divided by its scale.
    """

    values: np.ndarray  # (c,)
    bootstrap_value: float


@dataclass(frozen=True, slots=True)
class HeadResult:
    """One head's result for one sample."""

    head_name: str  # as the caller named it
    head: ServedHead
    result: PolicyResult | PreferenceResult | tuple[RuleResult, ...] | ValueResult | None
    error: str = ""


def plan_readings(sample: Sample, eos_ids: frozenset[int]) -> list[Reading]:
    """The readings that a finished sample needs, sequences with suffixes included. Sets how much of the trunk's output is wanted."""
    assert sample.request.lease is not None
    readings = []
    sample.suffixes = []
    for name in sample.request.score_heads:
        head = sample.request.lease.heads[name]
        readings.extend(_readings_of(sample, name, head, eos_ids))
    own_ends = [reading.end for reading in readings if reading.sequence is sample.sequence]
    wants_all = sample.suffixes or sample.request.return_states
    num_pooled = len(sample.prompt) if sample.request.pooling else 0
    sample.sequence.num_wanted = max(sample.sequence.num_computed, sample.num_tokens if wants_all else 0, num_pooled, *own_ends)
    return readings


def _readings_of(sample: Sample, name: str, head: ServedHead, eos_ids: frozenset[int]) -> list[Reading]:
    first, end = len(sample.prompt) - 1, sample.num_tokens - 1
    match head.manifest.kind:
        case HeadKind.POLICY:
            return [Reading(sample, head, name, sample.sequence, Output.LOGPROBS, first, end)]
        case HeadKind.VALUE:
            return [Reading(sample, head, name, sample.sequence, Output.SCALARS, first, end if sample.is_terminated else end + 1)]
        case HeadKind.PREFERENCE:
            return _preference_reading(sample, name, head, eos_ids)
        case HeadKind.RULE:
            assert sample.request.rules is not None, "checked at the door"
            return [_rule_reading(sample, name, head, question) for question in sample.request.rules.by_template[head.manifest.template]]


def _preference_reading(sample: Sample, name: str, head: ServedHead, eos_ids: frozenset[int]) -> list[Reading]:
    manifest = head.manifest
    if manifest.unfinished is Unfinished.OMIT and not sample.is_terminated:
        return []
    if manifest.read is ReadPosition.APPEND:
        sequence = _suffixed(sample, (manifest.append_token_id,))
        return [Reading(sample, head, name, sequence, Output.SCALARS, sample.num_tokens, sample.num_tokens + 1)]
    position = _last_position(sample, manifest.pad_token_id)
    if manifest.read is ReadPosition.EOS:
        position = sample.num_tokens - 1
        ends = [index for index, token in enumerate(sample.completion) if token in eos_ids]
        position = len(sample.prompt) + ends[0] if ends else position
    return [Reading(sample, head, name, sample.sequence, Output.SCALARS, position, position + 1)]


def _last_position(sample: Sample, pad_token_id: int) -> int:
    """Of the last token that is not padding; 0 if all are. Without padding the last one: no token has the id -1."""
    tokens = sample.sequence.tokens
    return next((position for position in range(sample.num_tokens - 1, 0, -1) if tokens[position] != pad_token_id), 0)


def _rule_reading(sample: Sample, name: str, head: ServedHead, question: RuleQuestion) -> Reading:
    sequence = _suffixed(sample, question.suffix)
    last = len(sequence.tokens) - 1
    return Reading(sample, head, name, sequence, Output.ANSWERS, last, last + 1, rule_id=question.rule_id)


def _suffixed(sample: Sample, suffix: tuple[int, ...]) -> TokenSequence:
    """The dialogue's ids unchanged, then the suffix: the tree finds the dialogue, and only the suffix is computed, for all heads once."""
    tokens = [*sample.sequence.tokens, *suffix]
    for sequence in sample.suffixes:
        if sequence.tokens == tokens:
            return sequence
    sequence = TokenSequence(tokens, sample.sequence.salt, num_wanted=len(tokens))
    sample.suffixes.append(sequence)
    return sequence


def results(sample: Sample) -> list[HeadResult]:
    """The result of every scoring head, in the order asked for."""
    assert sample.request.lease is not None
    found = []
    for name in sample.request.score_heads:
        head = sample.request.lease.heads[name]
        readings = [reading for reading in sample.done if reading.head_name == name]
        errors = [reading.error for reading in readings if reading.error]
        if sample.finish_reason is FinishReason.FAILED:
            errors.append(sample.error)
        found.append(HeadResult(name, head, None, errors[0]) if errors else HeadResult(name, head, _result(sample, head, readings)))
    return found


def _result(
    sample: Sample, head: ServedHead, readings: list[Reading]
) -> PolicyResult | PreferenceResult | tuple[RuleResult, ...] | ValueResult:
    match head.manifest.kind:
        case HeadKind.POLICY:
            return _policy_result(readings[0], sample.request.num_top)
        case HeadKind.VALUE:
            values = (np.concatenate(readings[0].values) - np.float32(head.manifest.bias)) / np.float32(head.manifest.scale)
            num = len(sample.completion)
            return ValueResult(values[:num], 0.0 if sample.is_terminated else float(values[num]))
        case HeadKind.PREFERENCE:
            if not readings:
                return PreferenceResult(0.0, head.manifest.bias, False, 0, head.manifest.scale)
            raw = float(readings[0].values[-1][-1])
            return PreferenceResult(raw, head.manifest.bias, True, readings[0].first, head.manifest.scale)
        case HeadKind.RULE:
            assert sample.request.rules is not None
            order = {question.rule_id: i for i, question in enumerate(sample.request.rules.by_template[head.manifest.template])}
            return tuple(_rule_result(reading) for reading in sorted(readings, key=lambda reading: order[reading.rule_id]))


def _policy_result(reading: Reading, num_top: int) -> PolicyResult:
    empty = np.zeros(0, np.float32)
    top = reading.top or [(np.zeros((0, num_top), np.int64), np.zeros((0, num_top), np.float32))]
    return PolicyResult(
        np.concatenate(reading.values or [empty]),
        np.concatenate(reading.sampling_values or [empty]),
        np.concatenate(reading.entropies or [empty]),
        np.concatenate([ids for ids, _ in top]),
        np.concatenate([logprobs for _, logprobs in top]),
    )


def _rule_result(reading: Reading) -> RuleResult:
    violated, followed = reading.values[0].astype(np.float64)  # log-probs: their ratio exists where both underflow
    p_violate = float(np.exp(violated - np.logaddexp(violated, followed)))
    return RuleResult(reading.rule_id, p_violate, float(np.exp(violated) + np.exp(followed)))
