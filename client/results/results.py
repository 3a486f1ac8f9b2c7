"""What the client answers with: frozen dataclasses of plain Python and numpy values. Knows nothing of protobuf."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.heads.format import kinds

__all__ = [
    "FinishReason",
    "HeadKind",
    "HeadScore",
    "OodScore",
    "Piece",
    "PolicyScore",
    "PreferenceScore",
    "RankedSample",
    "Reward",
    "RuleScores",
    "Sample",
    "Sampling",
    "ScoredItem",
    "Served",
    "Span",
    "ValueScore",
    "WorkDone",
]

Floats = NDArray[np.float32]


class HeadKind(enum.StrEnum):
    """What a head computes from boundary states."""

    UNSPECIFIED = ""
    POLICY = "policy"
    PREFERENCE = "preference"
    RULE = "rule"
    VALUE = "value"

    @property
    def has_logits(self) -> bool:
        """Whether its output is over the vocabulary, and not a scalar. False for a kind of a newer server."""
        return bool(self) and kinds.HeadKind(self.value).has_logits


class FinishReason(enum.StrEnum):
    """Why a sample ended. The first three end it by itself (`terminated`)."""

    EOS = "eos"
    STOP_ID = "stop_id"
    STOP_STRING = "stop_string"
    LENGTH = "length"
    ABORTED = "aborted"
    FAILED = "failed"
    UNSPECIFIED = ""


@dataclass(frozen=True, slots=True)
class Served:
    """What an answer was computed with: enough to repeat it."""

    trunk_id: str = ""
    precision: str = ""
    generation: int = 0
    head_versions: dict[str, int] = field(default_factory=dict)
    tokenizer_sha256: str = ""
    history_id: str = ""  # names the generation and all before it


@dataclass(frozen=True, slots=True)
class Sampling:
    """Parameters really used by the server, defaults filled in."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int
    max_new_tokens: int
    stop: tuple[str, ...]
    keep_stop: bool
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens [start, end) were made by `version`. With on_swap="follow" a sample has a span for each version that drew from it."""

    start: int
    end: int
    version: int
    generation: int = 0  # under which the sample took that version up
    digest: str = ""  # SHA-256 of that version


@dataclass(frozen=True, slots=True, eq=False)
class HeadScore:
    """What one head says about one sample. The numbers are attributes of the subclass for its kind.

    Reading a number that is not there raises AttributeError, which says the head's kind or what failed.
    """

    head: str  # as the caller named it
    kind: HeadKind
    version: int
    digest: str
    error: str  # set instead of numbers if they were not finite

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in HeadScore.__slots__:
            raise AttributeError(name)
        why = f"failed: {self.error}" if self.error else f"is a {self.kind.value} head"
        raise AttributeError(f"head {self.head!r} {why}; it has no {name!r}")


@dataclass(frozen=True, slots=True, eq=False)
class PolicyScore(HeadScore):
    """Log-probs of a policy-kind head on the completion's tokens."""

    logprobs: Floats  # (completion tokens,), raw distribution at temperature 1
    sampling_logprobs: Floats  # (completion tokens,), or (0,) if no sampling parameters were given
    entropies: Floats  # (completion tokens,) in nats, of the raw distribution; (0,) unless entropy=True
    top_token_ids: NDArray[np.int64]  # (completion tokens, top_logprobs), likeliest first; (0, 0) unless top_logprobs=
    top_logprobs: Floats  # as top_token_ids: their raw log-probs


@dataclass(frozen=True, slots=True, eq=False)
class PreferenceScore(HeadScore):
    """A preference head's scalar; comparable within one version only."""

    value: float  # (raw - bias) / scale
    raw: float
    bias: float
    present: bool  # False: the head leaves unfinished samples out, and the numbers mean nothing
    position: int  # index of the token that was read, from the start of the prompt
    scale: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class RuleScores(HeadScore):
    """A rule head's answers, by rule id, in the order asked for."""

    p_violate: dict[str, float]
    p_follow: dict[str, float]
    answer_mass: dict[str, float]  # probability of the two answer tokens together; low: the question was not understood
    rule_set: str
    template: str


@dataclass(frozen=True, slots=True, eq=False)
class ValueScore(HeadScore):
    """A value head's estimates."""

    values: Floats  # (completion tokens,): V before each token
    bootstrap_value: float  # V after the last token; 0 if terminated


@dataclass(frozen=True, slots=True)
class OodScore:
    """How far a prompt lies from those that a fit was made from; higher is stranger."""

    fit: str  # "helpful@2"
    layer: int  # whose states were read: the number of layers below it
    score: float  # simplified relative Mahalanobis distance


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """New tokens of one sample, as they are drawn."""

    prompt_index: int
    arm_index: int
    sample_index: int
    offset: int  # index of the first of these tokens within the sample
    token_ids: list[int]
    logprobs: Floats  # (tokens,)
    sampling_logprobs: Floats  # (tokens,)
    text: str  # new text that is certain


@dataclass(frozen=True, slots=True, eq=False)
class Reward:
    """What a recipe makes of one sample's scores, with all that went in. NaN in `reward` and `with_kl` if there is an `error`."""

    recipe: str  # "sparrow@1"
    reward: float  # without KL
    with_kl: float  # reward - kl_coefficient * sum of kl; equal to `reward` if the recipe has no KL term
    parts: dict[str, float]  # by name, before constants are applied
    constants: dict[str, float]  # those used, by name
    kl_estimator: str  # "k1", "k2", "k3"; "" without a KL term
    kl: Floats  # (completion tokens,), or (0,) without a KL term
    token_rewards: Floats  # as kl: -kl_coefficient * kl, plus `reward` on the last token
    rank: int | None  # place among all samples of the prompt, 0 is the best; None if the others are not known
    error: str  # why there is no reward


@dataclass(frozen=True, slots=True)
class RankedSample:
    """One sample's place in its group, whether it was returned or not."""

    arm_index: int
    sample_index: int
    reward: float  # NaN if it has none


@dataclass(frozen=True, slots=True)
class WorkDone:
    """The work done for one sample or item. What several share is counted once, so a request's work is the sum over its samples."""

    trunk_tokens: int  # computed by the trunk; tokens found in the cache are not counted
    head_tokens: int  # computed by heads, summed over heads
    queue_seconds: float | None  # until the request was first scheduled; None where several teams share the server


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One finished sample: everything that a training step needs, and everything that repeats it."""

    prompt_index: int
    arm_index: int
    sample_index: int
    prompt_token_ids: list[int]
    token_ids: list[int]  # every sampled token, end-of-sequence and stop tokens included
    text: str  # a stop string is cut off unless keep_stop
    logprobs: Floats  # (tokens,), raw distribution at temperature 1
    sampling_logprobs: Floats  # (tokens,), the distribution drawn from
    finish_reason: FinishReason
    terminated: bool
    stop: str  # the stop string that matched
    valid: bool  # whether it terminated without error, and is as its transcript format requires
    head: str
    head_version: int  # made the last token
    digest: str
    spans: tuple[Span, ...]
    sample_seed: int  # send back in sample_seeds= to draw the same
    scores: dict[str, HeadScore]  # by head as named in score=
    sampling: Sampling
    num_cached_tokens: int  # prompt tokens whose trunk work was found in the cache
    error: str  # why, for ABORTED and FAILED
    request_id: str
    served: Served
    reward: Reward | None = None  # with recipe=
    ranking: tuple[RankedSample, ...] = ()  # with recipe= and delivery by groups: all samples of the prompt, the best first
    states: Floats | None = None  # (prompt + sampled tokens, d_model), with return_states
    invalid_reasons: tuple[str, ...] = ()  # "failed", "not_terminated", "wrong_end", "empty", "foreign_opening"
    num_newlines: int = 0  # in the reply, without those of the marker that ends it
    format: str = ""  # the transcript format it was checked against, with version
    ood: OodScore | None = None  # of the prompt, with ood=
    work: WorkDone | None = None  # None from an older server

    @property
    def generation(self) -> int:
        """The active set that the request began with, its scores included; `spans` say what on_swap="follow" went on with."""
        return self.served.generation


@dataclass(frozen=True, slots=True, eq=False)
class ScoredItem:
    """One scored completion."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    terminated: bool
    scores: dict[str, HeadScore]
    error: str  # what went wrong with this item alone
    num_cached_tokens: int
    request_id: str
    served: Served
    reward: Reward | None = None  # with recipe=; ranked among the items with the same prompt ids
    valid: bool = False  # as in Sample
    invalid_reasons: tuple[str, ...] = ()
    num_newlines: int = 0
    format: str = ""
    ood: OodScore | None = None  # of the prompt, with ood=
    work: WorkDone | None = None  # None from an older server

    @property
    def generation(self) -> int:
        """The active set that the whole request ran on."""
        return self.served.generation
