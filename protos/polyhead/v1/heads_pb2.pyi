from polyhead.v1 import options_pb2 as _options_pb2
from polyhead.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OutputKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTPUT_KIND_UNSPECIFIED: _ClassVar[OutputKind]
    OUTPUT_KIND_TIED: _ClassVar[OutputKind]
    OUTPUT_KIND_OWN: _ClassVar[OutputKind]
    OUTPUT_KIND_SCORE: _ClassVar[OutputKind]

class ReadPosition(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    READ_POSITION_UNSPECIFIED: _ClassVar[ReadPosition]
    READ_POSITION_LAST: _ClassVar[ReadPosition]
    READ_POSITION_EOS: _ClassVar[ReadPosition]
    READ_POSITION_APPEND: _ClassVar[ReadPosition]

class Require(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REQUIRE_UNSPECIFIED: _ClassVar[Require]
    REQUIRE_ALL: _ClassVar[Require]
    REQUIRE_CONNECTED: _ClassVar[Require]
    REQUIRE_PRIMARY: _ClassVar[Require]

class Unfinished(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNFINISHED_UNSPECIFIED: _ClassVar[Unfinished]
    UNFINISHED_READ_LAST: _ClassVar[Unfinished]
    UNFINISHED_OMIT: _ClassVar[Unfinished]
OUTPUT_KIND_UNSPECIFIED: OutputKind
OUTPUT_KIND_TIED: OutputKind
OUTPUT_KIND_OWN: OutputKind
OUTPUT_KIND_SCORE: OutputKind
READ_POSITION_UNSPECIFIED: ReadPosition
READ_POSITION_LAST: ReadPosition
READ_POSITION_EOS: ReadPosition
READ_POSITION_APPEND: ReadPosition
REQUIRE_UNSPECIFIED: Require
REQUIRE_ALL: Require
REQUIRE_CONNECTED: Require
REQUIRE_PRIMARY: Require
UNFINISHED_UNSPECIFIED: Unfinished
UNFINISHED_READ_LAST: Unfinished
UNFINISHED_OMIT: Unfinished

class HeadManifest(_message.Message):
    __slots__ = ("kind", "trunk_id", "precision", "output", "base", "untrained", "bias", "read", "append_token_id", "unfinished", "violated_token_id", "followed_token_id", "template", "lora", "pad_token_id", "scale")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TRUNK_ID_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    UNTRAINED_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    APPEND_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    UNFINISHED_FIELD_NUMBER: _ClassVar[int]
    VIOLATED_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    FOLLOWED_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    PAD_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    kind: _types_pb2.HeadKind
    trunk_id: str
    precision: str
    output: OutputKind
    base: str
    untrained: bool
    bias: float
    read: ReadPosition
    append_token_id: int
    unfinished: Unfinished
    violated_token_id: int
    followed_token_id: int
    template: str
    lora: LoraAdapter
    pad_token_id: int
    scale: float
    def __init__(self, kind: _Optional[_Union[_types_pb2.HeadKind, str]] = ..., trunk_id: _Optional[str] = ..., precision: _Optional[str] = ..., output: _Optional[_Union[OutputKind, str]] = ..., base: _Optional[str] = ..., untrained: _Optional[bool] = ..., bias: _Optional[float] = ..., read: _Optional[_Union[ReadPosition, str]] = ..., append_token_id: _Optional[int] = ..., unfinished: _Optional[_Union[Unfinished, str]] = ..., violated_token_id: _Optional[int] = ..., followed_token_id: _Optional[int] = ..., template: _Optional[str] = ..., lora: _Optional[_Union[LoraAdapter, _Mapping]] = ..., pad_token_id: _Optional[int] = ..., scale: _Optional[float] = ...) -> None: ...

class LoraAdapter(_message.Message):
    __slots__ = ("rank", "alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
    class RankPatternEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class AlphaPatternEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RANK_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    USE_RSLORA_FIELD_NUMBER: _ClassVar[int]
    RANK_PATTERN_FIELD_NUMBER: _ClassVar[int]
    ALPHA_PATTERN_FIELD_NUMBER: _ClassVar[int]
    FAN_IN_FAN_OUT_FIELD_NUMBER: _ClassVar[int]
    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: _containers.ScalarMap[str, int]
    alpha_pattern: _containers.ScalarMap[str, float]
    fan_in_fan_out: bool
    def __init__(self, rank: _Optional[int] = ..., alpha: _Optional[float] = ..., use_rslora: _Optional[bool] = ..., rank_pattern: _Optional[_Mapping[str, int]] = ..., alpha_pattern: _Optional[_Mapping[str, float]] = ..., fan_in_fan_out: _Optional[bool] = ...) -> None: ...

class HeadVersion(_message.Message):
    __slots__ = ("name", "version", "digest", "num_bytes", "manifest", "active", "resident", "created_at", "labels", "metrics", "file_sha256")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    FILE_SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    digest: str
    num_bytes: int
    manifest: HeadManifest
    active: bool
    resident: bool
    created_at: float
    labels: _containers.RepeatedScalarFieldContainer[str]
    metrics: _containers.ScalarMap[str, float]
    file_sha256: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., num_bytes: _Optional[int] = ..., manifest: _Optional[_Union[HeadManifest, _Mapping]] = ..., active: _Optional[bool] = ..., resident: _Optional[bool] = ..., created_at: _Optional[float] = ..., labels: _Optional[_Iterable[str]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., file_sha256: _Optional[str] = ...) -> None: ...

class Generation(_message.Message):
    __slots__ = ("number", "parent", "heads", "created_at", "note", "gone", "same_as", "history_id")
    class HeadsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    SAME_AS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_ID_FIELD_NUMBER: _ClassVar[int]
    number: int
    parent: int
    heads: _containers.ScalarMap[str, int]
    created_at: float
    note: str
    gone: _containers.RepeatedScalarFieldContainer[str]
    same_as: int
    history_id: str
    def __init__(self, number: _Optional[int] = ..., parent: _Optional[int] = ..., heads: _Optional[_Mapping[str, int]] = ..., created_at: _Optional[float] = ..., note: _Optional[str] = ..., gone: _Optional[_Iterable[str]] = ..., same_as: _Optional[int] = ..., history_id: _Optional[str] = ...) -> None: ...

class PushHeader(_message.Message):
    __slots__ = ("name", "manifest", "num_bytes", "sha256", "request_id", "validate_only", "trunk_sha256", "labels", "delta_base", "metrics", "delta_num_bytes", "delta_sha256")
    class TrunkSha256Entry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    TRUNK_SHA256_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    DELTA_BASE_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    DELTA_NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    DELTA_SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    manifest: HeadManifest
    num_bytes: int
    sha256: str
    request_id: str
    validate_only: bool
    trunk_sha256: _containers.ScalarMap[str, str]
    labels: _containers.RepeatedScalarFieldContainer[str]
    delta_base: str
    metrics: _containers.ScalarMap[str, float]
    delta_num_bytes: int
    delta_sha256: str
    def __init__(self, name: _Optional[str] = ..., manifest: _Optional[_Union[HeadManifest, _Mapping]] = ..., num_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., request_id: _Optional[str] = ..., validate_only: _Optional[bool] = ..., trunk_sha256: _Optional[_Mapping[str, str]] = ..., labels: _Optional[_Iterable[str]] = ..., delta_base: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ..., delta_num_bytes: _Optional[int] = ..., delta_sha256: _Optional[str] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class PushHeadRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: PushHeader
    chunk: Chunk
    def __init__(self, header: _Optional[_Union[PushHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class PushHeadResponse(_message.Message):
    __slots__ = ("head", "num_trunk_tensors_compared", "removed", "same_file_as")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    NUM_TRUNK_TENSORS_COMPARED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    SAME_FILE_AS_FIELD_NUMBER: _ClassVar[int]
    head: HeadVersion
    num_trunk_tensors_compared: int
    removed: _containers.RepeatedScalarFieldContainer[str]
    same_file_as: str
    def __init__(self, head: _Optional[_Union[HeadVersion, _Mapping]] = ..., num_trunk_tensors_compared: _Optional[int] = ..., removed: _Optional[_Iterable[str]] = ..., same_file_as: _Optional[str] = ...) -> None: ...

class PullHeadRequest(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: str
    def __init__(self, head: _Optional[str] = ...) -> None: ...

class PullHeadResponse(_message.Message):
    __slots__ = ("head", "chunk")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    head: HeadVersion
    chunk: Chunk
    def __init__(self, head: _Optional[_Union[HeadVersion, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class CopyHeadRequest(_message.Message):
    __slots__ = ("source", "target", "kind", "bias", "read", "append_token_id", "unfinished", "request_id", "labels", "pad_token_id", "scale")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    APPEND_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    UNFINISHED_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PAD_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    kind: _types_pb2.HeadKind
    bias: float
    read: ReadPosition
    append_token_id: int
    unfinished: Unfinished
    request_id: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    pad_token_id: int
    scale: float
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., kind: _Optional[_Union[_types_pb2.HeadKind, str]] = ..., bias: _Optional[float] = ..., read: _Optional[_Union[ReadPosition, str]] = ..., append_token_id: _Optional[int] = ..., unfinished: _Optional[_Union[Unfinished, str]] = ..., request_id: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., pad_token_id: _Optional[int] = ..., scale: _Optional[float] = ...) -> None: ...

class CopyHeadResponse(_message.Message):
    __slots__ = ("head", "removed")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    head: HeadVersion
    removed: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, head: _Optional[_Union[HeadVersion, _Mapping]] = ..., removed: _Optional[_Iterable[str]] = ...) -> None: ...

class ActivateHeadsRequest(_message.Message):
    __slots__ = ("heads", "expected_generation", "request_id", "note", "deactivate", "expected_versions", "digests", "require", "prepare_seconds")
    class HeadsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class ExpectedVersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class DigestsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    HEADS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    DEACTIVATE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    REQUIRE_FIELD_NUMBER: _ClassVar[int]
    PREPARE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    heads: _containers.ScalarMap[str, int]
    expected_generation: int
    request_id: str
    note: str
    deactivate: _containers.RepeatedScalarFieldContainer[str]
    expected_versions: _containers.ScalarMap[str, int]
    digests: _containers.ScalarMap[str, str]
    require: Require
    prepare_seconds: float
    def __init__(self, heads: _Optional[_Mapping[str, int]] = ..., expected_generation: _Optional[int] = ..., request_id: _Optional[str] = ..., note: _Optional[str] = ..., deactivate: _Optional[_Iterable[str]] = ..., expected_versions: _Optional[_Mapping[str, int]] = ..., digests: _Optional[_Mapping[str, str]] = ..., require: _Optional[_Union[Require, str]] = ..., prepare_seconds: _Optional[float] = ...) -> None: ...

class ActivateHeadsResponse(_message.Message):
    __slots__ = ("generation", "num_pinned_requests", "num_aborted_requests", "num_following_requests", "removed", "behind")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    NUM_PINNED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NUM_ABORTED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NUM_FOLLOWING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    num_pinned_requests: int
    num_aborted_requests: int
    num_following_requests: int
    removed: _containers.RepeatedScalarFieldContainer[str]
    behind: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., num_pinned_requests: _Optional[int] = ..., num_aborted_requests: _Optional[int] = ..., num_following_requests: _Optional[int] = ..., removed: _Optional[_Iterable[str]] = ..., behind: _Optional[_Iterable[str]] = ...) -> None: ...

class RollbackHeadsRequest(_message.Message):
    __slots__ = ("to_generation", "expected_generation", "request_id", "expected_versions", "require", "prepare_seconds")
    class ExpectedVersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    TO_GENERATION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    REQUIRE_FIELD_NUMBER: _ClassVar[int]
    PREPARE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    to_generation: int
    expected_generation: int
    request_id: str
    expected_versions: _containers.ScalarMap[str, int]
    require: Require
    prepare_seconds: float
    def __init__(self, to_generation: _Optional[int] = ..., expected_generation: _Optional[int] = ..., request_id: _Optional[str] = ..., expected_versions: _Optional[_Mapping[str, int]] = ..., require: _Optional[_Union[Require, str]] = ..., prepare_seconds: _Optional[float] = ...) -> None: ...

class RollbackHeadsResponse(_message.Message):
    __slots__ = ("generation", "behind")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    behind: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., behind: _Optional[_Iterable[str]] = ...) -> None: ...

class GetHeadRequest(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: str
    def __init__(self, head: _Optional[str] = ...) -> None: ...

class GetHeadResponse(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: HeadVersion
    def __init__(self, head: _Optional[_Union[HeadVersion, _Mapping]] = ...) -> None: ...

class ListHeadTensorsRequest(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: str
    def __init__(self, head: _Optional[str] = ...) -> None: ...

class StoredTensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    sha256: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class ListHeadTensorsResponse(_message.Message):
    __slots__ = ("head", "tensors")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    head: HeadVersion
    tensors: _containers.RepeatedCompositeFieldContainer[StoredTensor]
    def __init__(self, head: _Optional[_Union[HeadVersion, _Mapping]] = ..., tensors: _Optional[_Iterable[_Union[StoredTensor, _Mapping]]] = ...) -> None: ...

class ListHeadsRequest(_message.Message):
    __slots__ = ("name", "page_size", "page_token")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    page_size: int
    page_token: str
    def __init__(self, name: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListHeadsResponse(_message.Message):
    __slots__ = ("heads", "next_page_token")
    HEADS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    heads: _containers.RepeatedCompositeFieldContainer[HeadVersion]
    next_page_token: str
    def __init__(self, heads: _Optional[_Iterable[_Union[HeadVersion, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class LabelHeadRequest(_message.Message):
    __slots__ = ("head", "add", "remove", "request_id")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    ADD_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    head: str
    add: _containers.RepeatedScalarFieldContainer[str]
    remove: _containers.RepeatedScalarFieldContainer[str]
    request_id: str
    def __init__(self, head: _Optional[str] = ..., add: _Optional[_Iterable[str]] = ..., remove: _Optional[_Iterable[str]] = ..., request_id: _Optional[str] = ...) -> None: ...

class LabelHeadResponse(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: HeadVersion
    def __init__(self, head: _Optional[_Union[HeadVersion, _Mapping]] = ...) -> None: ...

class DeleteHeadRequest(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: str
    def __init__(self, head: _Optional[str] = ...) -> None: ...

class DeleteHeadResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListGenerationsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListGenerationsResponse(_message.Message):
    __slots__ = ("generations", "next_page_token")
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    generations: _containers.RepeatedCompositeFieldContainer[Generation]
    next_page_token: str
    def __init__(self, generations: _Optional[_Iterable[_Union[Generation, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchHeadsRequest(_message.Message):
    __slots__ = ("after_generation",)
    AFTER_GENERATION_FIELD_NUMBER: _ClassVar[int]
    after_generation: int
    def __init__(self, after_generation: _Optional[int] = ...) -> None: ...

class WatchHeadsResponse(_message.Message):
    __slots__ = ("generation",)
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ...) -> None: ...
