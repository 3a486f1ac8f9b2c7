"""Requests, built from what the user gave and checked before anything is sent. Pure functions, shared by both clients."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from polyhead.client.errors import InvalidArgument
from polyhead.client.results.results import Sample
from polyhead.client.wire import prompts as prompt_forms
from polyhead.client.wire.options import (
    Arm,
    CopyOptions,
    GenerateOptions,
    RequireName,
    Rule,
    SamplingOptions,
    ScoreOptions,
    StreamOptions,
)
from polyhead.client.wire.text_check import lone_surrogate, names_bad_text
from polyhead.client.wire.unknown_options import refuse_unknown
from polyhead.heads.format.wire_enums import ContractEnum, wire_numbers
from polyhead.v1 import generation_pb2, heads_pb2, scoring_pb2, trunk_pb2, types_pb2

__all__ = [
    "activate",
    "add_configuration",
    "configurations",
    "copy_head",
    "encode",
    "enum_number",
    "generate",
    "label_head",
    "layer_number",
    "message",
    "new_request_id",
    "request_id_for",
    "retire_configuration",
    "rollback",
    "score",
    "sequences",
    "stream",
    "tokenize_rules",
]

M = TypeVar("M")
_LISTS = ("stop", "stop_token_ids", "sample_seeds")


@dataclass(frozen=True, slots=True)
class _PromptForm:
    """What is the same for every prompt of a call."""

    assistant_prefix: str
    cache_salt: str
    format: str
    reply_role: str
    role_prompt: str | None
    allow_control_tokens: bool

    def message(self, prompt: prompt_forms.Prompt, field: str) -> types_pb2.Prompt:
        return prompt_forms.prompt_message(prompt, field, **dataclasses.asdict(self))


def new_request_id() -> str:
    """Every mutating call carries one, so that a retry gets the first call's answer."""
    return str(uuid.uuid4())


def request_id_for(request_id: str, part: str) -> str:
    """The id of one part of a call made of several: the same whenever the whole is repeated."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{request_id}/{part}"))


def message(kind: Callable[..., M], **fields: Any) -> M:
    """A small message of plain fields. TypeError or InvalidArgument, naming the field, for a value that it cannot hold."""
    try:
        return kind(**fields)
    except UnicodeEncodeError:
        raise lone_surrogate(**fields) from None
    except TypeError:
        for name, value in fields.items():
            try:
                kind(**{name: value})
            except TypeError:
                raise TypeError(f"{name} has a wrong type: {type(value).__name__}") from None
        raise


@names_bad_text
def generate(
    prompts: Sequence[prompt_forms.Prompt],
    *,
    field: str = "prompts",
    head: str | None = None,
    n: int | None = None,
    arms: Sequence[Arm | Mapping[str, Any]] | None = None,
    delivery: str | None = None,
    best: int | None = None,
    median: bool = False,
    score: Sequence[str] | None = None,
    rules: Sequence[str | Rule | Mapping[str, str]] | None = None,
    rule_set: str = "",
    recipe: str = "",
    recipe_constants: Mapping[str, float] | None = None,
    entropy: bool = False,
    top_logprobs: int = 0,
    ood: str = "",
    on_swap: str | None = None,
    priority: str | None = None,
    return_states: bool = False,
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
) -> generation_pb2.GenerateRequest:
    """Raises TypeError or InvalidArgument, naming the argument. An unknown keyword is a TypeError."""
    refuse_unknown(sampling, GenerateOptions.__annotations__, "generate()")
    form = _PromptForm(assistant_prefix, cache_salt, format, reply_role, role_prompt, allow_control_tokens)
    spec = _scoring_spec(score or (), rules, rule_set, recipe, "score", ood)
    delivery = delivery or ("samples" if best is None else "groups")
    return generation_pb2.GenerateRequest(
        prompts=[
            form.message(prompt, field if field == "prompt" else f"{field}[{i}]")
            for i, prompt in enumerate(prompt_forms.prompt_list(prompts, field))
        ],
        arms=_arms(head, n, arms, cast(SamplingOptions, sampling)),
        delivery=cast(Any, enum_number(generation_pb2.Delivery, delivery, "delivery")),
        on_swap=cast(Any, enum_number(types_pb2.OnSwap, on_swap, "on_swap")),
        priority=cast(Any, enum_number(types_pb2.Priority, priority, "priority")),
        score=_with_details(spec, recipe_constants, entropy, top_logprobs),
        select=_selection(best, median, recipe),
        return_states=return_states,
        prompt_states_once=return_states,
        generation=_checked_number(generation, "generation") or 0,
        history_id=history_id,
        request_id=request_id,
    )


def stream(prompt: prompt_forms.Prompt, **options: Any) -> generation_pb2.GenerateRequest:
    """One sample of one prompt, piece by piece. Raises as `generate`."""
    refuse_unknown(options, StreamOptions.__annotations__, "stream()")
    return generate([prompt], field="prompt", n=1, delivery="tokens", **options)


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
    spec = _scoring_spec(heads, rules, rule_set, recipe, "heads", ood)
    ends = _terminated(terminated, len(items))
    form = _PromptForm(assistant_prefix, cache_salt, format, reply_role, role_prompt, allow_control_tokens)
    given = any(value is not None for value in sampling.values())
    return scoring_pb2.ScoreRequest(
        items=[_score_item(item, end, f"items[{i}]", form) for i, (item, end) in enumerate(zip(items, ends, strict=True))],
        score=_with_details(spec, recipe_constants, entropy, top_logprobs),
        sampling=_sampling(cast(SamplingOptions, sampling)) if given else None,
        on_swap=cast(Any, enum_number(types_pb2.OnSwap, on_swap, "on_swap")),
        priority=cast(Any, enum_number(types_pb2.Priority, priority, "priority")),
        generation=_checked_number(generation, "generation") or 0,
        history_id=history_id,
        request_id=request_id,
    )


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


@names_bad_text
def tokenize_rules(
    rules: Sequence[str | Rule | Mapping[str, str]] | None, rule_set: str, template: str
) -> scoring_pb2.TokenizeRulesRequest:
    return scoring_pb2.TokenizeRulesRequest(rules=_rule_selection(rules or (), rule_set), template=template)


def sequences(ids: Any) -> tuple[Sequence[Any], bool]:
    """(list of sequences, whether one single sequence was given)."""
    if isinstance(ids, (str, bytes)) or not hasattr(ids, "__len__"):
        raise TypeError(f"ids must be a list of token ids or a list of such lists: {type(ids).__name__}")
    is_single = len(ids) == 0 or not hasattr(ids[0], "__len__") or getattr(ids[0], "shape", None) == ()
    return ([ids] if is_single else ids), is_single


@names_bad_text
def encode(sequences: Sequence[Any], request_id: str, layer: int = 0, pooling: str | None = None) -> trunk_pb2.EncodeRequest:
    ids = [types_pb2.TokenIds(ids=prompt_forms.token_ids(each, f"ids[{i}]")) for i, each in enumerate(sequences)]
    number = cast(Any, enum_number(trunk_pb2.Pooling, pooling, "pooling"))
    return trunk_pb2.EncodeRequest(sequences=ids, request_id=request_id, layer=layer_number(layer), pooling=number)


def layer_number(layer: int) -> int:
    """Which layers there are is the server's to say."""
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"layer must be an int: {type(layer).__name__}")
    if not 0 <= layer < 1 << 32:
        raise InvalidArgument(f"layer must be 0 or a layer's number: {layer}", field="layer")
    return layer


@names_bad_text
def copy_head(
    source: str,
    target: str,
    *,
    kind: str | None = None,
    bias: float | None = None,
    scale: float | None = None,
    read: str | None = None,
    append_token_id: int | None = None,
    pad_token_id: int | None = None,
    unfinished: str | None = None,
    labels: Sequence[str] = (),
    request_id: str = "",
    timeout: float | None = None,  # read by the caller
    **unknown: Any,
) -> heads_pb2.CopyHeadRequest:
    refuse_unknown(unknown, CopyOptions.__annotations__, "copy_head()")
    return heads_pb2.CopyHeadRequest(
        source=source,
        target=target,
        kind=cast(Any, enum_number(types_pb2.HeadKind, kind, "kind")),
        bias=bias,
        scale=scale,
        read=cast(Any, enum_number(heads_pb2.ReadPosition, read, "read")),
        append_token_id=append_token_id,
        pad_token_id=pad_token_id,
        unfinished=cast(Any, enum_number(heads_pb2.Unfinished, unfinished, "unfinished")),
        labels=list(labels),
        request_id=request_id or new_request_id(),
    )


@names_bad_text
def label_head(ref: str, add: Sequence[str], remove: Sequence[str], request_id: str) -> heads_pb2.LabelHeadRequest:
    return heads_pb2.LabelHeadRequest(head=ref, add=add, remove=remove, request_id=request_id or new_request_id())


@names_bad_text
def activate(
    heads: Mapping[str, int],
    digests: Mapping[str, str],
    deactivate: Sequence[str],
    expected_generation: int | None,
    expected_versions: Mapping[str, int] | None,
    request_id: str,
    note: str,
    require: RequireName | None = None,
    prepare_timeout: float | None = None,
) -> heads_pb2.ActivateHeadsRequest:
    if isinstance(deactivate, str):
        raise TypeError(f'deactivate must be a list of names: str\nhint: write ["{deactivate}"]')
    return heads_pb2.ActivateHeadsRequest(
        heads=_checked(heads, "heads"),
        digests=digests,
        deactivate=deactivate,
        expected_generation=_checked_number(expected_generation, "expected_generation"),
        expected_versions=_expected(expected_versions),
        request_id=request_id or new_request_id(),
        note=note,
        require=cast(Any, enum_number(heads_pb2.Require, require, "require")),
        prepare_seconds=prepare_timeout or 0.0,
    )


@names_bad_text
def rollback(
    to: int | None,
    expected_generation: int | None,
    expected_versions: Mapping[str, int] | None,
    request_id: str,
    require: RequireName | None = None,
    prepare_timeout: float | None = None,
) -> heads_pb2.RollbackHeadsRequest:
    return heads_pb2.RollbackHeadsRequest(
        to_generation=_checked_number(to, "to"),
        expected_generation=_checked_number(expected_generation, "expected_generation"),
        expected_versions=_expected(expected_versions),
        request_id=request_id or new_request_id(),
        require=cast(Any, enum_number(heads_pb2.Require, require, "require")),
        prepare_seconds=prepare_timeout or 0.0,
    )


def _expected(versions: Mapping[str, int] | None) -> Mapping[str, int]:
    expected = {} if versions is None else versions
    if not isinstance(expected, Mapping) or not all(isinstance(version, int) for version in expected.values()):
        raise TypeError('expected_versions must map names to version numbers, such as {"policy": 6}; 0: none is active')
    return _checked(expected, "expected_versions")


def _checked(versions: Mapping[str, int], field: str) -> Mapping[str, int]:
    """Protobuf says of a number that is too large no more than that it is."""
    for name, version in versions.items():
        if not 0 <= version < 1 << 32:
            raise InvalidArgument(f"not a version number: {str(version)[:40]}", field=f"{field}[{str(name)[:64]}]")
    return versions


def _checked_number(number: int | None, field: str) -> int | None:
    if isinstance(number, int) and not 0 <= number < 1 << 64:
        raise InvalidArgument(f"not a generation's number: {str(number)[:40]}", field=field)
    return number


def enum_number(enum: ContractEnum, name: str | None, field: str) -> int:
    """The number of READ_POSITION_LAST for "last"; 0, the server's default, for None."""
    if name is None:
        return 0
    known = wire_numbers(enum)
    if name not in known:
        raise InvalidArgument(f"{field} must be one of {', '.join(known)}: {str(name)[:40]!r}", field=field)
    return known[name]


def _arms(
    head: str | None, n: int | None, arms: Sequence[Arm | Mapping[str, Any]] | None, sampling: SamplingOptions
) -> list[generation_pb2.Arm]:
    if arms is None:
        return [generation_pb2.Arm(head=head or "", n=1 if n is None else _count(n, "n"), sampling=_sampling(sampling))]
    if head is not None or n is not None:
        raise InvalidArgument("arms= stands in place of head= and n=: give one or the other", field="arms")
    return [_arm(each, sampling, f"arms[{i}]") for i, each in enumerate(arms)]


def _arm(given: Arm | Mapping[str, Any], sampling: SamplingOptions, field: str) -> generation_pb2.Arm:
    if isinstance(given, Mapping):
        own = {key: value for key, value in given.items() if key not in ("head", "n")}
        refuse_unknown(own, ["head", "n", *SamplingOptions.__annotations__], field)
        given = Arm(given.get("head", "policy"), given.get("n", 1), cast(SamplingOptions, own))
    merged = cast(SamplingOptions, {**sampling, **(given.sampling or {})})
    return generation_pb2.Arm(head=given.head, n=_count(given.n, f"{field}.n"), sampling=_sampling(merged, f"{field}."))


def _count(n: int, field: str) -> int:
    """0 would mean 1 on the wire: refused here, because a caller who writes n=0 does not mean that."""
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"{field} must be an int: {type(n).__name__}")
    if n < 1:
        raise InvalidArgument(f"{field} must be at least 1: {n}", field=field)
    return n


def _sampling(options: SamplingOptions, prefix: str = "") -> types_pb2.Sampling:
    message = types_pb2.Sampling()
    for key, value in options.items():
        if value is None:
            continue
        try:
            if key in _LISTS:
                getattr(message, key).extend(_listed(value))
            else:
                setattr(message, key, value)
        except TypeError:
            raise TypeError(f"{prefix}{key} has a wrong type: {type(value).__name__}") from None
        except UnicodeEncodeError:
            raise lone_surrogate(**{prefix + key: value}) from None
        except ValueError:  # protobuf names neither the field nor the range
            raise InvalidArgument(f"{prefix}{key} is out of range: {str(value)[:80]}", field=prefix + key) from None
    return message


def _listed(value: Any) -> Any:
    """A single string stands for a list of one; bytes are no list of ids."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(type(value).__name__)
    return [value] if isinstance(value, str) else value


def _scoring_spec(
    heads: Sequence[str], rules: Sequence[str | Rule | Mapping[str, str]] | None, rule_set: str, recipe: str, field: str, ood: str
) -> types_pb2.ScoringSpec | None:
    if isinstance(heads, str):
        raise TypeError(f'{field} must be a list of heads: str\nhint: write ["{heads}"]')
    if not heads and not recipe:
        if rules or rule_set:
            raise InvalidArgument(f"rules are given, but {field} names no head to ask", field=field)
        if not ood:
            return None
    return types_pb2.ScoringSpec(heads=list(heads), rules=_rule_selection(rules or (), rule_set), recipe=recipe, ood=ood)


def _with_details(
    spec: types_pb2.ScoringSpec | None, constants: Mapping[str, float] | None, entropy: bool, top_logprobs: int
) -> types_pb2.ScoringSpec | None:
    """Adds what refines a scoring. Without one there is nothing to refine."""
    given = {"recipe_constants": constants, "entropy": entropy, "top_logprobs": top_logprobs}
    if spec is None:
        if useless := next((name for name, value in given.items() if value), None):
            raise InvalidArgument(f"{useless} is given, but nothing is scored: name heads or a recipe", field=useless)
        return None
    for name, value in given.items():
        try:
            spec.MergeFrom(types_pb2.ScoringSpec(**{name: cast(Any, value)}))
        except (TypeError, AttributeError):
            raise TypeError(f"{name} has a wrong type: {type(value).__name__}") from None
        except UnicodeEncodeError:
            raise lone_surrogate(**{name: value}) from None
        except ValueError:
            raise InvalidArgument(f"{name} is out of range: {str(value)[:80]}", field=name) from None
    return spec


def _selection(best: int | None, median: bool, recipe: str) -> generation_pb2.Selection | None:
    if best is None:
        if median:
            raise InvalidArgument("median= needs best=", field="median")
        return None
    if not recipe:
        raise InvalidArgument("best needs a recipe= to rank by", field="best")
    return generation_pb2.Selection(top=_count(best, "best"), median=median)


def _rule_selection(rules: Sequence[str | Rule | Mapping[str, str]], rule_set: str) -> types_pb2.RuleSelection | None:
    if isinstance(rules, (str, Mapping)):
        raise TypeError("rules must be a list of rule ids or rules\nhint: write [rule] for a single one")
    ids = [rule for rule in rules if isinstance(rule, str)]
    texts = [rule if isinstance(rule, Rule) else Rule(**rule) for rule in rules if not isinstance(rule, str)]
    if not ids and not texts and not rule_set:
        return None
    return types_pb2.RuleSelection(
        rule_set=rule_set,
        rule_ids=ids,
        rules=[types_pb2.Rule(id=rule.id, text=rule.text) for rule in texts],
    )


def _score_item(item: Any, terminated: bool | None, field: str, form: _PromptForm) -> scoring_pb2.ScoreItem:
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
