"""Requests for scorings and configurations, built from what the user gave and checked before anything is sent. Shared by both clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from polyhead.client.errors import InvalidArgument
from polyhead.client.results.results import Sample
from polyhead.client.wire import prompts as prompt_forms
from polyhead.client.wire.options import Rule, SamplingOptions, ScoreOptions
from polyhead.client.wire.request_fields import enum_number, generation_number, new_request_id
from polyhead.client.wire.scoring_spec import rule_selection, scoring_spec, with_details
from polyhead.client.wire.scoring_spec import sampling as sampling_message
from polyhead.client.wire.text_check import lone_surrogate, names_bad_text
from polyhead.client.wire.unknown_options import refuse_unknown
from polyhead.v1 import scoring_pb2, types_pb2

__all__ = ["add_configuration", "configurations", "retire_configuration", "score", "tokenize_rules"]


@names_bad_text
def score(
    items: Sequence[Any],
    *,
    heads: Sequence[str] = (),
    rules: Sequence[str | Rule | Mapping[str, str]] | None = None,
    rule_set: str = "",
    recipe: str = "",
    recipe_constants: Mapping[str, float] | None = None,
    entropy: bool = False,
    top_logprobs: int = 0,
    ood: str = "",
    terminated: bool | Sequence[bool | None] | None = None,
    on_swap: str | None = None,
    priority: str | None = None,
    assistant_prefix: str = "",
    cache_salt: str = "",
    format: str = "",
    reply_role: str = "",
    role_prompt: str | None = None,
    allow_control_tokens: bool = False,
    generation: int = 0,
    history_id: str = "",
    request_id: str = "",
    timeout: float | None = None,  # read by the caller
    **sampling: Any,
) -> scoring_pb2.ScoreRequest:
    """`items` are (prompt, completion) pairs or Samples. Raises TypeError or InvalidArgument, naming the argument."""
    refuse_unknown(sampling, ["heads", *ScoreOptions.__annotations__], "score()")
    if isinstance(items, (str, tuple)) or not isinstance(items, Sequence):
        raise TypeError(f"items must be a list of (prompt, completion) pairs: {type(items).__name__}")
    spec = scoring_spec(heads, rules, rule_set, recipe, "heads", ood)
    ends = _terminated(terminated, len(items))
    form = prompt_forms.PromptForm(assistant_prefix, cache_salt, format, reply_role, role_prompt, allow_control_tokens)
    given = any(value is not None for value in sampling.values())
    return scoring_pb2.ScoreRequest(
        items=[_score_item(item, end, f"items[{i}]", form) for i, (item, end) in enumerate(zip(items, ends, strict=True))],
        score=with_details(spec, recipe_constants, entropy, top_logprobs),
        sampling=sampling_message(cast(SamplingOptions, sampling)) if given else None,
        on_swap=cast(Any, enum_number(types_pb2.OnSwap, on_swap, "on_swap")),
        priority=cast(Any, enum_number(types_pb2.Priority, priority, "priority")),
        generation=generation_number(generation, "generation") or 0,
        history_id=history_id,
        request_id=request_id,
    )


def _score_item(item: Any, terminated: bool | None, field: str, form: prompt_forms.PromptForm) -> scoring_pb2.ScoreItem:
    if isinstance(item, Sample):
        item, terminated = (item.prompt_token_ids, item.token_ids), item.terminated if terminated is None else terminated
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise TypeError(f"{field} must be a (prompt, completion) pair or a Sample: {type(item).__name__}")
    prompt, completion = item
    message = scoring_pb2.ScoreItem(
        prompt=form.message(prompt, f"{field}.prompt"),
        terminated=terminated,
    )
    if isinstance(completion, str):
        try:
            message.text = completion
        except UnicodeEncodeError:
            raise lone_surrogate(**{f"{field}.completion": completion}) from None
    else:
        ids = prompt_forms.token_ids(completion, f"{field}.completion", forms="a str or a list of token ids")
        message.token_ids.CopyFrom(types_pb2.TokenIds(ids=ids))
    return message


def _terminated(terminated: bool | Sequence[bool | None] | None, num_items: int) -> Sequence[bool | None]:
    if terminated is None or isinstance(terminated, bool):
        return [terminated] * num_items
    if len(terminated) != num_items:
        raise InvalidArgument(
            f"terminated must have one entry for each of the {num_items} items: {len(terminated)}", field="terminated"
        )
    return terminated


@names_bad_text
def tokenize_rules(
    rules: Sequence[str | Rule | Mapping[str, str]] | None, rule_set: str, template: str
) -> scoring_pb2.TokenizeRulesRequest:
    return scoring_pb2.TokenizeRulesRequest(rules=rule_selection(rules or (), rule_set), template=template)


def configurations(kind: str | None) -> scoring_pb2.ListConfigurationsRequest:
    return scoring_pb2.ListConfigurationsRequest(kind=cast(Any, enum_number(scoring_pb2.ConfigurationKind, kind, "kind")))


@names_bad_text
def add_configuration(content: str | bytes | Path, request_id: str) -> scoring_pb2.AddConfigurationRequest:
    if isinstance(content, Path):
        content = content.read_bytes()
    if isinstance(content, bytes):
        try:
            content = content.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidArgument("the content is not UTF-8 text", field="content") from None
    if not isinstance(content, str):
        raise TypeError(f"content must be a text, or the Path of a file: {type(content).__name__}")
    return scoring_pb2.AddConfigurationRequest(content=content, request_id=request_id or new_request_id())


@names_bad_text
def retire_configuration(reference: str, kind: str | None, request_id: str) -> scoring_pb2.RetireConfigurationRequest:
    number = cast(Any, enum_number(scoring_pb2.ConfigurationKind, kind, "kind"))
    return scoring_pb2.RetireConfigurationRequest(reference=reference, kind=number, request_id=request_id or new_request_id())
