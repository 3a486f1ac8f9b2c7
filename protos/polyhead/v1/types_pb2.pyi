from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HeadKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HEAD_KIND_UNSPECIFIED: _ClassVar[HeadKind]
    HEAD_KIND_POLICY: _ClassVar[HeadKind]
    HEAD_KIND_PREFERENCE: _ClassVar[HeadKind]
    HEAD_KIND_RULE: _ClassVar[HeadKind]
    HEAD_KIND_VALUE: _ClassVar[HeadKind]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_EOS: _ClassVar[FinishReason]
    FINISH_REASON_STOP_ID: _ClassVar[FinishReason]
    FINISH_REASON_STOP_STRING: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_ABORTED: _ClassVar[FinishReason]
    FINISH_REASON_FAILED: _ClassVar[FinishReason]

class OnSwap(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_SWAP_UNSPECIFIED: _ClassVar[OnSwap]
    ON_SWAP_PIN: _ClassVar[OnSwap]
    ON_SWAP_ABORT: _ClassVar[OnSwap]
    ON_SWAP_FOLLOW: _ClassVar[OnSwap]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_BATCH: _ClassVar[Priority]
    PRIORITY_INTERACTIVE: _ClassVar[Priority]
HEAD_KIND_UNSPECIFIED: HeadKind
HEAD_KIND_POLICY: HeadKind
HEAD_KIND_PREFERENCE: HeadKind
HEAD_KIND_RULE: HeadKind
HEAD_KIND_VALUE: HeadKind
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_EOS: FinishReason
FINISH_REASON_STOP_ID: FinishReason
FINISH_REASON_STOP_STRING: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_ABORTED: FinishReason
FINISH_REASON_FAILED: FinishReason
ON_SWAP_UNSPECIFIED: OnSwap
ON_SWAP_PIN: OnSwap
ON_SWAP_ABORT: OnSwap
ON_SWAP_FOLLOW: OnSwap
PRIORITY_UNSPECIFIED: Priority
PRIORITY_BATCH: Priority
PRIORITY_INTERACTIVE: Priority

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class Chat(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class Continuation(_message.Message):
    __slots__ = ("prompt_token_ids", "token_ids", "messages")
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, prompt_token_ids: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("text", "token_ids", "chat", "continue_from", "assistant_prefix", "cache_salt", "format", "reply_role", "role_prompt", "allow_control_tokens")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_FROM_FIELD_NUMBER: _ClassVar[int]
    ASSISTANT_PREFIX_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    REPLY_ROLE_FIELD_NUMBER: _ClassVar[int]
    ROLE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    ALLOW_CONTROL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: TokenIds
    chat: Chat
    continue_from: Continuation
    assistant_prefix: str
    cache_salt: str
    format: str
    reply_role: str
    role_prompt: str
    allow_control_tokens: bool
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., chat: _Optional[_Union[Chat, _Mapping]] = ..., continue_from: _Optional[_Union[Continuation, _Mapping]] = ..., assistant_prefix: _Optional[str] = ..., cache_salt: _Optional[str] = ..., format: _Optional[str] = ..., reply_role: _Optional[str] = ..., role_prompt: _Optional[str] = ..., allow_control_tokens: _Optional[bool] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "max_new_tokens", "stop", "keep_stop", "stop_token_ids", "ignore_eos", "sample_seeds")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    KEEP_STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_SEEDS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int
    max_new_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    keep_stop: bool
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    sample_seeds: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., seed: _Optional[int] = ..., max_new_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., keep_stop: _Optional[bool] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: _Optional[bool] = ..., sample_seeds: _Optional[_Iterable[int]] = ...) -> None: ...

class Rule(_message.Message):
    __slots__ = ("id", "text")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    id: str
    text: str
    def __init__(self, id: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class RuleSelection(_message.Message):
    __slots__ = ("rule_set", "rule_ids", "rules")
    RULE_SET_FIELD_NUMBER: _ClassVar[int]
    RULE_IDS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    rule_set: str
    rule_ids: _containers.RepeatedScalarFieldContainer[str]
    rules: _containers.RepeatedCompositeFieldContainer[Rule]
    def __init__(self, rule_set: _Optional[str] = ..., rule_ids: _Optional[_Iterable[str]] = ..., rules: _Optional[_Iterable[_Union[Rule, _Mapping]]] = ...) -> None: ...

class ScoringSpec(_message.Message):
    __slots__ = ("heads", "rules", "recipe", "recipe_constants", "entropy", "top_logprobs", "ood")
    class RecipeConstantsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    HEADS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    RECIPE_CONSTANTS_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    OOD_FIELD_NUMBER: _ClassVar[int]
    heads: _containers.RepeatedScalarFieldContainer[str]
    rules: RuleSelection
    recipe: str
    recipe_constants: _containers.ScalarMap[str, float]
    entropy: bool
    top_logprobs: int
    ood: str
    def __init__(self, heads: _Optional[_Iterable[str]] = ..., rules: _Optional[_Union[RuleSelection, _Mapping]] = ..., recipe: _Optional[str] = ..., recipe_constants: _Optional[_Mapping[str, float]] = ..., entropy: _Optional[bool] = ..., top_logprobs: _Optional[int] = ..., ood: _Optional[str] = ...) -> None: ...

class PolicyScore(_message.Message):
    __slots__ = ("logprobs", "sampling_logprobs", "entropies", "top_token_ids", "top_logprobs")
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    ENTROPIES_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    sampling_logprobs: _containers.RepeatedScalarFieldContainer[float]
    entropies: _containers.RepeatedScalarFieldContainer[float]
    top_token_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, logprobs: _Optional[_Iterable[float]] = ..., sampling_logprobs: _Optional[_Iterable[float]] = ..., entropies: _Optional[_Iterable[float]] = ..., top_token_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class PreferenceScore(_message.Message):
    __slots__ = ("raw", "bias", "value", "present", "position", "scale")
    RAW_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    raw: float
    bias: float
    value: float
    present: bool
    position: int
    scale: float
    def __init__(self, raw: _Optional[float] = ..., bias: _Optional[float] = ..., value: _Optional[float] = ..., present: _Optional[bool] = ..., position: _Optional[int] = ..., scale: _Optional[float] = ...) -> None: ...

class RuleScore(_message.Message):
    __slots__ = ("rule_id", "p_violate", "p_follow", "answer_mass")
    RULE_ID_FIELD_NUMBER: _ClassVar[int]
    P_VIOLATE_FIELD_NUMBER: _ClassVar[int]
    P_FOLLOW_FIELD_NUMBER: _ClassVar[int]
    ANSWER_MASS_FIELD_NUMBER: _ClassVar[int]
    rule_id: str
    p_violate: float
    p_follow: float
    answer_mass: float
    def __init__(self, rule_id: _Optional[str] = ..., p_violate: _Optional[float] = ..., p_follow: _Optional[float] = ..., answer_mass: _Optional[float] = ...) -> None: ...

class RuleScores(_message.Message):
    __slots__ = ("rules", "rule_set", "template")
    RULES_FIELD_NUMBER: _ClassVar[int]
    RULE_SET_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    rules: _containers.RepeatedCompositeFieldContainer[RuleScore]
    rule_set: str
    template: str
    def __init__(self, rules: _Optional[_Iterable[_Union[RuleScore, _Mapping]]] = ..., rule_set: _Optional[str] = ..., template: _Optional[str] = ...) -> None: ...

class ValueScore(_message.Message):
    __slots__ = ("values", "bootstrap_value")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    BOOTSTRAP_VALUE_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    bootstrap_value: float
    def __init__(self, values: _Optional[_Iterable[float]] = ..., bootstrap_value: _Optional[float] = ...) -> None: ...

class Reward(_message.Message):
    __slots__ = ("recipe", "reward", "reward_with_kl", "parts", "constants", "kl_estimator", "kl", "token_rewards", "rank", "error")
    class PartsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class ConstantsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    REWARD_WITH_KL_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    CONSTANTS_FIELD_NUMBER: _ClassVar[int]
    KL_ESTIMATOR_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_REWARDS_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    recipe: str
    reward: float
    reward_with_kl: float
    parts: _containers.ScalarMap[str, float]
    constants: _containers.ScalarMap[str, float]
    kl_estimator: str
    kl: _containers.RepeatedScalarFieldContainer[float]
    token_rewards: _containers.RepeatedScalarFieldContainer[float]
    rank: int
    error: str
    def __init__(self, recipe: _Optional[str] = ..., reward: _Optional[float] = ..., reward_with_kl: _Optional[float] = ..., parts: _Optional[_Mapping[str, float]] = ..., constants: _Optional[_Mapping[str, float]] = ..., kl_estimator: _Optional[str] = ..., kl: _Optional[_Iterable[float]] = ..., token_rewards: _Optional[_Iterable[float]] = ..., rank: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class OodScore(_message.Message):
    __slots__ = ("fit", "layer", "score")
    FIT_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    fit: str
    layer: int
    score: float
    def __init__(self, fit: _Optional[str] = ..., layer: _Optional[int] = ..., score: _Optional[float] = ...) -> None: ...

class HeadScore(_message.Message):
    __slots__ = ("head", "kind", "version", "digest", "policy", "preference", "rule", "value", "error")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PREFERENCE_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    head: str
    kind: HeadKind
    version: int
    digest: str
    policy: PolicyScore
    preference: PreferenceScore
    rule: RuleScores
    value: ValueScore
    error: str
    def __init__(self, head: _Optional[str] = ..., kind: _Optional[_Union[HeadKind, str]] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., policy: _Optional[_Union[PolicyScore, _Mapping]] = ..., preference: _Optional[_Union[PreferenceScore, _Mapping]] = ..., rule: _Optional[_Union[RuleScores, _Mapping]] = ..., value: _Optional[_Union[ValueScore, _Mapping]] = ..., error: _Optional[str] = ...) -> None: ...

class WorkDone(_message.Message):
    __slots__ = ("trunk_tokens", "head_tokens", "queue_seconds")
    TRUNK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HEAD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    trunk_tokens: int
    head_tokens: int
    queue_seconds: float
    def __init__(self, trunk_tokens: _Optional[int] = ..., head_tokens: _Optional[int] = ..., queue_seconds: _Optional[float] = ...) -> None: ...

class Served(_message.Message):
    __slots__ = ("trunk_id", "precision", "generation", "head_versions", "tokenizer_sha256", "history_id")
    class HeadVersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    TRUNK_ID_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    HEAD_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_SHA256_FIELD_NUMBER: _ClassVar[int]
    HISTORY_ID_FIELD_NUMBER: _ClassVar[int]
    trunk_id: str
    precision: str
    generation: int
    head_versions: _containers.ScalarMap[str, int]
    tokenizer_sha256: str
    history_id: str
    def __init__(self, trunk_id: _Optional[str] = ..., precision: _Optional[str] = ..., generation: _Optional[int] = ..., head_versions: _Optional[_Mapping[str, int]] = ..., tokenizer_sha256: _Optional[str] = ..., history_id: _Optional[str] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...
