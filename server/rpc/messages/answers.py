"""Samples, scores and boundary states, from the engine's dataclasses to protobuf. The way in is requests.py."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from polyhead.server.engine.schedule.scorer import HeadResult, PolicyResult, PreferenceResult, ValueResult, results
from polyhead.server.engine.work.events import Drawn
from polyhead.server.engine.work.live import Lease
from polyhead.server.engine.work.request import Sample
from polyhead.server.engine.work.sampling import SamplingParams
from polyhead.server.rpc.messages import enums
from polyhead.server.rpc.messages.ood import ood_error, ood_score
from polyhead.server.rpc.tag import tag_of
from polyhead.server.text.replies import ReplyCheck
from polyhead.v1 import generation_pb2, scoring_pb2, types_pb2

PART_BYTES = 1 << 20  # most bytes of tensor data in one message


def served(lease: Lease, trunk_id: str, precision: str, tokenizer_sha256: str) -> types_pb2.Served:
    """What an answer is computed with."""
    return types_pb2.Served(
        trunk_id=trunk_id,
        precision=precision,
        generation=lease.generation,
        head_versions={name: head.version for name, head in lease.heads.items()},
        tokenizer_sha256=tokenizer_sha256,
        history_id=lease.history_id,
    )


def piece(drawn: list[Drawn]) -> generation_pb2.Piece:
    """Consecutive tokens of one sample as one message."""
    first = drawn[0]
    return generation_pb2.Piece(
        prompt_index=first.sample.prompt_index,
        arm_index=first.sample.arm_index,
        sample_index=first.sample.sample_index,
        offset=first.offset,
        token_ids=[token.token_id for token in drawn],
        logprobs=[token.logprob for token in drawn],
        sampling_logprobs=[token.sampling_logprob for token in drawn],
        text="".join(token.text for token in drawn),
    )


def tail_piece(sample: Sample, text: str) -> generation_pb2.Piece:
    """Text that was held back until the sample was complete."""
    return generation_pb2.Piece(
        prompt_index=sample.prompt_index,
        arm_index=sample.arm_index,
        sample_index=sample.sample_index,
        offset=len(sample.completion),
        text=text,
    )


def sample_message(sample: Sample, check: ReplyCheck, reward: types_pb2.Reward | None) -> generation_pb2.Sample:
    """A finished sample with its scores."""
    assert sample.finish_reason is not None
    message = generation_pb2.Sample(
        prompt_index=sample.prompt_index,
        arm_index=sample.arm_index,
        sample_index=sample.sample_index,
        prompt_token_ids=sample.prompt,
        token_ids=sample.completion,
        text=sample.text.text if sample.text else "",
        logprobs=sample.logprobs,
        sampling_logprobs=sample.sampling_logprobs,
        finish_reason=enums.FINISH_REASONS.number(sample.finish_reason),
        terminated=sample.is_terminated,
        stop=sample.stop,
        head=sample.head_name,
        sample_seed=sample.seed,
        scores=[head_score(result, sample) for result in results(sample)] if sample.is_whole else [],
        error=sample.error or ood_error(sample),
        num_cached_tokens=sample.num_cached_tokens,
        ood=ood_score(sample),
        valid=check.valid,
        invalid_reasons=check.reasons,
        num_newlines=check.num_newlines,
        format=tag_of(sample.request).form(sample).format,
        sampling=sampling(sample.params),
        reward=reward,
        work=work_done(sample),
    )
    if sample.last_head is not None:
        message.head_version, message.digest = sample.last_head.version, sample.last_head.live.digest
    ends = [span.start for span in sample.spans[1:]] + [len(sample.completion)]
    for span, end in zip(sample.spans, ends, strict=False):  # no tokens, no spans
        head = span.head
        message.spans.add(start=span.start, end=end, version=head.version, generation=span.generation, digest=head.live.digest)
    return message


def scored_item(sample: Sample, check: ReplyCheck, reward: types_pb2.Reward | None) -> scoring_pb2.ScoredItem:
    """A scored completion."""
    return scoring_pb2.ScoredItem(
        prompt_token_ids=sample.prompt,
        token_ids=sample.completion,
        terminated=sample.is_terminated,
        scores=[head_score(result, sample) for result in results(sample)],
        error=sample.error or ood_error(sample),
        num_cached_tokens=sample.num_cached_tokens,
        valid=check.valid,
        invalid_reasons=check.reasons,
        num_newlines=check.num_newlines,
        format=tag_of(sample.request).form(sample).format,
        reward=reward,
        ood=ood_score(sample),
        work=work_done(sample),
    )


def work_done(sample: Sample) -> types_pb2.WorkDone:
    """What a finished sample took, and how long its request waited where the caller may know."""
    message = types_pb2.WorkDone(trunk_tokens=sample.num_trunk_tokens, head_tokens=sample.num_head_tokens)
    if tag_of(sample.request).shows_queue:
        message.queue_seconds = sample.request.queue_s
    return message


def head_score(result: HeadResult, sample: Sample) -> types_pb2.HeadScore:
    """What one head says about one sample."""
    head = result.head
    message = types_pb2.HeadScore(
        head=result.head_name,
        kind=enums.HEAD_KINDS.number(head.manifest.kind),
        version=head.version,
        digest=head.live.digest,
        error=result.error,
    )
    match result.result:
        case PolicyResult() as policy:
            message.policy.logprobs.extend(policy.logprobs)
            message.policy.sampling_logprobs.extend(policy.sampling_logprobs)
            message.policy.entropies.extend(policy.entropies)
            message.policy.top_token_ids.extend(policy.top_token_ids.ravel())
            message.policy.top_logprobs.extend(policy.top_logprobs.ravel())
        case PreferenceResult() as preference:
            message.preference.CopyFrom(
                types_pb2.PreferenceScore(
                    raw=preference.raw,
                    bias=preference.bias,
                    scale=preference.scale,
                    value=preference.value,
                    present=preference.is_present,
                    position=preference.position,
                )
            )
        case ValueResult() as value:
            message.value.values.extend(value.values)
            message.value.bootstrap_value = value.bootstrap_value
        case tuple() as rules:
            assert sample.request.rules is not None
            message.rule.rule_set, message.rule.template = sample.request.rules.rule_set, head.manifest.template
            for rule in rules:
                message.rule.rules.add(
                    rule_id=rule.rule_id, p_violate=rule.p_violate, p_follow=1.0 - rule.p_violate, answer_mass=rule.answer_mass
                )
    return message


def sampling(params: SamplingParams) -> types_pb2.Sampling:
    """The parameters really used, defaults filled in."""
    return types_pb2.Sampling(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        seed=params.seed,
        max_new_tokens=params.max_new_tokens,
        stop=params.stop,
        keep_stop=params.keep_stop,
        stop_token_ids=sorted(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
    )


def states_parts(sample: Sample, first: int = 0) -> Iterator[generation_pb2.StatesPart]:
    """A sample's boundary states from token `first` on, a part at a time."""
    if sample.states is None:
        return
    for offset, rows in row_parts(sample.states[first:]):
        yield generation_pb2.StatesPart(
            prompt_index=sample.prompt_index,
            arm_index=sample.arm_index,
            sample_index=sample.sample_index,
            offset=first + offset,
            states=tensor(rows),
        )


def row_parts(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(index of the first row, rows) for parts of (rows, columns) of at most PART_BYTES."""
    step = max(1, PART_BYTES // (rows.shape[1] * rows.dtype.itemsize))
    for offset in range(0, len(rows), step):
        yield offset, rows[offset : offset + step]


def tensor(rows: Tensor) -> types_pb2.Tensor:
    """A tensor on the wire: little-endian, row-major, in its own dtype."""
    data = rows.contiguous().view(torch.uint8).numpy(force=True)
    assert data.dtype == np.uint8
    return types_pb2.Tensor(dtype=str(rows.dtype).removeprefix("torch."), shape=list(rows.shape), data=data.tobytes())
