from polyhead.v1 import options_pb2 as _options_pb2
from polyhead.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ConfigurationKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONFIGURATION_KIND_UNSPECIFIED: _ClassVar[ConfigurationKind]
    CONFIGURATION_KIND_RULE_SET: _ClassVar[ConfigurationKind]
    CONFIGURATION_KIND_RULE_TEMPLATE: _ClassVar[ConfigurationKind]
    CONFIGURATION_KIND_RECIPE: _ClassVar[ConfigurationKind]
    CONFIGURATION_KIND_TRANSCRIPT_FORMAT: _ClassVar[ConfigurationKind]
CONFIGURATION_KIND_UNSPECIFIED: ConfigurationKind
CONFIGURATION_KIND_RULE_SET: ConfigurationKind
CONFIGURATION_KIND_RULE_TEMPLATE: ConfigurationKind
CONFIGURATION_KIND_RECIPE: ConfigurationKind
CONFIGURATION_KIND_TRANSCRIPT_FORMAT: ConfigurationKind

class ScoreItem(_message.Message):
    __slots__ = ("prompt", "text", "token_ids", "terminated")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TERMINATED_FIELD_NUMBER: _ClassVar[int]
    prompt: _types_pb2.Prompt
    text: str
    token_ids: _types_pb2.TokenIds
    terminated: bool
    def __init__(self, prompt: _Optional[_Union[_types_pb2.Prompt, _Mapping]] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[_types_pb2.TokenIds, _Mapping]] = ..., terminated: _Optional[bool] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("items", "score", "sampling", "request_id", "on_swap", "priority", "generation", "history_id")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ON_SWAP_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    HISTORY_ID_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ScoreItem]
    score: _types_pb2.ScoringSpec
    sampling: _types_pb2.Sampling
    request_id: str
    on_swap: _types_pb2.OnSwap
    priority: _types_pb2.Priority
    generation: int
    history_id: str
    def __init__(self, items: _Optional[_Iterable[_Union[ScoreItem, _Mapping]]] = ..., score: _Optional[_Union[_types_pb2.ScoringSpec, _Mapping]] = ..., sampling: _Optional[_Union[_types_pb2.Sampling, _Mapping]] = ..., request_id: _Optional[str] = ..., on_swap: _Optional[_Union[_types_pb2.OnSwap, str]] = ..., priority: _Optional[_Union[_types_pb2.Priority, str]] = ..., generation: _Optional[int] = ..., history_id: _Optional[str] = ...) -> None: ...

class ScoredItem(_message.Message):
    __slots__ = ("prompt_token_ids", "token_ids", "terminated", "scores", "error", "num_cached_tokens", "valid", "invalid_reasons", "num_newlines", "format", "reward", "ood", "work")
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TERMINATED_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VALID_FIELD_NUMBER: _ClassVar[int]
    INVALID_REASONS_FIELD_NUMBER: _ClassVar[int]
    NUM_NEWLINES_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    OOD_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    terminated: bool
    scores: _containers.RepeatedCompositeFieldContainer[_types_pb2.HeadScore]
    error: str
    num_cached_tokens: int
    valid: bool
    invalid_reasons: _containers.RepeatedScalarFieldContainer[str]
    num_newlines: int
    format: str
    reward: _types_pb2.Reward
    ood: _types_pb2.OodScore
    work: _types_pb2.WorkDone
    def __init__(self, prompt_token_ids: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., terminated: _Optional[bool] = ..., scores: _Optional[_Iterable[_Union[_types_pb2.HeadScore, _Mapping]]] = ..., error: _Optional[str] = ..., num_cached_tokens: _Optional[int] = ..., valid: _Optional[bool] = ..., invalid_reasons: _Optional[_Iterable[str]] = ..., num_newlines: _Optional[int] = ..., format: _Optional[str] = ..., reward: _Optional[_Union[_types_pb2.Reward, _Mapping]] = ..., ood: _Optional[_Union[_types_pb2.OodScore, _Mapping]] = ..., work: _Optional[_Union[_types_pb2.WorkDone, _Mapping]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("items", "served", "request_id")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ScoredItem]
    served: _types_pb2.Served
    request_id: str
    def __init__(self, items: _Optional[_Iterable[_Union[ScoredItem, _Mapping]]] = ..., served: _Optional[_Union[_types_pb2.Served, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class ListConfigurationsRequest(_message.Message):
    __slots__ = ("kind",)
    KIND_FIELD_NUMBER: _ClassVar[int]
    kind: ConfigurationKind
    def __init__(self, kind: _Optional[_Union[ConfigurationKind, str]] = ...) -> None: ...

class Configuration(_message.Message):
    __slots__ = ("kind", "reference", "sha256", "content", "rules", "set_aside", "added")
    KIND_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    SET_ASIDE_FIELD_NUMBER: _ClassVar[int]
    ADDED_FIELD_NUMBER: _ClassVar[int]
    kind: ConfigurationKind
    reference: str
    sha256: str
    content: str
    rules: _containers.RepeatedCompositeFieldContainer[_types_pb2.Rule]
    set_aside: str
    added: bool
    def __init__(self, kind: _Optional[_Union[ConfigurationKind, str]] = ..., reference: _Optional[str] = ..., sha256: _Optional[str] = ..., content: _Optional[str] = ..., rules: _Optional[_Iterable[_Union[_types_pb2.Rule, _Mapping]]] = ..., set_aside: _Optional[str] = ..., added: _Optional[bool] = ...) -> None: ...

class AddConfigurationRequest(_message.Message):
    __slots__ = ("content", "request_id")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    content: str
    request_id: str
    def __init__(self, content: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class AddConfigurationResponse(_message.Message):
    __slots__ = ("configuration",)
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    configuration: Configuration
    def __init__(self, configuration: _Optional[_Union[Configuration, _Mapping]] = ...) -> None: ...

class RetireConfigurationRequest(_message.Message):
    __slots__ = ("reference", "kind", "request_id")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    reference: str
    kind: ConfigurationKind
    request_id: str
    def __init__(self, reference: _Optional[str] = ..., kind: _Optional[_Union[ConfigurationKind, str]] = ..., request_id: _Optional[str] = ...) -> None: ...

class RetireConfigurationResponse(_message.Message):
    __slots__ = ("kind", "reference", "sha256")
    KIND_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    kind: ConfigurationKind
    reference: str
    sha256: str
    def __init__(self, kind: _Optional[_Union[ConfigurationKind, str]] = ..., reference: _Optional[str] = ..., sha256: _Optional[str] = ...) -> None: ...

class ListConfigurationsResponse(_message.Message):
    __slots__ = ("configurations",)
    CONFIGURATIONS_FIELD_NUMBER: _ClassVar[int]
    configurations: _containers.RepeatedCompositeFieldContainer[Configuration]
    def __init__(self, configurations: _Optional[_Iterable[_Union[Configuration, _Mapping]]] = ...) -> None: ...

class TokenizeRulesRequest(_message.Message):
    __slots__ = ("rules", "template")
    RULES_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    rules: _types_pb2.RuleSelection
    template: str
    def __init__(self, rules: _Optional[_Union[_types_pb2.RuleSelection, _Mapping]] = ..., template: _Optional[str] = ...) -> None: ...

class RuleQuestion(_message.Message):
    __slots__ = ("rule_id", "token_ids")
    RULE_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    rule_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, rule_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class TokenizeRulesResponse(_message.Message):
    __slots__ = ("questions", "violated_token_id", "followed_token_id", "rule_set", "template")
    QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    VIOLATED_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    FOLLOWED_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    RULE_SET_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    questions: _containers.RepeatedCompositeFieldContainer[RuleQuestion]
    violated_token_id: int
    followed_token_id: int
    rule_set: str
    template: str
    def __init__(self, questions: _Optional[_Iterable[_Union[RuleQuestion, _Mapping]]] = ..., violated_token_id: _Optional[int] = ..., followed_token_id: _Optional[int] = ..., rule_set: _Optional[str] = ..., template: _Optional[str] = ...) -> None: ...
