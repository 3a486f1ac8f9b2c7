"""The only place where the client's protobuf messages become its dataclasses. Knows nothing of calls."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from polyhead.client.results import records, results
from polyhead.client.weights import tensors
from polyhead.client.weights.delta import Base
from polyhead.client.wire.options import Rule
from polyhead.heads.format.precision import FILE_DTYPES
from polyhead.heads.format.wire_enums import ContractEnum, wire_numbers
from polyhead.v1 import generation_pb2, heads_pb2, scoring_pb2, trunk_pb2, types_pb2

__all__ = [
    "activated",
    "configuration",
    "generation",
    "head_version",
    "ood_fit",
    "piece",
    "ranking",
    "rule_questions",
    "sample",
    "scored_item",
    "served",
    "status",
    "tensor",
    "trunk_info",
]


def sample(message: generation_pb2.Sample, request_id: str, served: results.Served) -> results.Sample:
    return results.Sample(
        prompt_index=message.prompt_index,
        arm_index=message.arm_index,
        sample_index=message.sample_index,
        prompt_token_ids=list(message.prompt_token_ids),
        token_ids=list(message.token_ids),
        text=message.text,
        logprobs=_floats(message.logprobs),
        sampling_logprobs=_floats(message.sampling_logprobs),
        finish_reason=_finish_reason(message.finish_reason),
        terminated=message.terminated,
        stop=message.stop,
        valid=message.valid,
        invalid_reasons=tuple(message.invalid_reasons),
        num_newlines=message.num_newlines,
        head=message.head,
        head_version=message.head_version,
        digest=message.digest,
        spans=tuple(results.Span(span.start, span.end, span.version, span.generation, span.digest) for span in message.spans),
        sample_seed=message.sample_seed,
        scores=_scores(message.scores),
        sampling=_sampling(message.sampling),
        num_cached_tokens=message.num_cached_tokens,
        error=message.error,
        request_id=request_id,
        served=served,
        format=message.format,
        reward=_reward(message.reward) if message.HasField("reward") else None,
        ood=_ood_score(message),
        work=_work(message),
    )


def ranking(messages: Iterable[generation_pb2.RankedSample]) -> tuple[results.RankedSample, ...]:
    return tuple(
        results.RankedSample(each.arm_index, each.sample_index, each.reward if each.HasField("reward") else math.nan) for each in messages
    )


def piece(message: generation_pb2.Piece) -> results.Piece:
    return results.Piece(
        prompt_index=message.prompt_index,
        arm_index=message.arm_index,
        sample_index=message.sample_index,
        offset=message.offset,
        token_ids=list(message.token_ids),
        logprobs=_floats(message.logprobs),
        sampling_logprobs=_floats(message.sampling_logprobs),
        text=message.text,
    )


def scored_item(message: scoring_pb2.ScoredItem, request_id: str, served: results.Served) -> results.ScoredItem:
    return results.ScoredItem(
        prompt_token_ids=list(message.prompt_token_ids),
        token_ids=list(message.token_ids),
        terminated=message.terminated,
        scores=_scores(message.scores),
        error=message.error,
        num_cached_tokens=message.num_cached_tokens,
        reward=_reward(message.reward) if message.HasField("reward") else None,
        request_id=request_id,
        served=served,
        valid=message.valid,
        invalid_reasons=tuple(message.invalid_reasons),
        num_newlines=message.num_newlines,
        format=message.format,
        ood=_ood_score(message),
        work=_work(message),
    )


def _work(message: generation_pb2.Sample | scoring_pb2.ScoredItem) -> results.WorkDone | None:
    if not message.HasField("work"):
        return None
    done = message.work
    return results.WorkDone(done.trunk_tokens, done.head_tokens, done.queue_seconds if done.HasField("queue_seconds") else None)


def configuration(message: scoring_pb2.Configuration) -> records.Configuration:
    return records.Configuration(
        kind=_enum_value(scoring_pb2.ConfigurationKind, message.kind),
        reference=message.reference,
        sha256=message.sha256,
        content=message.content,
        rules=tuple(Rule(rule.id, rule.text) for rule in message.rules),
        set_aside=message.set_aside,
        added=message.added,
    )


def rule_questions(message: scoring_pb2.TokenizeRulesResponse) -> records.RuleQuestions:
    return records.RuleQuestions(
        token_ids={question.rule_id: list(question.token_ids) for question in message.questions},
        violated_token_id=message.violated_token_id,
        followed_token_id=message.followed_token_id,
        rule_set=message.rule_set,
        template=message.template,
    )


def served(message: types_pb2.Served) -> results.Served:
    return results.Served(
        trunk_id=message.trunk_id,
        precision=message.precision,
        generation=message.generation,
        head_versions=dict(message.head_versions),
        tokenizer_sha256=message.tokenizer_sha256,
    )


def tensor(message: types_pb2.Tensor) -> NDArray[np.float32]:
    """Any of the contract's dtypes as float32. Raises DataLoss if the bytes do not fit the shape."""
    return tensors.to_float32(message.dtype, tuple(message.shape), message.data)


def head_version(message: heads_pb2.HeadVersion) -> records.HeadVersion:
    return records.HeadVersion(
        name=message.name,
        version=message.version,
        digest=message.digest,
        num_bytes=message.num_bytes,
        manifest=_manifest(message.manifest),
        active=message.active,
        resident=message.resident,
        created_at=message.created_at,
        labels=tuple(message.labels),
        metrics=dict(message.metrics),
        file_sha256=message.file_sha256 or message.digest,
    )


def base(message: heads_pb2.ListHeadTensorsResponse) -> Base:
    tensors = {t.name: records.StoredTensor(t.name, t.dtype, tuple(t.shape), t.sha256) for t in message.tensors}
    return Base(head_version(message.head), tensors)


def activated(message: heads_pb2.ActivateHeadsResponse) -> records.Generation:
    return dataclasses.replace(
        generation(message.generation),
        num_pinned_requests=message.num_pinned_requests,
        num_aborted_requests=message.num_aborted_requests,
        num_following_requests=message.num_following_requests,
        removed=tuple(message.removed),
    )


def generation(message: heads_pb2.Generation) -> records.Generation:
    return records.Generation(
        number=message.number,
        parent=message.parent,
        heads=dict(message.heads),
        created_at=message.created_at,
        note=message.note,
        gone=tuple(message.gone),
        same_as=message.same_as,
    )


def trunk_info(message: trunk_pb2.GetTrunkResponse) -> records.TrunkInfo:
    return records.TrunkInfo(
        trunk_id=message.trunk_id,
        precision=message.precision,
        model=message.model,
        split_layer=message.split_layer,
        num_layers=message.num_layers,
        d_model=message.d_model,
        vocab_size=message.vocab_size,
        context_length=message.context_length,
        eos_token_ids=list(message.eos_token_ids),
        tokenizer_sha256=message.tokenizer_sha256,
        tensors={t.name: records.SourceTensor(t.name, t.sha256, _dtype(t.dtype)) for t in message.tensors},
        head_tensors={t.name: tuple(t.shape) for t in message.head_tensors},
        tied=message.tied,
        config_json=message.config_json,
        tap_layer=message.tap_layer,
        head_precision=message.head_precision,
        output_precision=message.output_precision,
        attention=message.attention,
    )


def ood_fit(message: trunk_pb2.OodFit) -> records.OodFit:
    return records.OodFit(
        name=message.name,
        version=message.version,
        trunk_id=message.trunk_id,
        precision=message.precision,
        layer=message.layer,
        pooling=_enum_value(trunk_pb2.Pooling, message.pooling),
        num_prompts=message.num_prompts,
        shrinkage=message.shrinkage,
        created_at=message.created_at,
        mean_score=message.mean_score,
        std_score=message.std_score,
    )


def status(message: trunk_pb2.GetStatusResponse) -> records.Status:
    return records.Status(
        generation=message.generation,
        active=dict(message.active),
        resident_heads=tuple(
            records.ResidentHead(tuple(head.references), head.digest, head.num_bytes, head.num_leases, head.active)
            for head in message.resident_heads
        ),
        trunk_bytes=message.trunk_bytes,
        model_bytes=message.model_bytes,
        num_running=message.num_running,
        num_waiting=message.num_waiting,
        num_blocks=message.num_blocks,
        num_used_blocks=message.num_used_blocks,
        num_cached_blocks=message.num_cached_blocks,
        num_head_blocks=message.num_head_blocks,
        num_filled_head_blocks=message.num_filled_head_blocks,
        store_bytes=message.store_bytes,
        disk_free_bytes=message.disk_free_bytes,
        last_swap_pause_seconds=message.last_swap_pause_seconds,
        damage=message.damage,
        problems=tuple(message.problems),
        uptime_seconds=message.uptime_seconds,
        counters=dict(message.counters),
        memory_budget_bytes=message.memory_budget_bytes,
        head_bytes=message.head_bytes,
        resident_names=tuple(
            records.ResidentName(row.name, row.active_version, tuple(row.versions), row.num_bytes, row.num_leases)
            for row in message.resident_names
        ),
        max_idle_per_name=message.max_idle_per_name,
        changes=tuple(f"{change.what}: {change.step} ({change.seconds:.1f} s)" for change in message.changes),
    )


def _ood_score(message: generation_pb2.Sample | scoring_pb2.ScoredItem) -> results.OodScore | None:
    return results.OodScore(message.ood.fit, message.ood.layer, message.ood.score) if message.HasField("ood") else None


def _scores(messages: Iterable[types_pb2.HeadScore]) -> dict[str, results.HeadScore]:
    return {message.head: _score(message) for message in messages}


def _score(message: types_pb2.HeadScore) -> results.HeadScore:
    about = (message.head, _head_kind(message.kind), message.version, message.digest, message.error)
    result = message.WhichOneof("result")
    if result == "policy":
        return _policy_score(about, message.policy)
    if result == "preference":
        p = message.preference
        return results.PreferenceScore(*about, p.value, p.raw, p.bias, p.present, p.position, p.scale or 1.0)
    if result == "rule":
        return _rule_scores(about, message.rule)
    if result == "value":
        return results.ValueScore(*about, _floats(message.value.values), message.value.bootstrap_value)
    return results.HeadScore(*about)


def _policy_score(about: tuple[str, results.HeadKind, int, str, str], message: types_pb2.PolicyScore) -> results.PolicyScore:
    rows = len(message.logprobs) if message.top_token_ids else 0
    columns = len(message.top_token_ids) // rows if rows else 0
    return results.PolicyScore(
        *about,
        logprobs=_floats(message.logprobs),
        sampling_logprobs=_floats(message.sampling_logprobs),
        entropies=_floats(message.entropies),
        top_token_ids=np.fromiter(message.top_token_ids, dtype=np.int64).reshape(rows, columns),
        top_logprobs=_floats(message.top_logprobs).reshape(rows, columns),
    )


def _reward(message: types_pb2.Reward) -> results.Reward:
    return results.Reward(
        recipe=message.recipe,
        reward=math.nan if message.error else message.reward,
        with_kl=math.nan if message.error else message.reward_with_kl,
        parts=dict(sorted(message.parts.items())),
        constants=dict(sorted(message.constants.items())),
        kl_estimator=message.kl_estimator,
        kl=_floats(message.kl),
        token_rewards=_floats(message.token_rewards),
        rank=message.rank if message.HasField("rank") else None,
        error=message.error,
    )


def _rule_scores(about: tuple[str, results.HeadKind, int, str, str], message: types_pb2.RuleScores) -> results.RuleScores:
    return results.RuleScores(
        *about,
        p_violate={rule.rule_id: rule.p_violate for rule in message.rules},
        p_follow={rule.rule_id: rule.p_follow for rule in message.rules},
        answer_mass={rule.rule_id: rule.answer_mass for rule in message.rules},
        rule_set=message.rule_set,
        template=message.template,
    )


def _sampling(message: types_pb2.Sampling) -> results.Sampling:
    return results.Sampling(
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=message.top_k,
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty,
        seed=message.seed,
        max_new_tokens=message.max_new_tokens,
        stop=tuple(message.stop),
        keep_stop=message.keep_stop,
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
    )


def _manifest(message: heads_pb2.HeadManifest) -> records.HeadManifest:
    """Token ids that mean nothing for this head become -1, as in head.json."""
    kind, read = _head_kind(message.kind), _enum_value(heads_pb2.ReadPosition, message.read)
    has_answers = kind is results.HeadKind.RULE and message.violated_token_id != message.followed_token_id  # one id for both: none yet
    return records.HeadManifest(
        kind=kind,
        trunk_id=message.trunk_id,
        precision=message.precision,
        output=_enum_value(heads_pb2.OutputKind, message.output),
        base=message.base,
        untrained=message.untrained,
        bias=message.bias,
        scale=message.scale if message.HasField("scale") else 1.0,
        read=read,
        append_token_id=message.append_token_id if read == "append" else -1,
        unfinished=_enum_value(heads_pb2.Unfinished, message.unfinished),
        violated_token_id=message.violated_token_id if has_answers else -1,
        followed_token_id=message.followed_token_id if has_answers else -1,
        template=message.template,
        lora=_lora(message.lora) if message.HasField("lora") else None,
        pad_token_id=message.pad_token_id if message.HasField("pad_token_id") and read == "last" else -1,
    )


def _lora(message: heads_pb2.LoraAdapter) -> records.LoraAdapter:
    return records.LoraAdapter(
        rank=message.rank,
        alpha=message.alpha,
        use_rslora=message.use_rslora,
        rank_pattern=dict(message.rank_pattern),
        alpha_pattern=dict(message.alpha_pattern),
    )


def _head_kind(number: int) -> results.HeadKind:
    return results.HeadKind(_enum_value(types_pb2.HeadKind, number))


def _finish_reason(number: int) -> results.FinishReason:
    return results.FinishReason(_enum_value(types_pb2.FinishReason, number))


def _enum_value(enum: ContractEnum, number: int) -> str:
    """READ_POSITION_LAST -> "last"; "" for UNSPECIFIED and for numbers of a newer server."""
    return next((name for name, known in wire_numbers(enum).items() if known == number), "")


def _floats(values: Iterable[float]) -> NDArray[np.float32]:
    return np.fromiter(values, dtype=np.float32)


def _dtype(text: str) -> str:
    """The names of torch, of safetensors and of the contract are one."""
    return FILE_DTYPES.get(text, text.removeprefix("torch."))
