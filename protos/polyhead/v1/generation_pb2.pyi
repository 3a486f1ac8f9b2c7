from polyhead.v1 import options_pb2 as _options_pb2
from polyhead.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Delivery(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DELIVERY_UNSPECIFIED: _ClassVar[Delivery]
    DELIVERY_TOKENS: _ClassVar[Delivery]
    DELIVERY_SAMPLES: _ClassVar[Delivery]
    DELIVERY_GROUPS: _ClassVar[Delivery]
DELIVERY_UNSPECIFIED: Delivery
DELIVERY_TOKENS: Delivery
DELIVERY_SAMPLES: Delivery
DELIVERY_GROUPS: Delivery

class Arm(_message.Message):
    __slots__ = ("head", "n", "sampling", "sample_indices", "index")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_INDICES_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    head: str
    n: int
    sampling: _types_pb2.Sampling
    sample_indices: _containers.RepeatedScalarFieldContainer[int]
    index: int
    def __init__(self, head: _Optional[str] = ..., n: _Optional[int] = ..., sampling: _Optional[_Union[_types_pb2.Sampling, _Mapping]] = ..., sample_indices: _Optional[_Iterable[int]] = ..., index: _Optional[int] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("prompts", "arms", "delivery", "on_swap", "score", "return_states", "request_id", "priority", "select", "prompt_states_once", "generation", "prompt_indices", "history_id")
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    ON_SWAP_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    RETURN_STATES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SELECT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_STATES_ONCE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_INDICES_FIELD_NUMBER: _ClassVar[int]
    HISTORY_ID_FIELD_NUMBER: _ClassVar[int]
    prompts: _containers.RepeatedCompositeFieldContainer[_types_pb2.Prompt]
    arms: _containers.RepeatedCompositeFieldContainer[Arm]
    delivery: Delivery
    on_swap: _types_pb2.OnSwap
    score: _types_pb2.ScoringSpec
    return_states: bool
    request_id: str
    priority: _types_pb2.Priority
    select: Selection
    prompt_states_once: bool
    generation: int
    prompt_indices: _containers.RepeatedScalarFieldContainer[int]
    history_id: str
    def __init__(self, prompts: _Optional[_Iterable[_Union[_types_pb2.Prompt, _Mapping]]] = ..., arms: _Optional[_Iterable[_Union[Arm, _Mapping]]] = ..., delivery: _Optional[_Union[Delivery, str]] = ..., on_swap: _Optional[_Union[_types_pb2.OnSwap, str]] = ..., score: _Optional[_Union[_types_pb2.ScoringSpec, _Mapping]] = ..., return_states: _Optional[bool] = ..., request_id: _Optional[str] = ..., priority: _Optional[_Union[_types_pb2.Priority, str]] = ..., select: _Optional[_Union[Selection, _Mapping]] = ..., prompt_states_once: _Optional[bool] = ..., generation: _Optional[int] = ..., prompt_indices: _Optional[_Iterable[int]] = ..., history_id: _Optional[str] = ...) -> None: ...

class Selection(_message.Message):
    __slots__ = ("top", "median")
    TOP_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_FIELD_NUMBER: _ClassVar[int]
    top: int
    median: bool
    def __init__(self, top: _Optional[int] = ..., median: _Optional[bool] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("prompt_index", "arm_index", "sample_index", "offset", "token_ids", "logprobs", "sampling_logprobs", "text")
    PROMPT_INDEX_FIELD_NUMBER: _ClassVar[int]
    ARM_INDEX_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    prompt_index: int
    arm_index: int
    sample_index: int
    offset: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    sampling_logprobs: _containers.RepeatedScalarFieldContainer[float]
    text: str
    def __init__(self, prompt_index: _Optional[int] = ..., arm_index: _Optional[int] = ..., sample_index: _Optional[int] = ..., offset: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., sampling_logprobs: _Optional[_Iterable[float]] = ..., text: _Optional[str] = ...) -> None: ...

class Span(_message.Message):
    __slots__ = ("start", "end", "version", "generation", "digest")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    version: int
    generation: int
    digest: str
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ..., version: _Optional[int] = ..., generation: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("prompt_index", "arm_index", "sample_index", "prompt_token_ids", "token_ids", "text", "logprobs", "sampling_logprobs", "finish_reason", "terminated", "stop", "head", "head_version", "digest", "spans", "sample_seed", "scores", "error", "num_cached_tokens", "valid", "sampling", "invalid_reasons", "num_newlines", "format", "reward", "ood", "work")
    PROMPT_INDEX_FIELD_NUMBER: _ClassVar[int]
    ARM_INDEX_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_INDEX_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    TERMINATED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    HEAD_VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_SEED_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VALID_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    INVALID_REASONS_FIELD_NUMBER: _ClassVar[int]
    NUM_NEWLINES_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    OOD_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    prompt_index: int
    arm_index: int
    sample_index: int
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    sampling_logprobs: _containers.RepeatedScalarFieldContainer[float]
    finish_reason: _types_pb2.FinishReason
    terminated: bool
    stop: str
    head: str
    head_version: int
    digest: str
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    sample_seed: int
    scores: _containers.RepeatedCompositeFieldContainer[_types_pb2.HeadScore]
    error: str
    num_cached_tokens: int
    valid: bool
    sampling: _types_pb2.Sampling
    invalid_reasons: _containers.RepeatedScalarFieldContainer[str]
    num_newlines: int
    format: str
    reward: _types_pb2.Reward
    ood: _types_pb2.OodScore
    work: _types_pb2.WorkDone
    def __init__(self, prompt_index: _Optional[int] = ..., arm_index: _Optional[int] = ..., sample_index: _Optional[int] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., logprobs: _Optional[_Iterable[float]] = ..., sampling_logprobs: _Optional[_Iterable[float]] = ..., finish_reason: _Optional[_Union[_types_pb2.FinishReason, str]] = ..., terminated: _Optional[bool] = ..., stop: _Optional[str] = ..., head: _Optional[str] = ..., head_version: _Optional[int] = ..., digest: _Optional[str] = ..., spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ..., sample_seed: _Optional[int] = ..., scores: _Optional[_Iterable[_Union[_types_pb2.HeadScore, _Mapping]]] = ..., error: _Optional[str] = ..., num_cached_tokens: _Optional[int] = ..., valid: _Optional[bool] = ..., sampling: _Optional[_Union[_types_pb2.Sampling, _Mapping]] = ..., invalid_reasons: _Optional[_Iterable[str]] = ..., num_newlines: _Optional[int] = ..., format: _Optional[str] = ..., reward: _Optional[_Union[_types_pb2.Reward, _Mapping]] = ..., ood: _Optional[_Union[_types_pb2.OodScore, _Mapping]] = ..., work: _Optional[_Union[_types_pb2.WorkDone, _Mapping]] = ...) -> None: ...

class RankedSample(_message.Message):
    __slots__ = ("arm_index", "sample_index", "reward")
    ARM_INDEX_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_INDEX_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    arm_index: int
    sample_index: int
    reward: float
    def __init__(self, arm_index: _Optional[int] = ..., sample_index: _Optional[int] = ..., reward: _Optional[float] = ...) -> None: ...

class SampleGroup(_message.Message):
    __slots__ = ("prompt_index", "samples", "ranking")
    PROMPT_INDEX_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    RANKING_FIELD_NUMBER: _ClassVar[int]
    prompt_index: int
    samples: _containers.RepeatedCompositeFieldContainer[Sample]
    ranking: _containers.RepeatedCompositeFieldContainer[RankedSample]
    def __init__(self, prompt_index: _Optional[int] = ..., samples: _Optional[_Iterable[_Union[Sample, _Mapping]]] = ..., ranking: _Optional[_Iterable[_Union[RankedSample, _Mapping]]] = ...) -> None: ...

class StatesPart(_message.Message):
    __slots__ = ("prompt_index", "arm_index", "sample_index", "offset", "states")
    PROMPT_INDEX_FIELD_NUMBER: _ClassVar[int]
    ARM_INDEX_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    prompt_index: int
    arm_index: int
    sample_index: int
    offset: int
    states: _types_pb2.Tensor
    def __init__(self, prompt_index: _Optional[int] = ..., arm_index: _Optional[int] = ..., sample_index: _Optional[int] = ..., offset: _Optional[int] = ..., states: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("request_id", "served")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    served: _types_pb2.Served
    def __init__(self, request_id: _Optional[str] = ..., served: _Optional[_Union[_types_pb2.Served, _Mapping]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("accepted", "piece", "sample", "group", "states")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    accepted: Accepted
    piece: Piece
    sample: Sample
    group: SampleGroup
    states: StatesPart
    def __init__(self, accepted: _Optional[_Union[Accepted, _Mapping]] = ..., piece: _Optional[_Union[Piece, _Mapping]] = ..., sample: _Optional[_Union[Sample, _Mapping]] = ..., group: _Optional[_Union[SampleGroup, _Mapping]] = ..., states: _Optional[_Union[StatesPart, _Mapping]] = ...) -> None: ...
