from polyhead.v1 import options_pb2 as _options_pb2
from polyhead.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Pooling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POOLING_UNSPECIFIED: _ClassVar[Pooling]
    POOLING_MEAN: _ClassVar[Pooling]
    POOLING_LAST: _ClassVar[Pooling]
POOLING_UNSPECIFIED: Pooling
POOLING_MEAN: Pooling
POOLING_LAST: Pooling

class GetTrunkRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SourceTensor(_message.Message):
    __slots__ = ("name", "sha256", "dtype")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    sha256: str
    dtype: str
    def __init__(self, name: _Optional[str] = ..., sha256: _Optional[str] = ..., dtype: _Optional[str] = ...) -> None: ...

class HeadTensor(_message.Message):
    __slots__ = ("name", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class GetTrunkResponse(_message.Message):
    __slots__ = ("trunk_id", "precision", "model", "split_layer", "num_layers", "d_model", "vocab_size", "context_length", "eos_token_ids", "tokenizer_sha256", "tensors", "head_tensors", "tied", "config_json", "tap_layer", "head_precision", "output_precision", "attention", "device", "head_device", "tensor_parallel")
    TRUNK_ID_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SPLIT_LAYER_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    D_MODEL_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_SHA256_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    HEAD_TENSORS_FIELD_NUMBER: _ClassVar[int]
    TIED_FIELD_NUMBER: _ClassVar[int]
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    TAP_LAYER_FIELD_NUMBER: _ClassVar[int]
    HEAD_PRECISION_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_PRECISION_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    HEAD_DEVICE_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLEL_FIELD_NUMBER: _ClassVar[int]
    trunk_id: str
    precision: str
    model: str
    split_layer: int
    num_layers: int
    d_model: int
    vocab_size: int
    context_length: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    tokenizer_sha256: str
    tensors: _containers.RepeatedCompositeFieldContainer[SourceTensor]
    head_tensors: _containers.RepeatedCompositeFieldContainer[HeadTensor]
    tied: bool
    config_json: str
    tap_layer: int
    head_precision: str
    output_precision: str
    attention: str
    device: str
    head_device: str
    tensor_parallel: int
    def __init__(self, trunk_id: _Optional[str] = ..., precision: _Optional[str] = ..., model: _Optional[str] = ..., split_layer: _Optional[int] = ..., num_layers: _Optional[int] = ..., d_model: _Optional[int] = ..., vocab_size: _Optional[int] = ..., context_length: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., tokenizer_sha256: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[SourceTensor, _Mapping]]] = ..., head_tensors: _Optional[_Iterable[_Union[HeadTensor, _Mapping]]] = ..., tied: _Optional[bool] = ..., config_json: _Optional[str] = ..., tap_layer: _Optional[int] = ..., head_precision: _Optional[str] = ..., output_precision: _Optional[str] = ..., attention: _Optional[str] = ..., device: _Optional[str] = ..., head_device: _Optional[str] = ..., tensor_parallel: _Optional[int] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("prompt", "without_special_tokens", "prompts")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    prompt: _types_pb2.Prompt
    without_special_tokens: bool
    prompts: _containers.RepeatedCompositeFieldContainer[_types_pb2.Prompt]
    def __init__(self, prompt: _Optional[_Union[_types_pb2.Prompt, _Mapping]] = ..., without_special_tokens: _Optional[bool] = ..., prompts: _Optional[_Iterable[_Union[_types_pb2.Prompt, _Mapping]]] = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("token_ids", "sequences")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    sequences: _containers.RepeatedCompositeFieldContainer[_types_pb2.TokenIds]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., sequences: _Optional[_Iterable[_Union[_types_pb2.TokenIds, _Mapping]]] = ...) -> None: ...

class DetokenizeRequest(_message.Message):
    __slots__ = ("token_ids", "skip_special_tokens")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SKIP_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    skip_special_tokens: bool
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., skip_special_tokens: _Optional[bool] = ...) -> None: ...

class DetokenizeResponse(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class EncodeRequest(_message.Message):
    __slots__ = ("sequences", "request_id", "layer", "pooling")
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    sequences: _containers.RepeatedCompositeFieldContainer[_types_pb2.TokenIds]
    request_id: str
    layer: int
    pooling: Pooling
    def __init__(self, sequences: _Optional[_Iterable[_Union[_types_pb2.TokenIds, _Mapping]]] = ..., request_id: _Optional[str] = ..., layer: _Optional[int] = ..., pooling: _Optional[_Union[Pooling, str]] = ...) -> None: ...

class EncodeResponse(_message.Message):
    __slots__ = ("sequence_index", "offset", "states")
    SEQUENCE_INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    sequence_index: int
    offset: int
    states: _types_pb2.Tensor
    def __init__(self, sequence_index: _Optional[int] = ..., offset: _Optional[int] = ..., states: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ...) -> None: ...

class PullOutputEmbeddingRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PullOutputEmbeddingResponse(_message.Message):
    __slots__ = ("offset", "rows")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    offset: int
    rows: _types_pb2.Tensor
    def __init__(self, offset: _Optional[int] = ..., rows: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResidentHead(_message.Message):
    __slots__ = ("references", "digest", "num_bytes", "num_leases", "active")
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_LEASES_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    references: _containers.RepeatedScalarFieldContainer[str]
    digest: str
    num_bytes: int
    num_leases: int
    active: bool
    def __init__(self, references: _Optional[_Iterable[str]] = ..., digest: _Optional[str] = ..., num_bytes: _Optional[int] = ..., num_leases: _Optional[int] = ..., active: _Optional[bool] = ...) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("generation", "active", "resident_heads", "trunk_bytes", "model_bytes", "num_running", "num_waiting", "num_blocks", "num_used_blocks", "num_cached_blocks", "num_head_blocks", "num_filled_head_blocks", "store_bytes", "disk_free_bytes", "counters", "last_swap_pause_seconds", "damage", "uptime_seconds", "memory_budget_bytes", "head_bytes", "resident_names", "max_idle_per_name", "problems", "changes", "history_id", "primary", "follow_problem", "ranks")
    class ActiveEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_HEADS_FIELD_NUMBER: _ClassVar[int]
    TRUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_USED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_HEAD_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_FILLED_HEAD_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    STORE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    LAST_SWAP_PAUSE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DAMAGE_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    HEAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_NAMES_FIELD_NUMBER: _ClassVar[int]
    MAX_IDLE_PER_NAME_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    HISTORY_ID_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_PROBLEM_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    generation: int
    active: _containers.ScalarMap[str, int]
    resident_heads: _containers.RepeatedCompositeFieldContainer[ResidentHead]
    trunk_bytes: int
    model_bytes: int
    num_running: int
    num_waiting: int
    num_blocks: int
    num_used_blocks: int
    num_cached_blocks: int
    num_head_blocks: int
    num_filled_head_blocks: int
    store_bytes: int
    disk_free_bytes: int
    counters: _containers.ScalarMap[str, int]
    last_swap_pause_seconds: float
    damage: str
    uptime_seconds: float
    memory_budget_bytes: int
    head_bytes: int
    resident_names: _containers.RepeatedCompositeFieldContainer[ResidentName]
    max_idle_per_name: int
    problems: _containers.RepeatedScalarFieldContainer[str]
    changes: _containers.RepeatedCompositeFieldContainer[ChangeUnderWay]
    history_id: str
    primary: str
    follow_problem: str
    ranks: _containers.RepeatedCompositeFieldContainer[RankMemory]
    def __init__(self, generation: _Optional[int] = ..., active: _Optional[_Mapping[str, int]] = ..., resident_heads: _Optional[_Iterable[_Union[ResidentHead, _Mapping]]] = ..., trunk_bytes: _Optional[int] = ..., model_bytes: _Optional[int] = ..., num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_blocks: _Optional[int] = ..., num_used_blocks: _Optional[int] = ..., num_cached_blocks: _Optional[int] = ..., num_head_blocks: _Optional[int] = ..., num_filled_head_blocks: _Optional[int] = ..., store_bytes: _Optional[int] = ..., disk_free_bytes: _Optional[int] = ..., counters: _Optional[_Mapping[str, int]] = ..., last_swap_pause_seconds: _Optional[float] = ..., damage: _Optional[str] = ..., uptime_seconds: _Optional[float] = ..., memory_budget_bytes: _Optional[int] = ..., head_bytes: _Optional[int] = ..., resident_names: _Optional[_Iterable[_Union[ResidentName, _Mapping]]] = ..., max_idle_per_name: _Optional[int] = ..., problems: _Optional[_Iterable[str]] = ..., changes: _Optional[_Iterable[_Union[ChangeUnderWay, _Mapping]]] = ..., history_id: _Optional[str] = ..., primary: _Optional[str] = ..., follow_problem: _Optional[str] = ..., ranks: _Optional[_Iterable[_Union[RankMemory, _Mapping]]] = ...) -> None: ...

class RankMemory(_message.Message):
    __slots__ = ("rank", "device", "num_bytes")
    RANK_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    rank: int
    device: str
    num_bytes: int
    def __init__(self, rank: _Optional[int] = ..., device: _Optional[str] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class ChangeUnderWay(_message.Message):
    __slots__ = ("what", "step", "seconds")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    what: str
    step: str
    seconds: float
    def __init__(self, what: _Optional[str] = ..., step: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class ResidentName(_message.Message):
    __slots__ = ("name", "active_version", "versions", "num_bytes", "num_leases")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_LEASES_FIELD_NUMBER: _ClassVar[int]
    name: str
    active_version: int
    versions: _containers.RepeatedScalarFieldContainer[int]
    num_bytes: int
    num_leases: int
    def __init__(self, name: _Optional[str] = ..., active_version: _Optional[int] = ..., versions: _Optional[_Iterable[int]] = ..., num_bytes: _Optional[int] = ..., num_leases: _Optional[int] = ...) -> None: ...

class FitOodRequest(_message.Message):
    __slots__ = ("header", "prompts")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    header: FitOodHeader
    prompts: FitOodPrompts
    def __init__(self, header: _Optional[_Union[FitOodHeader, _Mapping]] = ..., prompts: _Optional[_Union[FitOodPrompts, _Mapping]] = ...) -> None: ...

class FitOodHeader(_message.Message):
    __slots__ = ("name", "layer", "pooling", "shrinkage", "request_id", "num_prompts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    SHRINKAGE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    layer: int
    pooling: Pooling
    shrinkage: float
    request_id: str
    num_prompts: int
    def __init__(self, name: _Optional[str] = ..., layer: _Optional[int] = ..., pooling: _Optional[_Union[Pooling, str]] = ..., shrinkage: _Optional[float] = ..., request_id: _Optional[str] = ..., num_prompts: _Optional[int] = ...) -> None: ...

class FitOodPrompts(_message.Message):
    __slots__ = ("prompts",)
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    prompts: _containers.RepeatedCompositeFieldContainer[_types_pb2.Prompt]
    def __init__(self, prompts: _Optional[_Iterable[_Union[_types_pb2.Prompt, _Mapping]]] = ...) -> None: ...

class OodFit(_message.Message):
    __slots__ = ("name", "version", "trunk_id", "precision", "layer", "pooling", "num_prompts", "shrinkage", "created_at", "mean_score", "std_score")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TRUNK_ID_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    SHRINKAGE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    MEAN_SCORE_FIELD_NUMBER: _ClassVar[int]
    STD_SCORE_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    trunk_id: str
    precision: str
    layer: int
    pooling: Pooling
    num_prompts: int
    shrinkage: float
    created_at: float
    mean_score: float
    std_score: float
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., trunk_id: _Optional[str] = ..., precision: _Optional[str] = ..., layer: _Optional[int] = ..., pooling: _Optional[_Union[Pooling, str]] = ..., num_prompts: _Optional[int] = ..., shrinkage: _Optional[float] = ..., created_at: _Optional[float] = ..., mean_score: _Optional[float] = ..., std_score: _Optional[float] = ...) -> None: ...

class FitOodResponse(_message.Message):
    __slots__ = ("fit",)
    FIT_FIELD_NUMBER: _ClassVar[int]
    fit: OodFit
    def __init__(self, fit: _Optional[_Union[OodFit, _Mapping]] = ...) -> None: ...

class ListOodFitsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListOodFitsResponse(_message.Message):
    __slots__ = ("fits",)
    FITS_FIELD_NUMBER: _ClassVar[int]
    fits: _containers.RepeatedCompositeFieldContainer[OodFit]
    def __init__(self, fits: _Optional[_Iterable[_Union[OodFit, _Mapping]]] = ...) -> None: ...
