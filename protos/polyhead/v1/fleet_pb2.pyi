from polyhead.v1 import options_pb2 as _options_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReplicaState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLICA_STATE_UNSPECIFIED: _ClassVar[ReplicaState]
    REPLICA_STATE_SYNCING: _ClassVar[ReplicaState]
    REPLICA_STATE_SERVING: _ClassVar[ReplicaState]
    REPLICA_STATE_BEHIND: _ClassVar[ReplicaState]
    REPLICA_STATE_LOST: _ClassVar[ReplicaState]
REPLICA_STATE_UNSPECIFIED: ReplicaState
REPLICA_STATE_SYNCING: ReplicaState
REPLICA_STATE_SERVING: ReplicaState
REPLICA_STATE_BEHIND: ReplicaState
REPLICA_STATE_LOST: ReplicaState

class HeldVersion(_message.Message):
    __slots__ = ("name", "version", "record_sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RECORD_SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    record_sha256: bytes
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., record_sha256: _Optional[bytes] = ...) -> None: ...

class HeldRecord(_message.Message):
    __slots__ = ("key", "record_sha256")
    KEY_FIELD_NUMBER: _ClassVar[int]
    RECORD_SHA256_FIELD_NUMBER: _ClassVar[int]
    key: str
    record_sha256: bytes
    def __init__(self, key: _Optional[str] = ..., record_sha256: _Optional[bytes] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("name", "address", "trunk_id", "precision", "tokenizer_sha256", "configuration_sha256", "generation", "history_id", "versions", "generations", "fits", "configurations", "serving")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TRUNK_ID_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_SHA256_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_SHA256_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    HISTORY_ID_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    FITS_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATIONS_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    trunk_id: str
    precision: str
    tokenizer_sha256: str
    configuration_sha256: str
    generation: int
    history_id: str
    versions: _containers.RepeatedCompositeFieldContainer[HeldVersion]
    generations: _containers.RepeatedScalarFieldContainer[int]
    fits: _containers.RepeatedCompositeFieldContainer[HeldRecord]
    configurations: _containers.RepeatedCompositeFieldContainer[HeldRecord]
    serving: bool
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., trunk_id: _Optional[str] = ..., precision: _Optional[str] = ..., tokenizer_sha256: _Optional[str] = ..., configuration_sha256: _Optional[str] = ..., generation: _Optional[int] = ..., history_id: _Optional[str] = ..., versions: _Optional[_Iterable[_Union[HeldVersion, _Mapping]]] = ..., generations: _Optional[_Iterable[int]] = ..., fits: _Optional[_Iterable[_Union[HeldRecord, _Mapping]]] = ..., configurations: _Optional[_Iterable[_Union[HeldRecord, _Mapping]]] = ..., serving: _Optional[bool] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ("generation",)
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    generation: int
    def __init__(self, generation: _Optional[int] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ("number", "error")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    number: int
    error: str
    def __init__(self, number: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class Leaving(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ("hello", "beat", "done", "leaving")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    beat: Beat
    done: Done
    leaving: Leaving
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ..., done: _Optional[_Union[Done, _Mapping]] = ..., leaving: _Optional[_Union[Leaving, _Mapping]] = ...) -> None: ...

class StoreVersion(_message.Message):
    __slots__ = ("record",)
    RECORD_FIELD_NUMBER: _ClassVar[int]
    record: bytes
    def __init__(self, record: _Optional[bytes] = ...) -> None: ...

class ForgetVersions(_message.Message):
    __slots__ = ("heads",)
    HEADS_FIELD_NUMBER: _ClassVar[int]
    heads: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, heads: _Optional[_Iterable[str]] = ...) -> None: ...

class CommitGeneration(_message.Message):
    __slots__ = ("record",)
    RECORD_FIELD_NUMBER: _ClassVar[int]
    record: bytes
    def __init__(self, record: _Optional[bytes] = ...) -> None: ...

class KeepGeneration(_message.Message):
    __slots__ = ("record",)
    RECORD_FIELD_NUMBER: _ClassVar[int]
    record: bytes
    def __init__(self, record: _Optional[bytes] = ...) -> None: ...

class Prepare(_message.Message):
    __slots__ = ("heads", "seconds")
    class HeadsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    HEADS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    heads: _containers.ScalarMap[str, int]
    seconds: float
    def __init__(self, heads: _Optional[_Mapping[str, int]] = ..., seconds: _Optional[float] = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StoreFit(_message.Message):
    __slots__ = ("record", "offset", "data")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    record: bytes
    offset: int
    data: bytes
    def __init__(self, record: _Optional[bytes] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ForgetFit(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class StoreConfiguration(_message.Message):
    __slots__ = ("record", "content")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    record: bytes
    content: bytes
    def __init__(self, record: _Optional[bytes] = ..., content: _Optional[bytes] = ...) -> None: ...

class CaughtUp(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Ping(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FollowResponse(_message.Message):
    __slots__ = ("number", "store_version", "forget_versions", "commit_generation", "keep_generation", "prepare", "abort", "store_fit", "forget_fit", "store_configuration", "caught_up", "ping")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    STORE_VERSION_FIELD_NUMBER: _ClassVar[int]
    FORGET_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    COMMIT_GENERATION_FIELD_NUMBER: _ClassVar[int]
    KEEP_GENERATION_FIELD_NUMBER: _ClassVar[int]
    PREPARE_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    STORE_FIT_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIT_FIELD_NUMBER: _ClassVar[int]
    STORE_CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    CAUGHT_UP_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    number: int
    store_version: StoreVersion
    forget_versions: ForgetVersions
    commit_generation: CommitGeneration
    keep_generation: KeepGeneration
    prepare: Prepare
    abort: Abort
    store_fit: StoreFit
    forget_fit: ForgetFit
    store_configuration: StoreConfiguration
    caught_up: CaughtUp
    ping: Ping
    def __init__(self, number: _Optional[int] = ..., store_version: _Optional[_Union[StoreVersion, _Mapping]] = ..., forget_versions: _Optional[_Union[ForgetVersions, _Mapping]] = ..., commit_generation: _Optional[_Union[CommitGeneration, _Mapping]] = ..., keep_generation: _Optional[_Union[KeepGeneration, _Mapping]] = ..., prepare: _Optional[_Union[Prepare, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ..., store_fit: _Optional[_Union[StoreFit, _Mapping]] = ..., forget_fit: _Optional[_Union[ForgetFit, _Mapping]] = ..., store_configuration: _Optional[_Union[StoreConfiguration, _Mapping]] = ..., caught_up: _Optional[_Union[CaughtUp, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ...) -> None: ...

class ListReplicasRequest(_message.Message):
    __slots__ = ("watch",)
    WATCH_FIELD_NUMBER: _ClassVar[int]
    watch: bool
    def __init__(self, watch: _Optional[bool] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("name", "address", "generation", "state", "error", "primary", "silent_seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_FIELD_NUMBER: _ClassVar[int]
    SILENT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    generation: int
    state: ReplicaState
    error: str
    primary: bool
    silent_seconds: float
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., generation: _Optional[int] = ..., state: _Optional[_Union[ReplicaState, str]] = ..., error: _Optional[str] = ..., primary: _Optional[bool] = ..., silent_seconds: _Optional[float] = ...) -> None: ...

class ListReplicasResponse(_message.Message):
    __slots__ = ("replicas", "history_id")
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_ID_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    history_id: str
    def __init__(self, replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ..., history_id: _Optional[str] = ...) -> None: ...
