"""Keyword arguments of the larger calls, declared once for both clients. None, or left out, means the server's default."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

__all__ = ["Arm", "CopyOptions", "GenerateOptions", "PushOptions", "Rule", "SamplingOptions", "ScoreOptions", "StreamOptions"]

ConfigurationKindName = Literal["rule_set", "rule_template", "recipe", "transcript_format"]
KindName = Literal["policy", "preference", "rule", "value"]
ReadName = Literal["last", "eos", "append"]
UnfinishedName = Literal["read_last", "omit"]
OnSwapName = Literal["pin", "abort", "follow"]
PoolingName = Literal["mean", "last"]
PriorityName = Literal["batch", "interactive"]
DeliveryName = Literal["tokens", "samples", "groups"]
RequireName = Literal["all", "connected", "primary"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule given by its text; `id` names it in the answer."""

    id: str
    text: str


class SamplingOptions(TypedDict, total=False):
    """How tokens are drawn. Defaults: the plain model (temperature 1, no truncation, no penalty), 128 tokens."""

    temperature: float | None  # 0 is greedy
    top_p: float | None  # in (0, 1]
    top_k: int | None  # 0 keeps all
    min_p: float | None  # in [0, 1]
    repetition_penalty: float | None
    seed: int | None  # drawn by the server if left out; returned with each sample
    max_new_tokens: int | None
    stop: Sequence[str] | str | None  # strings that end a sample; left out: what ends a reply in the transcript format, if there is one
    keep_stop: bool  # keep the matched stop string in `text`
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool
    sample_seeds: Sequence[int] | None  # replay: one per sample of each prompt


class _RuleOptions(TypedDict, total=False):
    rules: Sequence[str | Rule | Mapping[str, str]] | None  # ids of the rule set, or rules by text
    rule_set: str  # "example-rules" or "example-rules@1"


class _RewardOptions(TypedDict, total=False):
    recipe: str  # "sparrow" or "sparrow@1"; heads that it reads are scored with, whether they are named or not
    recipe_constants: Mapping[str, float] | None  # replace the recipe's own in this call
    entropy: bool  # policy-kind heads also say the entropy at every completion token
    top_logprobs: int  # and this many of the likeliest tokens there, at most 20


class _RequestOptions(TypedDict, total=False):
    on_swap: OnSwapName | None
    priority: PriorityName | None
    timeout: float | None  # seconds, for the whole call
    request_id: str
    assistant_prefix: str  # opens the reply
    format: str  # transcript format, "sparrow" or "sparrow@1": how turns are written and what replies are checked against
    reply_role: str  # whose turn the reply is; left out: the format's own choice
    role_prompt: str | None  # before a conversation's first turn, in place of the format's own; "" for none
    allow_control_tokens: bool  # control tokens such as <|im_end|> in messages count as tokens; by default they are text
    cache_salt: str  # requests with different salts never share cached blocks
    generation: int  # answer with exactly this one, or not at all
    history_id: str  # with generation=: which history's, as in Generation


class StreamOptions(SamplingOptions, _RuleOptions, _RewardOptions, _RequestOptions, total=False):
    """What `stream` takes."""

    head: str | None  # "policy" (the default) or "policy@7"
    score: Sequence[str] | None  # heads to score each finished sample with
    ood: str  # an out-of-distribution fit, "helpful" or "helpful@2"
    return_states: bool


class GenerateOptions(StreamOptions, total=False):
    """What `generate` and `samples` take."""

    n: int | None  # samples for each prompt
    arms: Sequence[Arm | Mapping[str, Any]] | None  # several heads in one call, in place of head= and n=
    delivery: DeliveryName | None  # default: samples as they finish; with best=, each prompt's at once
    best: int | None  # with recipe=: only the best so many of each prompt's samples
    median: bool  # with best=: the median, too


class ScoreOptions(SamplingOptions, _RuleOptions, _RewardOptions, _RequestOptions, total=False):
    """What `score` takes. With any sampling parameter, policy heads also return `sampling_logprobs`."""

    ood: str  # an out-of-distribution fit, "helpful" or "helpful@2"
    terminated: (
        bool | Sequence[bool | None] | None
    )  # whether completions ended by themselves; None: whether they end in an EOS token, or as their transcript format requires


class PushOptions(TypedDict, total=False):
    """What `push` and `push_head` take. Left out: the folder's head.json, the base's or the active version's value."""

    kind: KindName | None
    # "policy@3": the version it was made from. Only tensors that differ from it are sent, and those that are not given are taken from it.
    # An adapter runs on it (default: the active version of its own name).
    base: str
    bias: float | None  # preference and value: subtracted from the raw number; weights with a bias of their own bring it
    scale: float | None  # preference and value: what is left is divided by it, so that a reward has unit variance
    read: ReadName | None  # preference: which token is read
    append_token_id: int | None
    pad_token_id: int | None  # with read "last": passed over at the end; -1: none
    unfinished: UnfinishedName | None
    violated_token_id: int | None  # rule: the answer that says "broken"
    followed_token_id: int | None
    template: str | None
    precision: str | None  # of the trunk that it was trained on
    lora: Mapping[str, Any] | None  # the weights are an adapter's: what its adapter_config.json says ("r", "lora_alpha", ...)
    metrics: Mapping[str, float] | None  # what its trainer measured: stored, and listed by `heads`
    labels: Sequence[str]  # keep the version whatever --keep-versions says
    request_id: str
    validate_only: bool
    progress: Callable[[int, int], None] | None  # (bytes sent, bytes in all), after each chunk
    timeout: float | None


class CopyOptions(TypedDict, total=False):
    """What `copy_head` changes on the way; left out: as in the source."""

    kind: KindName | None
    bias: float | None
    scale: float | None
    read: ReadName | None
    append_token_id: int | None
    pad_token_id: int | None  # with read "last": passed over at the end; -1: none
    unfinished: UnfinishedName | None
    labels: Sequence[str]
    request_id: str
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Arm:
    """Candidates of one head for every prompt; `sampling` overrides the call's own parameters for this arm."""

    head: str = "policy"
    n: int = 1
    sampling: SamplingOptions | None = None
